"""Files of rows, such as features or texts: in a folder, a file for each domain."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from dafw.errors import UserError, choose
from dafw.files import reading


def domains_in(folder: Path, files: Mapping[str, str] | None, suffixes: Sequence[str]) -> tuple[str, ...]:
    """The names of the domains: those of the given files, or the names of the folder's files without their endings.

    Args:
        folder: of the files.
        files: by domain the name of its file; ``None``: the folder's files say the domains.
        suffixes: endings, in small letters, of files that are read.

    Raises:
        UserError: if the folder cannot be read, or has no such file, or several of a domain.
    """
    if files is not None:
        return tuple(files)
    with reading("the folder", folder):
        names = sorted(one.stem for one in folder.iterdir() if one.suffix.lower() in suffixes)
    if not names:
        raise UserError(f"the folder {folder} (data.root) holds no file that ends in {', '.join(suffixes)}")
    if twice := next((one for one, other in pairwise(names) if one == other), None):
        raise UserError(f"{folder} (data.root) holds several files of {twice}: name one in data.files")
    return tuple(names)


def file_of(name: str, folder: Path, files: Mapping[str, str] | None, suffixes: Sequence[str]) -> Path:
    """The file of a domain, see :func:`domains_in`; one that is not there if the folder has none.

    Raises:
        UserError: for a domain that has no given file, or a folder that cannot be read.
    """
    if files is not None:
        return folder / files[choose("domain", name, files)]
    with reading("the folder", folder):
        found = [one for one in folder.iterdir() if one.stem == name and one.suffix.lower() in suffixes]
    return found[0] if found else folder / f"{name}{suffixes[0]}"


def check_split_column(column: str | None, protocol: str) -> None:
    """Refuses a column that says the splits beside a protocol that divides the samples itself.

    Raises:
        UserError: saying so.
    """
    if column is not None and protocol != "shares":
        raise UserError(f"data.split_column says the splits, which data.protocol {protocol} would overrule")
