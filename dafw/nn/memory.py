"""A learnable memory of items with several sub-prototypes each. Sparse attention reads it."""

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dafw.errors import UserError, choose
from dafw.nn.consensus import kmeans
from dafw.nn.precision import full_precision

Reading = Literal["per_item", "global"]
Start = Literal["random", "data"]


class Read(NamedTuple):
    """The result of reading a memory of N items with S sub-prototypes each, for n rows.

    Attributes:
        embedding: (n, D), the weighted sum of the sub-prototypes.
        weights: (n, N, S), the sparse weights. A row's sum to 1, or to 0 if none is above a fixed threshold.
        winners: (n, N) int64, each item's most similar sub-prototype.
        query: (n, D), the embedding that was compared.
        attention: (n, N) or (n, N S), the weights before the threshold. A row's sum to 1.
    """

    embedding: Tensor
    weights: Tensor
    winners: Tensor
    query: Tensor
    attention: Tensor

    def strongest(self) -> tuple[Tensor, Tensor]:
        """The item and the sub-prototype with each row's largest weight, (n,) int64 both; the first of equal ones."""
        found, count = self.weights.flatten(1).argmax(1), self.weights.shape[2]
        return found // count, found % count

    def entropy(self) -> Tensor:
        """Entropy of each row's attention by its largest value, (n,): 1 if all weights are equal, 0 if one is 1."""
        return normalised_entropy(self.attention)


