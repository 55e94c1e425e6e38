"""dafw from Python: names, numbers that a trainer returns, and trained runs in the hands of another program."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from commands import TOY, rows, run
from PIL import Image
from pytorch_lightning.loggers import Logger

import dafw
import dafw.methods
import datamodules
from dafw.api import data as api_data
from dafw.api import making
from dafw.api.trained import Served
from dafw.cli import main
from dafw.data.batch import Batch
from dafw.errors import UserError
from dafw.evaluation.rejection import Entropy
from dafw.methods import ADDA, DANN, DCAN, DRM, MCD, AdaBN, DomainBedDANN, SourceOnly
from dafw.testing import case
from dafw.testing.toys import ToyData, toy_network, toy_trainer

TASK: dict[str, Any] = {"batch_size": 8, "steps_per_epoch": 2}
SIZE = 6


def data(**options: Any) -> ToyData:
    return ToyData("a", "b", **TASK | options)


# ---- names


def test_importing_dafw_and_reading_results_imports_no_torch(tmp_path: Path) -> None:
    code = "import sys, dafw; dir(dafw); print(dafw.results('.'), hasattr(dafw, 'nothing'))\n"
    done = run(tmp_path, "-c", code + "print(sorted({'torch', 'pytorch_lightning', 'numpy'} & set(sys.modules)))")
    assert (done.code, done.out) == (0, "[] False\n[]\n"), done.err


def test_dafw_offers_methods_datamodules_and_what_is_beside_them() -> None:
    offered = set(dir(dafw))
    assert {*dafw.methods.__all__, *datamodules.__all__, "Network", "load", "make", "results"} <= offered
    assert all(getattr(dafw, name) is not None for name in offered)
    assert dafw.DANN is DANN
    with pytest.raises(AttributeError, match="module 'dafw' has no attribute 'DAN2'"):
        _ = dafw.DAN2


# ---- a method for some data


def test_a_method_gets_its_numbers_from_the_data() -> None:
    method = dafw.make(DomainBedDANN, toy_network(), ToyData(["a", "c"], "b"), width=8)
    assert (method.num_classes, method.critic[-1].out_features) == (3, 2)
    assert dafw.make(DANN, toy_network(), data(), num_classes=5).num_classes == 5
    assert dafw.make(making.Method, toy_network(), data()).num_classes == 3


def test_another_number_of_classes_than_the_data_has_is_refused(tmp_path: Path) -> None:
    method = DANN(toy_network(), num_classes=4)
    with pytest.raises(UserError, match=r"DANN is for 4 classes \(num_classes\), but the data has 3"):
        toy_trainer(tmp_path).fit(method, datamodule=data())


# ---- numbers


class Notes(Logger):
    """Keeps what it is sent."""

    name = version = ""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int | None, dict[str, float]]] = []

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """Keeps nothing."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.rows.append((step, metrics))


@pytest.mark.parametrize("owner", [DANN, MCD])
def test_a_trainer_returns_the_numbers_and_its_loggers_get_them_once(owner: Any, tmp_path: Path) -> None:
    """MCD makes three updates a step, and Lightning counts each of them."""
    notes = Notes()
    trainer, method = toy_trainer(tmp_path, epochs=1, logger=notes), dafw.make(owner, toy_network(), data())
    trainer.fit(method, datamodule=data())
    notes.rows.clear()
    tested, *others = trainer.test(method, datamodule=data(), verbose=False)
    expected = {f"test/{name}/{key}": v for name, found in method.evaluator.test.items() for key, v in found.items()}
    assert set(method.evaluator.test) == {"a", "b"}
    assert tested == expected
    assert others == [tested]
    assert notes.rows == [(2, expected)]
    notes.rows.clear()
    validated = trainer.validate(method, datamodule=data(), verbose=False)[0]
    last = method.history[-1]["validators"]
    assert {name: validated[f"val/{name}"] for name in last} == last
    assert validated.keys() >= {"oracle/accuracy", "oracle/test/b/accuracy"}
    assert [step for step, _ in notes.rows] == [2]


