"""What detectors of every kind share: how terms become losses, which anchors and regions count, and boxes' places."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.poolers import initLevelMapper

from dafw.nn.distributed import world_size
from dafw.nn.precision import full_precision
from dafw.problems.outputs import BoxOutputs, Regions
from dafw.problems.ranks import share_of_all
from dafw.problems.reads import needed_reads

Targets = Sequence[Mapping[str, Tensor]]
#: The terms of all detectors, in the order in which they are named.
LOSSES = ("class", "box", "objectness", "proposal_box", "centre")


@dataclass(frozen=True)
class Term:
    """A loss that is a mean over a number of anchors or regions.

    Attributes:
        loss: its values, reduced by ``mean`` or ``sum``, or (n,) or (n, 4) if it is not reduced (``none``).
        image: (n,) int64, the image of each value.
        counts: how many anchors or regions of each image the mean is over; there may be fewer values.
        is_mean: whether torchvision takes the mean of the values itself, rather than dividing their sum.
        certainty: how sure the detector is of each value's class, (n,) from 0 to 1; ``None``: no class is at stake.
    """

    loss: Callable[[str], Tensor]
    image: Tensor
    counts: Sequence[int]
    is_mean: bool
    certainty: Callable[[], Tensor] | None = None

    @property
    def count(self) -> int:
        """How many anchors or regions of all images the mean is over."""
        return sum(self.counts)

    def values(self) -> Tensor:
        """The loss of each value (n,)."""
        found = self.loss("none")
        return found if found.ndim == 1 else found.sum(1)


def term_losses(terms: Mapping[str, Term], over_ranks: bool) -> dict[str, Tensor]:
    """Scalars by name: means over what counts on all ranks, or on this rank alone. A term of nothing is 0."""
    if not over_ranks or world_size() == 1:
        return {
            name: one.loss("mean") if one.is_mean and one.count else one.loss("sum") / max(one.count, 1)
            for name, one in terms.items()
        }
    sums = {name: one.loss("sum") for name, one in terms.items()}
    shares = _shares(terms, next(iter(sums.values())))
    return {name: value * share for (name, value), share in zip(sums.items(), shares, strict=True)}


def term_rows(terms: Mapping[str, Term], rows: int, over_ranks: bool, certain: bool = False) -> dict[str, Tensor]:
    """The losses of each image (N,) by name; their means are :func:`term_losses`.

    With ``certain`` each value is multiplied by its certainty, where it has one.
    """
    values = {
        name: one.certainty() * one.values() if certain and one.certainty else one.values()
        for name, one in terms.items()
    }
    like = next(iter(values.values()))
    alone = not over_ranks or world_size() == 1
    shares: Sequence[Tensor | float]
    shares = [1 / max(one.count, 1) for one in terms.values()] if alone else _shares(terms, like)
    return {
        name: value.new_zeros(rows).index_add(0, terms[name].image, value) * (rows * share)
        for (name, value), share in zip(values.items(), shares, strict=True)
    }


def term_parts(terms: Mapping[str, Term], parts: int, rows: int, over_ranks: bool) -> dict[str, Tensor]:
    """The losses of each of some parts of as many images (parts,) by name: :func:`term_losses` of those images."""
    size, sums, counts = rows // parts, {}, []
    for name, one in terms.items():
        value = one.values()
        sums[name] = value.new_zeros(parts).index_add(0, one.image.div(size, rounding_mode="floor"), value)
        counts.append([float(sum(one.counts[part * size : (part + 1) * size])) for part in range(parts)])
    like = next(iter(sums.values()))
    number = torch.tensor(counts, dtype=like.dtype, device=like.device)
    shares = share_of_all(number) if over_ranks else number.clamp_min(1).reciprocal()
    return {name: value * share for (name, value), share in zip(sums.items(), shares, strict=True)}


def _shares(terms: Mapping[str, Term], like: Tensor) -> Sequence[Tensor]:
    """The factors of the terms' sums, with one collective for all of them."""
    counts = torch.tensor([float(one.count) for one in terms.values()], dtype=like.dtype, device=like.device)
    return share_of_all(counts).unbind()


def draw(
    labels: Sequence[Tensor], count: int, share: float, seeds: Sequence[int] | None
) -> tuple[list[Tensor], list[Tensor]]:
    """Draws anchors or regions of each image, as torchvision's ``BalancedPositiveNegativeSampler`` does.

    Args:
        labels: (m,) of each image: positive, 0 for the background, negative for what does not count.
        count: how many are drawn of an image.
        share: the largest share of positive ones.
        seeds: of each image; ``None``: torch's default generator draws, in the order of torchvision.

    Returns:
        The places of the positive and of the negative ones of each image, in ascending order.
    """
    positive: list[Tensor] = []
    negative: list[Tensor] = []
    for row, label in enumerate(labels):
        generator = None if seeds is None else torch.Generator(label.device).manual_seed(seeds[row])
        with needed_reads():
            above, below = (torch.where(kind)[0] for kind in (label >= 1, label == 0))
        most = min(len(above), int(count * share))
        for drawn, places, limit in ((positive, above, most), (negative, below, count - most)):
            order = torch.randperm(len(places), generator=generator, device=places.device)
            drawn.append(places[order[:limit]].sort().values)
    return positive, negative


def image_of(rows: Sequence[Tensor]) -> Tensor:
    """The image that each entry belongs to: N tensors of n_i entries -> (sum of n_i,) int64."""
    return torch.cat([torch.full((len(one),), i, device=one.device) for i, one in enumerate(rows)])


