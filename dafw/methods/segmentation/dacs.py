"""DACS: pixels of source classes pasted onto target images, whose rest a teacher labels."""

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from dafw.data.batch import Batch
from dafw.data.padding import valid_positions
from dafw.losses.pseudo_labels import weighted_masks
from dafw.methods.adaptation.base import AdaptationMethod
from dafw.methods.base import Losses
from dafw.nn.class_mix import BLOCKS, class_mask, hide_blocks, paste
from dafw.nn.draws import draw_rows, on_device
from dafw.nn.strong_views import strong_view, strong_views
from dafw.nn.teacher import Teacher
from dafw.problems import NetworkBase
from dafw.problems.segmentation import on_canvas
from dafw.ranges import Checked, ClosedUnitInterval, NonNegativeFloat, NonNegativeInt, PositiveInt


@dataclass(frozen=True)
class Masked(Checked):
    """MIC: masked image consistency. Blocks of target images are hidden, and the teacher's labels of the whole teach.

    Hoyer et al., MIC, CVPR 2023, https://arxiv.org/abs/2212.01322, sections 3.2 and 3.3. The hidden pixels have the
    mean colour of the network's normalisation, rounded for uint8 images.

    Args:
        ratio: share of hidden blocks (paper: 0.7).
        block: side of a block in pixels (paper: 64, for crops of 1024 pixels; the authors take 32 for 512).
        weight: weight of the loss (paper: 1).
    """

    config_key: ClassVar[str] = "model.masked"
    ratio: ClosedUnitInterval = 0.7
    block: PositiveInt = 64
    weight: NonNegativeFloat = 1.0


class Rows(NamedTuple):
    """What passes through the student: N = n_s + n_t rows, or n_s + 2 n_t with :class:`Masked`.

    Attributes:
        x: (N, C, H, W), source, mixed and masked images.
        sizes: (N, 2), height and width of each image within its padding; ``None`` if no image is padded.
        pasted: (n_t, H, W) bool, the pixels of the mixed images that come from the source.
        labels: (n_t, H, W) uint8, the source's labels at these pixels.
    """

    x: Tensor
    sizes: Tensor | None
    pasted: Tensor
    labels: Tensor


