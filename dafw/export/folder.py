"""The folder of an exported model: its configuration, and its weights without pickle."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor

from dafw.data.preparing import Preparation, Whole, preparation
from dafw.errors import UserError
from dafw.files import reading

Form = Literal["torch", "onnx", "safetensors"]
Kind = Literal["classification", "segmentation"]
Sides = Literal["fixed", "scaled", "free"]
"""Height and width of a program's images: those of an example; any, which it scales to one size; any, which pass the
network."""
FORMS: tuple[Form, ...] = get_args(Form)
DTYPES: dict[str, torch.dtype] = {str(one)[6:]: one for one in (torch.float32, torch.bfloat16, torch.float16)}
CONFIG, GRAPH, CARD = "config.json", "graph.json", "README.md"
MODEL: dict[Form, str] = {"torch": "model.pt2", "onnx": "model.onnx", "safetensors": "model.safetensors"}
FORMAT = "dafw exported model"
VERSION = 2
_LARGEST = 64 * 2**20
"""Bytes of a JSON file that is read."""


@dataclass(frozen=True)
class Exported:
    """What ``config.json`` says. All of it is plain values.

    Attributes:
        kind: of what is predicted, ``classification`` or ``segmentation``.
        form: which file holds the model.
        dtype: of the weights, a key of :data:`DTYPES`.
        classes: names of the K classes, in the order of the probabilities.
        outputs: names of the model's outputs.
        shape: (C, H, W) of an image that goes in; 0 stands for any height and width.
        smallest: the least height and width.
        preparation: how a file becomes an input, see :mod:`dafw.data.preparing`; ``None`` if nothing here says so.
        resize: whether the model itself scales and cuts.
        sides: of the images that its program takes.
        network: the network for further training, its class path and arguments; ``None`` if it cannot be trained.
        network_prefix: how the names of its weights begin in the file of weights.
        norm: its mode of batch statistics.
        tolerance: how far a probability may be from that of the model before the export.
        difference: how far one was, over the images of the check.
        about: what the card says of the model, by topic.
    """

    kind: Kind
    form: Form
    dtype: str
    classes: tuple[str, ...]
    outputs: tuple[str, ...]
    shape: tuple[int, int, int]
    preparation: Mapping[str, Any] | None
    resize: bool
    sides: Sides
    smallest: tuple[int, int] = (1, 1)
    network: Mapping[str, Any] | None = None
    network_prefix: str = ""
    norm: str = ""
    tolerance: float = 0.0
    difference: float = 0.0
    about: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """The content of ``config.json``."""
        return json.dumps({"format": FORMAT, "version": VERSION, **asdict(self)}, indent=1)

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Reads the configuration of an exported model.

        Raises:
            UserError: if the folder holds none, or one of another form.
        """
        path = folder / CONFIG
        given = read_json(path)
        if not isinstance(given, dict) or given.pop("format", None) != FORMAT:
            raise UserError(f"{path} is of no model that dafw exported")
        if (version := given.pop("version", None)) != VERSION:
            raise UserError(f"{path} has version {version!s:.20}, and this dafw reads {VERSION}: export the run again")
        try:
            values: dict[str, Any] = {key: tuple(one) if isinstance(one, list) else one for key, one in given.items()}
            found = cls(**values)
            found.check()
        except (TypeError, ValueError) as error:
            raise UserError(f"{path} is damaged: it lacks a value, or has one of another form") from error
        return found

    def check(self) -> None:
        """Compares the types of the values.

        Raises:
            ValueError: if one is of another type.
            UserError: if the preparation is of another form.
        """
        texts = [self.form, self.dtype, *self.classes, *self.outputs, self.network_prefix, self.norm]
        right = all(type(one) is str for one in texts) and self.form in FORMS and self.dtype in DTYPES
        right &= self.kind in get_args(Kind) and self.sides in get_args(Sides)
        right &= len(self.shape) == 3 and len(self.smallest) == 2
        right &= all(type(one) is int and 0 <= one <= 10**5 for one in (*self.shape, *self.smallest))
        right &= (self.shape[1] == 0) == (self.shape[2] == 0) == self.any_size
        right &= bool(self.classes) and isinstance(self.about, dict) and type(self.resize) is bool
        right &= self.preparation is None or isinstance(self.preparation, dict)
        right &= self.network is None or isinstance(self.network, dict)
        if not right or (self.resize and self.preparation is None):
            raise ValueError("a value of another form")
        self.prepare  # noqa: B018

    @property
    def any_size(self) -> bool:
        """Whether images of any height and width go in, from the smallest on."""
        return self.sides != "fixed"

    @property
    def keeps_size(self) -> bool:
        """Whether nothing scales an image, be it inside of the model or outside."""
        return self.prepare == Whole(None)

    @property
    def takes(self) -> str:
        """The shape of images that go in, for a reader."""
        channels, height, width = self.shape
        if not self.any_size:
            return f"(N, {channels}, {height}, {width})"
        least = "" if self.smallest == (1, 1) else f" from {' x '.join(map(str, self.smallest))} on"
        return f"(N, {channels}, H, W){least}"

    @property
    def prepare(self) -> Preparation | None:
        """The preparation as an object."""
        return None if self.preparation is None else preparation(self.preparation)


def is_exported(place: Path) -> bool:
    """Whether a path is the folder of an exported model."""
    if not (place / CONFIG).is_file():
        return False
    try:
        return isinstance(found := read_json(place / CONFIG), dict) and found.get("format") == FORMAT
    except UserError:
        return False


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        UserError: if it does not exist, is too large, or is no JSON.
    """
    with reading("the file", path):
        size = path.stat().st_size
        if size > _LARGEST:
            raise UserError(f"{path} was refused: it has {size} bytes, and {_LARGEST} are read at most")
        text = path.read_bytes()
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged: it is no JSON") from error


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Nothing in it is run.

    Raises:
        UserError: if it does not exist, or is damaged or no such file.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    with reading("the file", path):
        path.stat()
    try:
        return load_file(path)
    except (SafetensorError, ValueError, RuntimeError, OSError, OverflowError) as error:
        raise UserError(f"{path} was refused: it is damaged, or no file of safetensors") from error
