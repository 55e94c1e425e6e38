"""A program as plain JSON and tensors: written from ``torch.export``, run without any code of the file.

Every node is one operator of PyTorch's Core ATen set, or arithmetic of sizes. A file can name nothing else.
"""

import math
import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from dafw.errors import UserError

#: Arithmetic of sizes by its name in a file.
SIZES: dict[str, Callable[..., Any]] = {
    **{f"size.{one.__name__}": one for one in (operator.add, operator.sub, operator.mul, operator.neg)},
    **{f"size.{one.__name__}": one for one in (operator.floordiv, operator.mod, operator.truediv)},
    **{f"size.{one.__name__}": one for one in (torch.sym_min, torch.sym_max, torch.sym_float, torch.sym_int)},
    "getitem": operator.getitem,
}
_SIZE_NAMES = {function: name for name, function in SIZES.items()}
#: Operators beside those of Core ATen. They compute tensors from tensors, as those do.
FURTHER = ("_upsample_bilinear2d_aa.default", "linalg_vector_norm.default", "addcmul.default", "sym_numel.default")
#: Plain values that are no JSON, by the word that marks them: the attribute of torch that a name stands for.
MARKS: dict[str, type] = {"dtype": torch.dtype, "memory_format": torch.memory_format, "layout": torch.layout}
#: Checks of the traced program. Sizes are checked before it runs.
_CHECKS = ("_assert_async", "_assert_scalar", "_assert_tensor_metadata", "sym_constrain_range_for_size")


def decomposed(program: ExportedProgram) -> ExportedProgram:
    """The same program in operators of Core ATen."""
    found: ExportedProgram = program.run_decompositions()
    return found


