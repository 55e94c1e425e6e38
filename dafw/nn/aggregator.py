"""What several experts see of a sample, brought together."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dafw.errors import UserError


class ExpertAggregator(nn.Module):
    """The mean of the experts' features after one block of a transformer whose tokens are the experts.

    x (n, E, d) -> x + MHA(LN x) -> x + FF(LN x) -> the mean over E. The block has no dropout and does not know the
    order of the experts. Zhong et al., Meta-DMoE: Adapting to Domain Shift by Meta-Distillation from
    Mixture-of-Experts, NeurIPS 2022, https://arxiv.org/abs/2210.03885.

    Args:
        width: d.
        classes: K.
        heads: of the attention (authors' code: 16).
        attends: whether there is a block; if not, the features' mean is all.

    Raises:
        UserError: if ``heads`` does not divide ``width``.
    """

    def __init__(self, width: int, classes: int, *, heads: int = 16, attends: bool = True) -> None:
        super().__init__()
        if attends and width % heads:
            raise UserError(f"model.heads is {heads}, and must divide the {width} features of the network")
        self.attends = attends
        if attends:
            self.norm, self.attention = nn.LayerNorm(width), nn.MultiheadAttention(width, heads, batch_first=True)
            self.forward_norm = nn.LayerNorm(width)
            self.wide, self.narrow = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
            self.head_norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, features: Tensor) -> Tensor:
        """The experts' features (n, E, d) together: (n, d)."""
        if self.attends:
            tokens = self.norm(features)
            features = features + self.attention(tokens, tokens, tokens, need_weights=False)[0]
            features = features + self.narrow(F.gelu(self.wide(self.forward_norm(features))))
        return features.mean(1)

    def classify(self, features: Tensor) -> Tensor:
        """Logits (n, K) of the experts' features (n, E, d), by a label head that the block learns with."""
        logits: Tensor = self.head(self.head_norm(self(features)))
        return logits


def other_experts(features: Tensor, home: int) -> Tensor:
    """The features (n, E, d) of all experts but one, (n, E - 1, d)."""
    return torch.cat([features[:, :home], features[:, home + 1 :]], 1)
