"""A finished run as an exported model, in each form: it predicts what the run predicts."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from commands import call, environment, refused, rows

import dafw
from dafw.errors import UserError
from dafw.export.folder import FORMS


@pytest.fixture(scope="module")
def models(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The run in each form."""
    pytest.importorskip("onnxruntime")
    root, run = tmp_path_factory.mktemp("models"), dafw.load(folder)
    for form in FORMS:
        run.save_pretrained(root / form, to=form)
    return {form: root / form for form in FORMS}


@pytest.mark.parametrize("form", FORMS)
def test_an_exported_model_predicts_what_the_run_predicts(
    form: str, models: dict[str, Path], folder: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given, output = str(images / "photo"), tmp_path / "p.csv"
    trust = ("--trust", "true") if form == "torch" else ()
    tables = []
    for model, options in ((folder, ()), (models[form], trust)):
        done = call(capsys, "predict", model, "--images", given, "--output", output, *options)
        assert done.code == 0, done.err
        assert done.out.startswith("40 predictions; skipped files: 0")
        tables.append(rows(output.read_text()))
    assert [list(row) for row in tables[0]] == [list(row) for row in tables[1]]
    tolerance = 0.02 if form == "onnx" else 2e-6
    for one, other in zip(*tables, strict=True):
        assert {key: one[key] for key in ("domain", "sample", "prediction")} == {
            key: other[key] for key in ("domain", "sample", "prediction")
        }
        for name in ("p_cup", "p_pen"):
            assert float(one[name]) == pytest.approx(float(other[name]), abs=tolerance)


def test_it_takes_any_size_and_any_number(models: dict[str, Path]) -> None:
    found = {form: dafw.from_pretrained(path, trust=True) for form, path in models.items()}
    for shape in ((1, 3, 9, 9), (3, 3, 50, 17), (2, 3, 8, 8)):
        x = torch.randint(0, 256, shape, dtype=torch.uint8)
        expected = found["safetensors"].columns(x)["probabilities"]
        assert expected.shape == (shape[0], 2)
        for one in found.values():
            torch.testing.assert_close(one.columns(x)["probabilities"], expected, atol=0.02, rtol=0)


def test_the_folder_says_what_it_is(models: dict[str, Path], images: Path) -> None:
    for form, path in models.items():
        config = json.loads((path / "config.json").read_text())
        assert config["classes"] == ["cup", "pen"]
        assert config["form"] == form
        assert config["difference"] <= config["tolerance"]
        assert config["about"]["check images"] == "test images of photo"
        card = (path / "README.md").read_text()
        for word in (
            "DANN on art->photo",
            "Labels",
            "of art",
            "last, the final weights",
            "licence",
            "Limits",
            "control",
        ):
            assert word.lower() in card.lower(), word
        assert not [one for one in path.rglob("*") if one.suffix in (".ckpt", ".pkl")]
    prediction = dafw.from_pretrained(models["safetensors"]).predict(sorted((images / "photo" / "cup").glob("*"))[:3])
    assert prediction.class_names == ("cup", "pen")
    assert len(prediction) == 3


BLOCKED = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("pytorch_lightning", "lightning", "lightning_fabric"):
            raise ImportError(name)
sys.meta_path.insert(0, Blocked())
import dafw
model = dafw.from_pretrained(sys.argv[1])
print(model.predict(sys.argv[2:]).classes)
from dafw.cli import main
raise SystemExit(main(["predict", sys.argv[1], "--images", *sys.argv[2:], "--output", sys.argv[1] + ".csv"]))
"""


def test_it_needs_no_lightning(models: dict[str, Path], images: Path) -> None:
    paths = [str(one) for one in sorted((images / "photo" / "cup").glob("*"))[:2]]
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED, str(models["safetensors"]), *paths],
        capture_output=True, text=True, env=environment(), check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "2 predictions" in done.stdout


def test_the_form_torch_needs_trust(models: dict[str, Path], capsys: pytest.CaptureFixture[str], images: Path) -> None:
    said = refused(capsys, "predict", models["torch"], "--images", images)
    assert "unpickles" in said
    assert "--trust true" in said
    with pytest.raises(UserError, match="--trust true"):
        dafw.from_pretrained(models["torch"])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--to", "tflite"), 'unknown form "tflite"'),
        (("--dtype", "float8"), 'unknown dtype "float8"'),
        (("--tolerance", "-1"), "(--tolerance); nothing was written"),
        (("--images", "nowhere"), "there is no file or folder nowhere"),
        (("--to", "onnx", "--opset", "13"), "opset"),
        (("--control", "nowhere"), "nowhere (--control) is no finished run"),
    ],
)
def test_what_is_refused(
    options: tuple[str, ...], said: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in refused(capsys, "export", folder, "--output", tmp_path / "m", *options)
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_is_not_there_or_not_finished(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "there is no run nowhere" in refused(capsys, "export", "nowhere")
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    for name in ("config.yaml", "checkpoints/step=2.ckpt"):
        (tmp_path / "run" / name).write_bytes((folder / name).read_bytes())
    assert "is not finished" in refused(capsys, "export", tmp_path / "run", "--output", tmp_path / "m")
    (tmp_path / "m").mkdir()
    assert "exists already" in refused(capsys, "export", folder, "--output", tmp_path / "m")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_the_bits(dtype: str, folder: Path, tmp_path: Path) -> None:
    run = dafw.load(folder)
    config = run.save_pretrained(tmp_path / "m", dtype=dtype)
    assert 0 < config.difference <= config.tolerance
    assert run.module.method.network.shift.dtype == torch.float32
    x = torch.randint(0, 256, (2, 3, 11, 13), dtype=torch.uint8)
    found = dafw.from_pretrained(tmp_path / "m").columns(x)["probabilities"]
    torch.testing.assert_close(found.sum(1), torch.ones(2), atol=1e-2, rtol=0)


def test_scaling_may_stay_outside(folder: Path, images: Path, tmp_path: Path) -> None:
    run = dafw.load(folder)
    config = run.save_pretrained(tmp_path / "m", resize=False)
    assert config.shape == (3, 6, 6)
    paths = sorted((images / "photo").rglob("*.png"))
    found, expected = dafw.from_pretrained(tmp_path / "m").predict(paths), run.predict(paths)
    torch.testing.assert_close(found.probabilities, expected.probabilities)
