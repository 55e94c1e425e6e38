"""Files of features: NumPy's npz, MATLAB's mat, Parquet and CSV, read into a matrix with named columns beside it."""

import csv
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dafw.errors import UserError, choose, sentence
from dafw.files import reading

SUFFIXES = (".npz", ".mat", ".parquet", ".csv")
"""Endings of the files that can be read."""
CSR = ("data", "indices", "indptr", "shape")
"""Names of the arrays that a sparse matrix (csr) is written as, behind its own name and ``_``, or alone."""

_HDF5 = b"\x89HDF\r\n\x1a\n"
"""How an HDF5 file begins, which a mat file of version 7.3 is behind 512 bytes."""

Matrix = Any
"""Rows of features: an array (n, d), or a sparse matrix (n, d) of SciPy in csr format; float32."""
Words = Sequence[str | None]


class FeatureTable(NamedTuple):
    """What was read of a file.

    Attributes:
        rows: (n, d).
        words: by the name of each asked column that the file has, a word for each row; ``None`` where it is empty.
        others: names of all parts of the file.
    """

    rows: Matrix
    words: Mapping[str, Words]
    others: tuple[str, ...]


def read_features(path: Path, features: str | Sequence[str] | None, columns: Sequence[str]) -> FeatureTable:
    """Reads a file of features, once for each time of change.

    Args:
        path: the file; its ending says the format.
        features: the name of a matrix (n, d) or of a column of lists, or the names of the columns that are the
            features. ``None``: the only matrix of the file. Without a matrix, all columns but ``columns``.
        columns: names of the columns that are read as words, as labels are. The file may lack some.

    Raises:
        UserError: naming the file: it cannot be read, has no such part, holds text or numbers that are not finite as
            features, or its parts have different lengths.
    """
    with reading("the file", path):
        changed = path.stat().st_mtime_ns
    named = features if features is None or isinstance(features, str) else tuple(features)
    return _read_once(path, named, tuple(columns), changed)


@lru_cache(maxsize=16)
def _read_once(path: Path, features: str | tuple[str, ...] | None, columns: tuple[str, ...], _: int) -> FeatureTable:
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise UserError(f"{path} is no file of features: known are {', '.join(SUFFIXES)}")
    try:
        with reading("the file", path):
            parts = reader(path)
    except UserError:
        raise
    except Exception as error:  # damaged bytes, in as many ways as there are formats
        raise UserError(f"{path} cannot be read: {type(error).__name__} {sentence(error)}") from error
    words = {name: _words(path, name, parts[name]) for name in columns if name in parts}
    rows = _matrix(path, parts, features, columns)
    for name, values in words.items():
        if len(values) != rows.shape[0]:
            raise UserError(f"{path} has {rows.shape[0]} rows of features and {len(values)} values of {name}")
    return FeatureTable(rows, words, tuple(parts))


# ---- the features


def _matrix(path: Path, parts: Mapping[str, Any], features: str | Sequence[str] | None, columns: Sequence[str]) -> Any:
    if features is None:
        wide = [name for name, part in parts.items() if name not in columns and _is_wide(part)]
        if len(wide) > 1:
            raise UserError(f"{path} holds several matrices: give one of {', '.join(wide)} as data.features")
        features = wide[0] if wide else [name for name in parts if name not in columns]
    if isinstance(features, str):
        found = parts[choose(f"part of {path} (data.features)", features, parts)]
        if not _is_wide(found):
            found = np.asarray(found).reshape(len(found), -1)
        return _checked(path, found, features)
    if not features:
        raise UserError(f"{path} holds no features: its parts are {', '.join(parts) or 'none'}")
    for name in features:
        choose(f"column of {path} (data.features)", name, parts)
        if _is_wide(parts[name]):
            raise UserError(f"{name} of {path} is a matrix: give it alone as data.features")
    if len(lengths := {len(parts[name]) for name in features}) > 1:
        raise UserError(f"the columns of {path} have different lengths, {', '.join(map(str, sorted(lengths)))}")
    return _checked(path, np.stack([_numbers(path, name, parts[name]) for name in features], 1), features)


