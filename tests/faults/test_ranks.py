"""Two ranks: the numbers of one, every sample evaluated once, and signals that leave nobody waiting."""

import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import CHECKOUT, finish, fork, one_run, rows, run, start, until
from held import FOLDER, Holding
from interrupted import FIT, at_step, die, ranks, same
from two_ranks import gloo_threads

import dafw.run.commands
from dafw.checkpoints import checkpoints
from dafw.errors import UserError
from dafw.estimation import SourceEvidence
from dafw.run.directory import EVIDENCE, is_running
from dafw.testing.cases import TINY
from dafw.testing.processes import rank_variables
from dafw.testing.toys import ToyData

DOUBLE = (*FIT, "--trainer.precision", "64-true", "--data.eval_batch_size", "4")
TWO = (*DOUBLE, "--trainer.devices", "2")
LAST = "step=12.ckpt"


def nothing() -> None:
    """No setup."""


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of one rank."""
    folder = tmp_path_factory.mktemp("one")
    done = fork(folder, *DOUBLE).wait()
    assert (done.code, done.err) == (0, "")
    return one_run(folder / "runs")


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of two ranks."""
    folder = tmp_path_factory.mktemp("two")
    first, second = ranks(folder, *TWO)
    assert (first.code, first.err, second.code, second.out, second.err) == (0, "", 0, "", "")
    return one_run(folder / "runs")


def close(one: Path, other: Path) -> None:
    """Asserts that two run directories hold the same numbers, to 1e-9."""
    assert one.name == other.name
    states = [torch.load(folder / "checkpoints" / LAST, weights_only=True)["state_dict"] for folder in (one, other)]
    for name, value in states[0].items():
        torch.testing.assert_close(value, states[1][name], rtol=0, atol=1e-9)
    tables = [rows((folder / "metrics.csv").read_text()) for folder in (one, other)]
    assert [row.keys() for row in tables[0]] == [row.keys() for row in tables[1]]
    for left, right in zip(*tables, strict=True):
        for name in left:
            assert left[name] == right[name] or abs(float(left[name]) - float(right[name])) < 1e-9, name


def test_two_train_what_one_trains(one: Path, two: Path) -> None:
    close(one, two)


def test_two_keep_of_the_source_what_one_keeps(one: Path, two: Path) -> None:
    first, second = (SourceEvidence.read(folder / EVIDENCE) for folder in (one, two))
    assert len(first) == 21
    for name in ("samples", "labels"):
        assert np.array_equal(getattr(first, name), getattr(second, name))
    for name in ("logits", "features"):
        assert np.allclose(getattr(first, name), getattr(second, name), atol=1e-6)
    found = [json.loads((folder / "result.json").read_text())["estimates"]["b"] for folder in (one, two)]
    for name, estimate in found[0].items():
        assert estimate == pytest.approx(found[1][name], abs=1e-5)


def test_every_sample_is_tested_once(one: Path, two: Path) -> None:
    """21 samples on two ranks, in batches of 4: counted twice or left out, one would change the accuracy."""
    results = [json.loads((folder / "result.json").read_text()) for folder in (one, two)]
    assert results[0]["num_target_test"] == 21
    assert results[0]["test"] == results[1]["test"]
    for accuracy in (results[1]["test"][name]["accuracy"] for name in "ab"):
        assert accuracy * 21 == pytest.approx(round(accuracy * 21), abs=1e-4)
    assert [entry["step"] for entry in results[1]["history"]] == [4, 8, 12]


def test_groups_of_all_ranks_are_compared_with_styles(tmp_path: Path) -> None:
    """21 samples of each target on two ranks: the groups of a rank alone would be others."""
    small = {**TINY["MemSPM"], "reconstruction_weight": 0.0}
    options = [part for name, value in small.items() for part in (f"--model.{name}", json.dumps(value))]
    fit = ("fit", "--model", "MemSPM", *DOUBLE[5:], "--data.target", "[b,c]", *options, "--trainer.max_epochs", "1")
    done = fork(tmp_path / "one", *fit).wait()
    assert done.code == 0, done.err
    first, second = ranks(tmp_path / "two", *fit, "--trainer.devices", "2")
    assert (first.code, second.code) == (0, 0), (first.err, second.err)
    one, two = (json.loads((one_run(tmp_path / n / "runs") / "result.json").read_text()) for n in ("one", "two"))
    assert sum(values["samples"] for values in two["by_class"].values()) == 42
    assert one["by_class"] == two["by_class"]
    assert one["test"] == two["test"]


