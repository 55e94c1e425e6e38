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
from torch.export import ExportedProgram

from dafw.data.preparing import Preparation
from dafw.errors import UserError
from dafw.export.card import card
from dafw.export.folder import CARD, CONFIG, DTYPES, Exported, Form, Sides
from dafw.export.forms import require_onnx, smallest, trace, write
from dafw.export.padding import constant_padding
from dafw.export.pretrained import Pretrained
from dafw.export.served import Served, served
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
        UserError: for boxes, a package that is missing, a network that has no program, or a program that gives
            other probabilities than the method; nothing is written then.
    """
    inside = wanted.resize and how is not None and how.in_program
    served(method)  # refuses boxes
    if folder.exists():
        raise UserError(f"{folder} exists already: give another --output, or remove it")
    if wanted.form == "onnx":
        require_onnx()
    fitted = [one if how is None else how.fit(one[None])[0] for one in images]
    resize = how.fit if inside and how is not None else None
    module = served(_in_dtype(method, wanted.dtype), resize)
    program, sides = _program(module, fitted, how)
    inside &= sides != "fixed"  # else the program is for images as the network takes them
    channels, height, width = fitted[0].shape
    config = Exported(
        kind=module.kind,
        form=wanted.form,
        dtype=wanted.dtype,
        classes=tuple(classes),
        outputs=tuple(program.call_spec.out_spec.context),
        shape=(channels, height, width) if sides == "fixed" else (channels, 0, 0),
        preparation=None if how is None else how.described(),
        resize=inside,
        sides=sides,
        smallest=smallest(program) if sides == "free" else (1, 1),
        **(_trainable(method) if wanted.form == "safetensors" and module.kind == "classification" else {}),
        tolerance=_tolerance(wanted, inside),
        about={**wanted.about, **({"opset": wanted.opset} if wanted.form == "onnx" else {})},
    )
    extra = {} if config.network is None else _weights(module, config.network_prefix)
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        unfinished.chmod(0o755)
        write(wanted.form, program, config, unfinished, extra)
        (unfinished / CONFIG).write_text(config.to_json(), encoding="utf-8")
        given = images if inside else fitted
        said = compare(served(method, resize if inside else None), Pretrained(unfinished, trust=True), given, config)
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


def _program(module: Served, fitted: Sequence[Tensor], how: Preparation | None) -> tuple[ExportedProgram, Sides]:
    """The program, and what height and width its images have.

    A network for masks gets a program for any size, unless its data scales images to one size. If there is none, and
    all images have one size, the program is for that size.
    """
    one_size = module.kind == "classification" or (how is not None and how.is_fixed)
    if one_size and module.resize is not None:
        return trace(module, _example(fitted[0], "scaled"), "scaled"), "scaled"
    alike = one_size or len({tuple(one.shape) for one in fitted}) == 1
    if not one_size:
        try:
            with constant_padding(module):
                program = trace(module, _example(fitted[0], "free"), "free")
            smallest(program)
        except UserError:
            if not alike:
                raise
        else:
            return program, "free"
    module.resize = None
    return trace(module, _example(fitted[0], "fixed"), "fixed"), "fixed"


def _in_dtype(method: Any, dtype: str) -> Any:
    """The method, or a copy of it with weights of another dtype."""
    return method if dtype == "float32" else copy.deepcopy(method).to(DTYPES[dtype]).eval()


def _example(fitted: Tensor, kind: Sides) -> Tensor:
    """Two images to trace with. No two sizes of theirs are equal by chance, which a program would take for a rule."""
    channels, height, width = fitted.shape
    sides = (height, width) if kind == "fixed" else (2 * height + 13, 3 * width + 29)
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
def compare(module: Served, made: Pretrained, images: Sequence[Tensor], config: Exported) -> dict[str, Any]:
    """Compares the probabilities of an exported model with those of the method itself.

    A model of masks for images of any size is compared on an odd part of the first image, too.

    Args:
        module: serves the method in float32, and takes images as the exported model does.
        made: the exported model, read from its files.
        images: as the exported model takes them, (C, H, W) each.
        config: of the exported model.

    Returns:
        What was found, by name.

    Raises:
        UserError: if they are further apart than the tolerance.
    """
    masks = module.kind == "segmentation"
    given = [one[None] for one in images]
    given += [_odd_part(given[0], config.smallest)] if masks and config.any_size else []
    largest, same, places = 0.0, 0, 0
    for image in given:
        expected = module(image.to(module.method.device))["probabilities"].cpu()
        found = made.probabilities(image)
        largest = max(largest, _difference(found, expected))
        agree = found.argmax(1) == expected.argmax(1)
        same, places = same + int(agree.sum()), places + agree.numel()
    twice = made.probabilities(torch.cat([given[0], given[0]]))
    largest = max(largest, _difference(twice[:1], made.probabilities(given[0])))
    if not largest <= config.tolerance:
        raise UserError(
            f"the exported model gives other probabilities than the run: they differ by up to {largest:.3g}, and"
            f" {config.tolerance:g} is allowed (--tolerance); nothing was written"
        )
    return {
        "images": len(images),
        "largest difference of a probability": largest,
        "allowed difference": config.tolerance,
        **({"pixels of the same class": f"{same} of {places}"} if masks else {"images of the same class": same}),
    }


def _difference(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max()) if one.isfinite().all() else float("inf")


def _odd_part(images: Tensor, least: tuple[int, int]) -> Tensor:
    """The upper left part of images, with sides that are odd and differ."""
    height, width = images.shape[2:]
    return images[:, :, : max(least[0], height * 3 // 4 | 1), : max(least[1], width * 2 // 3 | 1)]