def test_a_sanity_check_is_no_validation(tmp_path: Path) -> None:
    """It looks at two batches of each loader, and a criterion must not choose by that."""
    method = dafw.make(DANN, toy_network(), data(eval_batch_size=4))
    trainer = pl.Trainer(max_epochs=1, accelerator="cpu", default_root_dir=tmp_path, enable_progress_bar=False)
    trainer.fit(method, datamodule=data(eval_batch_size=4))
    assert [one["step"] for one in method.history] == [2]


def test_a_trainer_without_a_logger_returns_numbers_and_warns_of_nothing(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    method = dafw.make(DANN, toy_network(), data())
    assert "test/b/accuracy" in toy_trainer(tmp_path).test(method, datamodule=data(), verbose=False)[0]
    assert [str(one.message) for one in recwarn if "logger" in str(one.message)] == []


# ---- checkpoints


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that a trainer wrote, in no run directory."""
    folder = tmp_path_factory.mktemp("trained")
    trainer = toy_trainer(folder, epochs=1)
    trainer.fit(DANN(toy_network(), num_classes=3, width=8), datamodule=data())
    trainer.save_checkpoint(folder / "dann.ckpt")
    return folder / "dann.ckpt"


def test_lightnings_name_loads_a_method(trained: Path) -> None:
    method, same = DANN.load_from_checkpoint(trained, map_location="cpu", weights_only=True), DANN.load(str(trained))
    x = torch.stack(list(data().domain("b", "test").inputs))
    assert torch.equal(method(x).logits, same(x).logits)
    assert method.hparams == {
        "network": {"class_path": "dafw.nn.network.Network", "init_args": {"backbone": "dafw.testing.toys.ToyNet"}},
        "num_classes": 3,
        "width": 8,
    }
    assert DANN.load_from_checkpoint(trained, gamma=2.0).hparams.gamma == 2.0


@pytest.mark.parametrize(
    ("owner", "arguments", "said"),
    [
        (SourceOnly, {}, "holds a DANN, not a SourceOnly"),
        (DANN, {"strict": False}, "strict=False is not taken"),
        (DANN, {"weights_only": False}, "weights_only=False is not taken"),
        (DANN, {"hparams_file": "x.yaml"}, "leave out hparams_file"),
        (DANN, {"map_location": {"cuda:1": "cuda:0"}}, "map_location must be a device"),
    ],
)
def test_what_lightnings_name_does_not_take(trained: Path, owner: Any, arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        owner.load_from_checkpoint(trained, **arguments)


def test_hparams_leave_out_what_no_checkpoint_can_hold() -> None:
    assert list(DANN(toy_network(), num_classes=3, schedule=lambda p: 1.0).hparams) == ["network", "num_classes"]


def test_a_loaded_method_learns_in_training_mode(trained: Path, tmp_path: Path) -> None:
    method = DANN.load_from_checkpoint(trained)
    assert not method.training
    seen: list[bool] = []
    method.network.backbone.norm.register_forward_hook(lambda module, _, __: seen.append(module.training))
    toy_trainer(tmp_path, epochs=1, limit_val_batches=0).fit(method, datamodule=data())
    assert seen == [True, True]


# ---- a trained run


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two domains of images with two classes, no two sides alike."""
    root, random = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for domain in ("art", "photo"):
        for label, tone in (("cup", 60), ("pen", 180)):
            (root / domain / label).mkdir(parents=True)
            for index in range(20):
                pixels = (tone + random.integers(0, 60, (12 + index % 3, 16, 3))).astype(np.uint8)
                Image.fromarray(pixels).save(root / domain / label / f"{index}.png")
    return root


@pytest.fixture(scope="module")
def arguments(images: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A finished run on them: the arguments of its command, the run directory last."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    options = {
        **dict(zip(TOY[::2], TOY[1::2], strict=True)),
        **{"--model": "DANN", "--data": "ImageFolderDomains", "--data.root": str(images), "--data.source": "art"},
        **{"--data.target": "photo", "--data.size": str(SIZE), "--data.resize": "8", "--data.steps_per_epoch": "2"},
        **{"--trainer.max_epochs": "1", "--run.wandb": "disabled", "--run.dir": str(folder)},
    }
    given = [word for option in options.items() for word in option]
    assert main(["fit", *given]) == 0
    return given


@pytest.fixture(scope="module")
def folder(arguments: list[str]) -> Path:
    return Path(arguments[-1])


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
    torch.testing.assert_close(trained.module(prepared[None]), found[0].probabilities)


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


def test_the_module_is_exported_with_its_normalisation(folder: Path) -> None:
    trained = dafw.load(folder)
    batch = torch.export.Dim("batch", min=1, max=64)
    for kind in (torch.uint8, torch.float32):
        x = (torch.rand(5, 3, SIZE, SIZE) * (255 if kind == torch.uint8 else 1)).to(kind)
        program = torch.export.export(trained.module, (x,), dynamic_shapes={"images": {0: batch}}).module()
        torch.testing.assert_close(program(x[:3]), trained.predict(x[:3]).probabilities)


@pytest.mark.parametrize("owner", [AdaBN, DCAN, DRM, ADDA])
def test_the_module_is_what_the_method_serves(owner: Any) -> None:
    """These do not serve their network alone."""
    method = case(owner).make().eval()
    for buffer in method.buffers():
        if buffer.is_floating_point() and buffer.numel() > 1:
            buffer.add_(0.1 * torch.rand_like(buffer))
    x, rows = (255 * torch.rand(4, 3, SIZE, SIZE)).to(torch.uint8), torch.arange(4)
    module, batch = Served(method).eval(), torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(module, (x,), dynamic_shapes={"images": {0: batch}}).module()
    with torch.no_grad():
        served = method.evaluator.predict(Batch(x, [], torch.zeros_like(rows), rows, 0))["probabilities"]
        torch.testing.assert_close(module(x), served)
        torch.testing.assert_close(program(x[:3]), served[:3])


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


# ---- frames and results


def test_results_of_a_folder(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (found,) = dafw.results(folder.parent)
    result = dafw.load(folder).result
    assert {key: found[key] for key in ("method", "task", "seed", "steps")} == {
        **{"method": "DANN", "task": "art->photo", "seed": 0, "steps": 2}
    }
    assert found["metrics"]["last"] == {"photo": result.test["photo"]["accuracy"]}
    assert found["metrics"].keys() >= {"last", "source_accuracy", "entropy", "oracle"}
    assert found["directory"] == str(folder)
    assert found["seconds"] == result.seconds["total"]
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "result.json").write_text("{")
    (tmp_path / "unfinished").mkdir()
    assert dafw.results(tmp_path) == []
    assert "broken/result.json is damaged" in capsys.readouterr().err
    with pytest.raises(UserError, match="there is no folder nowhere"):
        dafw.results("nowhere")


def test_frames_where_pandas_is(folder: Path) -> None:
    pytest.importorskip("pandas")
    frame = dafw.results(folder.parent, frame=True)
    assert frame.loc[0, "metrics/last/photo"] == dafw.results(folder.parent)[0]["metrics"]["last"]["photo"]
    table = dafw.load(folder).predict(torch.zeros(2, 3, SIZE, SIZE)).to_dataframe()
    assert list(table.columns) == ["sample", "prediction", "p_cup", "p_pen"]
    assert len(table) == 2


def test_frames_without_pandas_are_a_sentence(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    found = dafw.load(folder).predict(torch.zeros(1, 3, SIZE, SIZE))
    for ask in (found.to_dataframe, lambda: dafw.results(folder.parent, frame=True)):
        with pytest.raises(UserError, match="a frame needs the package pandas: install it"):
            ask()
