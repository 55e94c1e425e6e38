"""Whatever a user gets wrong: exit code 2, one sentence that names it, and nothing trained."""

import json
from pathlib import Path

import numpy as np
import pytest
from commands import QUICK, call, refused
from PIL import Image

FIT = ("fit", "--model", "DANN", *QUICK)
DIGITS = ("--data", "Digits", "--data.source", "mnist")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["fitt"], 'unknown command "fitt": did you mean "fit"?'),
        (["table", "shwo"], 'unknown choice "shwo" of dafw table: did you mean "show"?'),
        (["table"], "required"),
        (["methods", "x"], "dafw methods: unrecognized arguments: x"),
        (["new", "metod", "Name"], 'unknown choice "metod" of dafw new: did you mean "method"?'),
        (["fit"], "data, model must be given"),
        (["fit", "--model", "DANN"], "data must be given"),
        (["fit", "--model", "DANN", "--data"], "data needs a value"),
        (["fit", *QUICK], "model must be given"),
        (["fit", "--model", "DANN", "--data.source", "a", "--data.target", "b"], "data must be given"),
        (["fit", "--model", "DANN", *DIGITS], "data.target must be given"),
        (["fit", "--model", "DANN", "--data", "Digits"], "data.source, data.target must be given"),
        ([*FIT, "word"], 'unknown key "word"'),
    ],
)
def test_words(capsys: pytest.CaptureFixture[str], arguments: list[str], said: str) -> None:
    assert said in refused(capsys, *arguments)


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("modle", 'unknown key "modle": did you mean "model"?'),
        ("model.widht", 'unknown key "model.widht": did you mean "width"?'),
        ("model.network.backbon", 'unknown key "model.network.backbon": did you mean "backbone"?'),
        ("model.schedule.alpa", 'unknown key "model.schedule.alpa": did you mean "alpha"?'),
        ("data.bath_size", 'unknown key "data.bath_size": did you mean "batch_size"?'),
        ("trainer.max_epoch", 'unknown key "trainer.max_epoch": did you mean "max_epochs"?'),
        ("run.rot", 'unknown key "run.rot": did you mean "root"?'),
        ("max_epochs", 'unknown key "max_epochs": did you mean "trainer.max_epochs"?'),
        ("optimizer", 'unknown key "optimizer": did you mean "model.optimizer"?'),
        ("batch_size", 'unknown key "batch_size": did you mean "data.batch_size"?'),
    ],
)
def test_keys(capsys: pytest.CaptureFixture[str], key: str, said: str) -> None:
    schedule = ["--model.schedule", "InverseDecay"] if "schedule" in key else []
    assert refused(capsys, *FIT, *schedule, f"--{key}", "1").startswith(said)
    assert refused(capsys, *FIT, *schedule, f"--{key}=1").startswith(said)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("model.width", "big", 'model.width: expected int, got "big"'),
        ("model.width", "1.5", 'model.width: expected int, got "1.5"'),
        ("model.lr", "0", "model.lr must be a positive number, not 0"),
        ("model.lr", "-1", "model.lr must be a positive number, not -1"),
        ("model.lr", "nan", 'model.lr: expected float, got "nan"'),
        ("model.lr", ".nan", "model.lr must be a positive number, not nan"),
        ("model.lr", ".inf", "model.lr must be a positive number, not inf"),
        ("model.gamma", ".nan", "model.gamma must be 0 or more, not nan"),
        ("model.weight", ".inf", "model.weight must be 0 or more, not inf"),
        ("model.width", "0", "model.width must be at least 1, not 0"),
        ("model.width", "1000000000000", "the memory does not suffice for the network and the method"),
        ("model.ramp_steps", "-3", "model.ramp_steps must be at least 1, not -3"),
        ("model.ema_decay", "1.5", "model.ema_decay must be at least 0 and below 1, not 1.5"),
        ("model.network.bottleneck", "-3", "model.network.bottleneck must be at least 1, not -3"),
        ("model.network.backbone_lr", ".nan", "model.network.backbone_lr must be 0 or more, not nan"),
        ("model.network.in_channels", "0", "model.network.in_channels must be at least 1, not 0"),
        ("model.width", "2024-01-01", 'model.width: expected int, got "2024-01-01"'),
        ("model.network.mean", "[" * 2000 + "]" * 2000, "nested too deeply"),
        ("model.norm", "jont", 'model.norm: unknown value "jont": did you mean "joint"?'),
        ("model.optimizer", "adamm", 'unknown optimizer "adamm"'),
        (
            "model.optimizer",
            "adahessian",
            "adahessian needs second derivatives, which no training step computes: take adamw or momentum",
        ),
        ("model.network.bottleneck", "x", 'model.network.bottleneck: expected int, got "x"'),
        ("model.network.mean", "[a]", 'model.network.mean: expected float, got "a"'),
        ("model.network.backbone", "resnet5O", 'unknown backbone "resnet5O": did you mean "resnet50"?'),
        ("model.network.backbone", "nowhere.Net", "nowhere"),
        ("model.network.weights", "there/is/none.pt", "there/is/none.pt"),
        ("data.source", "[a, 3]", 'unknown domain "3": (choices: a, b, c)'),
        ("data.source", "[a, 010]", 'unknown domain "010": (choices: a, b, c)'),
        ("data.target", "null", 'unknown domain "null": (choices: a, b, c)'),
        ("data.target", "b\x1b[31m\udce9", "data.target has a name that is not UTF-8: rename its folder"),
        ("data.target", "z\x1b[31m", r'unknown domain "z\x1b[31m": (choices: a, b, c)'),
        ("data.label_sets.common", "[010, no]", 'unknown data.label_sets.common "010": (choices: one, two, zero)'),
        ("data.target", "z", 'unknown domain "z": (choices: a, b, c)'),
        ("data.target", "a", '"a" is both a source and a target'),
        ("data.batch_size", "many", 'data.batch_size: expected int, got "many"'),
        ("data.batch_size", "0", "data.batch_size must be at least 1, not 0"),
        ("data.batch_size", "41", "a has 40 training samples, fewer than a batch of 41"),
        ("data.target_batch_size", "41", "b has 40 training samples, fewer than a batch of 41"),
        ("data.num_workers", "-1", "data.num_workers must be at least 0, not -1"),
        ("data.steps_per_epoch", "0", "data.steps_per_epoch must be at least 1, not 0"),
        ("data.label_sets", "clsed", 'unknown data.label_sets "clsed": did you mean "closed"?'),
        (
            "data.label_sets",
            "{common: 2, source_private: 1, target_private: 1}",
            "data.label_sets asks for 2 common + 1",
        ),
        ("data.label_sets", "{common: 1, source_privat: 1}", "source_privat"),
        ("data.label_sets", "{common: [one], target_private: [one]}", 'class "one" is both'),
        ("data.label_sets", "{common: 2, target_private: 1}", "DANN rejects nothing: give model.rejection"),
        ("data.augment", "nothing", 'unknown augmentation "nothing": did you mean "none"?'),
        ("trainer.max_epochs", "two", 'trainer.max_epochs: expected int, got "two"'),
        ("trainer.max_epochs", "-1", "give trainer.max_epochs or trainer.max_steps"),
        ("trainer.max_epochs", "-2", "max_epochs"),
        ("trainer.limit_train_batches", "3", "give that instead of trainer.limit_train_batches"),
        ("trainer.overfit_batches", "3", "give that instead of trainer.limit_train_batches"),
        (
            "trainer.limit_test_batches",
            "0",
            "trainer.limit_test_batches is 0, and a run ends with a",
        ),
        ("trainer.limit_test_batches", "-1", "trainer.limit_test_batches must be at least 0, not -1"),
        ("trainer.gradient_clip_val", "-1", "trainer.gradient_clip_val must be at least 0, not -1"),
        ("trainer.gradient_clip_val", ".nan", "trainer.gradient_clip_val must be at least 0, not nan"),
        ("trainer.check_val_every_n_epoch", "-1", "trainer.check_val_every_n_epoch must be at least 1, not -1"),
        ("trainer.log_every_n_steps", "0", "trainer.log_every_n_steps must be at least 1, not 0"),
        ("trainer.accumulate_grad_batches", "0", "trainer.accumulate_grad_batches must be at least 1, not 0"),
        ("trainer.val_check_interval", "0", "trainer.val_check_interval must be above 0, not 0"),
        ("trainer.val_check_interval", "99", "trainer.val_check_interval is 99, and an epoch has 2 steps"),
        ("trainer.accelerator", "gpus", "invalid accelerator name: `accelerator='gpus'`"),
        ("trainer.devices", "0", "devices"),
        ("trainer.precision", "17", 'trainer.precision: unknown value "17": did you mean "16"?'),
        ("trainer.callbacks", "EarlyStoping", 'unknown callback "EarlyStoping": did you mean "EarlyStopping"?'),
        ("seed_everything", "abc", 'seed_everything: expected int, got "abc"'),
        ("run.wandb", "offlin", 'run.wandb: unknown value "offlin": did you mean "offline"?'),
        ("run.plots", "maybe", 'run.plots: unknown value "maybe": (choices: false, samples, true)'),
        ("run.checkpoint_every", "0", "run.checkpoint_every and run.keep_checkpoints must be at least 1"),
        ("config", "there/is/none.yaml", "there/is/none.yaml"),
        ("config", ".", "is not a file"),
        ("trainer.max_time", "soon", "trainer: "),
        ("trainer.strategy", "dpp", "trainer: "),
        ("data.source", "[]", "data.source must name at least one domain, and each once, not []"),
        ("data.source", "[a, a]", "data.source must name at least one domain, and each once, not ['a', 'a']"),
        ("data.seed", "3", "data.seed cannot be given: it comes from seed_everything"),
        ("model.num_classes", "3", "model.num_classes cannot be given: it comes from the datamodule"),
        ("ckpt_path", "x.ckpt", "ckpt_path is for validate, test and predict"),
    ],
)
def test_values(capsys: pytest.CaptureFixture[str], key: str, value: str, said: str) -> None:
    assert said in refused(capsys, *FIT, f"--{key}", value)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "DANM", *QUICK], 'unknown method "DANM": did you mean "DAN"?'),
        (["--model", "dann", *QUICK], 'unknown method "dann": did you mean "DANN"?'),
        (["--model", "nowhere.DANN", *QUICK], 'unknown method "nowhere.DANN": there is no module "nowhere"'),
        (["--model", "dafw.methods.DANM", *QUICK], 'unknown method "dafw.methods.DANM"'),
        (["--model", "torch.nn.Linear", *QUICK], "model: torch.nn.Linear is not a method"),
        (["--model", "DANN", "--data", "Digit"], 'unknown datamodule "Digit": did you mean "Digits"?'),
        (["--model", "DANN", *DIGITS, "--data.target", "mnstm"], 'unknown domain "mnstm": did you mean "mnistm"?'),
        (["--model", "DANN", *DIGITS, "--data.target", "usps", "--data.scale", "full"], "needs --data.root"),
        (["--model", "DANN", *QUICK, "--model.schedule", "Invers"], 'unknown schedule "Invers": did you mean "Inv'),
        (
            ["--model", "DANN", *QUICK, "--model.rejection", "Entrop"],
            'unknown rule of rejection "Entrop": did you mean',
        ),
        (["--model", "DANN", *QUICK, "--model.network", "Net"], 'unknown network "Net": did you mean "Network"?'),
        (["--model", "DANN", *QUICK, "--model.problem", "Boxes"], 'unknown problem "Boxes": (choices: Class'),
    ],
)
def test_classes(capsys: pytest.CaptureFixture[str], arguments: list[str], said: str) -> None:
    assert said in refused(capsys, "fit", *arguments)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model: {class_path: DANN, init_args: {widht: 3}}", 'unknown key "model.widht": did you mean "width"?'),
        ("modle: {class_path: DANN}", 'unknown key "modle": did you mean "model"?'),
        ("trainer: {max_epoch: 3}", 'unknown key "trainer.max_epoch": did you mean "max_epochs"?'),
        ("data: {init_args: {batch_size: many}}", 'data.batch_size: expected int, got "many"'),
        ("model: {class_path: DANN, init_args: {network: {nonsense: 3}}}", 'unknown key "model.network.nonsense"'),
        ("model: {class_path: DANM}", 'unknown method "DANM": did you mean "DAN"?'),
        ("model: {class_path: DANN\n", "wrong.yaml is not valid YAML: "),
        ("- model\n- data\n", "wrong.yaml is no configuration"),
        ("just words", "wrong.yaml is no configuration"),
        ("", "wrong.yaml is no configuration"),
        ("model: " + "[" * 2000 + "]" * 2000, "wrong.yaml is not valid YAML: its values are nested too deeply"),
        ("a: &a [*a]\nmodel: {class_path: DANN, init_args: {width: *a}}", "nested too deeply"),
    ],
)
def test_files(capsys: pytest.CaptureFixture[str], text: str, said: str) -> None:
    Path("wrong.yaml").write_text(text)
    assert said in refused(capsys, *FIT, "--config", "wrong.yaml")


