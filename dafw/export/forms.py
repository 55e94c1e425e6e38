"""The three forms of an exported model: how each is written, and how it is run."""

import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from dafw.errors import UserError, sentence
from dafw.export.folder import GRAPH, MODEL, Exported, Form, Sides, read_json, read_weights
from dafw.export.graph import Program, encode

Run = Callable[[Tensor], dict[str, Tensor]]
"""From images (N, C, H, W) uint8 to the outputs by name."""


@torch.no_grad()
def trace(module: torch.nn.Module, example: Tensor, sides: Sides) -> ExportedProgram:
    """The program of a module, for any number of images.

    Args:
        module: takes ``images``.
        example: images (N, C, H, W), at least 2.
        sides: see :data:`Sides`.

    Raises:
        UserError: if the module has a part that no program can hold.
    """
    dims: dict[int, Any] = {0: Dim("batch", min=1)}
    if sides == "scaled":
        dims |= {2: Dim("height", min=1), 3: Dim("width", min=1)}
    elif sides == "free":
        dims |= {2: Dim.AUTO, 3: Dim.AUTO}
    try:
        with quietly():
            return torch.export.export(module, (example,), dynamic_shapes={"images": dims}, strict=False)
    except UserError:
        raise
    except Exception as error:  # whatever torch.export meets in a network of another author
        said = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(f"torch.export cannot make a program of the network: {said[:200]}") from error


def smallest(program: ExportedProgram) -> tuple[int, int]:
    """The least height and width of images that a program of free sides takes.

    Raises:
        UserError: if the program is for the size of its example alone.
    """
    (given,) = (one for one in program.graph.nodes if one.name in program.graph_signature.user_inputs)
    sides = given.meta["val"].shape[2:]
    ranges = [None if isinstance(side, int) else program.range_constraints.get(side.node.expr) for side in sides]
    if None in ranges or str(sides[0]) == str(sides[1]):
        raise UserError("torch.export cannot make a program of the network for images of any size")
    height, width = (int(one.lower) for one in ranges if one is not None)
    return height, width


def write(form: Form, program: ExportedProgram, config: Exported, folder: Path, extra: dict[str, Tensor]) -> None:
    """Writes the model's file, and the graph beside the weights.

    Args:
        form: which.
        program: of the served model.
        config: goes into the file, too, where the form has a place for it.
        folder: where.
        extra: further weights by name, for training; the file of weights holds them.

    Raises:
        UserError: for a package that is missing, or an operator that the form lacks.
    """
    graph, tensors = encode(program)
    if form == "safetensors":
        from safetensors.torch import save_file

        held = {name: one.contiguous().clone() for name, one in (extra | tensors).items()}
        save_file(held, folder / MODEL[form], {"config": config.to_json()})
        (folder / GRAPH).write_text(json.dumps(graph), encoding="utf-8")
        return
    example = program.example_inputs[0][0]
    small = trace(Program(graph, tensors).eval(), example, config.sides)  # without what is only trained
    if form == "torch":
        with quietly():
            torch.export.save(small, folder / MODEL[form], extra_files={"config.json": config.to_json()})
        return
    _write_onnx(small, config, folder / MODEL[form])


def _write_onnx(program: ExportedProgram, config: Exported, path: Path) -> None:
    onnx, _ = require_onnx()
    asked = config.about.get("opset")
    try:
        with quietly():
            made = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=asked,
                output_names=list(config.outputs),
                optimize=True,
                verbose=False,
            )
    except Exception as error:  # of the exporter, which has many
        said = [line for line in str(error).splitlines() if "No ONNX function found" in line or "opset" in line]
        why = f": {said[-1].strip()[:200]}" if said else ""
        raise UserError(f"the model has no form in ONNX{why}: take --to torch or --to safetensors") from error
    assert made is not None
    model = made.model_proto
    opset = next(one.version for one in model.opset_import if one.domain in ("", "ai.onnx"))
    if asked is not None and opset != asked:
        raise UserError(
            f"the model needs operators that ONNX opset {asked} lacks: leave out --opset, which gives {opset}"
        )
    facts = {"config": config.to_json(), "classes": json.dumps(config.classes)}
    for key, value in facts.items():
        model.metadata_props.add(key=key, value=value)
    onnx.save(model, path, save_as_external_data=model.ByteSize() >= 2**31, location=f"{path.name}.data")


def require_onnx() -> tuple[Any, Any]:
    """The packages onnx and onnxruntime.

    Raises:
        UserError: if one is not installed, or the exporter's.
    """
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"the form onnx needs the package {error.name}: install the extra export (pip install dafw[export])"
        ) from error
    return onnx, onnxruntime


def reader(config: Exported, folder: Path, trust: bool = False, device: torch.device | str = "cpu") -> Run:
    """What runs an exported model.

    Args:
        config: of the folder.
        folder: of the model.
        trust: whether code that comes with the files may run. The form torch needs it.
        device: where weights lie and the model runs; the form onnx runs on the CPU.

    Raises:
        UserError: if a file is missing, damaged or of another form, or needs trust.
    """
    path = folder / MODEL[config.form]
    if config.form == "safetensors":
        graph, weights = read_json(folder / GRAPH), read_weights(path)
        try:
            return Program(graph, weights).eval().to(device)
        except UserError as error:
            raise UserError(f"{folder / GRAPH} was refused: {error}") from error
        except (TypeError, ValueError, KeyError, RecursionError) as error:
            raise UserError(f"{folder / GRAPH} was refused: it is of another form") from error
    if not path.is_file():
        raise UserError(f"{folder} has no {path.name}: it is incomplete")
    if config.form == "onnx":
        _, runtime = require_onnx()
        try:
            session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
            (given,) = (one.name for one in session.get_inputs())
        except Exception as error:  # of a damaged file, or of an operator that this runtime lacks
            raise UserError(f"onnxruntime cannot read {path} ({_short(error)})") from error
        return lambda images: {
            name: torch.from_numpy(value)
            for name, value in zip(config.outputs, session.run(None, {given: images.numpy()}), strict=True)
        }
    if not trust:
        raise UserError(
            f"reading {path} may run code that comes with it, since torch.export.load unpickles: say --trust true"
            " if you know who made it, or take --to safetensors"
        )
    try:
        with quietly():
            module = torch.export.load(path).module()
    except Exception as error:
        raise UserError(f"torch.export cannot read {path} ({_short(error)})") from error
    return module.to(device)


def _short(error: Exception) -> str:
    return sentence(error)[:200]


@contextmanager
def quietly() -> Iterator[None]:
    """Within, nothing is printed and no warning shown: the exporters tell their progress."""
    with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        warnings.simplefilter("ignore")
        yield
