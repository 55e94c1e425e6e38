"""DAFormer: DACS with rare classes drawn more often, and features that stay close to the pretrained ones."""

from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from dafw.data.batch import Batch
from dafw.data.setting import DataRequest, RareClasses
from dafw.errors import choose
from dafw.losses.feature_distance import feature_distance, majority_labels
from dafw.methods.base import Losses
from dafw.methods.segmentation.dacs import Dacs
from dafw.nn.teacher import Teacher
from dafw.optim.schedules import Polynomial, Schedule, WarmUp
from dafw.problems import NetworkBase
from dafw.problems.segmentation import on_canvas
from dafw.ranges import ClosedUnitInterval, NonNegativeFloat, NonNegativeInt, PositiveFloat


class DAFormer(Dacs):
    """DACS on source images that are drawn by rare classes, with features kept close to those of the pretrained ones.

    Loss: that of :class:`Dacs` + distance_weight * mean over cells of |f - g|_2, where f and g (n_s, d, h, w) are the
    coarsest feature maps that the student and the network that it started as make of the source images. A
    cell counts if a thing has at least the share ``least_share`` of its pixels.

    Rare-class sampling: each source image is drawn for a class c, which comes with a probability proportional to
    exp((1 - f_c) / temperature), f_c the share of c among the source's labelled pixels. The image is one of those that
    have at least ``least_pixels`` pixels of c. The learning rate rises linearly over the first 1500 steps.

    Hoyer et al., DAFormer, CVPR 2022, https://arxiv.org/abs/2111.14887, sections 3.2 to 3.4. Beside what :class:`Dacs`
    says, the authors' code differs in these points: it draws random crops of the chosen image again, up to ten times,
    until half of the wanted pixels are in it; here the datamodule's ``augment`` makes one crop. A class that no image
    has ``least_pixels`` of is left out of the draws only if none has a pixel of it. Images of several sources are drawn
    by the shares of their own domain. ``norm: separate`` concerns networks with batch normalisation, such as the
    authors' decoder. The control (``weight`` 0) keeps the sampling and the feature distance.

    Args:
        network: images (N, C, H, W) to scores of each pixel; give a pretrained encoder.
        decay: of the teacher (authors: 0.999).
        strength: see :class:`Dacs` (authors: 0.2).
        temperature: of the rare-class sampling; a higher one is closer to an equal share of each class (paper: 0.01).
        least_pixels: see above (paper: 3000, for images of 1280 x 720 pixels).
        distance_weight: weight of the feature distance (paper: 0.005); 0 leaves out the pass of the pretrained network.
        least_share: see above (paper: 0.75).
        things: names of the classes whose features stay (paper: Cityscapes' things, such as car and person, and not
            road or sky); all classes if null.
        schedule: factor of the learning rate; if null, linear from 1 to 0 after a :class:`~dafw.optim.schedules.WarmUp`
            of 1500 steps (paper).
        base: see :class:`Dacs`. The authors train MiT-B5 with ``optimizer`` adamw, ``lr`` 6e-4 (head), a tenth of it in
            the backbone, ``weight_decay`` 0.01, 40,000 steps.
    """

    search_space: ClassVar[dict[str, Any]] = {**Dacs.search_space, "distance_weight": (0.001, 0.05)}

    def __init__(  # type: ignore[no-untyped-def]
        self,
        network: NetworkBase,
        *,
        decay: ClosedUnitInterval = 0.999,
        strength: ClosedUnitInterval = 0.2,
        temperature: PositiveFloat = 0.01,
        least_pixels: NonNegativeInt = 3000,
        distance_weight: NonNegativeFloat = 0.005,
        least_share: ClosedUnitInterval = 0.75,
        things: list[str] | None = None,
        schedule: Schedule | None = None,
        **base,
    ) -> None:
        schedule = schedule or WarmUp(then=Polynomial(power=1.0))
        super().__init__(network, decay=decay, strength=strength, schedule=schedule, **base)
        self.rare = RareClasses(temperature, least_pixels)
        self.distance_weight, self.least_share, self.things = distance_weight, least_share, things
        self.pretrained = Teacher(network, 1.0) if distance_weight else None
        kept = torch.zeros(self.num_classes + 1, dtype=torch.bool)
        kept[: self.num_classes] = things is None
        self.register_buffer("is_thing", kept, persistent=False)

    is_thing: Tensor

    @property
    def data_request(self) -> DataRequest:
        """Source images drawn by rare classes."""
        return replace(super().data_request, rare_classes=self.rare)

    def setup(self, stage: str) -> None:
        """Finds the things among the classes of the data.

        Raises:
            UserError: for a name that is no class.
        """
        super().setup(stage)
        if stage == "fit" and self.things is not None:
            names = self.data.known_names
            for name in self.things:
                self.is_thing[names.index(choose("class in model.things", name, names))] = True

    def source_terms(self, batch: Batch, source: Any) -> Losses:
        """The feature distance."""
        if self.pretrained is None:
            return {}
        count, features = batch.num_source, _coarsest(source)
        x, sizes = batch.x[:count], None if batch.sizes is None else batch.sizes[:count]
        with torch.no_grad():
            reference = _coarsest(self.forward_rows(x, count, self.pretrained.module, sizes))
        grid = (int(features.shape[2]), int(features.shape[3]))
        labels = majority_labels(on_canvas(batch.y, x), grid, self.least_share, self.num_classes)
        where = self.is_thing[labels.clamp_max(self.num_classes)]
        return {"feature_distance": self.distance_weight * feature_distance(features, reference, where)}


def _coarsest(outputs: Any) -> Tensor:
    """The last feature map of the backbone, (n, d, h, w)."""
    found: Tensor = outputs.features if outputs.levels is None else outputs.levels[-1]
    return found
