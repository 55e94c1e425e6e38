"""The presets: configurations that come with the package, and can be named from anywhere."""

from collections.abc import Sequence
from pathlib import Path

from dafw.errors import UserError, nearest
from dafw.files import user_path

FOLDERS = (Path(__file__).resolve().parents[2] / "experiments", Path(__file__).resolve().parents[1] / "experiments")
"""Where presets lie: in a checkout, in an installed package."""
NO_PRESETS = ("benchmarks", "tables")
"""Folders in there whose files are no configurations."""


def presets(folders: Sequence[Path] = FOLDERS) -> dict[str, Path]:
    """The files of the presets by name, which is their path without the ending, as in ``digits/dann``."""
    found = {
        path.relative_to(folder).with_suffix("").as_posix(): path
        for folder in reversed(folders)
        for path in folder.glob("*/**/*.yaml")
    }
    return {name: path for name, path in sorted(found.items()) if name.split("/")[0] not in NO_PRESETS}


def summary(path: Path) -> str:
    """What the first line of a preset says of it."""
    with path.open(encoding="utf-8") as file:
        first = file.readline()
    return first.removeprefix("#").strip() if first.startswith("#") else ""


def with_presets(arguments: Sequence[str]) -> list[str]:
    """The arguments with the file of each preset that ``--config`` names. A file of the user comes first.

    Raises:
        UserError: if there is neither such a file nor such a preset.
    """
    found: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        key, equals, value = argument.partition("=")
        if key not in ("--config", "-c"):
            found.append(argument)
        elif equals:
            found.append(f"--config={_file(value)}")
        else:
            following = next(rest, None)
            found += ["--config"] if following is None else ["--config", _file(following)]
    return found


def _file(name: str) -> str:
    path = user_path(name)
    if path.exists() or path.suffix or name.startswith(("-", "{")):
        return name
    known = presets()
    if name in known:
        return str(known[name])
    alike = known if "/" in name else {preset: preset for preset in known if preset.endswith(f"/{name}")} or known
    guess = nearest(name, alike)
    raise UserError(f"there is neither a file nor a preset {name}{f': {guess}' if guess else ''}; see dafw presets")