def _is_wide(part: Any) -> bool:
    return bool(getattr(part, "ndim", 1) == 2)


def _numbers(path: Path, name: str, values: Any) -> NDArray[np.float32]:
    """A column as numbers."""
    found = np.asarray(values)
    if found.dtype.kind in "biuf":
        return found.astype(np.float32)
    try:
        return np.asarray([np.nan if one in (None, "") else one for one in found.tolist()], np.float32)
    except (TypeError, ValueError):
        raise UserError(
            f"the column {name} of {path} holds {found.dtype if found.dtype.kind not in 'OU' else 'text'}, where "
            "features are numbers: name the columns that are features as data.features"
        ) from None


def _checked(path: Path, found: Any, named: str | Sequence[str]) -> Any:
    """The matrix in float32, all of its values finite."""
    from scipy import sparse

    what = named if isinstance(named, str) else "the features"
    if found.dtype.kind not in "biuf":
        kind = "text or Python objects" if found.dtype.kind in "OUS" else str(found.dtype)
        raise UserError(f"{what} of {path} holds {kind}, where features are numbers")
    if 0 in found.shape:
        raise UserError(f"{what} of {path} is empty, {found.shape[0]} x {found.shape[1]}")
    made = sparse.csr_matrix(found, dtype=np.float32) if sparse.issparse(found) else found.astype(np.float32)
    fine = np.isfinite(made.data if sparse.issparse(made) else made)
    if not fine.all():
        first = int(np.flatnonzero(~fine.ravel())[0])
        if sparse.issparse(made):
            row, column = int(np.searchsorted(made.indptr, first, "right")) - 1, int(made.indices[first])
        else:
            row, column = divmod(first, made.shape[1])
        place = f"number {column}" if isinstance(named, str) else named[column]
        raise UserError(
            f"row {row} of {path} has no finite number as feature {place}: fill such values, or leave rows or columns "
            "with them out"
        )
    if sparse.issparse(made):
        made.sum_duplicates()
    return made


# ---- the columns of words


def _words(path: Path, name: str, values: Any) -> Words:
    """A column as words. A whole number is written without a point, and what is empty or no number is ``None``."""
    found = np.asarray(values)
    if found.ndim == 2 and 1 in found.shape:
        found = found.ravel()
    if found.ndim != 1:
        raise UserError(f"{name} of {path} has the shape {found.shape}, where one value for each row is needed")
    if found.dtype.kind == "f":
        fine = found[np.isfinite(found)]
        if (fine != np.round(fine)).any():
            raise UserError(f"{name} of {path} has fractions such as {fine[fine != np.round(fine)][0]}, and names none")
        return [str(int(one)) if np.isfinite(one) else None for one in found.tolist()]
    return [_word(one) for one in found.tolist()]


def _word(value: Any) -> str | None:
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return (value.decode() if isinstance(value, bytes) else str(value)).strip() or None


# ---- the formats: each reader gives the parts of a file by name


def _read_npz(path: Path) -> dict[str, Any]:
    try:
        with np.load(path, allow_pickle=False) as stored:
            parts: dict[str, Any] = {name: stored[name] for name in stored.files}
    except ValueError as error:
        if "pickle" in str(error):
            raise UserError(
                f"{path} holds Python objects, which are not read: save arrays of numbers or text"
            ) from error
        raise
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise UserError(f"{path} is damaged: {sentence(error)}") from error
    heads = [name.removesuffix("indptr") for name in parts if name == "indptr" or name.endswith("_indptr")]
    for head in heads:
        if lacking := [f"{head}{one}" for one in CSR if f"{head}{one}" not in parts]:
            raise UserError(f"{path} holds a sparse matrix without {', '.join(lacking)}")
        data, indices, indptr, shape = (parts.pop(f"{head}{one}") for one in CSR)
        parts[head.removesuffix("_") or "features"] = _csr(path, data, indices, indptr, shape)
    parts.pop("format", None)  # as scipy.sparse.save_npz writes it
    return parts


