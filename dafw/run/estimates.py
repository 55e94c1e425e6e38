"""What a run keeps of its held-out source samples, and its estimates of the accuracy on its targets."""

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch

from dafw.checkpoints import newest_checkpoint
from dafw.errors import UserError
from dafw.estimation import SourceEvidence, digests, estimates
from dafw.estimation.estimating import check_evidence
from dafw.methods import Method
from dafw.methods.starting import find_checkpoint
from dafw.run.directory import EVIDENCE, run_of
from dafw.run.result import read_result
from datamodules.base import DomainDataModule


def source_evidence(method: Method, data: DomainDataModule) -> SourceEvidence | None:
    """What is kept of the sources' test splits, after a test of the method.

    A method that sees no source has what the run of its start model keeps.

    Returns:
        ``None`` if the accuracy cannot be estimated: for masks, boxes and methods that reject samples; without a source
        or such a run.
    """
    found = method.evaluator.for_estimates
    if found is None:
        return None
    sources = found.of_sources()
    if not sources:
        return of_start_model(method, data.num_classes)
    domains = {position: method.evaluator.evaluations[position].domain for position in sources}
    names = [domains[position].id(index) for position, rows in sources.items() for index in rows.positions.tolist()]
    logits, labels, features = (
        torch.cat([getattr(rows, name) for rows in sources.values()]).numpy()
        for name in ("logits", "labels", "features")
    )
    if logits.ndim != 2 or labels.ndim != 1:  # a problem with several labels a sample
        return None
    return SourceEvidence(
        logits=logits,
        labels=labels.astype(np.int64),
        samples=digests(names),
        features=features,
        classes=tuple(data.known_names),
        domains=tuple(one.name for one in domains.values()),
        held_out=data.holds_out_source,
    )


def of_start_model(method: Method, num_classes: int) -> SourceEvidence | None:
    """What the run keeps whose model this method started from; ``None`` if that is not at hand, or does not fit."""
    start = method.hparams.get("checkpoint")
    try:
        run = None if start is None else run_of(find_checkpoint(str(start)).absolute().parent)
        found = None if run is None else SourceEvidence.read(run / EVIDENCE)
    except UserError:
        return None
    return None if found is None or found.num_classes != num_classes else replace(found, start_model=True)


def record_estimates(method: Method, evidence: SourceEvidence | None) -> dict[str, dict[str, dict[str, float]]]:
    """The estimates of the accuracy on each target's test split, by target and estimator; empty if there are none.

    Args:
        method: after its test.
        evidence: see :func:`source_evidence`.
    """
    found = method.evaluator.for_estimates
    if found is None or evidence is None or not len(evidence) or evidence.num_classes < 2:
        return {}
    return {
        name: {estimator: asdict(one) for estimator, one in estimates(evidence, rows.logits).items()}
        for name, rows in found.of_targets().items()
    }


def evidence_of(method: Method, folder: Path, checkpoint: Path) -> SourceEvidence:
    """What a run keeps of its source, for an estimate of one of its checkpoints.

    Args:
        method: of the run.
        folder: the run directory.
        checkpoint: the checkpoint.

    Raises:
        UserError: for masks, boxes and runs that reject samples; for a run that is not finished, an earlier checkpoint,
            and a run that keeps nothing, or too little.
    """
    if not method.problem.estimates_accuracy:
        raise UserError(
            f"an estimate is for classes, and this run is for {method.problem.kind}: masks and boxes are not offered"
        )
    if method.evaluator.open_set.may_reject:
        raise UserError(
            "this run rejects samples of unknown classes, and no estimate knows their share: an estimate is for runs "
            "that reject nothing"
        )
    if read_result(folder) is None:
        raise UserError(
            f"{folder} is not finished, and a run keeps what an estimate needs at its end: dafw fit with its "
            "configuration goes on with it"
        )
    if not is_last(checkpoint, folder):
        raise UserError(
            f"{checkpoint} is an earlier checkpoint, and a run keeps what an estimate needs of its last one"
        )
    if (evidence := evidence_if_kept(folder, checkpoint)) is None:
        raise UserError(
            f"{folder} keeps nothing of its source ({EVIDENCE}), which an estimate needs: a run of a classifier keeps "
            "it at its end, and a source-free or test-time run needs that of its start model"
        )
    check_evidence(evidence)
    return evidence


def evidence_if_kept(folder: Path, checkpoint: Path) -> SourceEvidence | None:
    """What a run keeps of its source; ``None`` if that is nothing, or if the checkpoint is not the run's last one.

    Raises:
        UserError: if the file is damaged.
    """
    path = folder / EVIDENCE
    return SourceEvidence.read(path) if path.is_file() and is_last(checkpoint, folder) else None


def is_last(checkpoint: Path, folder: Path) -> bool:
    """Whether a checkpoint is the last one of the run in a folder."""
    newest = newest_checkpoint(folder)
    return newest is not None and newest.resolve() == checkpoint.resolve()