@pytest.mark.parametrize("signalled", [0, 1])
def test_a_signal_to_one_of_them(tmp_path: Path, one: Path, two: Path, signalled: int) -> None:
    def send() -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    setups = [nothing, nothing]
    setups[signalled] = at_step(3, send)
    first, second = ranks(tmp_path, *TWO, setups=(setups[0], setups[1]))
    assert (first.code, second.code) == (128 + signal.SIGTERM, 0)
    assert first.err == "dafw: stopped by SIGTERM at step 5; the same command goes on from there\n"
    assert (second.out, second.err) == ("", "")
    folder = one_run(tmp_path / "runs")
    assert [path.name for path in checkpoints(folder / "checkpoints")] == ["step=5.ckpt"]
    shutil.copytree(tmp_path, tmp_path / "alone", dirs_exist_ok=False, ignore=shutil.ignore_patterns("alone"))
    again = ranks(tmp_path, *TWO)
    assert [(each.code, each.err) for each in again] == [(0, ""), (0, "")]
    same(folder, two)
    assert fork(tmp_path / "alone", *DOUBLE).wait().code == 0  # what two began, one can end
    close(one_run(tmp_path / "alone" / "runs"), one)


def test_two_begin_one_goes_on_and_two_end(tmp_path: Path, one: Path) -> None:
    """Every part ends with a kill, and the last one as one rank would have ended."""
    every = ("--run.checkpoint_every", "2")
    killed = ranks(tmp_path, *TWO, *every, setups=(nothing, at_step(5, die)))
    assert [each.code for each in killed] == [1, -signal.SIGKILL]
    folder = one_run(tmp_path / "runs")
    assert checkpoints(folder / "checkpoints")[0].name == "step=4.ckpt"
    assert fork(tmp_path, *DOUBLE, *every, setup=at_step(9, die)).wait().code == -signal.SIGKILL
    assert checkpoints(folder / "checkpoints")[0].name == "step=8.ckpt"
    assert [each.code for each in ranks(tmp_path, *TWO, *every)] == [0, 0]
    close(folder, one)


def test_what_is_done_is_done_for_both(tmp_path: Path, two: Path) -> None:
    shutil.copytree(two, tmp_path / "runs" / two.name)
    first, second = ranks(tmp_path, *TWO)
    assert (first.code, second.code) == (0, 0)
    assert (first.out, second.out) == (f"done already: runs/{two.name}/result.json\n", "")


def test_evaluation_commands(tmp_path: Path, two: Path) -> None:
    (path,) = (two / "checkpoints").glob(LAST)
    chosen = (*TWO[1:], "--ckpt_path", path)
    first, second = ranks(tmp_path, "predict", *chosen)
    said = "b: 21 predictions, of its test split alone; --split all predicts all its samples\npredictions.csv\n"
    assert (first.code, first.out, second.code, second.out) == (0, said, 0, "")
    predicted = rows((tmp_path / "predictions.csv").read_text())
    domain = ToyData("a", "b").load("b", "test")
    assert [row["sample"] for row in predicted] == [domain.id(index) for index in range(21)]
    labels = [ToyData.class_names[label] for label in np.asarray(domain.labels)]
    correct = sum(row["prediction"] == label for row, label in zip(predicted, labels, strict=True))
    result = json.loads((two / "result.json").read_text())
    assert correct / 21 == pytest.approx(result["test"]["b"]["accuracy"])
    first, second = ranks(tmp_path, "test", *chosen)
    assert (first.code, second.code, second.out) == (0, 0, "")
    assert f"test/b/accuracy{'':<25} {correct / 21:.4f}\n" in first.out


def test_a_batch_that_two_cannot_share(tmp_path: Path) -> None:
    first, second = ranks(tmp_path, *TWO, "--data.batch_size", "7")
    assert (first.code, second.code) == (2, 2)
    assert (first.err, second.err) == ("dafw: error: 2 ranks cannot share a batch of 7 equally\n", "")
    assert not list(tmp_path.glob("runs/*/checkpoints/*"))


def test_a_mistake_in_the_configuration_is_said_once(tmp_path: Path) -> None:
    first, second = ranks(tmp_path, *TWO, "--data.batch_size", "0")
    assert (first.code, first.err) == (2, "dafw: error: data.batch_size must be at least 1, not 0\n")
    assert (second.code, second.err) == (2, "")


def test_what_both_cannot_read_is_said_once(tmp_path: Path, two: Path) -> None:
    """An error of the operating system, on every rank after they joined."""

    def fail() -> None:
        raise PermissionError(13, "Permission denied", "image.png")

    setups = (at_step(3, fail), at_step(3, fail))
    ended = ranks(tmp_path, *TWO, setups=setups)
    assert [one.code for one in ended] == [2, 2]
    assert [one.err for one in ended] == ["dafw: error: image.png cannot be read or written (Permission denied)\n", ""]


