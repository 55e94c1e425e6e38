"""Adapts a trained model to images without labels, through the usual run, and says what can be said of the gain."""

import json
import math
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from dafw.api.exporting import preparation_of
from dafw.api.given import load_run
from dafw.api.starts import Start, check_classifier, exported_start, plain_start
from dafw.api.trained import load
from dafw.data.preparing import Preparation
from dafw.errors import UserError
from dafw.escape import markdown
from dafw.estimation import Estimate, SourceEvidence, estimates
from dafw.export.folder import is_exported
from dafw.export.making import Wanted, export
from dafw.files import user_path, write_atomically
from dafw.methods import AdaBN, Method
from dafw.names import quoted
from dafw.run.directory import EVIDENCE
from dafw.run.estimates import evidence_if_kept
from dafw.run.images import find_images

REPORT, CARD = "report.json", "README.md"
CAVEAT = (
    "An estimate is no measurement. Its thresholds come from the source outputs of the frozen model, and adaptation"
    " itself makes a model surer of what it says, also where it is wrong. Label some images before you rely on it."
)


@dataclass(frozen=True)
class Comparison:
    """The frozen model and the adapted one on the same images, none of which has a label.

    Attributes:
        images: how many there are.
        changed: the share whose class changed.
        confidence: the mean largest probability, of the frozen and of the adapted model.
        frozen: by estimator the accuracy of the frozen model; empty without evidence.
        adapted: the same of the adapted model.
        verdict: what can be said, in a sentence.
        better: whether every estimate says that the adapted model is better; ``None`` if nothing can be claimed.
    """

    images: int
    changed: float
    confidence: tuple[float, float]
    frozen: dict[str, Estimate]
    adapted: dict[str, Estimate]
    verdict: str
    better: bool | None


def starting_model(given: str, work: Path, classes: Sequence[str], backbone: str | None, trust: bool) -> Start:
    """The model that ``dafw adapt`` starts from.

    Args:
        given: an exported model, a run, a checkpoint, a file of weights, or a name of timm.
        work: where a checkpoint to start from is written, if there is none.
        classes: the names of the classes of a plain classifier.
        backbone: the timm model that a file of weights is of.
        trust: whether a class of the user's own that an exported model names may be imported.

    Raises:
        UserError: if it is none of these, or cannot be trained further.
    """
    place = user_path(given)
    if is_exported(place):
        return exported_start(place, work, trust)
    if place.is_dir() or place.suffix == ".ckpt":
        trained = load_run(place)
        check_classifier(given, trained.method.problem.kind)
        how = preparation_of(trained)
        if how is None:
            raise UserError(f"the run {given} does not say how an image file is prepared, so no folder can be read")
        run = trained.directory
        kept = run is not None and evidence_if_kept(run, trained.checkpoint) is not None
        evidence = run / EVIDENCE if run is not None and kept else None
        return Start(trained.checkpoint, trained.method, trained.class_names, how, evidence)
    return plain_start(given, work, classes, backbone)


def configuration(start: Start, method: type[Method], paths: Sequence[Path], run: Path, batch: int) -> dict[str, Any]:
    """The configuration of the run that adapts a model.

    Args:
        start: the model.
        method: adapts it.
        paths: the images.
        run: the run directory.
        batch: images a step.
    """
    data = {
        "images": [str(path.absolute()) for path in paths],
        "classes": list(start.classes),
        "preparation": start.how.described(),
        "batch_size": min(batch, len(paths)),
        "steps_per_epoch": max(1, math.ceil(len(paths) / batch)),
    }
    where = f"{method.__module__}.{method.__qualname__}"
    return {
        "model": {"class_path": where, "init_args": {"checkpoint": str(start.checkpoint.absolute())}},
        "data": {"class_path": "datamodules.unlabelled.UnlabelledImages", "init_args": data},
        "run": {"dir": str(run), "plots": False},
    }


