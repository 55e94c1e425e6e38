"""Collects the predictions of ``dafw predict``; the problem writes them."""

from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from dafw.data.batch import collate
from dafw.data.domain import Domain
from dafw.data.joint import JointDataset
from dafw.data.sampler import ShardSampler
from dafw.errors import UserError
from dafw.escape import terminal
from dafw.files import user_path
from dafw.methods import Method
from dafw.problems import Predicted
from dafw.run.images import DOMAIN, ImageBatches, find_images
from datamodules.base import DomainDataModule
from datamodules.text import TextDomains


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
    """As :func:`serve_files`, for images. What was left out is listed on standard error.

    Raises:
        UserError: if none of the images can be read.
    """
    batches = serve_files(trainer, method, loader, len(loader.paths))
    loader.report()
    return batches


def text_loader(method: Method, data: DomainDataModule, given: str) -> tuple[Domain, DataLoader[Any]]:
    """The texts of a file, and batches of them.

    Raises:
        UserError: if the run is of other data, or the file cannot be read.
    """
    if not isinstance(data, TextDomains):
        raise UserError(f"the run is of {type(data).__name__}, which serves no texts: leave out --texts")
    domain = data.texts(user_path(given))
    mixed = (data.seed, domain.name) if method.data_request.mixed_evaluation else None
    order = ShardSampler(len(domain), data.eval_batch_size, mixed=mixed)
    dataset = JointDataset([domain])
    return domain, DataLoader(dataset, batch_sampler=order, collate_fn=collate, num_workers=data.num_workers)


def serve_files(trainer: pl.Trainer, method: Method, loader: Any, count: int) -> list[Any]:
    """The value of ``Trainer.predict`` for so many samples of no target. The evaluator collects what estimates need."""
    method.evaluator.estimated_files = count
    batches: list[Any] = trainer.predict(method, dataloaders=loader) or []
    if method.evaluator.for_estimates is not None:
        method.evaluator.for_estimates.gather()
    return batches


def predict_texts(trainer: pl.Trainer, method: Method, data: DomainDataModule, given: str, output: Path) -> None:
    """Predicts the texts of a file, and writes the predictions.

    Args:
        trainer: makes the predictions, in one process.
        method: the trained method.
        data: the run's datamodule, which knows the columns of the file and the tokenizer.
        given: the file.
        output: where to write.

    Raises:
        UserError: if the run is of other data, or the file cannot be read.
    """
    domain, loader = text_loader(method, data, given)
    batches = serve_files(trainer, method, loader, len(domain))
    positions, columns = _in_order(batches)
    ids = [domain.id(position) for position in positions]
    method.problem.write_predictions([Predicted(domain.name, ids, columns)], data.known_names, output)
    print(f"{len(ids)} predictions")
    print(output)


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
