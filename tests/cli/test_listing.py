"""What needs no torch does not import it, and lists everything there is."""

import inspect
import io
from pathlib import Path

import pytest
from commands import CHECKOUT, call, run

import dafw.methods
import datamodules
from dafw.cli import main
from dafw.commands import listing
from dafw.methods import Method

QUIET = """
import sys
from dafw.cli import main
for arguments in (["--help"], ["--version"], ["methods"], ["datasets"], ["nothing"], []):
    print(main(arguments))
print("heavy:", sorted({"torch", "pytorch_lightning", "timm", "numpy", "yaml"} & set(sys.modules)))
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What a new process prints."""
    done = run(tmp_path_factory.mktemp("elsewhere"), "-c", QUIET)
    assert done.code == 0, done.err
    assert done.err.startswith('dafw: error: unknown command "nothing"')
    return done.out


def test_nothing_heavy_is_imported(said: str) -> None:
    assert said.endswith("heavy: []\n")


def test_help_names_every_command(said: str) -> None:
    for command in ("fit", "validate", "test", "predict", "methods", "datasets", "data", "tune", "table", "new"):
        assert f"\n  {command} " in said


def test_every_method_is_listed(said: str) -> None:
    public = [getattr(dafw.methods, name) for name in dafw.methods.__all__]
    methods = [m for m in public if inspect.isclass(m) and issubclass(m, Method) and not m.is_abstract]
    assert methods
    for method in methods:
        first = inspect.cleandoc(method.__doc__ or "").splitlines()[0]
        assert f"{method.__name__:<20} [{method.setting.name}] {first}\n" in said


def test_every_datamodule_and_its_domains_are_listed(said: str) -> None:
    for name in set(datamodules.__all__) - {"DomainDataModule"}:
        owner = getattr(datamodules, name)
        first = inspect.cleandoc(owner.__doc__ or "").splitlines()[0]
        domains = f" domains: {', '.join(owner.domain_names)}" if owner.domain_names else ""
        assert f"{name:<20} {first}{domains}\n" in said


def test_domain_names_that_only_running_would_tell(tmp_path: Path) -> None:
    (tmp_path / "more.py").write_text("class More(DomainDataModule):\n    'Much.'\n    domain_names = tuple('ab')\n")
    (node, path) = next(listing.classes(tmp_path))
    assert (listing.constant(node, "domain_names"), listing.summary(node), path.name) == (None, "Much.", "more.py")


@pytest.mark.parametrize(
    "command", ["fit", "test", "data", "data check", "tune", "tune show", "table", "table run", "new", "methods"]
)
def test_help_of_a_command(capsys: pytest.CaptureFixture[str], command: str) -> None:
    with pytest.raises(SystemExit) as ended:
        call(capsys, *command.split(), "--help")
    assert ended.value.code == 0
    assert "usage: dafw" in capsys.readouterr().out


def test_datamodules_that_derive_from_another_are_listed_and_private_ones_are_not(said: str) -> None:
    assert "\nPACS                 PACS: 9,991 images of 7 classes" in said
    assert "\n_" not in said


def test_help_of_a_method(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        call(capsys, "fit", "--model.help", "DANN")
    out = capsys.readouterr().out
    assert "--model.gamma" in out
    assert "steepness of the reversal's ramp" in out


def test_both_ways_to_start_it(tmp_path: Path) -> None:
    module = run(tmp_path, "-m", "dafw", "--version")
    assert (module.code, module.out) == (0, f"dafw {dafw.__version__}\n")
    assert (CHECKOUT / "dafw" / "__main__.py").exists()


def test_a_terminal_without_the_letters_of_a_name_shows_them_spelt(monkeypatch: pytest.MonkeyPatch) -> None:
    output = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(output, encoding="ascii", write_through=True))
    monkeypatch.setattr(listing, "methods", lambda: {"caf\u00e9": "\udce9"})
    assert main(["methods"]) == 0
    assert output.getvalue().split() == [rb"caf\xe9", rb"\udce9"]
