"""Collects the predictions of ``dafw predict``; the problem writes them."""

from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from dafw.escape import terminal
from dafw.methods import Method
from dafw.problems import Predicted
from dafw.run.images import DOMAIN, ImageBatches, find_images
from datamodules.base import DomainDataModule


def predict_targets(trainer: pl.Trainer, method: Method, data: DomainDataModule, output: Path) -> None:
    """Predicts the targets, writes the predictions, and prints how many they are and of which part.

    Args:
        trainer: makes the predictions.
        method: the trained method.
        data: the datamodule with the targets.
        output: where to write.
    """

    def sizes(position: int, index: list[int]) -> list[tuple[int, int] | None]:
        domain = data.predicted(data.target[position]).domain
        return [data.original_size(domain.id(one)) for one in index]

    method.evaluator.file_sizes = sizes
    predicted = gather_predictions(serve_targets(trainer, method, data), data)
    if not trainer.is_global_zero:
        return
    method.problem.write_predictions(predicted, data.known_names, output)
    for name, one in zip(data.target, predicted, strict=True):
        whole = data.predicted(name).part == "all"
        hint = "" if method.setting.streams_target else " alone; --split all predicts all its samples"
        part = "all its samples" if whole else f"its test split{hint}"
        print(terminal(f"{name}: {len(one.ids)} predictions, of {part}"))
    print(output)


def predict_images(trainer: pl.Trainer, method: Method, data: DomainDataModule, given: list[str], output: Path) -> None:
    """Predicts files of images, writes the predictions, and lists the files that were left out.

    Args:
        trainer: makes the predictions, in one process.
        method: the trained method.
        data: the run's datamodule, which says how an image is prepared.
        given: files and folders.
        output: where to write.

    Raises:
        UserError: if the datamodule cannot prepare an image, or none of the files can be read.
    """
    loader = image_loader(method, data, given)
    paths = loader.paths

    def sizes_of(_: int, index: list[int]) -> list[tuple[int, int] | None]:
        return [data.original_size(str(paths[one].resolve())) for one in index]

    method.evaluator.file_sizes = sizes_of
    positions, columns = _in_order(serve_images(trainer, method, loader))
    ids = [str(paths[position]) for position in positions]
    sizes = [data.original_size(str(paths[position].resolve())) for position in positions]
    method.problem.write_predictions([Predicted(DOMAIN, ids, columns, sizes)], data.known_names, output)
    print(f"{len(ids)} predictions; skipped files: {len(loader.skipped)}")
    print(output)


def serve_targets(trainer: pl.Trainer, method: Method, data: DomainDataModule) -> list[Any]:
    """The value of ``Trainer.predict`` for the targets. The evaluator collects what estimates need, over all ranks."""
    method.evaluator.estimated_files = 0
    batches: list[Any] = trainer.predict(method, datamodule=data) or []
    if method.evaluator.for_estimates is not None:
        method.evaluator.for_estimates.gather()
    return batches


def image_loader(method: Method, data: DomainDataModule, given: list[str]) -> ImageBatches:
    """Batches of the images that ``--images`` names.

    Raises:
        UserError: if the datamodule cannot prepare an image, or there is none.
    """
    prepare, paths = data.evaluation_transform(), find_images(given)
    mixed = (data.seed, DOMAIN) if method.data_request.mixed_evaluation else None
    return ImageBatches(paths, prepare, data.eval_batch_size, mixed)


def serve_images(trainer: pl.Trainer, method: Method, loader: ImageBatches) -> list[Any]:
    """The value of ``Trainer.predict`` for images. The evaluator collects what estimates need.

    What was left out is listed on standard error.

    Raises:
        UserError: if none of the images can be read.
    """
    method.evaluator.estimated_files = len(loader.paths)
    batches: list[Any] = trainer.predict(method, dataloaders=loader) or []
    loader.report()
    if method.evaluator.for_estimates is not None:
        method.evaluator.for_estimates.gather()
    return batches


def gather_predictions(predicted: list[Any], data: DomainDataModule) -> list[Predicted]:
    """Collects the predictions for each target from all ranks, in the order of its samples.

    Args:
        predicted: the value of ``Trainer.predict``: the batches of one loader, or a list of batches for each loader.
        data: the datamodule with the targets.
    """
    own: list[list[dict[str, Any]]] = [predicted] if len(data.target) == 1 else predicted
    shares = [own]
    if torch.distributed.is_initialized():
        shares = [own] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(shares, own)
    found = []
    for position, name in enumerate(data.target):
        positions, columns = _in_order([batch for share in shares for batch in share[position]])
        domain = data.predicted(name).domain
        ids = [domain.id(index) for index in positions]
        found.append(Predicted(name, ids, columns, [data.original_size(one) for one in ids], data.numbers(name)))
    return found


def _in_order(batches: list[Mapping[str, Any]]) -> tuple[list[int], dict[str, list[Any]]]:
    """The positions of the predicted samples, sorted, and the other columns in that order."""
    columns = {key: list(chain.from_iterable(_rows(batch[key]) for batch in batches)) for key in batches[0]}
    positions = columns.pop("index")
    order = sorted(range(len(positions)), key=positions.__getitem__)
    return [positions[row] for row in order], {key: [column[row] for row in order] for key, column in columns.items()}


def _rows(column: Any) -> list[Any]:
    """One value for each sample: a number or a list of numbers of a vector; a larger tensor as it is."""
    if isinstance(column, torch.Tensor):
        return column.tolist() if column.ndim <= 2 else list(column.cpu())
    return list(column)
