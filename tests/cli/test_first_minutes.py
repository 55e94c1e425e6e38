"""What a user meets first: the lines of a run, pages of help, presets, words of other programs, lists of runs."""

import io
import shutil
from pathlib import Path

import pytest
from commands import CHECKOUT, QUICK, TOY, call, one_run, refused, rows
from rich.console import Console

from dafw.callbacks.progress import Bar
from dafw.cli import main
from dafw.run.presets import presets

DANN = ("fit", "--model", "DANN", "--model.width", "8", "--trainer.log_every_n_steps", "50")
FOUR = (*TOY, "--trainer.max_epochs", "2", "--data.steps_per_epoch", "2")


def test_the_lines_of_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    done = call(capsys, *DANN, *FOUR, "--trainer.enable_progress_bar", "false")
    folder = one_run(Path("runs"))
    title, where, first, second, *end = done.out.splitlines()
    assert title.startswith("DANN on a->b, seed 0: 4 steps on cpu (")
    assert where == f"in {folder}"
    assert first.startswith("step 2/4  loss ")
    assert second.startswith("step 4/4  loss ")
    for line in (first, second):
        ours, theirs = line.split("  |  ")
        assert "supervised " in ours
        assert "domain " in ours
        assert "source_accuracy " in ours
        assert "oracle" not in ours
        assert theirs.startswith("oracle/accuracy ")
        assert theirs.endswith(" (by target labels)")
    assert end[0].startswith("b: accuracy ")
    assert end[1].startswith("done in ")
    assert end[2:] == [f"next: dafw predict {folder}", f"{folder}/result.json"]


def test_a_run_that_goes_on_says_from_which_step(capsys: pytest.CaptureFixture[str]) -> None:
    call(capsys, *DANN, *FOUR, "--run.checkpoint_every", "2")
    folder = one_run(Path("runs"))
    numbers = (folder / "metrics.csv").read_text()
    (folder / "result.json").unlink()
    (folder / "checkpoints" / "step=4.ckpt").unlink()
    done = call(capsys, *DANN, *FOUR, "--run.checkpoint_every", "2")
    assert f"in {folder}, resuming from step 2\n" in done.out
    assert (folder / "metrics.csv").read_text() == numbers


def test_losses_that_a_line_reads_are_logged_as_ever(capsys: pytest.CaptureFixture[str]) -> None:
    """What a validation reads early is part of the mean that is logged later."""
    means = []
    for every in (2, 4):
        shutil.rmtree("runs", ignore_errors=True)
        length = ("--trainer.max_epochs", 4 // every, "--data.steps_per_epoch", every)
        assert call(capsys, *DANN, *TOY, *length).code == 0
        logged = rows((one_run(Path("runs")) / "metrics.csv").read_text())
        means.append([(row["step"], row["train/loss"], row["train/domain"]) for row in logged if row["train/loss"]])
    assert means[0] == means[1]
    assert [step for step, *_ in means[0]] == ["4"]


def test_the_bar_has_one_line_of_eighty_columns() -> None:
    class Trainer:
        is_global_zero = True

    class Method:
        steps_done, steps_planned, steps_started = 0, 123_456, 0
        last_terms = {"loss": 1234.56789}

    screen = io.StringIO()
    bar = Bar(Console(file=screen, width=80, force_terminal=True, color_system=None), every=0.0)
    bar.on_train_start(Trainer(), Method())  # type: ignore[arg-type]
    Method.steps_started = 99_999
    bar.on_train_batch_end(Trainer(), Method())  # type: ignore[arg-type]
    bar.on_train_end()
    drawn = [line for line in screen.getvalue().replace("\r", "\n").splitlines() if "99999/123456" in line]
    assert drawn
    assert all(len(line.split("\x1b[2K")[-1].rstrip()) <= 80 for line in drawn)
    assert "loss 1235" in drawn[0]
    assert "Epoch" not in screen.getvalue()


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
def test_the_page_of_a_command_is_short(capsys: pytest.CaptureFixture[str], command: str) -> None:
    pages = []
    for asked in (["--help"], ["--help", "all"]):
        with pytest.raises(SystemExit) as ended:
            main([command, *asked])
        assert ended.value.code == 0
        pages.append(capsys.readouterr().out)
    short, long = pages
    assert short.startswith(f"usage: dafw {command} ")
    assert long.startswith(f"usage: dafw {command} ")
    assert len(short.splitlines()) < 30
    assert f"dafw {command} --help all" in short
    assert "--trainer.gradient_clip_val" in long
    assert ("--trainer.max_epochs" in short) == (command == "fit")
    assert ("--output" in short) == (command in ("test", "predict"))
    for line in short.splitlines():
        if line.startswith("  --"):
            assert f"{line.split()[0].removesuffix('.NAME')}" in long or line.split()[0].startswith(
                ("--model.", "--data.")
            )


def test_the_page_of_the_keys_of_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["fit", "--run.help"])
    page = capsys.readouterr().out
    for key in ("root", "dir", "checkpoint_every", "wandb", "plots"):
        assert f"--run.{key} " in page
    assert "steps between two checkpoints. [500]" in page


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("model.learning_rate", "model.lr"),
        ("learning_rate", "model.lr"),
        ("epochs", "trainer.max_epochs"),
        ("trainer.epochs", "trainer.max_epochs"),
        ("batchsize", "data.batch_size"),
        ("seed", "seed_everything"),
        ("gpus", "trainer.devices"),
    ],
)
def test_words_of_other_programs(capsys: pytest.CaptureFixture[str], key: str, meant: str) -> None:
    assert refused(capsys, *DANN, *QUICK, f"--{key}", "1") == f'unknown key "{key}": did you mean "{meant}"?'