@pytest.mark.parametrize(
    ("argument", "value", "said"),
    [
        (
            "norm_layer",
            "batchnrm2d",
            'timm knows no norm_layer "batchnrm2d" for the backbone resnet10t: did you mean "batchnorm2d"?',
        ),
        ("norm_layer", "nonsense", 'timm knows no norm_layer "nonsense" for the backbone resnet10t'),
        ("act_layer", "nonsense", 'timm knows no act_layer "nonsense" for the backbone resnet10t'),
        ("block_args", "3", "timm cannot make the backbone resnet10t with {'num_classes': 0, 'in_chans': 3, 'block_"),
    ],
)
def test_arguments_of_a_timm_backbone(capsys: pytest.CaptureFixture[str], argument: str, value: str, said: str) -> None:
    network = ("--model.network.backbone", "resnet10t", f"--model.network.backbone_args.{argument}", value)
    assert refused(capsys, *FIT, *network).startswith(said)


def test_what_monitors_target_labels(capsys: pytest.CaptureFixture[str]) -> None:
    stopping = (*FIT, "--trainer.callbacks", "EarlyStopping", "--trainer.callbacks.monitor")
    assert 'EarlyStopping monitors "oracle/accuracy", which target labels decide' in refused(
        capsys, *stopping, "oracle/accuracy"
    )
    for unknown in ("val/nothing", "val_loss", "source_accuracy"):
        said = refused(capsys, *stopping, unknown)
        assert f'monitor of EarlyStopping "{unknown}"' in said
        assert "oracle" not in said
    keeping = ("--trainer.callbacks", "ModelCheckpoint", "--trainer.callbacks.monitor", "accuracy")
    assert 'monitor of ModelCheckpoint "accuracy"' in refused(capsys, *FIT, *keeping)
    allowed = call(capsys, *stopping, "oracle/accuracy", "--run.allow_oracle", "true")
    assert allowed.code == 0, allowed.err


