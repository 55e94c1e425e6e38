"""Features in files: every format gives the same rows, and what cannot be right is one sentence."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from feature_files import WIDTH, csr_parts, one_table, rows_of, write, write_hdf5
from scipy import sparse

from dafw.data.features import FeatureRows, normalised, scaling_of
from dafw.errors import UserError
from datamodules import FeatureDomains
from datamodules.splits import hashed_split

Parts = dict[str, Any]


def data_of(root: Path, **options: Any) -> FeatureDomains:
    return FeatureDomains("a", "b", **{"root": str(root), "id_column": "review", **options})


def matrix(data: FeatureDomains, name: str = "a", split: Any = "train") -> torch.Tensor:
    domain = data.domain(name, split)
    return torch.stack([domain.inputs[index] for index in range(len(domain))])


@pytest.mark.parametrize("ending", ["npz", "mat", "parquet", "csv", "7.3"])
def test_every_format_gives_the_same_samples(ending: str, tmp_path: Path) -> None:
    parts = one_table()
    path = write_hdf5(tmp_path / "x.mat", parts) if ending == "7.3" else write(tmp_path / f"x.{ending}", parts)
    data = data_of(path)
    assert (data.class_names, data.domain_names) == (("bad", "good"), ("a", "b"))
    assert (
        FeatureDomains.count_features({"source": "a", "target": "b", "root": str(path), "id_column": "review"}) == WIDTH
    )
    domain = data.domain("b", "test")
    assert domain.inputs[0].dtype == torch.float32
    rows = [int(domain.id(index).removeprefix("b/r")) for index in range(len(domain))]
    assert rows == [row for row in range(60, 120) if hashed_split(f"b/r{row}", (0.8, 0.1, 0.1)) == "test"]
    np.testing.assert_allclose(matrix(data, "b", "test"), parts["features"][rows], rtol=1e-6)
    assert [data.class_names[one] for one in domain.labels] == list(parts["label"][rows])
    assert data.in_short() == [f"{name}: 60 rows of 6 features, 2 classes" for name in "ab"]


def test_one_file_for_each_domain_and_names_for_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        features, labels = rows_of(name)
        write(tmp_path / f"{name}.npz", {"features": features, "y": labels})
        write(tmp_path / "named" / f"{name}_long.npz", {"features": features, "y": labels})
    data = FeatureDomains("a", "b", root=str(tmp_path), label_column="y")
    files = {"a": "a_long.npz", "b": "b_long.npz"}
    other = FeatureDomains("a", "b", root=str(tmp_path / "named"), files=files, label_column="y")
    assert data.domain_names == other.domain_names == ("a", "b")
    assert torch.equal(matrix(data), matrix(other))


@pytest.mark.parametrize("head", ["", "counts_"])
def test_a_sparse_matrix_stays_sparse_and_serves_dense_rows(head: str, tmp_path: Path) -> None:
    parts = one_table()
    features = parts.pop("features") * (np.arange(120 * WIDTH).reshape(120, WIDTH) % 3 == 0)
    data = data_of(write(tmp_path / "x.npz", parts | csr_parts(features, head)))
    dense = data_of(write(tmp_path / "y.npz", parts | {"features": features}))
    assert sparse.issparse(data.part("a", "train").rows)
    for standardise in ("none", "source", "domain"):
        for norm in ("none", "l1", "l2"):
            ours, theirs = (data_of(one.root, standardise=standardise, row_norm=norm) for one in (data, dense))
            torch.testing.assert_close(matrix(ours, "b", "val"), matrix(theirs, "b", "val"), rtol=1e-5, atol=1e-6)


def test_standardisation_reads_training_rows_alone_and_says_whose(tmp_path: Path) -> None:
    path = write(tmp_path / "x.npz", one_table())
    raw = data_of(path)
    for standardise, of in (("source", "a"), ("domain", "b")):
        data = data_of(path, standardise=standardise)
        train = matrix(raw, of, "train")
        mean, std = train.mean(0), train.std(0, correction=0)
        for split in ("train", "val", "test"):
            expected = (matrix(raw, "b", split) - mean) / std
            torch.testing.assert_close(matrix(data, "b", split), expected, rtol=1e-4, atol=1e-5)


def test_a_constant_feature_becomes_zero_and_rows_of_zeros_stay() -> None:
    rows = np.array([[1, 0, 5], [3, 0, 5]], np.float32)
    for made in (rows, sparse.csr_matrix(rows)):
        scaled = FeatureRows(made, scaling_of([made]))
        assert torch.stack([scaled[0], scaled[-1]]).tolist() == [[-1, 0, 0], [1, 0, 0]]
        assert np.asarray(normalised(made, "l1")[0].sum()) == pytest.approx(1)
    assert rows[0, 0] == 1, "an item is a copy"


def test_a_target_without_labels_and_splits_of_a_column(tmp_path: Path) -> None:
    for name in ("a", "b"):
        features, labels = rows_of(name)
        splits = np.asarray((["train"] * 4 + ["val", "test"]) * 10)
        parts = {"features": features, "part": splits} | ({"label": labels} if name == "a" else {})
        write(tmp_path / f"{name}.npz", parts)
    data = FeatureDomains("a", "b", root=str(tmp_path), split_column="part")
    assert [len(data.domain("b", split)) for split in ("train", "val", "test")] == [40, 10, 10]
    assert data.domain("b", "test").labels is None
    assert data.domain("a", "test").labels is not None
    whole = FeatureDomains("a", "b", root=str(tmp_path), protocol="office")
    assert len(whole.domain("b", "test")) == 60
    assert not whole.holds_out_source


def test_numbers_are_labels_in_the_order_of_numbers(tmp_path: Path) -> None:
    parts = one_table() | {"label": np.tile([10.0, 2.0, -1.0], 40)}
    assert data_of(write(tmp_path / "x.npz", parts)).class_names == ("2", "10", "-1")


def changed(**parts: Any) -> Callable[[Parts], Parts]:
    return lambda table: table | parts


def with_a_hole(table: Parts) -> Parts:
    table["features"][7, 2] = np.nan
    return table


SECOND = {"wide": rows_of("a", 120)[0]}
NO_FRACTION = np.linspace(0, 1, 120)


@pytest.mark.parametrize(
    ("change", "options", "says"),
    [
        (lambda t: t, {"label_column": "lable"}, 'no column "lable" of each row\'s label: did you mean "label"'),
        (lambda t: t, {"domain_column": "domains"}, 'no column "domains" of each row\'s domain: did you mean "domain"'),
        (lambda t: t, {"id_column": "id"}, 'no column "id" of each row'),
        (lambda t: t, {"features": "feature"}, 'did you mean "features"'),
        (lambda t: t, {"features": "label"}, "text or Python objects, where features are numbers"),
        (lambda t: t, {"features": ["label"], "label_column": "review", "id_column": None}, "holds text"),
        (changed(**SECOND), {}, "several matrices: give one of features, wide as data.features"),
        (with_a_hole, {}, "row 7 of .* has no finite number as feature number 2"),
        (changed(label=np.full(120, "")), {}, "the column label of .* is empty"),
        (changed(label=np.asarray([""] + ["x"] * 119)), {}, "row 0 of a has no label, and others have one"),
        (changed(label=NO_FRACTION), {}, "has fractions"),
        (changed(label=np.zeros(7)), {}, "120 rows of features and 7 values of label"),
        (changed(review=np.full(120, "same")), {}, "names two rows of a alike"),
        (changed(label=np.asarray([None] * 120, dtype=object)), {}, "Python objects"),
        (lambda t: t, {"split_column": "label"}, "must differ"),
        (lambda t: t, {"domain_column": "review", "id_column": None}, 'unknown domain "a"'),
        (changed(part=np.full(120, "dev")), {"split_column": "part"}, 'the split "dev", which must be train, val or'),
        (lambda t: t, {"standardise": "target"}, "unknown standardise"),
        (lambda t: t, {"augment": "flip_crop"}, "changes images"),
    ],
)
def test_what_is_wrong_is_one_sentence(
    change: Callable[[Parts], Parts], options: Parts, says: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "x.npz", change(one_table()))
    with pytest.raises(UserError, match=says) as caught:
        data_of(path, **options).setup("fit")
    assert "\n" not in str(caught.value)


def test_files_that_are_wrong(tmp_path: Path) -> None:
    def fails(root: Path, says: str, **options: Any) -> None:
        with pytest.raises(UserError, match=says):
            FeatureDomains("a", "b", root=str(root), **options)

    fails(tmp_path / "gone.npz", "does not exist")
    fails(tmp_path, "holds no file that ends in .npz, .mat, .parquet, .csv")
    (tmp_path / "half.npz").write_bytes(write(tmp_path / "x.npz", one_table()).read_bytes()[:700])
    fails(tmp_path / "half.npz", "half.npz is damaged")
    (tmp_path / "half.mat").write_bytes(b"MATLAB 5.0 MAT-file".ljust(128) + b"\1\2\3")
    fails(tmp_path / "half.mat", "half.mat cannot be read")
    (tmp_path / "x.txt").write_text("no")
    fails(tmp_path / "x.txt", "no file of features")
    (tmp_path / "short.csv").write_text("f0,label,domain\n1,x,a\n2,y\n")
    fails(tmp_path / "short.csv", "line 3 of .* has 2 values, and its header 3")
    sparse_parts = csr_parts(one_table()["features"])
    del sparse_parts["shape"]
    fails(write(tmp_path / "s.npz", sparse_parts), "sparse matrix without shape")
    for name, width in (("a", 6), ("b", 5)):
        features, labels = rows_of(name, width=width)
        write(tmp_path / "two" / f"{name}.npz", {"features": features, "label": labels})
    fails(tmp_path / "two", "b has 5 features and a 6")
    fails(tmp_path / "two", 'unknown domain "b"', files={"a": "a.npz"})


def test_labels_that_differ_between_domains(tmp_path: Path) -> None:
    parts = one_table()
    parts["label"][parts["domain"] == "b"] = "other"
    data = data_of(write(tmp_path / "x.npz", parts))
    with pytest.raises(UserError, match="label_sets"):
        data.setup("fit")


def test_a_package_that_is_missing_is_named_with_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "x.parquet", one_table())
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    with pytest.raises(UserError, match=r'needs the package pyarrow: pip install "dafw\[features\]"'):
        data_of(path)
