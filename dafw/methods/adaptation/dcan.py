"""DCAN: domain conditioned adaptation network."""

from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized
from torchvision.transforms.v2.functional import ten_crop as crop_ten

from dafw.data.batch import Batch
from dafw.errors import UserError
from dafw.losses.entropy import mean_entropy
from dafw.losses.mmd import cyclic_mmd, subset_cyclic_mmd, subset_mmd
from dafw.methods.adaptation.base import AdaptationMethod
from dafw.methods.base import Losses
from dafw.nn.attention import convert_attention, domain_attentions
from dafw.nn.distributed import from_first_rank, gather_rows
from dafw.nn.mlp import Residual
from dafw.nn.network import Network
from dafw.nn.norm import DomainBatchNorm, NormMode
from dafw.nn.precision import full_precision
from dafw.optim.schedules import InverseDecay
from dafw.problems import Outputs
from dafw.problems.model import NetworkBase, check_scale
from dafw.ranges import NonNegativeFloat, PositiveInt

#: The one kernel on class scores: count and bandwidth (read in the authors' code).
ON_SCORES: dict[str, Any] = {"count": 1, "bandwidth": 1.68}


class DCAN(AdaptationMethod):
    """Channel attention with a path for each domain, and blocks that correct the target's features and logits.

    Every squeeze-and-excitation of the backbone gets one squeeze per domain. Let z be the features and C the
    classifier. Source rows get C(z). Target rows get z' = z + B(z) and y' = C(z') + B'(C(z')). B and B' are two
    linear layers each, with a ReLU between them.

    Loss: CE(C(z_s)) + alpha * [MMD_5(z_s, z'_t) + MMD_1(softmax C(z_s), softmax y'_t) + R / K] + beta * mean entropy of
    softmax y'_t; features (n, d), logits (n, K). MMD_5 sums five Gaussian kernels and MMD_1 has one; both take linear
    time. R keeps the blocks close to the identity on the source. It sums over the classes in the batch the squared
    distance of two mean embeddings: of the class's z_s, and of z'_s of a random subset of its rows. The same is added
    for the logits.

    Li et al., Domain Conditioned Adaptation Network, AAAI 2020, https://arxiv.org/abs/2005.06717. Numbers and details
    here were read in the authors' code. Of the paper's R only the form, a distance of mean embeddings, is known to us
    (recalled). Two choices are ours: all classes share one bandwidth, and a class's subset is drawn from its own rows.
    The authors' code draws it from all rows, which compares classes against the labels. The authors' recipe: ``lr``
    0.001, ``backbone_lr`` 0.1, Nesterov momentum, weight decay 0.001, as in experiments/image_folder/dcan.yaml. The
    schedule is (1 + p)^-0.75 if ``None``. Under ``norm: frozen`` scale and shift of the backbone's batch norms are not
    trained either. A linear classifier starts from N(0, 0.01). A moving average, if used, covers the network, not B and
    B'. The control has both weights at 0. Nothing would teach its target's squeezes, B and B', so that the target takes
    the source's path, uncorrected.

    Args:
        network: images (N, C, H, W) to features (N, d) and logits (N, K); must have squeeze-and-excitation.
        alpha: weight of the discrepancies and of R (authors: 1.5).
        beta: weight of the entropy (authors: 0.1).
        width: width of the hidden layer of B (authors: 128); that of B' is K.
        subset: probability that a row is in the subset of its class; in the authors' mode, K times the probability that
            a row is in the subset of any class (authors: 0.8; 2 for ImageCLEF).
        block_lr: learning rate of B and B' as a multiple of ``lr`` (authors: 0.001, which is 0.01 of the backbone's).
        ten_crop: side of ten crops of each image in evaluation; their probabilities are averaged (authors: 224 of 256
            pixels, see the datamodule's ``evaluate_whole``). ``None``: the whole image.
        mode: ``authors`` repeats the differences of their code. R takes linear time, over rows counted from
            a wrong position unless the two subsets are equally large. Subsets have random size and are the first rows.
            The entropy leaves out probabilities below 1e-7.
        base: see :class:`~dafw.methods.base.Method`.

    Raises:
        UserError: if the network has no squeeze-and-excitation, or images are too small for ten crops.
    """

    default_norm: ClassVar[NormMode] = "frozen"
    least_rows: ClassVar[int] = 2
    control: ClassVar[dict[str, Any]] = {"alpha": 0.0, "beta": 0.0}
    control_difference_reason: ClassVar[str] = (
        "the classifier starts from other weights, and what shifts and scales a frozen batch norm is not trained"
    )
    search_space: ClassVar[dict[str, Any]] = {"alpha": (0.1, 3.0), "beta": (0.0, 0.5), "lr": (1e-4, 1e-2)}

    def __init__(  # type: ignore[no-untyped-def]
        self,
        network: Network,
        *,
        alpha: NonNegativeFloat = 1.5,
        beta: NonNegativeFloat = 0.1,
        width: PositiveInt = 128,
        subset: NonNegativeFloat = 0.8,
        block_lr: NonNegativeFloat = 0.001,
        ten_crop: PositiveInt | None = None,
        mode: Literal["paper", "authors"] = "paper",
        **base,
    ) -> None:
        self.alpha, self.beta = alpha, beta
        super().__init__(network, **base)
        self.subset, self.block_lr = subset, block_lr
        self.ten_crop, self.mode = ten_crop, mode
        if base.get("schedule") is None:
            self.schedule = InverseDecay(alpha=1.0)
        if self.norm == "frozen":
            for layer in network.backbone.modules():
                if isinstance(layer, DomainBatchNorm):
                    layer.requires_grad_(False)
        if isinstance(network.head, nn.Linear) and not is_parametrized(network.head):
            nn.init.normal_(network.head.weight, std=0.01)
            nn.init.zeros_(network.head.bias)
        self.correct_features = Residual(network.num_features, width)
        self.correct_logits = Residual(self.num_classes, self.num_classes)
        if self.weight_average is not None:
            self.weight_average.copy_from()

    def build_network(self, network: NetworkBase, num_classes: int) -> None:
        """Gives attention a path for each domain, and the control's one for both."""
        self.condition(network)
        if not self.adapts:
            for attention in domain_attentions(network):
                attention.share_path()

    def condition(self, network: NetworkBase) -> None:
        """Gives attention a path for each domain."""
        if not domain_attentions(network):
            convert_attention(network)

    @property
    def adapts(self) -> bool:
        """Whether anything teaches the target's path and the blocks, which is not so in the control."""
        return bool(self.alpha or self.beta)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The group of the two blocks with its own rate, then the network's groups."""
        *network, blocks = super().parameter_groups()
        return [{**blocks, "lr": self.lr * self.block_lr}, *network]

    # ---- training

    def losses(self, batch: Batch) -> Losses:
        """All terms, from one forward of the joint batch."""
        joint = self.forward_batch(batch)
        return self.terms(joint[: batch.num_source], joint[batch.num_source :], batch.y)

    def terms(self, source: Outputs, target: Outputs, y: Tensor) -> Losses:
        """The terms from uncorrected outputs: source (n_s) with labels y (n_s,), target (n_t)."""
        corrected = self.correct(target, self.network)
        scores = [full_precision(outputs.logits).softmax(1) for outputs in (source, corrected)]
        least = 1e-7 if self.mode == "authors" else 0.0
        return {
            "supervised": self.problem.loss(source, y),
            "mmd_features": self.alpha * cyclic_mmd(source.features, corrected.features),
            "mmd_scores": self.alpha * cyclic_mmd(*scores, **ON_SCORES),
            "regulariser": self.alpha * self.regulariser(source, self.correct(source, self.network), y),
            "entropy": self.beta * mean_entropy(corrected.logits, least=least),
        }

    def correct(self, outputs: Outputs, network: nn.Module) -> Outputs:
        """Features and logits after the two blocks; ``network`` has the classifier."""
        features = self.correct_features(outputs.features)
        return Outputs(features, self.correct_logits(network.head(features)))  # type: ignore[operator]

    def regulariser(self, source: Outputs, corrected: Outputs, y: Tensor) -> Tensor:
        """R / K: compares each class's source rows (n, ...) with a random subset of corrected ones, over all ranks."""
        features, corrected_features = gather_rows(source.features), gather_rows(corrected.features)
        logits, corrected_logits = gather_rows(source.logits), gather_rows(corrected.logits)
        members = gather_rows(y) == torch.arange(self.num_classes, device=y.device)[:, None]
        subsets = members, self.draw_subsets(members)
        distance = partial(subset_cyclic_mmd, offset=True) if self.mode == "authors" else subset_mmd
        on_features = distance(features, corrected_features, *subsets)
        on_logits = distance(logits, corrected_logits, *subsets, **ON_SCORES)
        return (on_features + on_logits).sum() / self.num_classes

    def draw_subsets(self, members: Tensor) -> Tensor:
        """(K, rows) bool, the same on all ranks: True if a row is in the random subset of a class.

        Args:
            members: (K, rows) bool, True if a row belongs to the class.
        """
        draws = from_first_rank(torch.rand(members.shape, dtype=torch.float32, device=self.device))
        if self.mode == "authors":
            chosen = draws < self.subset / self.num_classes
            return torch.arange(members.shape[1], device=self.device) < chosen.sum(1, keepdim=True)
        return members & (draws < self.subset)

    # ---- serving

    def forward(self, x: Any) -> Outputs:
        """Predicts on the target with its own attention and both blocks: images (N, C, H, W) -> outputs."""
        check_scale(x)
        return self.serve(x, source=False)

    def evaluate(self, batch: Batch, source: bool) -> Outputs:
        """Source rows through the source's path without correction, target rows as in :meth:`forward`."""
        return self.serve(batch.x, source)

    def serve(self, x: Any, source: bool) -> Outputs:
        """Outputs for rows of one domain; with ten crops, mean features, and logits of the mean probabilities."""
        if self.ten_crop is None:
            return self.answer(x, source)
        if min(x.shape[-2:]) <= self.ten_crop:
            raise UserError(
                f"model.ten_crop takes crops of {self.ten_crop} pixels, and needs larger images than"
                f" {x.shape[-2]}x{x.shape[-1]}: set data.evaluate_whole, or model.ten_crop to null"
            )
        found = [self.answer(crop, source) for crop in crop_ten(x, [self.ten_crop, self.ten_crop])]
        features = torch.stack([outputs.features for outputs in found]).mean(0)
        scores = torch.stack([full_precision(outputs.logits).log_softmax(1) for outputs in found])
        return Outputs(features, scores.logsumexp(0))

    def answer(self, x: Any, source: bool) -> Outputs:
        """Outputs for rows of one domain, in one pass."""
        outputs = self.forward_rows(x, len(x) if source else None, self.eval_network)
        return self.correct(outputs, self.eval_network) if self.adapts and not source else outputs
