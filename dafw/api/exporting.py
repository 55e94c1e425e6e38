"""Exports a trained run: its images for the check, and what its card says."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from torch import Tensor

from dafw import __version__
from dafw.data.images import CorruptImage
from dafw.data.preparing import Preparation
from dafw.errors import UserError, choose
from dafw.export.folder import DTYPES, FORMS, Exported
from dafw.export.making import Wanted, export
from dafw.export.served import served
from dafw.files import user_path
from dafw.run.directory import CONFIG, EVIDENCE
from dafw.run.estimates import evidence_if_kept
from dafw.run.images import find_images
from dafw.run.result import Result, read_result

if TYPE_CHECKING:
    from dafw.api.trained import Trained

CHECKED = {"classification": 16, "segmentation": 4}
"""Images of the check at an export, by what is predicted."""
TEST_TIME_NOTE = (
    "The method adapts to the stream of images while it serves them. That does not travel: this is the model as the"
    " stream of the run left it, and it stays as it is."
)


def save(
    trained: "Trained",
    folder: str | Path,
    *,
    to: str = "safetensors",
    dtype: str = "float32",
    images: Sequence[str | Path] = (),
    resize: bool = True,
    tolerance: float | None = None,
    opset: int | None = None,
    control: str | Path | None = None,
    licence: str = "",
) -> Exported:
    """Writes the folder of an exported model: its file, a configuration, a card, and what the run keeps of its source.

    Args:
        trained: the run.
        folder: must not exist.
        to: ``torch``, ``onnx`` or ``safetensors``.
        dtype: of the weights: ``float32``, ``bfloat16`` or ``float16``.
        images: files and folders of images for the check; the run's test images if empty. Without either, noise.
        resize: whether the model itself scales and cuts, if a program can.
        tolerance: how far a probability may be from the run's own.
        opset: of ONNX.
        control: the run directory of the control, whose number the card shows.
        licence: of the data, for the card.

    Raises:
        UserError: if the run is not done; see :func:`dafw.export.making.export`.
    """
    choose("form", to, FORMS)
    choose("dtype", dtype, tuple(DTYPES))
    count = CHECKED[served(trained.method).kind]
    run = trained.directory
    if run is not None and read_result(run) is None:
        raise UserError(f"{run} is not finished: the command that began it goes on with it")
    how = preparation_of(trained)
    found, what = _images(trained, how, images, count)
    facts = about(trained, control, licence)
    facts["check images"] = what
    kept = run is not None and evidence_if_kept(run, trained.checkpoint) is not None
    files = {EVIDENCE: run / EVIDENCE} if run is not None and kept else {}
    wanted = Wanted(to, dtype, resize, tolerance, opset, facts, files)  # type: ignore[arg-type]
    return export(trained.method, trained.class_names, how, found, user_path(folder), wanted)


def preparation_of(trained: "Trained") -> Preparation | None:
    """How the run prepares an image; ``None`` if nothing says so, or a program cannot carry it."""
    with suppress(UserError):
        how = trained.transform
        return how if isinstance(how, Preparation) else None
    return None


def _images(
    trained: "Trained", how: Preparation | None, given: Sequence[str | Path], most: int
) -> tuple[list[Tensor], str]:
    """At most so many images for the check, and what they are."""
    if given:
        if how is None:
            raise UserError("the run does not say how an image file is prepared: leave out images")
        found = _decoded(find_images([str(one) for one in given]), how, most)
        if not found:
            raise UserError(f"{', '.join(map(str, given))} (--images) holds no image that can be read")
        return found, "those that were given"
    with suppress(UserError, OSError):
        data = trained.data
        name = data.target[0] if data.target else data.source[0]
        domain = data.domain(name, "test").unlabelled()
        count = min(most, len(domain))
        places = [position * len(domain) // count for position in range(count)]
        root = Path(str(getattr(data, "root", None) or "."))
        paths = [root / domain.id(place) for place in places]
        if how is not None and all(path.is_file() for path in paths):
            found = _decoded(paths, how, most)
        else:
            found = [domain.inputs[place] for place in places]
        if found and all(one.dtype == torch.uint8 and one.ndim == 3 for one in found):
            return found, f"test images of {name}"
    if how is None:
        raise UserError("the run's images are not at hand, and nothing says what size they have: give the run's data")
    sides = how.fit(torch.zeros(1, 3, 64, 64, dtype=torch.uint8)).shape[2:]
    noise = torch.randint(0, 256, (most, 3, *sides), dtype=torch.uint8)
    return list(noise), "noise, since no image of the run was at hand (give --images)"


def _decoded(paths: Sequence[Path], how: Preparation, most: int) -> list[Tensor]:
    found = []
    for path in paths:
        with suppress(CorruptImage):
            found.append(how.decode(path))
        if len(found) == most:
            break
    return found


def about(trained: "Trained", control: str | Path | None, licence: str) -> dict[str, Any]:
    """What the card says of a run, by topic."""
    result = None if trained.directory is None else read_result(trained.directory)
    name = type(trained.method).__name__
    limits = ["The probabilities are those of a softmax, and nobody calibrated them."]
    if trained.method.setting.streams_target:
        limits.insert(0, TEST_TIME_NOTE)
    facts: dict[str, Any] = {"title": f"{name}, exported by dafw {__version__}"}
    facts["labelled"] = list(trained.method.trained_on)
    if result is None:
        limits.append("This is a checkpoint without a run: nothing is known of its training.")
        return {**facts, "training": {"method": name}, "limits": limits}
    facts["title"] = f"{name} on {result.task}"
    facts["training"] = _training(trained, result, licence)
    facts["numbers"] = _numbers(result, control)
    limits += ["Target labels trained this model: it is an upper bound and no adaptation."] if result.oracle else []
    verb = "segmented" if trained.method.problem.is_spatial else "classified"
    limits.append(f"Images unlike those of the target may be {verb} worse than the numbers say.")
    return {**facts, "limits": limits}


def _training(trained: "Trained", result: Result, licence: str) -> dict[str, Any]:
    config = yaml.safe_load((trained.directory / CONFIG).read_text(encoding="utf-8"))  # type: ignore[operator]
    labels = f"of {', '.join(result.source)}"
    if not result.setting.source:
        labels = "of the sources of the model that it began with"
    return {
        "method": f"{result.method} ({result.setting.name})",
        "data": str(config["data"]["class_path"]).rpartition(".")[2],
        "task": result.task,
        "labels used": f"{labels}, and of the target" if result.oracle else labels,
        "selection of the checkpoint": "last, the final weights",
        "seed": result.seed,
        "steps": result.steps,
        "norm": result.norm,
        "licence of the data": licence or "not known: ask who gave you the data",
        "command": "dafw fit --config RUN/config.yaml, with the configuration of the run",
        "configuration": result.config_hash,
        "git revision": result.git_revision or "unknown",
    }


def _numbers(result: Result, control: str | Path | None) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for target in result.target:
        value = result.test.get(target, {}).get(result.metric)
        said = "not tested, since it has no labels" if value is None else f"{100 * value:.1f} % (one seed)"
        found[f"{result.metric} on the test images of {target}"] = said
    if control is None:
        return found | {"control": "not given, so how much the adaptation itself gains is not known here"}
    other = read_result(user_path(control))
    if other is None:
        raise UserError(f"{control} (--control) is no finished run")
    if other.task != result.task:
        raise UserError(f"{control} (--control) is a run of {other.task}, and not of {result.task}")
    for target in other.target:
        value = other.test.get(target, {}).get(result.metric)
        if value is not None:
            found[f"the same of the control ({other.method})"] = f"{100 * value:.1f} %"
    return found