def check_method(method: type[Method]) -> None:
    """Refuses a method that needs more than a model and images without labels.

    Raises:
        UserError: saying what to take.
    """
    if method is AdaBN:
        return
    setting = method.setting
    if setting.sees_source or not setting.starts_from_model:
        raise UserError(
            f"{method.__name__} trains on labelled images of the source, and dafw adapt has a model and images without"
            " labels: take AdaBN, a source-free method such as SHOT, or a test-time method such as Tent"
        )
    if method.kinds and "classification" not in method.kinds:
        raise UserError(f"{method.__name__} is for {' and '.join(method.kinds)}, and dafw adapt is for classifiers")


def write_configuration(config: dict[str, Any], path: Path) -> None:
    """Writes a configuration, with names as text."""
    write_atomically(path, quoted(yaml.safe_dump(config, sort_keys=False)))


def new_statistics(start: Start, config: dict[str, Any]) -> Method:
    """The model with batch statistics of the images, which is all that AdaBN does without a source."""
    import pytorch_lightning as pl

    from dafw.run.config import silence_lightning
    from datamodules.unlabelled import UnlabelledImages

    silence_lightning()
    method: Method = AdaBN(start.network(), num_classes=len(start.classes))
    data = UnlabelledImages(**config["data"]["init_args"])
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(accelerator="cpu", devices=1, enable_checkpointing=False, **quiet)  # type: ignore[arg-type]
    trainer.test(method, datamodule=data, verbose=False)
    return method.eval()


@torch.no_grad()
def outputs(method: Method, how: Preparation, paths: Sequence[Path], batch: int) -> Tensor:
    """The logits (n, K) of images, as the method serves them now."""
    parts = []
    for start in range(0, len(paths), batch):
        x = torch.stack([how(path) for path in paths[start : start + batch]])
        parts.append(method(x.to(method.device)).logits.float().cpu())
    return torch.cat(parts)


def compare(frozen: Tensor, adapted: Tensor, evidence: SourceEvidence | None) -> Comparison:
    """What can be said of the adapted model without a label.

    Args:
        frozen: (n, K), logits of the model before.
        adapted: (n, K), logits of the model after.
        evidence: what the model's run keeps of its source; ``None`` if nothing.
    """
    before, after = frozen.softmax(1), adapted.softmax(1)
    changed = float((before.argmax(1) != after.argmax(1)).float().mean())
    confidence = float(before.amax(1).mean()), float(after.amax(1).mean())
    if evidence is None:
        said = "Nothing can be claimed: the model carries no outputs of held-out source images to estimate from."
        return Comparison(len(frozen), changed, confidence, {}, {}, said, None)
    old, new = estimates(evidence, frozen), estimates(evidence, adapted)
    usable = [name for name in old if math.isfinite(old[name].value) and math.isfinite(new[name].value)]
    if not usable:
        said = "Nothing can be claimed: no estimate exists for these images."
        return Comparison(len(frozen), changed, confidence, old, new, said, None)
    better = all(new[name].low > old[name].high for name in usable)
    worse = all(new[name].high < old[name].low for name in usable)
    said = "The estimates do not say that the adapted model is better than the frozen one: keep the frozen one."
    if better:
        said = "Every estimate says that the adapted model is better than the frozen one, with ranges that do not meet."
    elif worse:
        said = "Every estimate says that the adapted model is worse than the frozen one: keep the frozen one."
    return Comparison(len(frozen), changed, confidence, old, new, said, better)