def test_a_preset_by_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    """From any folder; a file of the same name comes first."""
    with pytest.raises(SystemExit):
        main(["fit", "--config", "digits/dann", "--print_config"])
    by_name = capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["fit", "-c", str(CHECKOUT / "experiments/digits/dann.yaml"), "--print_config"])
    assert by_name == capsys.readouterr().out
    assert "class_path: dafw.DANN" in by_name
    said = refused(capsys, "fit", "--config", "digits/dnn")
    assert said == 'there is neither a file nor a preset digits/dnn: did you mean "digits/dann"?; see dafw presets'
    assert "digits/dann" in refused(capsys, "fit", "--config=dann")
    Path("digits").mkdir()
    Path("digits/dann").write_text("model: {class_path: Nothing}\n")
    assert 'unknown method "Nothing"' in refused(capsys, "fit", "--config", "digits/dann")


def test_every_preset_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    listed = call(capsys, "presets").out
    for name in presets():
        assert f"{name} " in listed
    assert "tables/" not in listed


def test_runs_are_listed_and_compared(capsys: pytest.CaptureFixture[str]) -> None:
    call(capsys, *DANN, *QUICK)
    call(capsys, *DANN, *QUICK, "--seed_everything", "1", "--model.lr", "0.5")
    call(capsys, *DANN, *QUICK, "--seed_everything", "2")
    first, second, third = sorted(Path("runs").iterdir())
    (third / "result.json").unlink()
    tested = Path("runs/tested")
    tested.mkdir()
    shutil.move(second / "result.json", tested / "test.json")
    shutil.copy(tested / "test.json", second / "result.json")
    said = call(capsys, "runs").out
    states = [line.split()[0] for line in said.splitlines() if line.startswith(("done", "inter", "tested"))]
    assert states == ["done", "done", "interrupted", "tested"]
    assert said.endswith("4 of 4 runs\n")
    assert "DANN           a->b  seed 0  accuracy 0." in said
    assert f"{third}\n1 of 4 runs\n" in call(capsys, "runs", "--interrupted").out
    assert f"{second}\n1 of 4 runs\n" in call(capsys, "runs", "--done", "--seed", "1", "--method", "DANN").out
    lines = call(capsys, "runs", "diff", first, second).out.splitlines()
    assert lines[:2] == [f"A: {first}", f"B: {second}"]
    assert lines[2:4] == ["data.seed: 0 | 1", "model.lr: 0.01 | 0.5"]
    assert lines[4] == "seed_everything: 0 | 1"
    assert any(line.startswith("test b accuracy: 0.") for line in lines)
    assert call(capsys, "runs", "diff", first, third).out.endswith(f"{third} has no result\n")
    (third / "config.yaml").write_text("")
    assert call(capsys, "runs").out.endswith("4 of 4 runs\n")
    assert call(capsys, "runs", "diff", first, "nowhere").err.startswith("dafw: error: nowhere is no run directory")
    assert call(capsys, "runs", "--root", "nowhere").err.startswith("dafw: error: there is no folder nowhere")


def test_a_logger_without_its_package(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning_fabric.loggers import tensorboard

    monkeypatch.setattr(tensorboard, "_TENSORBOARD_AVAILABLE", Absent())
    monkeypatch.setattr(tensorboard, "_TENSORBOARDX_AVAILABLE", Absent())
    said = refused(capsys, *DANN, *QUICK, "--trainer.logger", "TensorBoardLogger", "--trainer.logger.save_dir", "logs")
    assert said == 'TensorBoardLogger needs the package tensorboard: pip install "dafw[tensorboard]"'


class Absent:
    def __bool__(self) -> bool:
        return False


def test_a_bar_of_the_user_takes_the_place_of_ours(capsys: pytest.CaptureFixture[str]) -> None:
    done = call(capsys, *DANN, *QUICK, "--trainer.callbacks", "RichProgressBar")
    assert done.code == 0, done.err
    assert "step 2/2  loss " in done.out
