"""CMA: an image is contrasted with its reference of another condition."""

import math
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dafw.data.batch import Batch
from dafw.data.padding import IGNORE, covered_positions, join_padded
from dafw.errors import UserError
from dafw.losses.cross_domain import cell_contrast, enqueue, pool
from dafw.losses.pixel_terms import pixel_entropy
from dafw.methods.base import Losses
from dafw.methods.source_free.base import SourceFreeMethod
from dafw.methods.targets import sum_over_targets
from dafw.nn.alignment import Alignment, Identity
from dafw.nn.distributed import gather_rows
from dafw.nn.precision import full_precision
from dafw.nn.teacher import Teacher
from dafw.problems import MaskOutputs
from dafw.problems.model import NetworkBase
from dafw.ranges import ClosedUnitInterval, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

#: Steps between 0 and 1 in which confidences are counted, to find the thresholds of the pseudo-labels.
BINS = 1000


class CMA(SourceFreeMethod):
    """Features of an image in a bad condition come near those of the same place in a good one.

    Loss: CE(logits, pseudo-labels) + entropy_weight * mean_i H(p_i) / log K + weight * contrast, over the target's
    images, features (n, d, h, w) and logits (n, K, H, W). ``contrast`` is an InfoNCE loss over the cells of a grid: the
    projected features of the image against those of its reference, which a slow copy of the network makes and ``align``
    brings to the image's frame. The negatives are a queue of embeddings of earlier images in the bad condition, by the
    same copy. The label head is frozen. In the first ``warmup_steps`` the contrast trains the projection alone.

    Bruggemann et al., Contrastive Model Adaptation for Cross-Condition Robustness in Semantic Segmentation, ICCV 2023,
    https://arxiv.org/abs/2303.05194; losses and constants as in the authors' code. Differences: the authors align by a
    dense matcher (UAWarpC), which is given here as a class of your own. They average the source model over flips and
    seven scales to make pseudo-labels once; here it sees each training image as augmented, at one scale. They project
    several levels of a SegFormer; here ``features`` alone. Their slow copy normalises by batch statistics if it has
    any; here by averaged running statistics.

    The control trains by the pseudo-labels alone.

    Args:
        network: images (N, C, H, W) to features (N, d, h, w) and logits (N, K, H, W).
        checkpoint: the source model: a checkpoint, or the directory of a run.
        weight: weight of the contrast (authors' code: 1).
        entropy_weight: weight of the entropy (authors' code: 0.01 for SegFormer, 1 for DeepLabv2).
        share: of the pixels of each predicted class, the share with the highest confidence whose lowest one is the
            class's threshold; pixels below it have no pseudo-label (authors' code: 0.2).
        align: brings features of the reference to the image's frame; the identity if ``None``.
        width: channels of the projection (authors' code: 128).
        projection_lr: learning rate of the projection as a multiple of ``lr`` (authors' code: 10).
        cells: cells in a row and in a column of the grid (authors' code: 7).
        temperature: of the contrast (authors' code: 0.3; 0.03 on Dark Zurich).
        least_confidence: mean confidence of ``align`` that a cell needs to count (authors' code: 0.2).
        queue_size: embeddings in the queue (authors' code: 65536).
        warmup_steps: see above (authors' code: 2500).
        decay: of the slow copy, which is min(decay, 1 - 1 / (t + 1)) at step t (authors' code: 0.9999).
        optimizer: see the base (authors' code: AdamW).
        lr: see the base (authors' code: 1e-5, after 1500 steps of warm-up, then falling linearly to 0).
        weight_decay: see the base (authors' code: 0.01, none for biases).
        base: see :class:`~dafw.methods.base.Method`.

    Raises:
        UserError: when training starts, if an image has no reference, or if images are augmented that a fixed alignment
            is for.
    """

    kinds = ("segmentation",)
    references = True
    control: ClassVar[dict[str, Any]] = {"weight": 0.0, "entropy_weight": 0.0}
    control_difference_reason: ClassVar[str] = "it starts from the source model and learns its pseudo-labels"
    control_learns_target: ClassVar[bool] = True
    search_space: ClassVar[dict[str, Any]] = {"weight": (0.1, 3.0), "temperature": (0.03, 1.0), "lr": (1e-6, 1e-3)}
    thresholds: Tensor
    queue: Tensor
    pointer: Tensor

    def __init__(  # type: ignore[no-untyped-def]
        self,
        network: NetworkBase,
        *,
        checkpoint: str | None = None,
        weight: NonNegativeFloat = 1.0,
        entropy_weight: NonNegativeFloat = 0.01,
        share: ClosedUnitInterval = 0.2,
        align: Alignment | None = None,
        width: PositiveInt = 128,
        projection_lr: PositiveFloat = 10.0,
        cells: PositiveInt = 7,
        temperature: PositiveFloat = 0.3,
        least_confidence: ClosedUnitInterval = 0.2,
        queue_size: PositiveInt = 65536,
        warmup_steps: NonNegativeInt = 2500,
        decay: ClosedUnitInterval = 0.9999,
        optimizer: str = "adamw",
        lr: PositiveFloat = 1e-5,
        weight_decay: NonNegativeFloat = 0.01,
        **base,
    ) -> None:
        super().__init__(network, checkpoint=checkpoint, optimizer=optimizer, lr=lr, weight_decay=weight_decay, **base)
        self.weight, self.entropy_weight, self.share = weight, entropy_weight, share
        self.cells, self.temperature, self.least_confidence = cells, temperature, least_confidence
        self.warmup_steps, self.projection_lr = warmup_steps, projection_lr
        assert network.head is not None
        network.head.requires_grad_(False)
        self.align = align or Identity()
        self.projection = projection(network.num_features, width)
        self.source_model = Teacher(network, 1.0)
        self.slow_network = Teacher(network, decay, warmup=True)
        self.slow_projection = Teacher(self.projection, decay, warmup=True)
        self.register_buffer("thresholds", torch.ones(self.num_classes))
        self.register_buffer("queue", F.normalize(torch.randn(width, queue_size), dim=0))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The base's, with the projection at its own rate."""
        *network, own = super().parameter_groups()
        return [*network, {**own, "lr": own["lr"] * self.projection_lr}]

    def on_fit_start(self) -> None:
        """As the base; refuses an augmentation that moves images which a fixed alignment is for."""
        super().on_fit_start()
        data: Any = self.data
        if self.align.needs_stored_images and data.augmentation() is not None:
            raise UserError(
                f"model.align {type(self.align).__name__} is for images as they are stored, and the data moves them: "
                "leave out data.augment and data.crop"
            )

    # ---- pseudo-labels

    def on_train_start(self) -> None:
        """Finds the thresholds of the pseudo-labels, if the first step follows."""
        if self.steps_done == 0:
            counts = sum_over_targets(self, confidence_counts, (self.num_classes, BINS), self.source_model.module)
            self.thresholds.copy_(class_thresholds(counts, self.share))

    @torch.no_grad()
    def labels_of(self, batch: Batch) -> Tensor:
        """Pseudo-labels (n, H, W) uint8 of the images by the source model, 255 where it is not sure or in padding."""
        outputs = self.forward_rows(batch.x, 0, self.source_model.module, batch.sizes)
        scores = full_precision(outputs.logits).softmax(1) / self.thresholds[:, None, None]
        score, label = scores.max(1)
        known, valid = score >= 1, outputs.valid()
        return label.to(torch.uint8).masked_fill(~(known if valid is None else known & valid), IGNORE)

    # ---- the step

    def adapt(self, target: Any, batch: Batch) -> Losses:
        """The cross-entropy with the pseudo-labels, the entropy, and the contrast."""
        entropy = pixel_entropy(target.logits, target.valid()) / math.log(max(self.num_classes, 2))
        return {
            "pseudo": self.problem.loss(target, self.labels_of(batch)),
            "entropy": self.entropy_weight * entropy,
            "contrast": self.weight * self.contrast(target, batch),
        }

    def contrast(self, target: MaskOutputs, batch: Batch) -> Tensor:
        """The contrast of the images' features with those of their references; the images enter the queue."""
        features = target.features.detach() if self.step < self.warmup_steps else target.features
        reference, count = batch.views["reference"], len(batch)
        sizes = batch.view_sizes.get("reference")
        with torch.no_grad():
            images, both = join_padded([(batch.x, batch.sizes), (reference, sizes)])
            slow = self.forward_rows(images, 0, self.slow_network.module, both).features
            embedded = self.slow_projection(slow)
            negatives, positives = embedded[:count], embedded[count:]
            positives, confidence = self.align(positives, reference, batch.x, batch.sizes)
            extents = extents_of(target)
            self.enter(pool(negatives, self.cells, extents).view(count, self.cells**2, -1))
        return cell_contrast(
            self.projection(features),
            positives,
            confidence,
            self.queue,
            extents,
            cells=self.cells,
            temperature=self.temperature,
            least_confidence=self.least_confidence,
        )

    def enter(self, embedded: Tensor) -> None:
        """Proposes the queue after all ranks' embeddings (n, G^2, d) entered it."""
        rows = F.normalize(full_precision(gather_rows(embedded)).flatten(0, 1), dim=1)
        queue, pointer = enqueue(self.queue, self.pointer, rows)
        self.propose(queue=queue, pointer=pointer)