def report(found: Comparison, method: str, model: str) -> str:
    """The report in Markdown."""
    lines = [f"# {markdown(method)} on {found.images} images without labels", "", found.verdict, "", CAVEAT, ""]
    lines += ["- `model/`: the adapted model", "- `frozen/`: the model that it began with", "- `run/`: the run", ""]
    lines += [f"- began with: {markdown(model)}", f"- images whose class changed: {100 * found.changed:.1f} %"]
    sure = " frozen, ".join(f"{100 * one:.1f} %" for one in found.confidence)
    lines += [f"- mean largest probability: {sure} adapted", ""]
    if found.frozen:
        lines += ["| estimated accuracy | frozen | adapted |", "| --- | ---: | ---: |"]
        for name, before in found.frozen.items():
            lines.append(f"| {markdown(name)} | {_range(before)} | {_range(found.adapted[name])} |")
        lines += ["", "In brackets the 95 % range.", ""]
    return "\n".join(lines)


def _range(one: Estimate) -> str:
    if not math.isfinite(one.value):
        return "none"
    return f"{100 * one.value:.1f} % [{100 * one.low:.1f}, {100 * one.high:.1f}]"


def finish(start: Start, adapted: Method, paths: Sequence[Path], folder: Path, given: str, batch: int) -> Comparison:
    """Exports both models and writes the report.

    Args:
        start: the model before.
        adapted: the model after.
        paths: the images.
        folder: where.
        given: what the user calls the model before.
        batch: images at a time.
    """
    evidence, rejects = None, any(one.evaluator.open_set.rejects for one in (start.method, adapted))
    if start.evidence is not None and start.evidence.is_file() and not rejects:  # no estimate knows what is rejected
        evidence = SourceEvidence.read(start.evidence)
    found = compare(outputs(start.method, start.how, paths, batch), outputs(adapted, start.how, paths, batch), evidence)
    name, checked = type(adapted).__name__, [start.how.decode(path) for path in paths[:8]]
    for place, method in (("frozen", start.method), ("model", adapted)):
        files = {}
        if evidence is not None:
            kept = folder / "run" / EVIDENCE if place == "model" else start.evidence
            if place == "model":
                replace(evidence, start_model=True).write(kept)  # type: ignore[arg-type]
            files = {EVIDENCE: kept}
        about = _about(place, name, given, found)
        if (folder / place).exists():  # of a command that was killed here
            shutil.rmtree(folder / place)
        export(method, start.classes, start.how, checked, folder / place, Wanted(about=about, files=files))  # type: ignore[arg-type]
    said = {"model": given, "method": name, **asdict(found)}
    write_atomically(folder / REPORT, json.dumps(said, indent=1))
    write_atomically(folder / CARD, report(found, name, given))
    return found


def _about(place: str, method: str, given: str, found: Comparison) -> dict[str, Any]:
    numbers = {"accuracy": "not measured: the images have no labels", "verdict": found.verdict}
    chosen = found.frozen if place == "frozen" else found.adapted
    numbers |= {f"estimated accuracy, {name}": _range(one) for name, one in chosen.items()}
    what = "the model before the adaptation" if place == "frozen" else f"adapted by {method}"
    return {
        "title": f"{what[0].upper()}{what[1:]}",
        "training": {
            "began with": given,
            "data": f"{found.images} images without labels",
            "labels used": "none of these images; the model that it began with had its own",
            "licence of the data": "not known: ask who gave you the data",
        },
        "numbers": numbers,
        "limits": [CAVEAT],
        "check images": "some of the images",
    }


def readable(paths: Sequence[Path], how: Preparation) -> Iterator[Path]:
    """The files that can be decoded; others are named on standard error."""
    from dafw.data.images import CorruptImage
    from dafw.errors import sentence, warn

    for path in paths:
        try:
            how.decode(path)
        except CorruptImage as error:
            warn(f"left out: {sentence(error)}")
        else:
            yield path


def images_of(given: Sequence[str], how: Preparation) -> list[Path]:
    """The images to adapt to.

    Raises:
        UserError: if there is none that can be read.
    """
    found = list(readable(find_images(given), how))
    if not found:
        raise UserError(f"{', '.join(given)} (--images) holds no image that can be read")
    return found


def load_adapted(run: Path) -> Method:
    """The method of the finished run."""
    return load(run).method