@pytest.mark.parametrize("wrong", [0, 1])
def test_a_mistake_on_one_of_them_ends_both(tmp_path: Path, wrong: int) -> None:
    def fail() -> None:
        raise UserError("this image is broken")

    setups = [nothing, nothing]
    setups[wrong] = at_step(3, fail)
    ended = ranks(tmp_path, *TWO, setups=(setups[0], setups[1]))
    assert (ended[wrong].code, ended[wrong].err) == (2, "dafw: error: this image is broken\n")
    other = "" if wrong == 0 else "dafw: error: another rank ended before this one, and says why\n"
    assert (ended[1 - wrong].code, ended[1 - wrong].err) == (1, other)


@pytest.mark.slow
def test_the_launcher_of_the_command(tmp_path: Path, two: Path) -> None:
    """``--trainer.devices 2`` starts the second rank by itself; SIGTERM stops both; the same command goes on."""
    long = ("--data.steps_per_epoch", "4000", "--run.checkpoint_every", "100000")
    process = start(tmp_path, "-m", "dafw", *TWO, *long)
    assert until(
        lambda: any(len(path.read_text().splitlines()) > 2 for path in tmp_path.glob("runs/*/metrics.csv")), 90
    )
    process.send_signal(signal.SIGTERM)
    stopped = finish(process)
    assert stopped.code == 128 + signal.SIGTERM, stopped
    assert stopped.err.startswith("dafw: stopped by SIGTERM at step")
    assert stopped.err.count("\n") == 1
    assert len(checkpoints(one_run(tmp_path / "runs") / "checkpoints")) == 1
    shutil.rmtree(tmp_path / "runs")
    done = run(tmp_path, "-m", "dafw", *TWO)
    assert (done.code, done.err) == (0, "")
    same(one_run(tmp_path / "runs"), two)


@pytest.mark.slow
def test_torchrun(tmp_path: Path, two: Path) -> None:
    torchrun = ("-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone", "-m", "dafw")
    done = run(tmp_path, *torchrun, *TWO)
    assert done.code == 0, done.err
    same(one_run(tmp_path / "runs"), two)
    assert sum(line.endswith("result.json") for line in done.out.splitlines()) == 1


@pytest.mark.slow
def test_two_nodes_of_torchrun(tmp_path: Path, two: Path) -> None:
    """Two programs with a port each, which meet at a third, are two machines to Lightning."""
    meeting = f"127.0.0.1:{rank_variables()[0]['MASTER_PORT']}"
    nodes = [
        start(
            tmp_path,
            *("-m", "torch.distributed.run", "--nnodes", "2", "--node_rank", str(node), "--nproc_per_node", "1"),
            *("--rdzv_backend", "static", "--rdzv_endpoint", meeting, "-m", "dafw"),
            *(*DOUBLE, "--trainer.devices", "1", "--trainer.num_nodes", "2"),
        )
        for node in range(2)
    ]
    for done in map(finish, nodes):
        assert done.code == 0, done.err
    same(one_run(tmp_path / "runs"), two)


@pytest.mark.slow
def test_a_table_with_two_ranks_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal stops both ranks of a cell, and the run ends in the weights of one that nothing stopped."""
    table = Holding(tmp_path, rows=("DANN",), seeds=(0,))
    (directory,) = table.directories
    variables = {**table.variables, "PYTHONPATH": os.pathsep.join([str(CHECKOUT / "tests"), str(CHECKOUT)])}
    command = ("table", "run", table.file, "--workers", "1", "--set", "trainer.devices=2")
    table.hold(directory)
    stopped = fork(tmp_path, *command, **variables)
    assert until(lambda: stopped.poll() is not None or table.holder(directory), 300)
    stopped.send(signal.SIGTERM)
    assert stopped.wait(300).code == 130
    assert "stopped by SIGTERM at step 5" in (directory / "log.txt").read_text()
    assert not is_running(directory), "a rank goes on"
    table.release(directory)
    done = fork(tmp_path, *command, **variables).wait(300)
    assert (done.code, done.err) == (0, ""), done
    assert json.loads((directory / "result.json").read_text())["ranks"] == 2
    monkeypatch.setenv(FOLDER, str(table.held))
    (tmp_path / "whole").mkdir()
    first, second = ranks(tmp_path / "whole", "fit", "--config", directory / "asked.yaml")
    assert (first.code, second.code) == (0, 0), (first, second)
    same(directory, tmp_path / "whole" / "runs" / directory.name)


def test_no_thread_of_gloo_outlives_the_command(tmp_path: Path) -> None:
    """One that still holds a tensor when Python ends aborts the process, whose work was done."""
    leave = dafw.run.commands.leave_process_group

    def watched() -> None:
        before = gloo_threads()
        leave()
        (tmp_path / os.environ["RANK"]).write_text(f"{bool(before)} {gloo_threads()}")

    def watch() -> None:
        dafw.run.commands.leave_process_group = watched

    ended = ranks(tmp_path, *TWO, setups=(watch, watch))
    assert [one.code for one in ended] == [0, 0], ended
    assert [(tmp_path / rank).read_text() for rank in "01"] == ["True []", "True []"]