def extents_of(outputs: MaskOutputs) -> Tensor | None:
    """The rows and columns (n, 2) of the features that belong to each image; ``None`` if all do."""
    if outputs.sizes is None:
        return None
    (height, width), (rows, columns) = outputs.logits.shape[2:], outputs.features.shape[2:]
    return covered_positions(outputs.sizes, (height, width), (rows, columns))


def projection(width: int, out: int) -> nn.Sequential:
    """Two pixelwise layers, (N, d, h, w) -> (N, out, h, w), initialised as in the authors' code."""
    hidden, last = nn.Conv2d(width, width, 1), nn.Conv2d(width, out, 1)
    nn.init.kaiming_normal_(hidden.weight, mode="fan_out", nonlinearity="relu")
    nn.init.normal_(last.weight, std=0.01)
    for layer in (hidden, last):
        assert layer.bias is not None
        nn.init.zeros_(layer.bias)
    return nn.Sequential(hidden, nn.ReLU(), last)


def confidence_counts(outputs: MaskOutputs) -> Tensor:
    """How many pixels of each predicted class have each confidence, (K, BINS) in float64."""
    classes = outputs.logits.shape[1]
    share, label = full_precision(outputs.logits).softmax(1).max(1)
    place = label * BINS + (share * BINS).long().clamp_max(BINS - 1)
    valid = outputs.valid()
    weights = torch.ones_like(share) if valid is None else valid
    return torch.bincount(place.flatten(), weights.flatten().double(), classes * BINS).view(classes, BINS)


def class_thresholds(counts: Tensor, share: float) -> Tensor:
    """The confidence that a share of each class's pixels has at least, (K, BINS) -> (K,); 1 for a class without any."""
    from_above = counts.flip(1).cumsum(1)
    wanted = (share * from_above[:, -1:]).floor()
    bins = (from_above < wanted).sum(1) + 1
    return torch.where(wanted[:, 0] > 0, 1 - bins / counts.shape[1], 1.0)
