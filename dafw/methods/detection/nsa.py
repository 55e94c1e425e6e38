"""NSA: detections and features that stay what they are when images are disturbed."""

from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dafw.data.batch import Batch
from dafw.data.geometry import bilinear, invert, nearest
from dafw.data.padding import valid_positions
from dafw.errors import UserError
from dafw.losses.stability import (
    GRID,
    class_contrast,
    contrasted_positions,
    map_distance,
    mirrored_deltas,
    row_distance,
    standardised,
    texture,
    texture_classes,
)
from dafw.methods.adaptation.base import AdaptationMethod
from dafw.methods.base import Losses
from dafw.nn.detector_shapes import detector_shapes
from dafw.nn.disturbance import (
    NUMBERS,
    Boxes,
    Heavy,
    Light,
    disturb,
    moved_labels,
    moved_regions,
    position_labels,
    region_labels,
    visible_share,
)
from dafw.nn.draws import draw_rows
from dafw.nn.teacher import Teacher
from dafw.problems import BoxOutputs, NetworkBase
from dafw.problems.ranks import share_of_all
from dafw.problems.reads import needed_reads
from dafw.ranges import ClosedUnitInterval, NonNegativeFloat, NonNegativeInt, PositiveInt, RightOpenUnitInterval


class Rows(NamedTuple):
    """What passes through the student: of both domains first the heavily, then the lightly disturbed images.

    Attributes:
        x: (2 n_s + 2 n_t, C, H, W) in [0, 1].
        sizes: (2 n_s + 2 n_t, 2); ``None`` if no image is padded.
        heavy: (n_s + n_t, 2, 3), where the heavy disturbance took the pixels.
        light: likewise for the light one.
    """

    x: Tensor
    sizes: Tensor | None
    heavy: Tensor
    light: Tensor


class Taught(NamedTuple):
    """What the teacher says of the images as they are.

    Attributes:
        outputs: of the n_s + n_t images.
        truth: boxes of each image: labels of the source, the teacher's detections of the target.
        has_boxes: (n_t,), 1 for a target image with a detection, else 0.
    """

    outputs: BoxOutputs
    truth: Boxes
    has_boxes: Tensor


class Aligned(NamedTuple):
    """A feature map of the teacher, and that of the student moved back to where the teacher's is.

    Attributes:
        student: (n, c, h, w), standardised over the positions that both show.
        teacher: likewise.
        inside: (n, h, w) bool, the positions that both show.
        labels: (n, h, w) int64, the class of the box that a position is in, from 1, or 0.
        texture: (n, h, w) int64, see :func:`~dafw.losses.stability.texture_classes`.
        counted: (n, h, w) bool, positions in boxes that are not at the border.
    """

    student: Tensor
    teacher: Tensor
    inside: Tensor
    labels: Tensor
    texture: Tensor
    counted: Tensor


