"""``dafw estimate``: how good a run is on images without labels; and the warning of ``dafw predict``."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from dafw.callbacks import Stopping
from dafw.errors import UserError, warn
from dafw.escape import terminal
from dafw.estimation import OtherModel, Report, SourceEvidence, shift_scores, warning
from dafw.evaluation.for_estimates import Rows
from dafw.files import check_writable, user_path, write_atomically
from dafw.methods import Method
from dafw.run.config import DafwCLI, parse
from dafw.run.estimates import evidence_if_kept, evidence_of
from dafw.run.given import with_run
from dafw.run.images import DOMAIN
from dafw.run.predictions import image_loader, serve_images, serve_targets
from dafw.run.trained import TrainedRun, fill_from_checkpoint

COVERS = "The range covers the chance of the draw of images and of source samples alone, not that an assumption fails."


class Outputs(NamedTuple):
    """A model's outputs for one set of images.

    Attributes:
        ids: the names of the n images.
        rows: the outputs, in the order of ``ids``.
    """

    ids: list[str]
    rows: Rows


def estimate(cli: DafwCLI, run: TrainedRun) -> None:
    """Prints the estimates and shift scores for ``--images``, or for the run's targets, and writes them.

    Raises:
        UserError: for a run of which no estimate can be made, saying why; see :func:`outputs` and :func:`other_model`.
    """
    given = cli.config_init
    if given["images"] and given["split"]:
        raise UserError("split is a part of a target: give --images or --split, not both")
    if given["output"]:
        check_writable(user_path(given["output"]))
    evidence = evidence_of(cli.model, run.folder, run.path)
    others = [other_model(name, given) for name in given["with"] or []]
    served = outputs(cli, run.folder)
    seen = [(kept, outputs(other, one.folder)) for other, one, kept in others]
    reports = {}
    for name, own in served.items():
        logits, positions = together(name, own, [(kept, found) for kept, found in seen])
        reports[name] = Report.of(evidence, own.rows.logits[positions], own.rows.features, logits)
    for name, report in reports.items():
        print(terminal(f"{name}: {report.samples:,} images, {len(evidence):,} held-out source samples"))
        print("\n".join(report.lines()))
    print(COVERS)
    for note in next(iter(reports.values())).notes:
        warn(note)
    for name, report in reports.items():
        if report.warning:
            warn(f"{name}: {report.warning}")
    if given["output"]:
        path = user_path(given["output"])
        facts = {"run": str(run.folder), "source": {"domains": evidence.domains, "samples": len(evidence)}}
        found = {"images": {name: one.as_dict() for name, one in reports.items()}}
        write_atomically(path, json.dumps({**facts, **found}, indent=1))
        print(path)


def other_model(name: str, given: dict[str, object]) -> tuple[DafwCLI, TrainedRun, SourceEvidence | None]:
    """Another run or checkpoint that ``--with`` names, and what its run keeps of the source.

    An earlier checkpoint has no such thing, so it serves the estimators of two models alone.
    """
    where = [] if not given["images"] else ["--images", *map(str, given["images"])]  # type: ignore[call-overload]
    split = [] if not given["split"] else ["--split", str(given["split"])]
    cli = parse(with_run("estimate", [name, *where, *split]), "estimate")
    run = fill_from_checkpoint(cli, "estimate")
    return cli, run, evidence_if_kept(run.folder, run.path)


def outputs(cli: DafwCLI, folder: Path) -> dict[str, Outputs]:
    """A model's outputs by the name of a target, or by "images" for the files that ``--images`` names.

    Raises:
        UserError: if no file can be read.
    """
    given, method, data = cli.config_init, cli.model, cli.datamodule
    cli.use_one_device()
    data.predict_split = given["split"]
    trainer = cli.make_trainer([Stopping()], [], folder)
    if given["images"]:
        loader = image_loader(method, data, given["images"])
        serve_images(trainer, method, loader)
        names = {DOMAIN: [str(path) for path in loader.paths]}
    else:
        serve_targets(trainer, method, data)
        domains = {name: data.predicted(name).domain for name in data.target}
        names = {name: [one.id(index) for index in range(len(one))] for name, one in domains.items()}
    assert method.evaluator.for_estimates is not None
    found = method.evaluator.for_estimates.of_targets()
    return {
        name: Outputs([ids[index] for index in rows.positions.tolist()], rows)
        for (name, ids), rows in zip(names.items(), found.values(), strict=True)
    }


def together(
    name: str, own: Outputs, others: Sequence[tuple[SourceEvidence | None, dict[str, Outputs]]]
) -> tuple[list[OtherModel], Tensor]:
    """The images that all models have seen.

    Args:
        name: of the set of images.
        own: this model's outputs.
        others: what the run of each other model keeps of the source, and its outputs.

    Returns:
        The other models' outputs for these images, and the positions of the images in this model's outputs.

    Raises:
        UserError: if another model has another target, other images or other classes.
    """
    places = []
    for _, found in others:
        if name not in found:
            raise UserError(f"a run of --with has no target {name}: give --images, or runs with the same targets")
        places.append({one: position for position, one in enumerate(found[name].ids)})
    kept = [position for position, one in enumerate(own.ids) if all(one in place for place in places)]
    if not kept:
        raise UserError(f"the runs of --with have seen no image of {name} that this run has seen: give --images")
    models = []
    for (evidence, found), place in zip(others, places, strict=True):
        rows = torch.tensor([place[own.ids[position]] for position in kept])
        logits = found[name].rows.logits[rows]
        if logits.shape[1] != own.rows.logits.shape[1]:
            raise UserError(
                f"a run of --with predicts {logits.shape[1]} classes, and this run {own.rows.logits.shape[1]}"
            )
        models.append(OtherModel(logits, evidence))
    return models, torch.tensor(kept)


def warn_of_shift(method: Method, run: TrainedRun) -> None:
    """Warns after a prediction if what was predicted differs from the source, where the run keeps what this needs."""
    found = method.evaluator.for_estimates
    try:
        evidence = None if found is None else evidence_if_kept(run.folder, run.path)
        if found is None or evidence is None:
            return
        for name, rows in found.of_targets().items():
            if said := warning(shift_scores(evidence, rows.logits, rows.features)):
                warn(f"{name or DOMAIN}: {said}")
    except UserError as error:  # the predictions are written already
        warn(f"nothing can be said of the shift: {error}")
