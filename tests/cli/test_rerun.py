"""A finished run says that its code changed since, and is made again if that is asked for."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from commands import QUICK, Outcome, call, one_run

from dafw.data import Domain
from dafw.data.roles import Split
from dafw.errors import UserError
from dafw.run.commands import wait_until_discarded
from dafw.run.directory import discard, lock
from dafw.run.result import RESULT, TEST, Result, read_result, write_result
from dafw.testing.toys import ToyData

MINE = '''
"""My method."""

from dafw.methods import AdaptationMethod
from my_helper import PULL


class Mine(AdaptationMethod):
    """Mine."""

    def adapt(self, source, target, joint):
        """Pulls."""
        return {"pull": PULL * (source.features.mean(0) - target.features.mean(0)).square().sum()}
'''
FIT = ("fit", "--model", "my_method.Mine", *QUICK)


@pytest.fixture(autouse=True)
def mine() -> Iterator[None]:
    """A method beside the command, and what it imports."""
    write("my_method", MINE)
    write("my_helper", "PULL = 1.0")
    yield
    forget()


def write(name: str, text: str) -> None:
    Path(f"{name}.py").write_text(text)


def forget() -> None:
    """The next command loads the code anew, as another process would."""
    for name in ("my_method", "my_helper"):
        sys.modules.pop(name, None)


def fit(capsys: pytest.CaptureFixture[str], *more: object) -> Outcome:
    forget()
    done = call(capsys, *FIT, *more)
    assert done.code == 0, done.err
    return done


def result() -> Result:
    found = read_result(one_run(Path("runs")))
    assert found is not None
    return found


def test_code_that_changed(capsys: pytest.CaptureFixture[str]) -> None:
    fit(capsys)
    folder, first = one_run(Path("runs")), result()
    assert {"my_method", "my_helper", "dafw.methods.base", "dafw.testing.toys", "dafw.nn.network"} <= set(first.sources)
    assert first.repositories == {}
    assert first.samples["b/test"][0] == first.num_target_test
    write("my_method", MINE.replace("Pulls.", "Pulls the means together.").replace('"""My method."""', "# mine"))
    done = fit(capsys)
    assert (done.out, done.err) == (f"done already: {folder / RESULT}\n", "")
    write("my_helper", "PULL = 2.0")
    done = fit(capsys)
    assert done.out == f"done already: {folder / RESULT}\n"
    changed = f"{folder / RESULT} was made by other code, since my_helper.py changed"
    assert done.err == f"dafw: warning: {changed}: --run.rerun true makes it again\n"
    assert result() == first
    (folder / TEST).touch()
    done = fit(capsys, "--run.rerun", "true")
    assert (done.out.splitlines()[-1], done.err) == (str(folder / RESULT), "")
    assert result().sources["my_helper"] != first.sources["my_helper"]
    assert not (folder / TEST).exists()
    assert yaml.safe_load((folder / "config.yaml").read_text())["run"]["rerun"] is False
    assert fit(capsys).err == ""


def test_a_run_that_goes_on_with_other_code(capsys: pytest.CaptureFixture[str]) -> None:
    fit(capsys)
    folder = one_run(Path("runs"))
    (folder / RESULT).unlink()
    write("my_helper", "PULL = 2.0")
    checkpoint = folder / "checkpoints" / "step=2.ckpt"
    done = fit(capsys, "--run.rerun", "true")  # it is not finished, so it goes on
    assert done.err == (
        f"dafw: warning: the code changed since {checkpoint}: my_helper.py; the run goes on with the code of now\n"
    )
    assert "my_helper.py changed" in fit(capsys).err
    fit(capsys, "--run.rerun", "true")
    assert fit(capsys).err == ""


def test_samples_that_changed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    fit(capsys)
    load = ToyData.load

    def fewer(self: ToyData, name: str, split: Split) -> Domain:
        domain = load(self, name, split)
        return domain.subset(range(len(domain) - 1)) if (name, split) == ("a", "train") else domain

    def gone(self: ToyData, name: str, split: Split) -> Domain:
        raise UserError("there is no such folder")

    monkeypatch.setattr(ToyData, "load", fewer)
    done = fit(capsys)
    assert done.out.startswith("done already: ")
    assert done.err.startswith("dafw: warning: the training samples of a changed since runs/")
    assert done.err.endswith("; --run.rerun true makes it again\n")
    assert fit(capsys, "--run.accept_changed_data", "true").err == ""
    monkeypatch.setattr(ToyData, "load", gone)
    assert fit(capsys).err == ""  # there is nothing to compare


def test_a_result_of_unknown_code(capsys: pytest.CaptureFixture[str]) -> None:
    fit(capsys)
    folder = one_run(Path("runs"))
    write_result(replace(result(), sources={}, samples={}), folder / RESULT)
    write("my_helper", "PULL = 2.0")
    assert fit(capsys).err == ""


def test_what_is_removed_goes_before_the_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill in between leaves a run that is done, and never old checkpoints to go on from."""
    folder = tmp_path / "run"
    with lock(folder):
        (folder / "checkpoints").mkdir()
        (folder / "checkpoints" / "step=1.ckpt").touch()
        discard(folder)
        assert (folder / "checkpoints" / "step=1.ckpt").exists()  # it is not finished
        (folder / RESULT).touch()
        unlink = Path.unlink

        def watching(path: Path, missing_ok: bool = False) -> None:
            if path.name == RESULT:
                assert not (folder / "checkpoints").exists()
            unlink(path, missing_ok=missing_ok)

        monkeypatch.setattr(Path, "unlink", watching)
        discard(folder)
    assert not (folder / RESULT).exists()


def test_other_ranks_wait_until_the_old_run_is_gone(tmp_path: Path) -> None:
    wait_until_discarded(tmp_path)
    (tmp_path / RESULT).touch()
    with pytest.raises(UserError, match="rank 0 has not removed"):
        wait_until_discarded(tmp_path, timeout=0)