def test_a_checkpoint_that_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    test = ("test", *FIT[1:])
    assert "train first, or give --ckpt_path" in refused(capsys, *test)
    assert "there is no checkpoint x.ckpt" in refused(capsys, *test, "--ckpt_path", "x.ckpt")
    Path("x.ckpt").write_text("not one")
    assert "x.ckpt is truncated or no checkpoint" in refused(capsys, *test, "--ckpt_path", "x.ckpt")


def test_a_network_for_other_images_leaves_nothing_behind(capsys: pytest.CaptureFixture[str]) -> None:
    colour = (
        "--data",
        "Digits",
        "--data.source",
        "mnist",
        "--data.target",
        "optdigits",
        "--trainer.accelerator",
        "cpu",
    )
    said = refused(capsys, "fit", "--model", "SourceOnly", *colour, "--model.network.in_channels", "1")
    assert "the network is built for images of 1 channels and got 3" in said


def test_a_part_of_the_test_split_is_counted(capsys: pytest.CaptureFixture[str]) -> None:
    part = ("--data.eval_batch_size", "3", "--trainer.limit_test_batches", "2")
    for limit, samples in (((), 21), (part, 6)):
        assert call(capsys, *FIT, *limit).code == 0
        (path,) = Path("runs").glob("*/result.json")
        assert json.loads(path.read_text())["num_target_test"] == samples
        path.unlink()


