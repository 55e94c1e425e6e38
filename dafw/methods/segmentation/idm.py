"""IDM: one unlabelled image of the target, and labelled images in its style."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from dafw.data.batch import Batch
from dafw.data.padding import IGNORE, valid_positions
from dafw.data.setting import DataRequest
from dafw.losses.feature_distance import majority_labels
from dafw.losses.maps import self_information
from dafw.losses.pixel_prototypes import moved_prototypes, prototype_information
from dafw.methods.adaptation.base import AdaptationMethod
from dafw.methods.base import Losses
from dafw.nn.class_mix import grid_mask, paste
from dafw.nn.distributed import gather_rows
from dafw.nn.draws import draw_rows, on_device
from dafw.nn.norm import NormMode
from dafw.nn.styles import stylise
from dafw.nn.teacher import Teacher
from dafw.problems import MaskOutputs, NetworkBase
from dafw.problems.ranks import share_of_all
from dafw.problems.segmentation import on_canvas
from dafw.ranges import ClosedUnitInterval, NonNegativeFloat, PositiveFloat, PositiveInt


class IDM(AdaptationMethod):
    """Source images in the style of one target image train: the uncertain ones, and mixtures with patches of it.

    **This is our reading of an abstract.** The paper's code was not found, and its method may differ in every detail.

    Loss: CE(selected) + weight * CE(mixed) - information_weight * (H(mean_i a_i) - mean_i H(a_i)).

    * Style: each source image, (n_s, C, H, W), gets the mean and the standard deviation of each colour of the target
      image.
    * Selection: of the source images of all ranks in a step, the share ``select`` with the highest entropy trains, and
      each other one with the probability ``random_share``. The entropy is that of the network in training, over log K,
      a mean over the pixels of each class, then over the classes of the image. CE(selected) is the mean of the images'
      own mean cross-entropies.
    * Mixing: an image in the style of the target has ``patches`` x ``patches`` patches, each of which comes from the
      target image with the probability ``mix``, (n_t, C, H, W) in all. These have the labels of a teacher, a moving
      average of the student, where it is at least ``threshold`` sure; elsewhere none. CE(mixed) is the mean over
      labelled pixels.
    * Prototypes: each class has a moving mean of the features, (d,), of all source images. a_i is the
      softmax over classes of cos(f_i, prototype) / temperature at a place i of the target's patches, features (n_t, d,
      h, w).

    Wang et al., Informative Data Mining for One-Shot Cross-Domain Semantic Segmentation, ICCV 2023,
    https://arxiv.org/abs/2309.14241, of which the abstract alone was read. It names uncertainty-based selection,
    patch-wise mixing and prototype-based information maximisation. All constants are ours, and so is that each step
    chooses among its own source images. Report the mean over several target images.

    The control trains on all source images in the style of the target. It makes the same mixed images, passes them, and
    learns nothing from them.

    Args:
        network: images (N, C, H, W) to features (N, d, h, w) and logits (N, K, H, W).
        image: the id of the target image, as ``night/train/7``; one that the seed draws if ``None``. No other image of
            the target is read in training.
        weight: weight of CE(mixed).
        information_weight: weight of the information.
        select: share of the source images of a step that is selected by entropy.
        random_share: probability that another one is selected too.
        patches: patches in a row and in a column.
        mix: probability that a patch is the target's.
        threshold: least probability of a teacher's label.
        decay: of the teacher, which starts with ``min(decay, 1 - 1 / (step + 1))``.
        momentum: share of itself that a prototype keeps in a step.
        temperature: of the assignments.
        base: see :class:`~dafw.methods.base.Method`.

    Raises:
        UserError: when training starts, if the target has no such training image, or there are several targets.
    """

    kinds: ClassVar[tuple[str, ...]] = ("segmentation",)
    default_norm: ClassVar[NormMode] = "separate"
    control: ClassVar[dict[str, Any]] = {"weight": 0.0, "information_weight": 0.0, "select": 1.0}
    control_difference_reason: ClassVar[str] = "it trains on source images in the style of a target image"
    control_learns_target: ClassVar[bool] = True
    search_space: ClassVar[dict[str, Any]] = {"weight": (0.1, 2.0), "select": (0.1, 1.0), "lr": (1e-4, 1e-1)}
    prototypes: Tensor

    def __init__(  # type: ignore[no-untyped-def]
        self,
        network: NetworkBase,
        *,
        image: str | None = None,
        weight: NonNegativeFloat = 1.0,
        information_weight: NonNegativeFloat = 0.1,
        select: ClosedUnitInterval = 0.25,
        random_share: ClosedUnitInterval = 0.1,
        patches: PositiveInt = 4,
        mix: ClosedUnitInterval = 0.5,
        threshold: ClosedUnitInterval = 0.9,
        decay: ClosedUnitInterval = 0.99,
        momentum: ClosedUnitInterval = 0.9,
        temperature: PositiveFloat = 0.1,
        **base,
    ) -> None:
        super().__init__(network, **base)
        self.image, self.weight, self.information_weight = image, weight, information_weight
        self.select, self.random_share, self.patches, self.mix = select, random_share, patches, mix
        self.threshold, self.momentum, self.temperature = threshold, momentum, temperature
        self.teacher = Teacher(network, decay, warmup=True)
        self.register_buffer("prototypes", torch.zeros(self.num_classes, network.num_features))

    @classmethod
    def asked_samples(cls, arguments: Mapping[str, Any]) -> DataRequest:
        """One image of the target."""
        return replace(super().asked_samples(arguments), target_image=arguments.get("image") or "")

    @property
    def data_request(self) -> DataRequest:
        """One image of the target."""
        return replace(super().data_request, target_image=self.image or "")

    def losses(self, batch: Batch) -> Losses:
        """The losses of selected and mixed images, and minus the information of the target's patches."""
        count = batch.num_source
        x, sizes, patched = self.rows(batch)
        joint: MaskOutputs = self.forward_rows(x, count, sizes=sizes)
        source, mixed = joint[:count], joint[count:]
        labels = on_canvas(batch.y, x)
        selected = self.selected(source, labels).to(self.network.shift.dtype)
        problem: Any = self.problem
        supervised = share_of_all(selected.sum()) * (selected * problem.row_losses(source, batch.y)).sum()
        partner = torch.arange(len(mixed), device=x.device) % count
        mixed_labels = paste(patched, self.teach(batch), labels[partner])
        everywhere = torch.ones((), device=x.device)
        return {
            "supervised": supervised,
            "mixed": self.weight * problem.weighted_loss(mixed, mixed_labels, everywhere),
            "information": -self.information_weight * self.information(source, labels, mixed, patched),
        }

    def statistics_pass(self, batch: Batch) -> None:
        """The pass over source images in the target's style, and mixed images."""
        x, sizes, _ = self.rows(batch)
        self.forward_rows(x, batch.num_source, sizes=sizes)

    @torch.no_grad()
    def rows(self, batch: Batch) -> tuple[Tensor, Tensor | None, Tensor]:
        """What passes through the student, a function of batch, seed and step alone.

        Returns:
            Source images in the target's style and mixed images, (n_s + n_t, C, H, W); their sizes; and the pixels of
            the mixed images that come from the target, (n_t, H, W) bool.
        """
        count, whole = batch.num_source, batch.x.dtype == torch.uint8
        x = batch.x.to(self.network.shift.dtype) / 255 if whole else batch.x
        source, target = x[:count], x[count:]
        model = torch.arange(count, device=x.device) % len(target)
        sizes = (None, None) if batch.sizes is None else (batch.sizes[:count], batch.sizes[count:])
        styled = stylise(source, target[model], sizes[0], None if sizes[1] is None else sizes[1][model])
        canvas = (int(x.shape[2]), int(x.shape[3]))
        inside = sizes[1]
        if inside is None:
            inside = torch.stack([torch.full((len(target),), side, device=x.device) for side in canvas], 1)
        drawn = draw_rows(self.data_seed, self.step, "patches", len(target), self.patches, self.patches)
        patched = grid_mask(on_device(drawn, self.network.shift), inside, canvas) < self.mix
        partner = torch.arange(len(target), device=x.device) % count
        mixed = paste(patched, target, styled[partner])
        if sizes[1] is not None:
            within = valid_positions(inside, canvas, canvas)
            patched, mixed = patched & within, mixed.masked_fill(~within[:, None], 0)
        found = torch.cat([styled, mixed])
        return (255 * found).round_().to(torch.uint8) if whole else found, batch.sizes, patched

    @torch.no_grad()
    def selected(self, source: MaskOutputs, labels: Tensor) -> Tensor:
        """Which of this rank's source images train, (n_s,) bool: labels (n_s, H, W), 255 for none."""
        entropy = self_information(source.logits).sum(1)
        scores = balanced_mean(entropy, labels, self.num_classes)
        everyone = gather_rows(scores)
        place = (everyone[None] > scores[:, None]).sum(1)
        drawn = on_device(draw_rows(self.data_seed, self.step, "selected", len(scores)), scores)
        return (place < self.select * len(everyone)) | (drawn < self.random_share)

    @torch.no_grad()
    def teach(self, batch: Batch) -> Tensor:
        """The teacher's classes (n_t, H, W) uint8 of the target, 255 where it is not sure or in the padding."""
        sizes = None if batch.sizes is None else batch.sizes[batch.num_source :]
        outputs = self.forward_rows(batch.x[batch.num_source :], None, self.teacher.module, sizes)
        problem: Any = self.problem
        labels: Tensor = problem.pseudo_labels(outputs, self.threshold)[0]
        return labels

    def information(self, source: MaskOutputs, labels: Tensor, mixed: MaskOutputs, patched: Tensor) -> Tensor:
        """The information of the target's patches about the classes' prototypes, which move."""
        grid = (int(source.features.shape[2]), int(source.features.shape[3]))
        classes = majority_labels(labels, grid, 0.5, self.num_classes)
        prototypes = moved_prototypes(self.prototypes, source.features, classes, self.momentum)
        self.propose(prototypes=prototypes)
        places = majority_labels(patched.to(torch.uint8), grid, 1.0, 2) == 1
        return prototype_information(mixed.features, prototypes, places, self.temperature)


def balanced_mean(values: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """The mean over the pixels of each class of an image, then over its classes: (n, H, W) -> (n,).

    Args:
        values: (n, H, W).
        labels: (n, H, W), 255 where there is no label; an image without any has the mean 0.
        num_classes: K.
    """
    places = labels.long().masked_fill(labels == IGNORE, num_classes).flatten(1)
    zeros = values.new_zeros(len(values), num_classes + 1)
    sums = zeros.scatter_add(1, places, values.flatten(1))[:, :num_classes]
    counts = zeros.scatter_add(1, places, torch.ones_like(values).flatten(1))[:, :num_classes]
    present = (counts > 0).sum(1).clamp_min(1)
    return (sums / counts.clamp_min(1)).sum(1) / present