class NSA(AdaptationMethod):
    """Network stability analysis: a student of disturbed images agrees with a teacher of the images themselves.

    Loss: L(heavy source) + heavy_weight * L(heavy target) + light_weight * (pixel_weight * P + region_weight * R +
    output_weight * O) + instance_weight * C + position_weight * C_p, for images (n_s, C, H, W) and (n_t, C, H, W). L is
    the detector's loss. Its boxes are the labels of the source and the teacher's detections of the target, moved by the
    disturbance; a target image without any is left out. P, R and O compare the lightly disturbed images of both domains
    with the teacher's outputs.

    P is the squared difference of feature maps that were moved back and standardised, over positions in boxes;
    positions of strong, weak and no texture are averaged apart, with weights of their own. R is that of region features
    (R, d), each layer-normalised, and O that of class probabilities and box moves; the regions are the teacher's
    proposals, moved by the disturbance. C contrasts the student's region features with the teacher's of the same class,
    of other classes and of the background: it is the mean over rows i with a class of c(a, b) + 0.1 c(a, d), where c(a,
    m) is the mean over m of -log(e^a / (e^a + 2 e^m)), a the mean cosine similarity of row i and the teacher's rows of
    its class, b that of each other class, and d the two largest similarities to rows of the background. C_p is the same
    of positions of the feature maps, which were moved back and standardised: every seventh in both directions, if it is
    the middle of a small object or of the background with strong texture, see
    :func:`~dafw.losses.stability.contrasted_positions`.

    The teacher is a moving average of the student and is what is evaluated, as in the authors' code. The control (all
    four weights 0) has the same passes and the same average, and learns from the heavily disturbed source alone.

    Zhou et al., Unsupervised Domain Adaptive Detection with Network Stability Analysis, ICCV 2023,
    https://arxiv.org/abs/2308.08182; model, losses and configurations were read in the authors' code, which has no
    training loop. The paper's weights, 1 for heavy, 0.006 for light and 0.001 for instances, were read in a summary
    alone; the defaults here are those of the code but for ``position_weight``, which is 0.06 in the code. It is 0 here,
    so that the rows of the tables that were made without C_p stay what they are; the preset has 0.06. These points
    differ from the code. It also compares the maps of the proposals' scores, which is not in. Its grid of positions
    starts at the corner of what both images show; here it starts at the corner of the image. It changes gamma and
    sharpness too, and adds noise and textures where there is a blur here. It leaves out a feature map if the image
    moved by more than half of its stride; here maps are moved back by parts of a position. Its images without a
    pseudo-box train as background. It standardises the vectors of an image together. The order of its stages is a
    matter of its configurations: train on the source first and start from that, or give ``burn_in``.

    Args:
        network: a detector; images (N, 3, H, W) to feature maps, proposals and regions.
        heavy_weight: weight of the detector's loss of the heavily disturbed target (paper: 1).
        light_weight: weight of all comparisons of lightly disturbed images.
        instance_weight: weight of the contrast of regions (code: 0.06).
        position_weight: weight of the contrast of positions (code: 0.06; see above for the default).
        pixel_weight: weight of feature maps (code: 1.2).
        region_weight: weight of region features (code: 0.6).
        output_weight: weight of class probabilities and box moves (code: 0.06).
        background: weight of background regions in R (code: 0.01).
        texture_weights: of positions without, with weak and with strong texture (code, and if null: 0, 0.1, 1).
        strides: of the feature maps that are compared (code: 8 and 16).
        border: positions at the border of a feature map that do not count (code: 3).
        heavy: the heavy disturbance, see :class:`~dafw.nn.disturbance.Heavy`; its defaults if null.
        light: the light disturbance, see :class:`~dafw.nn.disturbance.Light`; its defaults if null.
        visible: share of a box that must be within the disturbed image (code: 0.6).
        least_side: least side in pixels of a box in a heavily disturbed image (code: 5).
        largest: greatest side of such a box as a share of the image's (code: 0.8).
        threshold: least score of a detection of the teacher that teaches (code: 0.65).
        regions: most regions of an image (ours: 128).
        decay: of the teacher, which starts with ``min(decay, 1 - 1 / (step + 1))`` (code: 0.99 every 100 steps; later
            0.92 every 100; paper: 0.97 by a summary).
        teacher_interval: steps between two changes of the teacher (code: 100).
        burn_in: the first share of training, in which all four weights are 0.
        base: see :class:`~dafw.methods.base.Method`. Code: SGD with momentum 0.9, rate 1e-4 (3e-4 in the first
            stages), weight decay 1e-4, 14 images.

    Raises:
        UserError: if the detector has no proposals or regions, or no feature map of these strides, or for wrong
            ``texture_weights``.
    """

    kinds: ClassVar[tuple[str, ...]] = ("detection",)
    control: ClassVar[dict[str, Any]] = {
        "heavy_weight": 0.0,
        "light_weight": 0.0,
        "instance_weight": 0.0,
        "position_weight": 0.0,
    }
    control_difference_reason: ClassVar[str] = "disturbed images pass through the network in place of the images"
    search_space: ClassVar[dict[str, Any]] = {
        **{"heavy_weight": (0.1, 2.0), "light_weight": (0.01, 1.0), "instance_weight": (0.001, 0.1)},
        **{"threshold": (0.5, 0.9), "lr": (1e-4, 1e-1)},
    }

    def __init__(  # type: ignore[no-untyped-def]
        self,
        network: NetworkBase,
        *,
        heavy_weight: NonNegativeFloat = 1.0,
        light_weight: NonNegativeFloat = 1.0,
        instance_weight: NonNegativeFloat = 0.06,
        position_weight: NonNegativeFloat = 0.0,
        pixel_weight: NonNegativeFloat = 1.2,
        region_weight: NonNegativeFloat = 0.6,
        output_weight: NonNegativeFloat = 0.06,
        background: NonNegativeFloat = 0.01,
        texture_weights: list[float] | None = None,
        strides: list[int] | None = None,
        border: NonNegativeInt = 3,
        heavy: Heavy | None = None,
        light: Light | None = None,
        visible: ClosedUnitInterval = 0.6,
        least_side: NonNegativeFloat = 5.0,
        largest: ClosedUnitInterval = 0.8,
        threshold: ClosedUnitInterval = 0.65,
        regions: PositiveInt = 128,
        decay: ClosedUnitInterval = 0.99,
        teacher_interval: PositiveInt = 1,
        burn_in: RightOpenUnitInterval = 0.0,
        **base,
    ) -> None:
        super().__init__(network, **base)
        if lacking := [name for name in ("proposals", "regions") if not hasattr(network, name)]:
            raise UserError(f"NSA compares regions, and {type(network).__name__} has no {lacking[0]}")
        self.heavy_weight, self.light_weight = heavy_weight, light_weight
        self.instance_weight, self.position_weight = instance_weight, position_weight
        self.pixel_weight, self.region_weight, self.output_weight = pixel_weight, region_weight, output_weight
        self.background = background
        self.texture_weights = tuple([0.0, 0.1, 1.0] if texture_weights is None else texture_weights)
        if len(self.texture_weights) != 3 or min(self.texture_weights) < 0 or not any(self.texture_weights):
            raise UserError("model.texture_weights must be three numbers from 0 on that are not all 0")
        self.strides, self.border = tuple(strides or (8, 16)), border
        self.heavy, self.light = heavy or Heavy(), light or Light()
        known = detector_shapes(network).strides
        if not set(self.strides) & set(known):
            raise UserError(
                f"model.strides is {list(self.strides)}, and the detector's feature maps have the strides "
                f"{', '.join(map(str, known))}: name some of these"
            )
        self.box_limits = {"visible": visible, "least_side": least_side, "largest": largest}
        self.threshold, self.regions, self.burn_in = threshold, regions, burn_in
        self.teacher = Teacher(network, decay, warmup=True, interval=teacher_interval)

    @property
    def in_burn_in(self) -> bool:
        """Whether this step learns from the disturbed source alone."""
        return self.burn_in > 0 and self.step < self.burn_in * self.steps_planned

    @property
    def eval_network(self) -> Any:
        """The teacher; with ``ema_decay``, the average that it makes."""
        return self.teacher.module if self.weight_average is None else self.weight_average.module

    def losses(self, batch: Batch) -> Losses:
        """The supervised loss of the disturbed source, and the terms whose weights are not 0."""
        rows, ns = self.rows(batch), batch.num_source
        joint = self.forward_rows(rows.x, 2 * ns, sizes=rows.sizes)
        limits = self._limits(batch)
        labels = moved_labels(batch.y, rows.heavy[:ns], limits[:ns], **self.box_limits)
        terms = dict(self.problem.terms(joint[:ns], labels))
        compares = self.light_weight or self.instance_weight or self.position_weight
        if self.in_burn_in or not (self.heavy_weight or compares):
            return terms
        taught, last = self.teach(batch), ns + len(batch)
        if self.heavy_weight:
            labels = moved_labels(taught.truth[ns:], rows.heavy[ns:], limits[ns:], **self.box_limits)
            losses = self.problem.row_losses(joint[2 * ns : last], labels)
            counted = taught.has_boxes.to(losses.dtype)
            terms["heavy"] = self.heavy_weight * share_of_all(counted.sum()) * (counted * losses).sum()
        if compares:
            light = BoxOutputs.concatenate([joint[ns : 2 * ns], joint[last:]])
            terms |= self.compare(light, taught, rows.light, limits)
        return terms

    def statistics_pass(self, batch: Batch) -> None:
        """The pass over the disturbed images."""
        rows = self.rows(batch)
        self.forward_rows(rows.x, 2 * batch.num_source, sizes=rows.sizes)

    def teach(self, batch: Batch) -> Taught:
        """What the teacher says of the images as they are."""
        ns, problem = batch.num_source, self.problem.bind(self.teacher.module)
        with torch.no_grad(), needed_reads():
            outputs = self.forward_rows(batch.x, ns, self.teacher.module, batch.sizes)
            found, has_boxes = problem.pseudo_labels(outputs[ns:], self.threshold)
        if self.logs_this_step:
            counts = torch.tensor([float(len(one["boxes"])) for one in found])
            self.diagnose("pseudo_boxes", counts.mean())
            self.diagnose("images_without_pseudo_boxes", (counts == 0).float().mean())
        return Taught(outputs, [*batch.y, *found], has_boxes)

    @torch.no_grad()
    def rows(self, batch: Batch) -> Rows:
        """What passes through the student in this step, a function of batch, seed and step alone."""
        ns, parts, maps = batch.num_source, {}, {}
        with torch.autocast(batch.x.device.type, enabled=False):
            x = batch.x.to(self.network.shift.dtype)
            x = x / 255 if batch.x.dtype == torch.uint8 else x
            canvas = (int(x.shape[2]), int(x.shape[3]))
            inside = None if batch.sizes is None else valid_positions(batch.sizes, canvas, canvas)
            for name, how in (("heavy", self.heavy), ("light", self.light)):
                drawn = [
                    draw_rows(self.data_seed, self.step, f"{name} {domain}", count, NUMBERS)
                    for domain, count in (("source", ns), ("target", len(batch) - ns))
                ]
                parts[name], maps[name] = disturb(x, np.concatenate(drawn), how, batch.sizes, inside)
        order = [(slice(ns), "heavy"), (slice(ns), "light"), (slice(ns, None), "heavy"), (slice(ns, None), "light")]
        sizes = None if batch.sizes is None else torch.cat([batch.sizes[rows] for rows, _ in order])
        return Rows(torch.cat([parts[name][rows] for rows, name in order]), sizes, maps["heavy"], maps["light"])

    def compare(self, light: BoxOutputs, taught: Taught, maps: Tensor, limits: Tensor) -> Losses:
        """The terms of the lightly disturbed images, whose pixels went where ``maps`` (n_s + n_t, 2, 3) say."""
        network: Any = self.network
        teacher: Any = self.teacher.module
        with torch.no_grad(), needed_reads():
            boxes: list[Tensor] = teacher.proposals(taught.outputs, self.regions)
            theirs = teacher.regions(taught.outputs, boxes)
        moved = moved_regions(boxes, maps)
        ours: Any = network.regions(light, moved)
        labels = region_labels(boxes, taught.truth)
        seen = torch.cat([visible_share(one, limit) for one, limit in zip(moved, limits, strict=True)])
        visible = seen > self.box_limits["visible"]
        terms: Losses = {}
        levels: list[Aligned] = []
        if self.light_weight:
            of_objects, of_ground = visible & (labels > 0), visible & (labels == 0)
            own, right = (F.layer_norm(one.features, one.features.shape[1:]) for one in (ours, theirs))
            region = row_distance(own, right, of_objects, of_ground, self.background)
            mirrored = (maps[:, 0, 0] < 0)[theirs.image]
            output = row_distance(_probabilities(ours), _probabilities(theirs), of_objects, of_ground)
            output = output + row_distance(ours.deltas, mirrored_deltas(theirs.deltas, mirrored), of_objects, of_ground)
            levels = self.aligned_maps(light, taught, maps)
            pixel = torch.stack(
                [
                    map_distance(one.student, one.teacher, one.counted, one.texture, self.texture_weights)
                    for one in levels
                ]
            )
            terms["light_pixel"] = self.light_weight * self.pixel_weight * pixel.mean()
            terms["light_region"] = self.light_weight * self.region_weight * region
            terms["light_output"] = self.light_weight * self.output_weight * output
        if self.instance_weight:
            loss = class_contrast(ours.features, theirs.features, labels, self.num_classes, counts=visible)
            terms["instance"] = self.instance_weight * loss
        if self.position_weight:
            levels = levels or self.aligned_maps(light, taught, maps)
            terms["position"] = self.position_weight * self.contrast_positions(levels)
        return terms

    def aligned_maps(self, light: BoxOutputs, taught: Taught, maps: Tensor) -> list[Aligned]:
        """The feature maps of all ``strides``, the student's moved back to where the teacher's are."""
        found, canvas = [], light.canvas
        for name, theirs in taught.outputs.levels.items():
            grid = (int(theirs.shape[2]), int(theirs.shape[3]))
            stride = (canvas[0] / grid[0], canvas[1] / grid[1])
            if round(stride[0]) not in self.strides:
                continue
            back = invert(maps) / _per_position(maps, stride)
            own = torch.ones(len(maps), *grid, device=maps.device, dtype=torch.bool)
            if light.sizes is not None:
                own = valid_positions(light.sizes, canvas, grid)
            inside = own & (nearest(own.to(maps.dtype), back, grid, 0.0) > 0)
            ours = standardised(bilinear(light.levels[name], back, grid), inside)
            labels = position_labels(taught.truth, grid, stride, maps)
            counted = inside & (labels > 0)
            counted[:, : self.border] = counted[:, grid[0] - self.border :] = False
            counted[:, :, : self.border] = counted[:, :, grid[1] - self.border :] = False
            classes = texture_classes(texture(theirs), valid=own)
            found.append(Aligned(ours, standardised(theirs, inside), inside, labels, classes, counted))
        return found

    def contrast_positions(self, levels: list[Aligned]) -> Tensor:
        """The contrast of positions of aligned feature maps, a mean over the levels -> scalar."""
        losses, counts = [], []
        for level in levels:
            labels = contrasted_positions(level.labels, level.texture == 2, self.num_classes, level.inside)
            ours, theirs = (
                one[:, :, ::GRID, ::GRID].permute(0, 2, 3, 1).flatten(0, 2) for one in (level.student, level.teacher)
            )
            losses.append(class_contrast(ours, theirs, labels.flatten(), self.num_classes))
            counts.append((labels > 0).sum() / len(labels))
        if self.logs_this_step:
            self.diagnose("contrasted_positions", torch.stack(counts).sum())
        return torch.stack(losses).mean()

    def _limits(self, batch: Batch) -> Tensor:
        """Height and width (N, 2) of each image."""
        if batch.sizes is not None:
            return batch.sizes
        sides = [torch.full((len(batch),), int(side), device=batch.x.device) for side in batch.x.shape[2:]]
        return torch.stack(sides, 1)


def _per_position(maps: Tensor, stride: tuple[float, float]) -> Tensor:
    """What divides the entries of maps (n, 2, 3) of pixels, to make maps of positions of a feature map."""
    return maps.new_tensor([[1, stride[1] / stride[0], stride[1]], [stride[0] / stride[1], 1, stride[0]]])


def _probabilities(regions: Any) -> Tensor:
    scores: Tensor = regions.logits
    return scores.softmax(1) if regions.exclusive else scores.sigmoid()