@pytest.fixture
def folders() -> Path:
    """Two domains; ``pen`` is in one of them only."""
    rng = np.random.default_rng(0)
    for domain, classes in {"art": ("cup", "mug"), "photo": ("cup", "mug", "pen")}.items():
        for name in classes:
            folder = Path("images", domain, name)
            folder.mkdir(parents=True)
            for index in range(30):
                Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    return Path("images")


def test_image_folders(capsys: pytest.CaptureFixture[str], folders: Path) -> None:
    images = ("fit", "--model", "DANN", "--model.network.backbone", "small_bn_net", "--model.network.input_size", "8")
    images += ("--data", "ImageFolderDomains", "--data.size", "8", "--data.resize", "8", "--data.batch_size", "4")
    task = ("--data.source", "art", "--data.target", "photo")
    assert "data.root must be given" in refused(capsys, *images, *task)
    assert "folder nowhere (data.root) does not exist" in refused(capsys, *images, *task, "--data.root", "nowhere")
    there = (*images, "--data.root", folders)
    assert 'unknown domain "phot": did you mean "photo"?' in refused(
        capsys, *there, "--data.source", "art", "--data.target", "phot"
    )
    assert 'class "pen" is in photo but not in art' in refused(capsys, *there, *task)
    assert 'unknown augmentation "flipcrop": did you mean "flip_crop"?' in refused(
        capsys, *there, *task, "--data.augment", "flipcrop"
    )