class Dacs(AdaptationMethod):
    """Half of a source image's classes are pasted onto a target image; a teacher labels the rest of it.

    Loss: CE(source) + weight * mean over pixels of w CE(mixed), for images (n_s, C, H, W) and (n_t, C, H, W). Each
    target image gets the pixels of half of the classes, rounded up, of a source image: with their labels and w = 1. The
    other pixels have the class that a teacher finds most probable in the target image, and w = q: the share of all
    target pixels of the step whose probability is at least ``threshold``. Then the colours of the mixed image change,
    and it is blurred. The teacher is a moving average of the student. It sees the target image as the datamodule's
    ``augment`` makes it, in evaluation mode and without a graph. With ``masked``, MIC, the loss has weight *
    masked.weight * mean of q CE(masked) too: the student sees target images with other colours and hidden blocks, and
    the teacher's classes are the labels.

    Tranheden et al., DACS: Domain Adaptation via Cross-domain Mixed Sampling, WACV 2021,
    https://arxiv.org/abs/2007.08702; Hoyer et al., MIC, CVPR 2023, https://arxiv.org/abs/2212.01322. The authors' code
    differs in these points. It pastes the ignored pixels as one more class; here no pixel without a label is pasted,
    and neither padding nor ignored pixels count. Its colours change in HSV, by one operation after the other in a
    random order, and its blur reflects the image at its border, see :func:`~dafw.nn.strong_views.strong_view`. One draw
    decides for a whole batch whether its images change; here each image has its own. Its teacher normalises by the
    batch, here by averaged running statistics. Source and mixed rows make one pass; ``norm: separate`` normalises each
    domain by its own statistics, as the authors' two passes do. The masked rows belong to the target.

    Target image i of a step is paired with source image i, again from the first one if there are fewer. All draws are
    functions of the seed and the step. The student is evaluated, as in the authors' code; ``ema_decay`` evaluates an
    average. The control (``weight`` 0) has the same views, mixed images and teacher, and no loss of pseudo-labels.

    Args:
        network: images (N, C, H, W) to scores of each pixel.
        weight: weight of all losses with pseudo-labels (paper: 1).
        threshold: least probability of a sure pixel (paper: 0.968); above 1 no pixel is sure.
        decay: of the teacher, which starts with ``min(decay, 1 - 1 / (step + 1))`` (paper: 0.99).
        strength: of the change of colours, see :func:`~dafw.nn.strong_views.strong_views` (authors: 0.25).
        jitter: probability that the colours of a mixed image change (authors: 0.8).
        blur: probability that it is blurred (authors: 0.5).
        ignore_top: rows at the top of target images whose pseudo-labels get no weight (DACS: 0; DAFormer: 15 on
            Cityscapes).
        ignore_bottom: likewise at the bottom (DACS: 0; DAFormer: 120 on Cityscapes).
        masked: adds MIC's loss, see :class:`Masked`; none if null.
        base: see :class:`~dafw.methods.base.Method`. The authors train DeepLab-v2 with ``lr`` 2.5e-4 and ten times of
            it in the head, momentum 0.9, weight decay 5e-4, and the factor (1 - p)^0.9.
    """

    kinds: ClassVar[tuple[str, ...]] = ("segmentation",)
    default_norm = "separate"
    control: ClassVar[dict[str, Any]] = {"weight": 0.0}
    control_difference_reason = "mixed images pass through the network in place of the target's"
    search_space: ClassVar[dict[str, Any]] = {"threshold": (0.7, 0.98), "weight": (0.1, 2.0), "lr": (1e-4, 1e-1)}

    def __init__(  # type: ignore[no-untyped-def]
        self,
        network: NetworkBase,
        *,
        weight: NonNegativeFloat = 1.0,
        threshold: NonNegativeFloat = 0.968,
        decay: ClosedUnitInterval = 0.99,
        strength: ClosedUnitInterval = 0.25,
        jitter: ClosedUnitInterval = 0.8,
        blur: ClosedUnitInterval = 0.5,
        ignore_top: NonNegativeInt = 0,
        ignore_bottom: NonNegativeInt = 0,
        masked: Masked | None = None,
        **base,
    ) -> None:
        super().__init__(network, **base)
        self.weight, self.threshold, self.masked = weight, threshold, masked
        self.strength, self.jitter, self.blur = strength, jitter, blur
        self.ignore_top, self.ignore_bottom = ignore_top, ignore_bottom
        self.teacher = Teacher(network, decay, warmup=True)

    def losses(self, batch: Batch) -> Losses:
        """The supervised loss, that of the mixed images and, with ``masked``, that of the masked ones."""
        labels, weights = self.teach(batch)
        rows = self.rows(batch)
        joint = self.forward_rows(rows.x, batch.num_source, sizes=rows.sizes)
        source, mixed, masked = joint[: batch.num_source], joint[batch.num_source : len(batch)], joint[len(batch) :]
        problem: Any = self.problem
        mixed_labels = paste(rows.pasted, rows.labels, labels)
        terms = problem.terms(source, batch.y)
        terms["mixed"] = self.weight * problem.weighted_loss(mixed, mixed_labels, weights.masked_fill(rows.pasted, 1))
        if self.masked is not None:
            terms["masked"] = self.weight * self.masked.weight * problem.weighted_loss(masked, labels, weights)
        return {**terms, **self.source_terms(batch, source)}

    def source_terms(self, batch: Batch, source: Any) -> Losses:
        """Further terms, already weighted, of the source rows.

        Args:
            batch: of the step.
            source: outputs of its first ``num_source`` rows.
        """
        return {}

    def statistics_pass(self, batch: Batch) -> None:
        """The pass over source, mixed and masked rows."""
        rows = self.rows(batch)
        self.forward_rows(rows.x, batch.num_source, sizes=rows.sizes)

    def teach(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The teacher's classes (n_t, H, W) of the target's pixels, 255 in the padding, and their weights."""
        x, sizes = _part(batch, slice(batch.num_source, None))
        with torch.no_grad():
            logits = self.forward_rows(x, None, self.teacher.module, sizes).logits
        ignored = {"ignore_top": self.ignore_top, "ignore_bottom": self.ignore_bottom}
        labels, weights, share = weighted_masks(logits, self.threshold, sizes, **ignored)
        if self.logs_this_step:
            self.diagnose("confident_share", share)
        return labels, weights

    @torch.no_grad()
    def rows(self, batch: Batch) -> Rows:
        """What passes through the student in this step, a function of batch, seed and step alone."""
        with torch.autocast(batch.x.device.type, enabled=False):
            source, _ = _part(batch, slice(batch.num_source))
            target, sizes = _part(batch, slice(batch.num_source, None))
            count, canvas = len(target), (int(target.shape[2]), int(target.shape[3]))
            partner = torch.arange(count, device=target.device) % len(source)
            labels = on_canvas(batch.y, source)[partner]
            scores = on_device(self._draw("classes", count, self.num_classes), self.network.shift)
            inside = None if sizes is None else valid_positions(sizes, canvas, canvas)
            pasted = class_mask(labels, scores)
            if inside is not None:
                pasted = pasted & inside
            parts = [self._strong(paste(pasted, source[partner], target), inside, "mixed")]
            if self.masked is not None:
                parts.append(self._hide(self._strong(target, inside, "masked"), sizes))
            x = torch.cat([source, *parts])
        if batch.sizes is not None:
            sizes = torch.cat([batch.sizes, *[batch.sizes[batch.num_source :]] * (len(parts) - 1)])
        return Rows(x, sizes, pasted, labels)

    def _strong(self, x: Tensor, inside: Tensor | None, name: str) -> Tensor:
        """Images with other colours and a blur; uint8 images remain uint8."""
        drawn = self._draw(name, len(x), 7)
        views = strong_views(drawn, strength=self.strength, jitter=self.jitter, blur=self.blur)
        whole = x.dtype == torch.uint8
        found = strong_view(x.to(self.network.shift.dtype) / 255 if whole else x, views, inside)
        return (255 * found).round_().to(torch.uint8) if whole else found

    def _hide(self, x: Tensor, sizes: Tensor | None) -> Tensor:
        """Images whose hidden blocks have the mean colour."""
        assert self.masked is not None
        numbers = on_device(self._draw("blocks", len(x), BLOCKS, BLOCKS), self.network.shift)
        colour = -self.network.shift / self.network.scale
        return hide_blocks(x, numbers, sizes, self.masked.block, self.masked.ratio, colour)

    def _draw(self, name: str, count: int, *shape: int) -> Any:
        return draw_rows(self.data_seed, self.step, name, count, *shape)


def _part(batch: Batch, rows: slice) -> tuple[Tensor, Tensor | None]:
    """Some rows of a batch, and their sizes within their padding."""
    return batch.x[rows], None if batch.sizes is None else batch.sizes[rows]
