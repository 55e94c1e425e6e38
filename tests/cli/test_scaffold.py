"""``dafw new method``: what it writes works."""

import ast
import json
import shlex
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import pytest
from commands import TOY, call, finish, fresh, one_run, start

from dafw.commands.new import check_name, snake_case


def test_what_it_writes(capsys: pytest.CaptureFixture[str]) -> None:
    done = call(capsys, "new", "method", "NearMeans")
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines() == [
        "wrote near_means.py",
        "wrote test_near_means.py",
        "dafw fit --model near_means.NearMeans --data Digits --data.source mnist --data.target mnistm",
        "python -m pytest test_near_means.py",
    ]
    for name in ("near_means.py", "test_near_means.py"):
        assert all(len(line) <= 120 for line in Path(name).read_text().splitlines())
        ast.parse(Path(name).read_text())


VARIANTS = {
    "masks": ("--problem", "segmentation"),
    "boxes": ("--problem", "detection"),
    "stream": ("--setting", "test-time"),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_it_writes_for_other_kinds_and_settings(capsys: pytest.CaptureFixture[str], variant: str) -> None:
    """Lines of the right length that Python reads, and, for masks and boxes, a command that trains as it stands."""
    name = f"Near{variant.capitalize()}"
    done = call(capsys, "new", "method", name, *VARIANTS[variant])
    assert (done.code, done.err) == (0, "")
    for path in (f"near_{variant}.py", f"test_near_{variant}.py"):
        text = Path(path).read_text()
        assert all(len(line) <= 120 for line in text.splitlines())
        assert "{" not in text.replace("{CASE.name: {}}", "").replace('{"', "").replace("{}", "")
        ast.parse(text)
    command = shlex.split(done.out.splitlines()[2])
    assert command[:4] == ["dafw", "fit", "--model", f"near_{variant}.{name}"]
    if variant == "stream":
        assert command[4:6] == ["--model.checkpoint", "RUN"]
        return
    quick = ("--trainer.max_epochs", "1", "--data.steps_per_epoch", "2", "--trainer.accelerator", "cpu")
    done = call(capsys, *command[1:], *quick, "--run.plots", "false")
    assert (done.code, done.err) == (0, "")
    assert json.loads((one_run(Path("runs")) / "result.json").read_text())["method"] == name


def test_a_setting_that_does_not_take_the_problem(capsys: pytest.CaptureFixture[str]) -> None:
    done = call(capsys, "new", "method", "NearMeans", "--setting", "test-time", "--problem", "detection")
    assert (done.code, done.out) == (2, "")
    assert done.err == (
        "dafw: error: a test-time method serves classes alone, no detection: leave out --problem or --setting\n"
    )
    assert not list(Path().iterdir())


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Counter[str]], str]:
    """For each variant, how often the tests that it writes end in which way; and what was printed.

    All run in one process of their own, as their user would run them: to start it costs more than to train in it. It
    checks resuming and two ranks in further processes.
    """
    folder = tmp_path_factory.mktemp("written")
    for variant, options in {**VARIANTS, "means": ()}.items():
        assert fresh(folder, "new", "method", f"Nearest{variant.capitalize()}", *options).code == 0
    quiet = ("-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--junitxml=report.xml")
    done = finish(start(folder, "-m", "pytest", *quiet), timeout=400)
    ends: dict[str, Counter[str]] = {}
    for test in ElementTree.parse(folder / "report.xml").iter("testcase"):
        variant = test.attrib["classname"].removeprefix("test_nearest_")
        ends.setdefault(variant, Counter())[test[0].tag if len(test) else "passed"] += 1
    return ends, done.out


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_written_test_passes_for_other_kinds_and_settings(
    written: tuple[dict[str, Counter[str]], str], variant: str
) -> None:
    ends, said = written
    assert ends[variant] == {"passed": 12 if variant == "stream" else 9, "skipped": 1}, said  # streams have more


def test_it_trains_by_class_path(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(capsys, "new", "method", "NearerMeans").code == 0
    quick = (*TOY, "--trainer.max_epochs", "1", "--data.steps_per_epoch", "2")
    done = call(capsys, "fit", "--model", "nearer_means.NearerMeans", "--model.weight", "0.5", *quick)
    assert done.code == 0, done.err
    result = json.loads((one_run(Path("runs")) / "result.json").read_text())
    assert (result["method"], result["steps"]) == ("NearerMeans", 2)


@pytest.mark.slow
def test_the_written_test_passes(written: tuple[dict[str, Counter[str]], str]) -> None:
    ends, said = written
    assert ends["means"] == {"passed": 9, "skipped": 1}, said


def test_another_folder(capsys: pytest.CaptureFixture[str]) -> None:
    done = call(capsys, "new", "method", "NearMeans", "--dir", "my methods/here")
    assert done.code == 0
    assert Path("my methods/here/near_means.py").exists()
    assert done.out.splitlines()[-1] == "cd 'my methods/here' && python -m pytest test_near_means.py"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["near-means"], '"near-means" cannot name a class: did you mean "NearMeans"?'),
        (["nearMeans"], '"nearMeans" cannot name a class: did you mean "NearMeans"?'),
        (["near means"], '"near means" cannot name a class: did you mean "NearMeans"?'),
        (["3"], '"3" cannot name a class: did you mean "MyMethod"?'),
        (["None"], '"None" cannot name a class: did you mean "MyNone"?'),
        (["Random"], 'random.py would hide the module "random": choose another name, such as "RandomMethod"'),
        (["Torch"], 'torch.py would hide the module "torch"'),
        (["Fine", "--dir", "a file"], "cannot write into a file: "),
    ],
)
def test_refused(capsys: pytest.CaptureFixture[str], arguments: list[str], said: str) -> None:
    Path("a file").write_text("")
    done = call(capsys, "new", "method", *arguments)
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert done.err.startswith(f"dafw: error: {said}")
    assert [path.name for path in Path().iterdir()] == ["a file"]


@pytest.mark.parametrize("existing", ["near_means.py", "test_near_means.py"])
def test_nothing_is_overwritten(capsys: pytest.CaptureFixture[str], existing: str) -> None:
    Path(existing).write_text("mine")
    done = call(capsys, "new", "method", "NearMeans")
    assert (done.code, done.out) == (2, "")
    assert done.err == f"dafw: error: {existing} exists already: choose another name, or remove it\n"
    assert [path.read_text() for path in Path().iterdir()] == ["mine"]


@pytest.mark.parametrize("name", ["DANN", "MeanMatching", "A", "DeepCORALPlus", "Mk2MMD"])
def test_names(name: str) -> None:
    assert check_name(name) == name
    assert snake_case(name).isidentifier()
    assert snake_case(name) == snake_case(name).lower()


def test_the_suggested_name_is_valid() -> None:
    for wrong in ("a-b", "_x", "my method 2", "2fast", "ä", "true", "True", "--", "a.b.C", ""):
        with pytest.raises(Exception, match="did you mean") as refused:
            check_name(wrong)
        assert check_name(str(refused.value).split('"')[-2])


def test_commands_can_be_pasted(capsys: pytest.CaptureFixture[str]) -> None:
    out = call(capsys, "new", "method", "NearMeans").out
    words = shlex.split(out.splitlines()[-2])
    assert words[:3] == ["dafw", "fit", "--model"]