class SubPrototypeMemory(nn.Module):
    """Replaces an embedding by a convex combination of the few learnt vectors that are most similar to it.

    The similarities are z . m_is. ``per_item`` takes each item's most similar sub-prototype s_i and a softmax over the
    N items. ``global`` takes one softmax over all N S sub-prototypes. Weights at or below a threshold become 0. The
    others are scaled to sum to 1.

    Lai et al., Memory-Assisted Sub-Prototype Mining for Universal Domain Adaptation, ICLR 2024,
    https://arxiv.org/abs/2310.05453 (recalled). The initial values and the shrinkage are those of MemAE, Gong et al.,
    ICCV 2019, https://arxiv.org/abs/1904.02639. MemAE is ``sub_prototypes=1`` with a fixed threshold.

    Args:
        items: N.
        sub_prototypes: S of each item.
        dim: D, the width of an embedding.
        top_k: number K of weights above the adaptive threshold, which is the (K + 1)-th largest of a row. The K-th
            as threshold would leave K - 1. Equal weights may leave fewer than K. If none is left, as in a memory of
            equal vectors, the row keeps all its weights.
        reading: see above. Which of the two the paper has is unsure.
        threshold: ``adaptive``, or a fixed number for all rows as in MemAE. Under a fixed one, a row without a weight
            above it has the embedding 0, as in MemAE.
        normalise: compare by cosines. The vectors that are summed keep their length. MemAE compares by plain products;
            what the paper does is unsure.
        temperature: divides the similarities (MemAE: 1). Cosines need a small one, or all weights are nearly equal.
        start: ``random``: uniform in +-1 / sqrt(D), as in MemAE. ``data``: embeddings, which :meth:`fill` takes. Until
            then :meth:`forward` returns what it is given, and the memory gets a gradient of zeros.
        epsilon: of the shrinkage w max(w - t, 0) / (|w - t| + epsilon). MemAE has 1e-12, which acts only on weights
            within about 1e-9 of the threshold t, and gives these gradients as large as w / epsilon. 0 is the limit: a
            weight above the threshold stays, with its gradient, and the threshold has no gradient.

    Attributes:
        memory: (N, S, D), at first uniform in +-1 / sqrt(D).
        filled: bool scalar, whether :meth:`fill` was called; it exists with ``start: data`` alone.
        attention_entropy: the mean of :meth:`Read.entropy` over the rows of the last pass in training mode.

    Raises:
        UserError: for sizes below 1, a ``top_k`` above the number of weights, a threshold that no weight can exceed,
            or a temperature of 0 or less.
    """

    filled: Tensor

    def __init__(
        self,
        items: int,
        sub_prototypes: int,
        dim: int,
        top_k: int,
        *,
        reading: Reading = "per_item",
        threshold: Literal["adaptive"] | float = "adaptive",
        normalise: bool = False,
        temperature: float = 1.0,
        start: Start = "random",
        epsilon: float = 0.0,
    ) -> None:
        super().__init__()
        if min(items, sub_prototypes, dim) < 1:
            raise UserError(
                f"a memory needs items, sub_prototypes and dim of 1 or more: {items}, {sub_prototypes}, {dim}"
            )
        choose("reading", reading, ("per_item", "global"))
        weights = items if reading == "per_item" else items * sub_prototypes
        if not 1 <= top_k <= weights:
            raise UserError(
                f"top_k is at least 1 and at most the {weights} weights of a {reading} reading, not {top_k}"
            )
        if isinstance(threshold, str):
            choose("threshold", threshold, ("adaptive",))
        elif not 0 <= threshold < 1:
            raise UserError(f"threshold is adaptive, or a number at least 0 and below 1, not {threshold}")
        if temperature <= 0 or epsilon < 0:
            raise UserError(f"temperature is positive and epsilon not negative, not {temperature} and {epsilon}")
        self.top_k, self.reading, self.threshold = top_k, reading, threshold
        self.normalise, self.temperature, self.epsilon = normalise, temperature, epsilon
        self.memory = nn.Parameter(torch.empty(items, sub_prototypes, dim).uniform_(-(dim**-0.5), dim**-0.5))
        self.start = choose("start", start, ("random", "data"))
        if start == "data":
            self.register_buffer("filled", torch.tensor(False))
        self.attention_entropy: Tensor | None = None

    @torch.no_grad()
    def fill(self, embeddings: Tensor) -> None:
        """Makes embeddings (N, S, D) the memory, see ``start``."""
        self.memory.copy_(embeddings)
        self.filled.fill_(True)

    def read(self, z: Tensor) -> Read:
        """Reads for embeddings (n, D). It computes in float32 or wider, also under autocast."""
        with torch.autocast(z.device.type, enabled=False):
            memory, z = full_precision(self.memory), full_precision(z)
            attention, winners = self.attend(z, memory)
            adaptive = isinstance(self.threshold, str)
            limit = adaptive_threshold(attention, self.top_k) if adaptive else attention.new_tensor(self.threshold)
            kept = hard_shrink(attention, limit, self.epsilon)
            if adaptive:
                kept = torch.where((kept > 0).any(1, keepdim=True), kept, attention)
            sparse = F.normalize(kept, p=1, dim=1)
            if self.reading == "global":
                weights = sparse.view(z.shape[0], *memory.shape[:2])
            else:  # zeros for all but the winners
                weights = sparse.new_zeros(z.shape[0], *memory.shape[:2]).scatter(
                    2, winners[..., None], sparse[..., None]
                )
            return Read(weights.flatten(1) @ memory.flatten(0, 1), weights, winners, z, attention)

    def attend(self, z: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Weights before the threshold, (n, N) or (n, N S), and the winners (n, N)."""
        keys = memory.flatten(0, 1)
        if self.normalise:
            z, keys = F.normalize(z, dim=1), F.normalize(keys, dim=1)
        similarities = (z @ keys.t() / self.temperature).view(z.shape[0], *memory.shape[:2])
        best, winners = similarities.max(2)
        logits = best if self.reading == "per_item" else similarities.flatten(1)
        return logits.softmax(1), winners

    def forward(self, z: Tensor) -> Tensor:
        """The embeddings read for (n, D), of the same shape; (n, D) itself while nothing has filled the memory."""
        found = self.read(z)
        if self.training:
            self.attention_entropy = found.entropy().detach().mean()
        return found.embedding if self.start == "random" else torch.where(self.filled, found.embedding, found.query)

    def extra_repr(self) -> str:
        """What ``print`` shows between the parentheses."""
        items, sub_prototypes, dim = self.memory.shape
        sizes = f"items={items}, sub_prototypes={sub_prototypes}, dim={dim}"
        return f"{sizes}, top_k={self.top_k}, reading={self.reading}, threshold={self.threshold}"


def normalised_entropy(weights: Tensor) -> Tensor:
    """-sum w log w / log m of weights (n, m) whose rows sum to 1: (n,), in [0, 1]; 0 for m = 1."""
    entropy: Tensor = torch.special.entr(weights).sum(1)
    return entropy / max(math.log(weights.shape[1]), 1e-12)


def starting_rows(embeddings: Tensor, items: int, sub_prototypes: int) -> Tensor:
    """Embeddings that a memory can start from: (n, D) on the host -> (N, S, D), a function of the arguments.

    k-means of the embeddings' directions makes ``items`` clusters, one for each item. The item's sub-prototypes are
    embeddings of its cluster, evenly spaced from the nearest to the centre to the farthest. They repeat where a cluster
    has fewer. Where there are fewer distinct embeddings than items, the clusters repeat.
    """
    units = F.normalize(embeddings, dim=1)
    centres, codes = kmeans(units, min(items, len(units)), trials=1)
    distances = (units - centres[codes]).square().sum(1)
    rows, used = [], torch.unique(codes)  # equal embeddings leave clusters empty
    for item in range(items):
        own = torch.nonzero(codes == used[item % len(used)]).flatten()
        own = own[distances[own].argsort(stable=True)]
        places = torch.arange(sub_prototypes) * len(own) // sub_prototypes
        rows.append(embeddings[own[places]])
    return torch.stack(rows)


def adaptive_threshold(weights: Tensor, top_k: int) -> Tensor:
    """The (K + 1)-th largest weight of each row, (n, m) -> (n, 1); 0 where there are only K."""
    if top_k == weights.shape[1]:
        return weights.new_zeros(weights.shape[0], 1)
    return weights.topk(top_k + 1, dim=1).values[:, -1:]


def hard_shrink(weights: Tensor, threshold: Tensor, epsilon: float = 0.0) -> Tensor:
    """Sets non-negative weights at or below the threshold to 0: w max(w - t, 0) / (|w - t| + epsilon).

    Args:
        weights: (n, m).
        threshold: (n, 1) or a scalar.
        epsilon: see :class:`SubPrototypeMemory`.
    """
    excess = weights - threshold
    if epsilon == 0:
        return torch.where(excess > 0, weights, 0)
    return weights * (
        1 - epsilon / (excess.relu() + epsilon)
    )  # the same, without the difference of two large gradients