def image_sizes(outputs: BoxOutputs) -> list[tuple[int, int]]:
    """Height and width of each image on the host; they are read from the device if images are padded."""
    if outputs.sizes is None:
        return [outputs.canvas] * len(outputs)
    with needed_reads():
        return [(height, width) for height, width in outputs.sizes.tolist()]


def clip(boxes: Tensor, outputs: BoxOutputs) -> Tensor:
    """Boxes (N, m, 4) of each image, clipped to it."""
    if outputs.sizes is None:
        height, width = outputs.canvas
        limit = boxes.new_tensor([width, height, width, height]).view(1, 1, 4)
    else:
        limit = outputs.sizes.flip(1).repeat(1, 2)[:, None].to(boxes.dtype)
    return boxes.clamp_min(0).minimum(limit)


def anchors_of(generator: AnchorGenerator, levels: Mapping[str, Tensor], canvas: tuple[int, int]) -> list[Tensor]:
    """Boxes (h_i w_i A, 4) of each level, row by row, in at least float32 whatever the autocast."""
    maps = [full_precision(level.new_empty((1, 1, *level.shape[2:]))) for level in levels.values()]
    (anchors,) = generator(ImageList(maps[0].new_empty((1, 1, *canvas)), [canvas]), maps)
    per_position = generator.num_anchors_per_location()
    counts = [one.shape[2] * one.shape[3] * count for one, count in zip(maps, per_position, strict=True)]
    return list(anchors.split(counts))


class Proposer(RegionProposalNetwork):  # type: ignore[misc]
    """Torchvision's network for proposals, of which a number can be asked for."""

    asked: int | None = None

    def pre_nms_top_n(self) -> int:
        """How many anchors of a level take part in non-maximum suppression."""
        return super().pre_nms_top_n() if self.asked is None else self.asked

    def post_nms_top_n(self) -> int:
        """How many proposals of an image remain."""
        return super().post_nms_top_n() if self.asked is None else self.asked

    def propose(self, outputs: BoxOutputs, boxes: Tensor, scores: Tensor, count: int) -> list[Tensor]:
        """The boxes that remain of each image, at most ``count``, the highest scores first; whatever the mode.

        Args:
            outputs: of N images.
            boxes: (N, M, 4), one for each anchor.
            scores: N M numbers.
            count: see above.
        """
        per_level = [len(anchors) for anchors in outputs.anchors]
        with needed_reads(), self._asking(count):
            kept, _ = self.filter_proposals(boxes, scores, [outputs.canvas] * len(boxes), per_level)
        return list(kept)

    @contextmanager
    def _asking(self, count: int) -> Iterator[None]:
        self.asked = count
        try:
            yield
        finally:
            self.asked = None


def region_pool(names: Sequence[str], strides: Sequence[int], side: int, samples: int = 2) -> MultiScaleRoIAlign:
    """Torchvision's pooling of boxes to ``side`` x ``side``, from the level that fits the size of each box.

    Args:
        names: of the levels.
        strides: powers of 2, ascending.
        side: of what is pooled.
        samples: points along each side of a cell whose mean the cell is.
    """
    pool = MultiScaleRoIAlign(list(names), output_size=side, sampling_ratio=samples)
    depths = [int(math.log2(stride)) for stride in strides]
    # torchvision measures both on its first batch, for which the host waits
    pool.scales = [2.0**-depth for depth in depths]
    pool.map_levels = initLevelMapper(depths[0], depths[-1])
    return pool


class BoxHead(nn.Module):
    """What follows a feature pyramid. Each kind of detector has its own; labels count from 0 in all of them.

    Each method takes the outputs of N images or of a slice of them, in training and in evaluation mode alike.
    """

    loss_names: ClassVar[tuple[str, ...]]

    def maps(self, levels: list[Tensor]) -> dict[str, list[Tensor]]:
        """The maps of :class:`~dafw.problems.BoxOutputs` on the levels of the pyramid."""
        raise NotImplementedError

    def anchors(self, levels: Mapping[str, Tensor], canvas: tuple[int, int]) -> list[Tensor]:
        """See :func:`anchors_of`."""
        raise NotImplementedError

    def losses(self, outputs: BoxOutputs, targets: Targets, over_ranks: bool) -> dict[str, Tensor]:
        """See :meth:`~dafw.nn.detector.Detector.losses`."""
        raise NotImplementedError

    def row_losses(
        self, outputs: BoxOutputs, targets: Targets, over_ranks: bool, certain: bool = False
    ) -> dict[str, Tensor]:
        """See :meth:`~dafw.nn.detector.Detector.row_losses`."""
        raise NotImplementedError

    def part_losses(
        self, outputs: BoxOutputs, targets: Targets, parts: int, over_ranks: bool
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """See :meth:`~dafw.nn.detector.Detector.part_losses`."""
        raise NotImplementedError

    def proposals(self, outputs: BoxOutputs, count: int) -> list[Tensor]:
        """See :meth:`~dafw.nn.detector.Detector.proposals`."""
        raise NotImplementedError

    def regions(self, outputs: BoxOutputs, boxes: Sequence[Tensor]) -> Regions:
        """See :meth:`~dafw.nn.detector.Detector.regions`."""
        raise NotImplementedError

    def detections(self, outputs: BoxOutputs, proposals: int) -> list[dict[str, Tensor]]:
        """See :meth:`~dafw.nn.detector.Detector.detections`."""
        raise NotImplementedError


def to_list(outputs: BoxOutputs, name: str) -> list[Any]:
    """The maps of one name in at least float32."""
    return [full_precision(one) for one in outputs.maps[name]]
