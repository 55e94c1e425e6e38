"""A folder that pretends to be an exported model: nothing in it is run, and it is refused in a sentence."""

import json
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import refused
from safetensors.torch import load_file, save_file

import dafw
from dafw.errors import UserError
from dafw.export.graph import find

RAN: list[str] = []


class Bomb:
    """Leaves a trace if it is unpickled."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return RAN.append, ("it ran",)


@pytest.fixture(scope="module")
def good(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported model that is right."""
    place = tmp_path_factory.mktemp("good") / "model"
    dafw.load(folder).save_pretrained(place)
    return place


def edit(model: Path, name: str, change: Callable[[Any], Any]) -> None:
    content = json.loads((model / name).read_text())
    (model / name).write_text(json.dumps(change(content) or content))


def node(*parts: Any) -> Callable[[Any], Any]:
    return lambda graph: graph["nodes"].insert(0, list(parts))


def pickled(model: Path) -> None:
    (model / "model.safetensors").write_bytes(pickle.dumps(Bomb()))


def huge_header(model: Path) -> None:
    (model / "model.safetensors").write_bytes((2**62).to_bytes(8, "little") + b"{}")


def other_shapes(model: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    save_file({name: torch.zeros(3) for name in tensors}, model / "model.safetensors")


def fewer_weights(model: Path) -> None:
    save_file({"one": torch.zeros(3)}, model / "model.safetensors")


CASES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "pickle as weights": (pickled, "model.safetensors was refused: it is damaged, or no file of safetensors"),
    "a huge header": (huge_header, "model.safetensors was refused"),
    "weights of other shapes": (other_shapes, "cannot be run"),
    "weights that are missing": (fewer_weights, "is missing"),
    "a class path as operator": (
        lambda m: edit(m, "graph.json", node("x", "os.system", ["touch ran"], {})),
        "there is no operator 'os.system'",
    ),
    "an operator that opens files": (
        lambda m: edit(m, "graph.json", node("x", "aten.from_file.default", ["/etc/passwd"], {})),
        "the operator aten.from_file.default is none of Core ATen",
    ),
    "an attribute of an operator": (
        lambda m: edit(m, "graph.json", node("x", "aten.__class__.__init__", [], {})),
        "there is no operator",
    ),
    "a graph that is a list": (lambda m: edit(m, "graph.json", lambda _: [1]), "graph.json was refused"),
    "a graph of deep lists": (
        lambda m: (m / "graph.json").write_text("[" * 100_000 + "]" * 100_000),
        "graph.json is damaged: it is no JSON",
    ),
    "a value before it exists": (
        lambda m: edit(m, "graph.json", node("x", "aten.relu.default", [{"of": "y"}], {})),
        "reads 'y', which is not computed before",
    ),
    "a path as the form": (lambda m: edit(m, "config.json", lambda c: c | {"form": "../x"}), "config.json is damaged"),
    "a class path as preparation": (
        lambda m: edit(m, "config.json", lambda c: c | {"preparation": {"kind": "os.system", "size": 3}}),
        'unknown kind of preparation "os.system"',
    ),
    "an image of a billion pixels": (
        lambda m: edit(m, "config.json", lambda c: c["preparation"].update(size=10**9)),
        "whole numbers from 1 to 10000",
    ),
    "classes that are no text": (lambda m: edit(m, "config.json", lambda c: c | {"classes": [1, 2]}), "is damaged"),
    "more classes": (
        lambda m: edit(m, "config.json", lambda c: c | {"classes": ["a", "b", "c"]}),
        "is damaged: it gives (1, 2) probabilities",
    ),
    "a class path as kind": (lambda m: edit(m, "config.json", lambda c: c | {"kind": "os.system"}), "is damaged"),
    "a kind that is a list": (lambda m: edit(m, "config.json", lambda c: c | {"kind": ["a"]}), "is damaged"),
    "no kind": (lambda m: edit(m, "config.json", lambda c: c.pop("kind") and None), "config.json is damaged"),
    "masks of a classifier": (
        lambda m: edit(m, "config.json", lambda c: c | {"kind": "segmentation"}),
        "is damaged: it gives (1, 2) probabilities",
    ),
    "sides that do not fit the shape": (
        lambda m: edit(m, "config.json", lambda c: c | {"sides": "fixed"}),
        "config.json is damaged",
    ),
    "a smallest size that is no number": (
        lambda m: edit(m, "config.json", lambda c: c | {"smallest": [1, "1"]}),
        "config.json is damaged",
    ),
    "a list as the size of a preparation": (
        lambda m: edit(m, "config.json", lambda c: c | {"preparation": {"kind": "Whole", "size": [3, [4]]}}),
        "whole numbers from 1 to 10000",
    ),
    "another version": (lambda m: edit(m, "config.json", lambda c: c | {"version": 99}), "has version 99"),
    "no weights": (lambda m: (m / "model.safetensors").unlink(), "model.safetensors does not exist"),
}


@pytest.mark.parametrize("name", CASES)
def test_it_is_refused(
    name: str,
    good: Path,
    images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    change, said = CASES[name]
    shutil.copytree(good, "model")
    change(Path("model"))
    assert said in refused(capsys, "predict", "model", "--images", images / "photo" / "cup" / "0.png")
    assert RAN == []
    assert sorted(one.name for one in tmp_path.iterdir()) == ["model"]


def test_a_torch_file_is_not_opened_without_trust(good: Path, tmp_path: Path) -> None:
    shutil.copytree(good, tmp_path / "model")
    edit(tmp_path / "model", "config.json", lambda c: c | {"form": "torch"})
    with zipfile.ZipFile(tmp_path / "model" / "model.pt2", "w") as archive:
        archive.writestr("data.pkl", pickle.dumps(Bomb()))
    with pytest.raises(UserError, match="may run code"):
        dafw.from_pretrained(tmp_path / "model")
    assert RAN == []


def test_names_that_look_like_paths_stay_names(
    good: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(good, "model")
    edit(Path("model"), "config.json", lambda c: c | {"classes": ["../../up", "=1+1"]})
    found = dafw.from_pretrained("model").predict(images / "photo" / "cup" / "0.png")
    assert found.class_names == ("../../up", "=1+1")
    assert [one.name for one in tmp_path.iterdir()] == ["model"]


def test_operators_that_a_file_may_name_open_no_file() -> None:
    """No operator takes the name of a file, and none that a file may name changes its arguments."""
    for name in torch._C._dispatch_get_all_op_names():
        space, _, rest = name.partition("::")
        packet, _, overload = rest.partition(".")
        try:
            found = find(f"{space}.{packet}.{overload or 'default'}")
        except UserError:
            continue
        schema = found._schema  # type: ignore[attr-defined]
        assert "file" not in packet
        assert not any(one.name in ("filename", "path", "file") for one in schema.arguments)
