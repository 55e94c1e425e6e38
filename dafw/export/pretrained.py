"""An exported model that is read from its folder. It needs no Lightning and no code of the model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from dafw.data.preparing import Preparation
from dafw.errors import UserError, sentence
from dafw.export.folder import Exported, is_exported
from dafw.export.forms import reader
from dafw.export.predicting import MaskPredictions, Predictions, names_of, predict_rows, prepared, rows_of
from dafw.export.served import KINDS
from dafw.files import user_path
from dafw.problems import MaskOutputs, Segmentation


class Pretrained:
    """An exported model, ready to predict; :func:`from_pretrained` makes one.

    Args:
        folder: its folder.
        trust: see :func:`from_pretrained`.
        device: see :func:`from_pretrained`.

    Attributes:
        config: what its folder says of it.
        class_names: the names of the K classes that it predicts.
        problem: what the model solves.
        run: images (N, C, H, W) of uint8 to the outputs by name: ``probabilities`` (N, K), of masks (N, K, H, W), and,
            of a model that rejects samples, ``unknown`` (N,) and ``known`` (N,) bool.
    """

    def __init__(self, folder: Path, trust: bool = False, device: torch.device | str = "cpu") -> None:
        self.folder, self.config, self.device = folder, Exported.read(folder), torch.device(device)
        self.class_names, self.problem = self.config.classes, KINDS[self.config.kind]()
        self.run = reader(self.config, folder, trust, device)

    @property
    def preparation(self) -> Preparation:
        """How an image is prepared.

        Raises:
            UserError: if the model does not say it.
        """
        how = self.config.prepare
        if how is None:
            raise UserError(
                f"{self.folder} does not say how an image is prepared: give tensors of uint8 {self.config.takes}, or"
                " predict with the run"
            )
        return how

    def prepare(self, image: Any) -> Tensor:
        """What the model takes of a path or an image of Pillow, uint8 (C, H, W).

        Raises:
            UserError: for a file that cannot be read, or if the model does not say how an image is prepared.
        """
        return self.preparation.decode(image) if self.config.resize else self.preparation(image)

    def columns(self, images: Tensor, sizes: Sequence[tuple[int, int] | None] | None = None) -> dict[str, Any]:
        """The columns of the predictions of images (N, C, H, W) of uint8, see :meth:`.Problem.predictions`.

        Args:
            images: as the model takes them.
            sizes: height and width to which each mask is scaled; ``None`` where it stays as it is.

        Raises:
            UserError: if they do not fit the model.
        """
        found = self._outputs(images)
        shares = found["probabilities"]
        if isinstance(self.problem, Segmentation):
            scores = shares.clamp_min(torch.finfo(torch.float32).tiny).log()
            return self.problem.predictions_at(MaskOutputs(scores, scores), sizes or [None] * len(images))
        if "unknown" not in found:
            return {"prediction": shares.argmax(1), "probabilities": shares}
        unknown = found["unknown"].float().cpu()
        prediction = shares.argmax(1).masked_fill(unknown > 0, shares.shape[1])
        return {"prediction": prediction, "probabilities": shares, "unknown": unknown}

    def probabilities(self, images: Tensor) -> Tensor:
        """The probabilities for images (N, C, H, W) of uint8, on the CPU: (N, K), of masks (N, K, H, W).

        Raises:
            UserError: if they do not fit the model.
        """
        return self._outputs(images)["probabilities"]

    @torch.no_grad()
    def _outputs(self, images: Tensor) -> dict[str, Tensor]:
        """What the model gives, with its probabilities checked and on the CPU."""
        self._check(images)
        try:
            found = self.run(images.to(self.device))
            shares = found["probabilities"].float().cpu()
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever a program of a damaged file meets
            raise UserError(f"{self.folder} cannot be run: {sentence(error)[:200]}") from error
        sides = images.shape[2:] if isinstance(self.problem, Segmentation) else ()
        if shares.shape != (len(images), len(self.class_names), *sides):
            raise UserError(f"{self.folder} is damaged: it gives {tuple(shares.shape)} probabilities")
        return {**found, "probabilities": shares}

    def _check(self, images: Tensor) -> None:
        config = self.config
        fits = images.ndim == 4 and all(b in (0, a) for a, b in zip(images.shape[1:], config.shape, strict=True))
        if config.any_size:
            fits = fits and all(a >= b for a, b in zip(images.shape[2:], config.smallest, strict=True))
        if not fits or images.dtype != torch.uint8:
            raise UserError(
                f"{self.folder} takes images of uint8 {config.takes}, not {images.dtype} {tuple(images.shape)}"
            )

    def predict(self, images: Any, *, batch_size: int = 64) -> Predictions | MaskPredictions:
        """The classes of images, or their masks.

        Args:
            images: one image or many: paths, images of Pillow, uint8 arrays (H, W) or (H, W, 3), or tensors of uint8
                (C, H, W) as the model takes them. A mask has the size of the image that was given.
            batch_size: images at a time. Images of several sizes go in one by one.

        Raises:
            UserError: for an image of another form or size, or a file that cannot be read.
        """

        def one(name: str, image: Any, shape: tuple[int, ...] | None) -> Tensor:
            return prepared(name, image, self.prepare, shape)

        def forward(x: Tensor, _: int) -> dict[str, Tensor]:
            return self.columns(x)

        any_size = self.config.any_size
        if isinstance(self.problem, Segmentation):
            return self._predict_masks(images)
        shape = None if any_size or self.config.prepare is None else tuple(self.prepare(Image.new("RGB", (9, 7))).shape)
        return predict_rows(images, 1 if any_size else batch_size, one, forward, self.class_names, shape, any_size)

    def _predict_masks(self, images: Any) -> MaskPredictions:
        """One by one, since sizes may differ."""
        given = rows_of(images)
        if not given:
            raise UserError("there is no image to predict")
        masks, sure = list[Tensor](), list[float]()
        for position, image in enumerate(given):
            sizes = list[tuple[int, int] | None]()

            def prepare(one: Any, sizes: list[tuple[int, int] | None] = sizes) -> Tensor:
                decoded = self.preparation.decode(one)
                sizes.append((decoded.shape[1], decoded.shape[2]))
                return decoded if self.config.resize else self.preparation.fit(decoded[None])[0]

            x = prepared(f"image {position}", image, prepare, None)
            found = self.columns(x[None], sizes or [None])
            masks.append(found["prediction"][0])
            sure.append(float(found["confidence"][0]))
        return MaskPredictions(names_of(given), tuple(masks), torch.tensor(sure), self.class_names)


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