def encode(program: ExportedProgram) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A program as plain values, and the tensors that it reads.

    Args:
        program: of one input, with a mapping of tensors as its output.

    Returns:
        ``nodes`` (each its name, operator, arguments and keyword arguments), ``input`` (a name) and ``outputs`` (names
        of nodes, by the name of the output); and the tensors by name.

    Raises:
        UserError: if an operator is none of those that a file may name.
    """
    program = decomposed(program)
    held = {**program.state_dict, **program.constants}
    kinds = {spec.arg.name: spec for spec in program.graph_signature.input_specs if hasattr(spec.arg, "name")}
    nodes, tensors, given = list[list[Any]](), dict[str, Tensor](), ""
    known: dict[fx.Node, Any] = {}
    for node in program.graph.nodes:
        if node.op == "placeholder":
            spec = kinds[node.name]
            if spec.kind == InputKind.USER_INPUT:
                given, known[node] = node.name, {"of": node.name}
            elif node.users:
                tensors[str(spec.target)] = held[str(spec.target)].detach()
                known[node] = {"tensor": str(spec.target)}
        elif node.op == "call_function":
            if _is_check(node.target):
                continue
            name = _name_of(node.target)
            nodes.append([node.name, name, _encoded(node.args, known), _encoded(dict(node.kwargs), known)])
            known[node] = {"of": node.name}
        elif node.op != "output":
            raise UserError(f"the model cannot be exported: its graph has a part of the kind {node.op}")
    names = program.call_spec.out_spec.context
    (last,) = (node for node in program.graph.nodes if node.op == "output")
    outputs = {name: known[node]["of"] for name, node in zip(names, last.args[0], strict=True)}
    return {"input": given, "nodes": nodes, "outputs": outputs}, tensors


def _name_of(target: Any) -> str:
    if target in _SIZE_NAMES:
        return _SIZE_NAMES[target]
    if not isinstance(target, torch._ops.OpOverload):
        raise UserError(f"the model cannot be exported: its graph calls {getattr(target, '__name__', target)}")
    find(str(target))
    return str(target)


def _is_check(target: Any) -> bool:
    return isinstance(target, torch._ops.OpOverload) and target._schema.name.removeprefix("aten::") in _CHECKS


def find(name: str) -> Callable[..., Any]:
    """What a name in a file stands for.

    Raises:
        UserError: if a file may not name it.
    """
    if name in SIZES:
        return SIZES[name]
    space, _, rest = name.partition(".")
    packet, _, overload = rest.partition(".")
    found = getattr(getattr(torch.ops.aten, packet, None), overload, None) if space == "aten" and overload else None
    if not isinstance(found, torch._ops.OpOverload):
        raise UserError(f"there is no operator {name[:80]!r}")
    if torch.Tag.core not in found.tags and rest not in FURTHER:
        raise UserError(f"the operator {name} is none of Core ATen")
    return found


def _encoded(value: Any, known: Mapping[fx.Node, Any]) -> Any:
    if isinstance(value, fx.Node):
        return known[value]
    if isinstance(value, list | tuple):
        return [_encoded(one, known) for one in value]
    if isinstance(value, dict):
        return {name: _encoded(one, known) for name, one in value.items()}
    if isinstance(value, torch.device):
        return {"device": "here"}
    for mark, kind in MARKS.items():
        if isinstance(value, kind):
            return {mark: str(value).removeprefix("torch.")}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise UserError(f"the model cannot be exported: its graph holds a {type(value).__name__}")


class Program(nn.Module):
    """Runs what :func:`encode` wrote. It has the tensors as buffers.

    Args:
        graph: the plain values.
        tensors: by name.

    Raises:
        UserError: if the graph is of another form, names an operator that a file may not name, a tensor that is not
            there, or a value before it exists.
    """

    def __init__(self, graph: Any, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._places = {name: f"tensor_{position}" for position, name in enumerate(tensors)}
        for name, tensor in tensors.items():
            self.register_buffer(self._places[name], tensor)
        if not isinstance(graph, dict) or {type(graph.get(key)) for key in ("input", "nodes", "outputs")} != {
            str,
            list,
            dict,
        }:
            raise UserError("its graph has no input, nodes and outputs")
        self._input, self._outputs = str(graph["input"]), dict(graph["outputs"])
        self._nodes: list[tuple[str, Callable[..., Any], Any, Any]] = []
        seen = {self._input}
        for node in graph["nodes"]:
            if not (isinstance(node, list) and [type(one) for one in node] == [str, str, list, dict]):
                raise UserError("its graph has a node that is not a name, an operator and arguments")
            name, function, args, kwargs = node
            for one in _references([args, kwargs]):
                if one not in seen:
                    raise UserError(f"its graph reads {one[:80]!r}, which is not computed before")
            self._nodes.append((name, find(function), self._decoded(args), self._decoded(kwargs)))
            seen.add(name)
        if not self._outputs or not {str(one) for one in self._outputs.values()} <= seen:
            raise UserError("its graph gives an output that is not computed")
        last = {one: name for name, _, args, kwargs in graph["nodes"] for one in _references([args, kwargs])}
        kept = {self._input, *self._outputs.values()}
        #: By the name of a node the values that no later node reads.
        self._done: dict[str, list[str]] = {}
        for one, name in last.items():
            if one not in kept:
                self._done.setdefault(name, []).append(one)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """The outputs by name."""
        values: dict[str, Any] = {self._input: images}
        for name, function, args, kwargs in self._nodes:
            values[name] = function(*self._filled(args, values), **self._filled(kwargs, values))
            for one in self._done.get(name, ()):
                del values[one]
        return {name: values[of] for name, of in self._outputs.items()}

    def _decoded(self, value: Any) -> Any:
        """Arguments with dtypes and the like as objects; references and tensors stay marks."""
        if isinstance(value, list):
            return [self._decoded(one) for one in value]
        if not isinstance(value, dict) or not value:
            return value
        mark, inner = next(iter(value.items()))
        if len(value) == 1 and mark in MARKS and isinstance(found := getattr(torch, str(inner), None), MARKS[mark]):
            return found
        if len(value) == 1 and mark == "float":
            return float(inner) if inner in ("inf", "-inf", "nan") else 0.0
        if len(value) == 1 and mark == "tensor" and inner not in self._places:
            raise UserError(f"the weight {str(inner)[:80]!r} is missing")
        if len(value) == 1 and mark in ("of", "tensor", "device"):
            return value
        return {name: self._decoded(one) for name, one in value.items()}

    def _filled(self, value: Any, values: Mapping[str, Any]) -> Any:
        if isinstance(value, list):
            return [self._filled(one, values) for one in value]
        if not isinstance(value, dict):
            return value
        if len(value) == 1:
            if "of" in value:
                return values[value["of"]]
            if "tensor" in value:
                return getattr(self, self._places[value["tensor"]])
            if "device" in value and value["device"] == "here":
                return values[self._input].device
        return {name: self._filled(one, values) for name, one in value.items()}


def _references(value: Any) -> Iterator[str]:
    if isinstance(value, list):
        for one in value:
            yield from _references(one)
    elif isinstance(value, dict):
        if set(value) == {"of"}:
            yield str(value["of"])
        else:
            yield from _references(list(value.values()))
