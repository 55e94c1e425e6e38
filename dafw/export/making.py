"""Makes an exported model: traces the served network, writes it, and compares it with the method itself."""

import copy
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
from torch import Tensor

from dafw.data.preparing import Preparation
from dafw.errors import UserError
from dafw.export.card import card
from dafw.export.folder import CARD, CONFIG, DTYPES, Exported, Form
from dafw.export.forms import require_onnx, trace, write
from dafw.export.pretrained import Pretrained
from dafw.export.served import ServedClasses
from dafw.problems import Classification
from dafw.recording import describe

#: How far a probability may be from the method's own, by the dtype of the weights.
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.1, "float16": 0.02}
#: The same if a program scales images by other rounding than torch does.
SCALED = 0.02


@dataclass(frozen=True)
class Wanted:
    """What to export.

    Attributes:
        form: torch, onnx or safetensors.
        dtype: of the weights: float32, bfloat16 or float16.
        resize: whether the model scales and cuts images itself, if a program can.
        tolerance: how far a probability may be from the method's own; ``None``: see :data:`TOLERANCE`.
        opset: of ONNX; ``None``: the exporter's.
        about: what the card says, by topic.
        files: further files of the folder by name.
    """

    form: Form = "safetensors"
    dtype: str = "float32"
    resize: bool = True
    tolerance: float | None = None
    opset: int | None = None
    about: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, Path] = field(default_factory=dict)


def export(
    method: Any,
    classes: Sequence[str],
    how: Preparation | None,
    images: Sequence[Tensor],
    folder: Path,
    wanted: Wanted,
) -> Exported:
    """Writes the folder of an exported model in one step.

    Args:
        method: the trained method, in evaluation mode.
        classes: names of its classes.
        how: the preparation of an image; ``None`` if it is not known.
        images: real images for the check: decoded ones (C, H, W) of uint8 where ``how`` is known, else as the network
            takes them.
        folder: must not exist.
        wanted: the form and its options.

    Returns:
        What the folder says.

    Raises:
        UserError: for masks or boxes, a package that is missing, a network that has no program, or a program that gives
            other probabilities than the method; nothing is written then.
    """
    check_kind(method)
    if folder.exists():
        raise UserError(f"{folder} exists already: give another --output, or remove it")
    if wanted.form == "onnx":
        require_onnx()
    inside = wanted.resize and how is not None and how.in_program
    fitted = [one if how is None else how.fit(one[None])[0] for one in images]
    served = ServedClasses(_in_dtype(method, wanted.dtype), how.fit if inside and how is not None else None).eval()
    example = _example(fitted[0], inside)
    program = trace(served, example, inside)
    with torch.no_grad():
        outputs = tuple(served(example))
    channels, height, width = fitted[0].shape
    config = Exported(
        form=wanted.form,
        dtype=wanted.dtype,
        classes=tuple(classes),
        outputs=outputs,
        shape=(channels, 0, 0) if inside else (channels, height, width),
        preparation=None if how is None else how.described(),
        resize=inside,
        **(_trainable(method) if wanted.form == "safetensors" else {}),
        tolerance=_tolerance(wanted, inside),
        about={**wanted.about, **({"opset": wanted.opset} if wanted.form == "onnx" else {})},
    )
    extra = {} if config.network is None else _weights(served, config.network_prefix)
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        unfinished.chmod(0o755)
        write(wanted.form, program, config, unfinished, extra)
        (unfinished / CONFIG).write_text(config.to_json(), encoding="utf-8")
        said = compare(method, Pretrained(unfinished, trust=True), images if inside else fitted, fitted, config)
        config = replace(
            config, difference=said["largest difference of a probability"], about={**config.about, "check": said}
        )
        (unfinished / CONFIG).write_text(config.to_json(), encoding="utf-8")
        (unfinished / CARD).write_text(card(config), encoding="utf-8")
        for name, path in wanted.files.items():
            shutil.copyfile(path, unfinished / name)
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return config


def check_kind(method: Any) -> None:
    """Refuses what has no class for each image.

    Raises:
        UserError: for masks, boxes and other problems.
    """
    if not isinstance(method.problem, Classification):
        raise UserError(
            f"only classifiers can be exported, and this run is for {method.problem.kind}: predict with dafw predict"
        )


def _in_dtype(method: Any, dtype: str) -> Any:
    """The method, or a copy of it with weights of another dtype."""
    return method if dtype == "float32" else copy.deepcopy(method).to(DTYPES[dtype]).eval()


def _example(fitted: Tensor, inside: bool) -> Tensor:
    """Two images to trace with. No two sizes of theirs are equal by chance, which a program would take for a rule."""
    channels, height, width = fitted.shape
    sides = (2 * height + 13, 3 * width + 29) if inside else (height, width)
    return torch.randint(0, 256, (2, channels, *sides), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def _tolerance(wanted: Wanted, inside: bool) -> float:
    if wanted.tolerance is not None:
        return wanted.tolerance
    usual = TOLERANCE[wanted.dtype]
    return max(usual, SCALED) if inside and wanted.form == "onnx" else usual


def _trainable(method: Any) -> dict[str, Any]:
    """How a further training makes the network again; nothing if a description does not hold it."""
    try:
        found = describe(method.eval_network if hasattr(method.eval_network, "_given") else method.network)
    except TypeError:
        return {}
    arguments = {key: one for key, one in found["init_args"].items() if key not in ("weights", "weights_keys")}
    if arguments.get("head") == "pretrained":
        arguments["head"] = "default"
    network = {"class_path": found["class_path"], "init_args": arguments}
    return {"network": network, "network_prefix": f"method.{method._served_prefix()}", "norm": method.norm}


def _weights(served: torch.nn.Module, prefix: str) -> dict[str, Tensor]:
    """All weights of the served network, by their names within the served module."""
    return {name: one.detach() for name, one in served.state_dict().items() if name.startswith(prefix)}


@torch.no_grad()
def compare(
    method: Any, made: Pretrained, given: Sequence[Tensor], fitted: Sequence[Tensor], config: Exported
) -> dict[str, Any]:
    """Compares the probabilities of an exported model with those of the method itself.

    Args:
        method: in float32.
        made: the exported model, read from its files.
        given: images as the exported model takes them.
        fitted: the same images as the method takes them.
        config: of the exported model.

    Returns:
        What was found, by name.

    Raises:
        UserError: if they are further apart than the tolerance.
    """
    expected = ServedClasses(method).eval()(torch.stack(list(fitted)))
    if 0 in config.shape:  # each image has a size of its own
        parts = [made.columns(one[None]) for one in given] + [made.columns(torch.stack([given[0], given[0]]))]
        found = torch.cat([one["probabilities"] for one in parts[:-1]])
        repeated = parts[-1]["probabilities"][0] - found[0]
    else:
        found = made.columns(torch.stack(list(given)))["probabilities"]
        repeated = made.columns(given[0][None])["probabilities"][0] - found[0]
    shares = expected["probabilities"].cpu()
    largest = float((found - shares).abs().max()) if found.isfinite().all() else float("inf")
    largest = max(largest, float(repeated.abs().max()))
    agree = int((found.argmax(1) == shares.argmax(1)).sum())
    if not largest <= config.tolerance:
        raise UserError(
            f"the exported model gives other probabilities than the run: they differ by up to {largest:.3g}, and"
            f" {config.tolerance:g} is allowed (--tolerance); nothing was written"
        )
    return {
        "images": len(given),
        "largest difference of a probability": largest,
        "allowed difference": config.tolerance,
        "images of the same class": agree,
    }
