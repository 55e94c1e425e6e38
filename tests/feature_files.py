"""Small domains of features, and files of every format that hold them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse
from scipy.io import savemat

WIDTH = 6


def rows_of(name: str, count: int = 60, width: int = WIDTH) -> tuple[Any, Any]:
    """Features (count, width) and words of two classes. Domains differ by a shift, and classes by the first feature."""
    rng = np.random.default_rng(sum(name.encode()))
    labels = np.arange(count) % 2
    features = rng.normal(size=(count, width)) + (sum(name.encode()) % 3)
    features[:, 0] += 3 * labels
    return features.astype(np.float32), np.asarray(["bad", "good"])[labels]


def one_table(names: tuple[str, ...] = ("a", "b"), count: int = 60) -> dict[str, Any]:
    """Both domains in one, with a name for each row."""
    parts = [rows_of(name, count) for name in names]
    return {
        "features": np.concatenate([features for features, _ in parts]),
        "label": np.concatenate([labels for _, labels in parts]),
        "domain": np.repeat(names, count),
        "review": np.asarray([f"r{number}" for number in range(count * len(names))]),
    }


def write(path: Path, parts: Mapping[str, Any]) -> Path:
    """Writes arrays in the format that the ending of the path says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npz":
        np.savez(path, **parts)
    elif path.suffix == ".mat":
        savemat(
            path, {name: np.asarray(part, object) if part.dtype.kind == "U" else part for name, part in parts.items()}
        )
    elif path.suffix == ".parquet":
        import pyarrow as pa
        from pyarrow import parquet

        columns = {name: list(part) if part.ndim == 2 else part for name, part in parts.items()}
        parquet.write_table(pa.table(columns), path)
    else:
        columns = {}
        for name, part in parts.items():
            wide = part.ndim == 2
            columns |= {f"f{number}": part[:, number] for number in range(part.shape[1])} if wide else {name: part}
        lines = [",".join(columns), *(",".join(map(str, row)) for row in zip(*columns.values(), strict=True))]
        path.write_text("\n".join(lines) + "\n")
    return path


def write_hdf5(path: Path, parts: Mapping[str, Any]) -> Path:
    """A mat file of version 7.3 as MATLAB writes it: transposed, words as references, behind 512 bytes."""
    import h5py

    with h5py.File(path, "w", userblock_size=512) as file:
        for name, part in parts.items():
            if part.dtype.kind != "U":
                file[name] = np.asarray(part).T
                file[name].attrs["MATLAB_class"] = np.bytes_("single")
                continue
            held = file.require_group("#refs#")
            cells = np.empty((1, len(part)), dtype=h5py.ref_dtype)
            for number, word in enumerate(part):
                one = held.create_dataset(f"{name}{number}", data=np.asarray([list(map(ord, word))], np.uint16).T)
                cells[0, number] = one.ref
            file.create_dataset(name, data=cells, dtype=h5py.ref_dtype)
            file[name].attrs["MATLAB_class"] = np.bytes_("cell")
    with path.open("r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file".ljust(512))
    return path


def csr_parts(features: Any, head: str = "") -> dict[str, Any]:
    """A sparse matrix as the arrays of an npz file."""
    found = sparse.csr_matrix(features)
    parts = {"data": found.data, "indices": found.indices, "indptr": found.indptr, "shape": found.shape}
    return {f"{head}{name}": np.asarray(part) for name, part in parts.items()}
