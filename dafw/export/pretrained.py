"""An exported model that is read from its folder. It needs no Lightning and no code of the model."""

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from dafw.errors import UserError, sentence
from dafw.export.folder import Exported, is_exported
from dafw.export.forms import reader
from dafw.export.predicting import Predictions, predict_rows, prepared
from dafw.files import user_path


class Pretrained:
    """An exported model, ready to predict; :func:`from_pretrained` makes one.

    Args:
        folder: its folder.
        trust: see :func:`from_pretrained`.
        device: see :func:`from_pretrained`.

    Attributes:
        config: what its folder says of it.
        class_names: the names of the K classes that it predicts.
        run: images (N, C, H, W) of uint8 to the outputs by name: ``probabilities`` (N, K), and, of a model that rejects
            samples, ``unknown`` (N,) and ``known`` (N,) bool.
    """

    def __init__(self, folder: Path, trust: bool = False, device: torch.device | str = "cpu") -> None:
        self.folder, self.config, self.device = folder, Exported.read(folder), torch.device(device)
        self.class_names = self.config.classes
        self.run = reader(self.config, folder, trust, device)

    def prepare(self, image: Any) -> Tensor:
        """What the model takes of a path or an image of Pillow, uint8 (C, H, W).

        Raises:
            UserError: for a file that cannot be read, or if the model does not say how an image is prepared.
        """
        how = self.config.prepare
        if how is None:
            raise UserError(
                f"{self.folder} does not say how an image is prepared: give tensors of {self.config.shape}, or predict"
                " with the run"
            )
        return how.decode(image) if self.config.resize else how(image)

    @torch.no_grad()
    def columns(self, images: Tensor) -> dict[str, Tensor]:
        """The columns of the predictions of images (N, C, H, W) of uint8.

        Raises:
            UserError: if they do not fit the model.
        """
        self._check(images)
        try:
            found = self.run(images.to(self.device))
            shares = found["probabilities"].float().cpu()
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever a program of a damaged file meets
            raise UserError(f"{self.folder} cannot be run: {sentence(error)[:200]}") from error
        if shares.shape != (len(images), len(self.class_names)):
            raise UserError(f"{self.folder} is damaged: it gives {tuple(shares.shape)} probabilities")
        if "unknown" not in found:
            return {"prediction": shares.argmax(1), "probabilities": shares}
        unknown = found["unknown"].float().cpu()
        prediction = shares.argmax(1).masked_fill(unknown > 0, shares.shape[1])
        return {"prediction": prediction, "probabilities": shares, "unknown": unknown}

    def _check(self, images: Tensor) -> None:
        wanted = self.config.shape
        fits = images.ndim == 4 and all(b in (0, a) for a, b in zip(images.shape[1:], wanted, strict=True))
        if not fits or images.dtype != torch.uint8:
            sides = tuple(one or "any" for one in wanted)
            raise UserError(
                f"{self.folder} takes images of uint8 (N, {', '.join(map(str, sides))}), not {images.dtype}"
                f" {tuple(images.shape)}"
            )

    def predict(self, images: Any, *, batch_size: int = 64) -> Predictions:
        """The classes of images.

        Args:
            images: one image or many: paths, images of Pillow, uint8 arrays (H, W) or (H, W, 3), or tensors of uint8
                (C, H, W) as the model takes them.
            batch_size: images at a time. Images that the model scales itself go in one by one, since sizes differ.

        Raises:
            UserError: for an image of another form or size, or a file that cannot be read.
        """

        def one(name: str, image: Any, shape: tuple[int, ...] | None) -> Tensor:
            return prepared(name, image, self.prepare, shape)

        def forward(x: Tensor, _: int) -> dict[str, Tensor]:
            return self.columns(x)

        any_size = 0 in self.config.shape
        shape = None if any_size or self.config.prepare is None else tuple(self.prepare(Image.new("RGB", (9, 7))).shape)
        return predict_rows(images, 1 if any_size else batch_size, one, forward, self.class_names, shape, any_size)


def from_pretrained(folder: str | Path, *, trust: bool = False, device: torch.device | str = "cpu") -> Pretrained:
    """An exported model, ready to predict.

    Reading the forms safetensors and onnx runs no code of the files.

    Args:
        folder: of the exported model.
        trust: whether code that comes with the files may run. A model of the form torch needs it, since
            ``torch.export.load`` unpickles.
        device: where the model runs.

    Raises:
        UserError: if the folder is of no exported model, or a file of it is damaged or was refused.
    """
    place = user_path(folder)
    if not is_exported(place):
        raise UserError(f"{folder} is no exported model: dafw export RUN --output FOLDER makes one")
    return Pretrained(place, trust, device)
