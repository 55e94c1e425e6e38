"""Reviews in the files of the DANN paper, in small."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import sparse
from sklearn.datasets import dump_svmlight_file

from dafw.data.msda import stacked_msda
from dafw.errors import UserError
from dafw.testing.toys import toy_trainer
from datamodules import AmazonReviews

VOCABULARY = 12
DOMAINS = AmazonReviews.domain_names


def reviews(name: str, half: str) -> tuple[Any, Any]:
    rng = np.random.default_rng(sum(f"{name}{half}".encode()))
    rows = rng.integers(0, 3, (40 if half == "train" else 15, VOCABULARY)) * (rng.random(VOCABULARY) < 0.7)
    rows[0] = 1
    return sparse.csr_matrix(rows.astype(np.float32)), np.arange(len(rows)) % 2


def write_npz(path: Path, names: tuple[str, ...] = DOMAINS) -> Path:
    parts = {}
    for name in names:
        for half in ("train", "test"):
            rows, labels = reviews(name, half)
            head = f"{name}_{half}"
            parts |= {f"{head}_{one}": getattr(rows, one) for one in ("data", "indices", "indptr")} | {
                f"{head}_y": labels
            }
    np.savez(path, **parts)
    return path


def data_of(root: Path, **options: Any) -> AmazonReviews:
    return AmazonReviews("books", "dvd", **{"root": str(root), "vocabulary": VOCABULARY, **options})


def matrix(data: AmazonReviews, name: str, split: Any) -> torch.Tensor:
    domain = data.domain(name, split)
    return torch.stack([domain.inputs[index] for index in range(len(domain))])


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DAFW_CACHE", str(tmp_path / "cache"))
    return write_npz(tmp_path / "amazon.npz")


def test_both_forms_of_the_files_give_the_same_reviews(root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    for name in DOMAINS:
        for half in ("train", "test"):
            rows, labels = reviews(name, half)
            dump_svmlight_file(rows, 2 * labels - 1, str(folder / f"{name}_{half}.svmlight"), zero_based=False)
    ours, theirs = data_of(root), data_of(folder)
    for name, split in (("books", "train"), ("books", "val"), ("dvd", "test")):
        assert torch.equal(matrix(ours, name, split), matrix(theirs, name, split))
        assert list(ours.domain(name, split).labels) == list(theirs.domain(name, split).labels)
    parts = [ours.domain("books", split) for split in ("train", "val")]
    assert sum(map(len, parts)) == 40
    assert 0 < len(parts[1]) < 12
    assert len(ours.domain("books", "test")) == 15
    assert ours.class_names == ("negative", "positive")


def test_msda_is_fitted_on_both_domains_and_kept(root: Path, tmp_path: Path) -> None:
    data = data_of(root, representation="msda", msda_layers=2)
    data.prepare_data()
    fitted = sparse.vstack([reviews(name, "train")[0] for name in ("books", "dvd")])
    rows = reviews("dvd", "test")[0]
    layers = [found for (found,) in stacked_msda(fitted, [rows], layers=2, corruption=0.5, ridge=1e-5)]
    np.testing.assert_allclose(matrix(data, "dvd", "test"), np.column_stack(layers), atol=1e-3)
    assert AmazonReviews.count_features({"representation": "msda", "msda_layers": 2, "vocabulary": VOCABULARY}) == 36
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache" / "features").glob("*.npy")}
    assert len(files) == 4
    other = AmazonReviews(
        "dvd",
        "books",
        root=str(root),
        vocabulary=VOCABULARY,
        representation="msda",
        msda_layers=2,
        standardise="source",
    )
    assert matrix(other, "books", "train").shape[1] == 36
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache" / "features").glob("*.npy")} == files


def test_what_is_wrong_is_one_sentence(root: Path, tmp_path: Path) -> None:
    def fails(says: str, root: Path = root, **options: Any) -> None:
        with pytest.raises(UserError, match=says):
            data_of(root, **options).setup("fit")

    fails("does not exist", tmp_path / "gone")
    (tmp_path / "empty").mkdir()
    fails("neither <domain>_train.svmlight, nor an npz file, nor <domain>/positive.review", tmp_path / "empty")
    fails("cannot be read as reviews of 3 counts", vocabulary=3)
    fails("holds no train reviews of dvd", write_npz(tmp_path / "one.npz", ("books",)))
    fails('did you mean "msda"', representation="mdsa")
    fails("data.validation is out of range: 1", validation=1.0)
    fails("data.msda_corruption is out of range", msda_corruption=1.0)
    with pytest.raises(UserError, match="choices: books, dvd"):
        AmazonReviews("books", "toys", root=str(root))


def test_a_method_that_sees_no_target_gets_no_msda(root: Path, tmp_path: Path) -> None:
    from dafw.methods import ERM
    from dafw.nn.network import Network

    data = data_of(root, representation="msda", msda_layers=1, batch_size=4)
    method = ERM(Network("mlp", backbone_args={"in_features": 2 * VOCABULARY, "widths": [3]}), num_classes=2)
    with pytest.raises(UserError, match="a generalization method does not see"):
        toy_trainer(tmp_path, epochs=1).fit(method, datamodule=data)
