"""Predictions in the hands of another program, and the forms in which it gives images."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from os import PathLike, fspath
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dafw.errors import UserError
from dafw.export.frames import import_pandas
from dafw.files import user_path
from dafw.problems import Predicted, Segmentation
from dafw.problems.model import check_scale
from dafw.run.images import DOMAIN

UNKNOWN = "unknown"
"""The class name of what a method rejects."""


@dataclass(frozen=True)
class Predictions:
    """Predictions for N images or texts.

    Attributes:
        names: the path of each image; its position for one that is no file, and for a text.
        classes: the predicted class of each; ``unknown`` for one that the method rejects.
        probabilities: (N, K) float32 on the CPU, of the known classes.
        class_names: the names of the K known classes.
        unknown: (N,) margins by which images are rejected, positive ones are; ``None`` if the method rejects none.
    """

    names: tuple[str, ...]
    classes: tuple[str, ...]
    probabilities: Tensor
    class_names: tuple[str, ...]
    unknown: Tensor | None = None

    def __len__(self) -> int:
        return len(self.names)

    def to_dataframe(self) -> Any:
        """A pandas frame with the columns of a prediction file: sample, prediction, perhaps unknown, ``p_<class>``.

        Raises:
            UserError: if pandas is not installed.
        """
        columns: dict[str, Any] = {"sample": self.names, "prediction": self.classes}
        if self.unknown is not None:
            columns["unknown"] = self.unknown.numpy()
        shares = {f"p_{name}": self.probabilities[:, k].numpy() for k, name in enumerate(self.class_names)}
        return import_pandas().DataFrame({**columns, **shares})


@dataclass(frozen=True)
class MaskPredictions:
    """Predicted masks of N images.

    Attributes:
        names: the path of each image; its position for one that is no file.
        masks: for each the class of each pixel, (H, W) uint8, at the size of the image.
        confidences: (N,), for each the mean over its pixels of the largest probability.
        class_names: the names of the K classes.
    """

    names: tuple[str, ...]
    masks: tuple[Tensor, ...]
    confidences: Tensor
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    def write(self, folder: str | PathLike[str]) -> None:
        """Writes a folder of PNG files, as ``dafw predict`` does.

        Raises:
            UserError: if it is a file.
        """
        columns = {"prediction": self.masks, "confidence": self.confidences.tolist()}
        found = [Predicted(DOMAIN, self.names, columns)]
        Segmentation().write_predictions(found, self.class_names, user_path(fspath(folder)))


def names_of(given: Iterable[Any]) -> tuple[str, ...]:
    """The path of each image; its position for one that is no file."""
    return tuple(fspath(one) if isinstance(one, str | PathLike) else str(i) for i, one in enumerate(given))


def predictions(given: list[Any], columns: dict[str, Tensor], class_names: tuple[str, ...]) -> Predictions:
    """The predictions of images or texts.

    Args:
        given: the images, or the positions of the texts.
        columns: see :meth:`dafw.problems.Classification.predictions`.
        class_names: of the known classes.
    """
    names = (*class_names, UNKNOWN)
    return Predictions(
        names=names_of(given),
        classes=tuple(names[position] for position in columns["prediction"].tolist()),
        probabilities=columns["probabilities"],
        class_names=class_names,
        unknown=columns.get("unknown"),
    )


def predict_rows(
    images: Any,
    batch_size: int,
    prepare: Callable[[str, Any, tuple[int, ...] | None], Tensor],
    forward: Callable[[Tensor, int], dict[str, Tensor]],
    class_names: tuple[str, ...],
    shape: tuple[int, ...] | None,
    any_size: bool = False,
) -> Predictions:
    """The classes of images, some at a time.

    Args:
        images: one image or many.
        batch_size: images at a time.
        prepare: from a name for errors, an image and a shape to a tensor (C, H, W).
        forward: from images (N, C, H, W) and the position of the first to the columns of their predictions.
        class_names: of the known classes.
        shape: of every image; ``None``: that of the first.
        any_size: whether each batch may have a shape of its own.

    Raises:
        UserError: without an image, or for a batch size below 1.
    """
    if batch_size < 1:
        raise UserError(f"batch_size must be at least 1, not {batch_size}")
    given = rows_of(images)
    if not given:
        raise UserError("there is no image to predict")
    parts = []
    for start in range(0, len(given), batch_size):
        rows = []
        for position in range(start, min(start + batch_size, len(given))):
            rows.append(prepare(f"image {position}", given[position], shape))
            shape = None if any_size else tuple(rows[-1].shape)
        parts.append(forward(torch.stack(rows), start))
    columns = {key: torch.cat([part[key] for part in parts]).cpu() for key in parts[0]}
    return predictions(given, columns, class_names)


def prepared(name: str, image: Any, transform: Callable[[Any], Any], shape: tuple[int, ...] | None) -> Tensor:
    """One image as a model takes it, (C, H, W).

    Args:
        name: what an error calls it.
        image: a path, an image of Pillow, an array or a tensor, see :meth:`dafw.api.trained.Trained.predict`.
        transform: prepares a path or an image of Pillow.
        shape: the shape that it must have; ``None`` if any.

    Raises:
        UserError: for an image of another form, shape or range, or a file that cannot be read.
    """
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.shape[2:] not in ((), (3,)) or image.ndim < 2:
            held = f"an array of {image.dtype} {image.shape}"
            raise UserError(f"{name} is {held}: give uint8 (H, W) or (H, W, 3), or a tensor (C, H, W)")
        image = Image.fromarray(image)
    if isinstance(image, str | PathLike):
        path = user_path(fspath(image))
        if path.is_dir():
            raise UserError(f"{path} is a folder: give the paths of its images")
        image = transform(path)
    elif isinstance(image, Image.Image):
        image = transform(image)
    if not isinstance(image, Tensor):
        raise UserError(f"{name} is a {type(image).__name__}: give a path, an image, an array or a tensor")
    found = tuple(image.shape)
    if len(found) != 3 or found != (shape or found):
        raise UserError(f"{name} is {found}, and {shape or '(C, H, W)'} is needed: prepare its file with transform")
    check_scale(image[None])
    return image


def rows_of(images: Any) -> list[Any]:
    """One image, or several, as a list."""
    if isinstance(images, Tensor | np.ndarray):
        return list(images) if images.ndim == 4 else [images]
    single = isinstance(images, str | PathLike | Image.Image) or not isinstance(images, Iterable)
    return [images] if single else list(images)