def _csr(path: Path, data: Any, indices: Any, indptr: Any, shape: Any) -> Any:
    from scipy import sparse

    try:
        found = sparse.csr_matrix((data, indices, indptr), tuple(int(one) for one in shape))
        found.check_format(full_check=True)
    except (ValueError, IndexError, TypeError) as error:
        raise UserError(f"{path} holds a sparse matrix that is not consistent: {sentence(error)}") from error
    return found


def _read_mat(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        head = file.read(520)
    if _HDF5 in (head[:8], head[512:]):
        return _read_hdf5(path)
    from scipy.io import loadmat

    parts = {name: part for name, part in loadmat(path).items() if not name.startswith("__")}
    return {
        name: _cells(part) if getattr(getattr(part, "dtype", None), "kind", "") == "O" else part
        for name, part in parts.items()
    }


def _cells(part: NDArray[Any]) -> NDArray[Any]:
    """A cell array of words as an array of them."""
    return np.asarray(["".join(map(str, np.ravel(one))) for one in part.ravel()], dtype=object)


def _read_hdf5(path: Path) -> dict[str, Any]:
    """A mat file of version 7.3. MATLAB counts columns first, so its arrays are transposed."""
    h5py = _extra("h5py", path)
    from scipy import sparse

    parts: dict[str, Any] = {}
    with h5py.File(path, "r") as file:
        for name, part in file.items():
            if name.startswith("#"):
                continue
            if "MATLAB_sparse" in part.attrs:
                shape = (int(part.attrs["MATLAB_sparse"]), len(part["jc"]) - 1)
                values = (np.asarray(part["data"]), np.asarray(part["ir"]), np.asarray(part["jc"]))
                parts[name] = sparse.csc_matrix(values, shape).tocsr()
            elif isinstance(part, h5py.Dataset):
                kind = part.attrs.get("MATLAB_class", b"")
                found = np.asarray(part).T
                if kind == b"cell":
                    found = np.asarray([_text(file[one]) for one in found.ravel()], dtype=object)
                elif kind == b"char":
                    found = np.asarray(["".join(map(chr, row)) for row in found], dtype=object)
                parts[name] = found
    return parts


def _text(part: Any) -> str:
    return "".join(map(chr, np.asarray(part).ravel()))


def _read_parquet(path: Path) -> dict[str, Any]:
    parquet = _extra("pyarrow.parquet", path)
    table = parquet.read_table(path)
    return {name: _column(path, name, table.column(name)) for name in table.column_names}


def _column(path: Path, name: str, column: Any) -> Any:
    """A column of Parquet; one of lists of numbers as a matrix."""
    if "list" not in str(column.type):
        return column.to_numpy()
    rows = column.to_pylist()
    if len({-1 if row is None else len(row) for row in rows}) > 1:
        raise UserError(f"the lists in {name} of {path} have different lengths: features have one length")
    return np.asarray(rows)


def _read_csv(path: Path) -> dict[str, Any]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.reader(file))
    if len(rows) < 2:
        raise UserError(f"{path} holds no rows below its header")
    head, *body = rows
    if len(set(head)) < len(head):
        raise UserError(f"{path} has two columns of one name: its first row must name each column")
    for number, row in enumerate(body, start=2):
        if len(row) != len(head):
            raise UserError(f"line {number} of {path} has {len(row)} values, and its header {len(head)}")
    return {name: np.asarray(values, dtype=object) for name, values in zip(head, zip(*body, strict=True), strict=True)}


def _extra(module: str, path: Path) -> Any:
    """A package of the extra ``features``."""
    from importlib import import_module

    try:
        return import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise UserError(f'{path} needs the package {package}: pip install "dafw[features]"') from error


_READERS: dict[str, Callable[[Path], dict[str, Any]]] = {
    ".npz": _read_npz,
    ".mat": _read_mat,
    ".parquet": _read_parquet,
    ".csv": _read_csv,
}
