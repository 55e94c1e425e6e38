"""A trained run in the hands of another program: its classes, its result, and its predictions for images or texts."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from dafw.api.data import make_data
from dafw.checkpoints import check_classes, newest_checkpoint, read_checkpoint
from dafw.data.batch import Batch, Sample, collate
from dafw.errors import UserError, sentence
from dafw.estimation import OtherModel, Report
from dafw.evaluation.for_estimates import ForEstimates, Loader, Rows
from dafw.export.folder import Exported, Form
from dafw.export.predicting import Predictions, predict_rows, predictions, prepared, rows_of
from dafw.export.served import Served, served
from dafw.files import user_path
from dafw.methods import Method
from dafw.problems import Classification
from dafw.run.directory import run_of
from dafw.run.estimates import evidence_if_kept, evidence_of
from dafw.run.result import Result, read_result
from datamodules.base import DomainDataModule
from datamodules.text import TextDomains


class Trained:
    """A trained run; :func:`load` makes one.

    Args:
        method: the method with its weights.
        class_names: the names of the classes that it predicts; their positions if there are none.
        checkpoint: the file of the weights.
        directory: the run directory; ``None`` for a checkpoint without one.
        data: the datamodule that prepares images; that of the run directory if ``None``.
    """

    def __init__(
        self,
        method: Method,
        class_names: Sequence[str],
        checkpoint: Path,
        directory: Path | None,
        data: DomainDataModule | None = None,
    ) -> None:
        self.method, self.checkpoint, self.directory = method, checkpoint, directory
        self.class_names = tuple(class_names) or tuple(map(str, range(method.num_classes)))
        if data is not None:
            self.data = data
        method.start_evaluation("predict")

    @property
    def result(self) -> Result:
        """The result of the run.

        Raises:
            UserError: if there is none, or if its file cannot be read.
        """
        found = None if self.directory is None else read_result(self.directory)
        if found is None:
            raise UserError(f"{self.checkpoint} has no result beside it: it is of no run that is done")
        return found

    @cached_property
    def module(self) -> Served:
        """From images, prepared as :attr:`transform` does, to what an exported model gives: a module for export.

        Raises:
            UserError: for a run that predicts neither classes nor masks.
        """
        return served(self.method)

    @cached_property
    def data(self) -> DomainDataModule:
        """The datamodule, made when it is first needed.

        Raises:
            UserError: see :func:`~dafw.api.data.make_data`; for a checkpoint that lies in no run directory.
        """
        if self.directory is None:
            raise UserError(
                f"{self.checkpoint} lies in no run directory, which says how images are prepared: give data"
            )
        return make_data(self.directory)

    @cached_property
    def transform(self) -> Callable[[Any], Any]:
        """The function that prepares an image as the run's evaluation does: a path or an image of Pillow to a tensor.

        That of a run on texts makes the tokens of a text.

        Raises:
            UserError: if the data cannot be had, or does not say how an image is prepared.
        """
        return self.data.evaluation_transform()

    @torch.no_grad()
    def predict(self, images: Any, *, batch_size: int = 64) -> Predictions:
        """The classes of images, or of texts for a run on texts.

        Args:
            images: one image or many: paths, images of Pillow, uint8 arrays (H, W) or (H, W, 3), which
                :attr:`transform` prepares; or prepared tensors (3, H, W), or (N, 3, H, W), of uint8 or of floating
                point in [0, 1]. For a run on texts one text or many.
            batch_size: images at a time.

        Raises:
            UserError: for an image of another form, size or range, a file that cannot be read, an empty text, or a run
                that predicts something else than classes.
        """
        if not isinstance(self.method.problem, Classification):
            kind = self.method.problem.kind
            raise UserError(f"this run is for {kind}, and predict gives classes: take dafw predict")
        if self._takes_texts:
            return self._predict_texts(images, batch_size)

        def prepare(name: str, image: Any, shape: tuple[int, ...] | None) -> Tensor:
            return prepared(name, image, lambda one: self.transform(one), shape)  # made when a file needs it

        def forward(x: Tensor, first: int) -> dict[str, Tensor]:
            return self._predict(_batch(x, first))

        return predict_rows(images, batch_size, prepare, forward, self.class_names, self._shape)

    def _predict_texts(self, texts: Any, batch_size: int) -> Predictions:
        if batch_size < 1:
            raise UserError(f"batch_size must be at least 1, not {batch_size}")
        given = rows_of(texts)
        if not given:
            raise UserError("there is no text to predict")
        starts = range(0, len(given), batch_size)
        parts = [self._predict(self._tokens(given[start : start + batch_size], start)) for start in starts]
        columns = {key: torch.cat([part[key] for part in parts]).cpu() for key in parts[0]}
        return predictions(list(range(len(given))), columns, self.class_names)

    def estimate(self, images: Any, *, others: Sequence["Trained"] = (), batch_size: int = 64) -> Report:
        """The accuracy on images without labels, estimated, and how far they are from the source.

        Args:
            images: images or texts, see :meth:`predict`.
            others: further runs that see the same, for estimates by agreement.
            batch_size: images at a time.

        Raises:
            UserError: see :meth:`predict` and :func:`dafw.run.estimates.evidence_of`; for a run of other classes.
        """
        if self.directory is None:
            raise UserError(f"{self.checkpoint} lies in no run directory, which keeps what an estimate needs")
        evidence = evidence_of(self.method, self.directory, self.checkpoint)
        given = rows_of(images)
        models = []
        for one in others:
            kept = None if one.directory is None else evidence_if_kept(one.directory, one.checkpoint)
            models.append(OtherModel(one._scores(given, batch_size).logits, kept))
        rows = self._scores(given, batch_size)
        return Report.of(evidence, rows.logits, rows.features, models)

    def _scores(self, images: list[Any], batch_size: int) -> Rows:
        """The outputs for images."""
        evaluator = self.method.evaluator
        evaluator.for_estimates = found = ForEstimates([Loader("", len(images))])
        try:
            self.predict(images, batch_size=batch_size)
        finally:
            evaluator.for_estimates = None
        found.gather()
        return found.rows[0]

    @cached_property
    def _takes_texts(self) -> bool:
        with suppress(UserError):  # which says what is wrong when the data are needed
            return isinstance(self.data, TextDomains)
        return False

    def _tokens(self, texts: Sequence[Any], first: int) -> Batch:
        """A batch of texts, the first of which is number ``first``."""
        for position, text in enumerate(texts, first):
            if not isinstance(text, str) or not text.strip():
                what = "empty" if isinstance(text, str) else f"a {type(text).__name__}"
                raise UserError(f"text {position} is {what}: give texts to a run on texts")
        return collate([Sample(self.transform(text), None, 0, row, {}, {}) for row, text in enumerate(texts, first)])

    def _predict(self, batch: Batch) -> dict[str, Tensor]:
        try:
            found = self.method.evaluator.predict(batch.to(self.method.device))
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # of a layer that takes one size alone
            what = f"images of {tuple(batch.x.shape[1:])}" if isinstance(batch.x, Tensor) else "texts"
            raise UserError(f"{what} do not fit the network ({sentence(error)})") from error
        return {key: value for key, value in found.items() if key != "index"}

    def save_pretrained(
        self,
        folder: str | Path,
        *,
        to: Form = "safetensors",
        dtype: str = "float32",
        images: Sequence[str | Path] = (),
        **further: Any,
    ) -> Exported:
        """Exports the model, see :func:`dafw.api.exporting.save`; :func:`dafw.from_pretrained` reads it again.

        Args:
            folder: must not exist.
            to: ``torch``, ``onnx`` or ``safetensors``.
            dtype: of the weights: ``float32``, ``bfloat16`` or ``float16``.
            images: files and folders of images for the check; the run's test images if empty.
            further: see :func:`dafw.api.exporting.save`.

        Raises:
            UserError: see :func:`dafw.api.exporting.save`.
        """
        from dafw.api.exporting import save

        return save(self, folder, to=to, dtype=dtype, images=images, **further)

    @cached_property
    def _shape(self) -> tuple[int, ...] | None:
        """The shape of every prepared image, (C, H, W); ``None`` if it depends on the image, or is not known."""
        with suppress(UserError):
            shapes = {tuple(self.transform(Image.new("RGB", sides)).shape) for sides in ((300, 500), (500, 300))}
            return shapes.pop() if len(shapes) == 1 else None
        return None


def _batch(x: Tensor, first: int) -> Batch:
    """A batch of images, the first of which is number ``first``."""
    rows = first + torch.arange(len(x))
    return Batch(x=x, y=[], domain=torch.zeros_like(rows), index=rows, num_source=0)


def load(path: str | Path, *, data: DomainDataModule | None = None, device: str | torch.device = "cpu") -> Trained:
    """A trained run, ready to predict.

    Reading it runs no code that comes with the file. A class of your own must be imported before.

    Args:
        path: a run directory, whose newest checkpoint counts, or a checkpoint.
        data: a datamodule that prepares images as the run's does; that of the run directory if ``None``.
        device: where the model is put.

    Raises:
        UserError: if there is no checkpoint; see :meth:`dafw.methods.Method.load`; for data with other classes.
    """
    place = user_path(path)
    newest = newest_checkpoint(place) if place.is_dir() else place
    if newest is None:
        raise UserError(f"there is no checkpoint in {path}: give a run directory or a checkpoint")
    held = read_checkpoint(newest)["dafw"]
    if data is not None:
        check_classes(held, newest, data.known_names)
    method: Method = Method.load(str(newest)).to(device)
    return Trained(method, held["classes"], newest, run_of(newest.absolute().parent), data)
