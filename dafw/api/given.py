"""A run that a command is given, with the classes of the user's own that its configuration names."""

import importlib
from contextlib import suppress
from pathlib import Path

import yaml

from dafw.api.data import class_paths
from dafw.api.trained import Trained, load
from dafw.errors import UserError
from dafw.files import user_path
from dafw.run.directory import CONFIG, run_of


def load_run(given: str | Path) -> Trained:
    """A trained run, as :func:`dafw.load`. Modules that its configuration names are imported first.

    The user names the run on the command line, as for ``dafw predict``, which imports them too.

    Raises:
        UserError: see :func:`dafw.load`.
    """
    place = user_path(given)
    if not place.exists():
        raise UserError(f"there is no run {given}: give a run directory or a checkpoint")
    folder = run_of(place.absolute() if place.is_dir() else place.absolute().parent)
    if folder is not None:
        with suppress(yaml.YAMLError, OSError, UnicodeDecodeError):
            config = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))
            network = ((config.get("model") or {}).get("init_args") or {}).get("network") or {}
            inner = network.get("init_args") or {}
            for name in (*class_paths(config), str(inner.get("backbone")), str(inner.get("arch"))):
                if module := name.rpartition(".")[0]:
                    with suppress(ImportError, ValueError):  # what is missing is said when it is needed
                        importlib.import_module(module)
    return load(place)
