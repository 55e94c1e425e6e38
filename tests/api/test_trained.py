"""Trained runs in the hands of another program."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import rows
from PIL import Image
from torch import Tensor, nn

import dafw
import dafw.methods
from dafw.api import data as api_data
from dafw.cli import main
from dafw.data.batch import Batch
from dafw.errors import UserError
from dafw.evaluation.rejection import Entropy
from dafw.export.served import served
from dafw.methods import ADDA, DCAN, DRM, AdaBN, SourceOnly
from dafw.testing import case
from dafw.testing.toys import ToyData, toy_network, toy_trainer

SIZE = 6


def data(**options: Any) -> ToyData:
    return ToyData("a", "b", **{"batch_size": 8, "steps_per_epoch": 2} | options)


def test_a_run_predicts_what_the_command_predicts(arguments: list[str], images: Path, tmp_path: Path) -> None:
    assert main(["predict", *arguments, "--output", str(tmp_path / "p.csv")]) == 0
    table = rows((tmp_path / "p.csv").read_text())
    trained = dafw.load(arguments[-1])
    paths = [images / row["sample"] for row in table]
    found = trained.predict(paths, batch_size=3)
    assert found.class_names == trained.class_names == ("cup", "pen")
    assert list(found.classes) == [row["prediction"] for row in table]
    shares = [[float(row["p_cup"]), float(row["p_pen"])] for row in table]
    torch.testing.assert_close(found.probabilities, torch.tensor(shares), atol=1e-6, rtol=0)
    assert found.names == tuple(map(str, paths))
    assert trained.result.method == "DANN"
    assert len(found) == trained.result.num_target_test


def test_an_image_in_any_form_has_one_prediction(folder: Path, images: Path) -> None:
    trained, path = dafw.load(folder / "checkpoints" / "step=2.ckpt"), images / "photo" / "cup" / "0.png"
    prepared = trained.transform(path)
    assert (tuple(prepared.shape), prepared.dtype) == ((3, SIZE, SIZE), torch.uint8)
    with Image.open(path) as image:
        pixels = np.asarray(image)
        forms = [path, str(path), image, pixels, prepared, prepared[None], [path], iter([path]), pixels[None]]
        found = [trained.predict(form) for form in forms]
    assert all(torch.equal(one.probabilities, found[0].probabilities) for one in found)
    scaled = trained.predict(prepared / 255)
    torch.testing.assert_close(scaled.probabilities, found[0].probabilities)
    torch.testing.assert_close(trained.module(prepared[None])["probabilities"], found[0].probabilities)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (255 * torch.rand(2, 3, SIZE, SIZE), r"must be in \[0, 1\], and these are from .* uint8"),
        (torch.rand(3, SIZE, SIZE) - 0.5, r"must be in \[0, 1\], and these are from -0\.\d+"),
        (torch.full((1, 3, SIZE, SIZE), torch.nan), r"must be in \[0, 1\], and these are from nan"),
        (
            torch.zeros(2, 3, 7, 7),
            r"image 0 is \(3, 7, 7\), and \(3, 6, 6\) is needed: prepare its file with transform",
        ),
        (torch.zeros(2, SIZE, SIZE, 3), r"image 0 is \(6, 6, 3\)"),
        (torch.zeros(SIZE, SIZE), r"image 0 is \(6, 6\)"),
        (torch.zeros(3, SIZE, SIZE, dtype=torch.int64), r"images are uint8, or floating point in \[0, 1\]"),
        (np.zeros((9, 9, 3)), "image 0 is an array of float64 .* give uint8"),
        ([Path("missing.png")], r"the image missing\.png does not exist"),
        (Path(), "is a folder: give the paths of its images"),
        ([None], "image 0 is a NoneType: give a path"),
        ([], "there is no image"),
    ],
)
def test_what_cannot_be_predicted(folder: Path, given: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        dafw.load(folder).predict(given)


@pytest.mark.parametrize("call", [lambda run: run.module, lambda run: run.method])
def test_images_of_0_to_255_in_floating_point_are_refused_everywhere(folder: Path, call: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match=r"must be in \[0, 1\]"):
        call(dafw.load(folder))(torch.full((1, 3, SIZE, SIZE), 255.0))


def exported(module: nn.Module, x: Tensor) -> Callable[[Tensor], Tensor]:
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(module, (x,), dynamic_shapes={"images": {0: batch}}).module()
    return lambda images: program(images)["probabilities"]


def traced(module: nn.Module, x: Tensor) -> Callable[[Tensor], Tensor]:
    program = torch.jit.trace(module, (x,), check_trace=False, strict=False)
    return lambda images: program(images)["probabilities"]


def onnx(module: nn.Module, x: Tensor) -> Callable[[Tensor], Tensor]:
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.onnx.export(module, (x,), dynamo=True, dynamic_shapes={"images": {0: batch}})
    assert program is not None
    session = runtime.InferenceSession(program.model_proto.SerializeToString())
    (name,) = (one.name for one in session.get_inputs())
    return lambda images: torch.from_numpy(session.run(None, {name: images.numpy()})[0])


@pytest.mark.parametrize("program", [exported, traced, onnx])
@pytest.mark.parametrize("kind", [torch.uint8, torch.float32])
def test_the_module_is_exported_with_its_normalisation(program: Any, kind: torch.dtype, folder: Path) -> None:
    """Another number of images passes the program, and images of another range give other numbers."""
    trained = dafw.load(folder)
    x = (torch.rand(5, 3, SIZE, SIZE) * (255 if kind == torch.uint8 else 1)).to(kind)
    made = program(trained.module, x)
    for images in (x[:3], x.flip(0) // 2):
        torch.testing.assert_close(made(images), trained.predict(images).probabilities)


@pytest.mark.parametrize("owner", [AdaBN, DCAN, DRM, ADDA])
def test_the_module_is_what_the_method_serves(owner: Any) -> None:
    """These do not serve their network alone."""
    method = case(owner).make().eval()
    for buffer in method.buffers():
        if buffer.is_floating_point() and buffer.numel() > 1:
            buffer.add_(0.1 * torch.rand_like(buffer))
    x, rows = (255 * torch.rand(4, 3, SIZE, SIZE)).to(torch.uint8), torch.arange(4)
    module = served(method)
    programs = [exported(module, x), traced(module, x)]
    with torch.no_grad():
        expected = method.evaluator.predict(Batch(x, [], torch.zeros_like(rows), rows, 0))["probabilities"]
        torch.testing.assert_close(module(x)["probabilities"], expected)
        for program in programs:
            torch.testing.assert_close(program(x[:3]), expected[:3])


def test_a_checkpoint_without_a_run_takes_tensors_or_a_datamodule(trained: Path) -> None:
    given = torch.stack(list(data().domain("b", "test").inputs))
    alone = dafw.load(trained)
    assert set(alone.predict(given).classes) <= {"zero", "one", "two"}
    for ask, said in (
        (lambda: alone.transform, "lies in no run directory"),
        (lambda: alone.result, "has no result"),
        (lambda: alone.predict(given[:, :, :5]), r"images of \(3, 5, 6\) do not fit the network"),
        (lambda: alone.predict([given[0], given[0, :, :5]]), r"image 1 is \(3, 5, 6\), and \(3, 6, 6\) is needed"),
        (lambda: dafw.load(trained, data=data()).transform, "ToyData does not say how an image is prepared"),
        (lambda: dafw.load(trained, data=ToyData("a", "b", label_sets="2/1/0")), "predicts|label_sets"),
    ):
        with pytest.raises(UserError, match=said):
            ask()


def test_a_method_that_rejects_calls_a_class_unknown(tmp_path: Path) -> None:
    trainer = toy_trainer(tmp_path, epochs=1)
    trainer.fit(SourceOnly(toy_network(), num_classes=3, rejection=Entropy(threshold=0.5)), datamodule=data())
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    found = dafw.load(tmp_path / "x.ckpt").predict(torch.stack(list(data().domain("b", "test").inputs)))
    assert found.unknown is not None
    assert [name == "unknown" for name in found.classes] == (found.unknown > 0).tolist()
    assert "unknown" in found.classes


def test_a_run_of_masks_says_where_its_predictions_are(tmp_path: Path) -> None:
    trainer, method = toy_trainer(tmp_path), case(SourceOnly, kind="segmentation").make()
    trainer.fit(method, datamodule=case(SourceOnly, kind="segmentation").make_data())
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    with pytest.raises(UserError, match="this run is for segmentation, and predict gives classes: take dafw predict"):
        dafw.load(tmp_path / "x.ckpt").predict(torch.zeros(1, 3, 8, 8))


def change(folder: Path, to: Path, old: str, new: str) -> Path:
    """A copy of a run directory with another configuration."""
    shutil.copytree(folder, to / "copy")
    path = to / "copy" / "config.yaml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    return to / "copy"


def test_a_run_directory_chooses_no_code(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "evil_data.py").write_text("from pathlib import Path\nPath(__file__).with_name('ran').touch()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    copy = change(folder, tmp_path, "datamodules.ImageFolderDomains", "evil_data.Data")
    with pytest.raises(UserError, match=r"names evil_data\.Data: import evil_data first, if you trust it"):
        _ = dafw.load(copy).transform
    assert not (tmp_path / "ran").exists()
    assert "evil_data" not in sys.modules


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("datamodules.ImageFolderDomains", "subprocess.Popen", "subprocess.Popen is not a datamodule"),
        ("resize: 8", "resized: 8", 'config.yaml: unknown key "data.resized"'),
        ("resize: 8", "resize: 2", r"data\.size must be between 1 and data\.resize"),
        ("data:", "date:", "config.yaml is damaged"),
    ],
)
def test_a_wrong_configuration_is_a_sentence(folder: Path, tmp_path: Path, old: str, new: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        _ = dafw.load(change(folder, tmp_path, old, new)).transform


def test_names_and_a_transform_of_training_survive_the_configuration(tmp_path: Path) -> None:
    (tmp_path / api_data.CONFIG).write_text(
        "data:\n  class_path: datamodules.mnist_variants.RotatedMNIST\n  init_args:\n    source: ['0', '15']\n"
        "    target: '30'\n    augment: {class_path: torchvision.transforms.v2.Identity}\n"
    )
    made = api_data.make_data(tmp_path)
    assert (made.source, made.target, made.augment) == (["0", "15"], ["30"], None)


def test_a_folder_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no checkpoint in .*: give a run directory or a checkpoint"):
        dafw.load(tmp_path)
