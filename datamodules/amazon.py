"""Amazon reviews of four kinds of products, as the DANN paper uses them."""

import hashlib
import logging
from array import array
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from dafw.data.feature_files import Matrix
from dafw.data.files import cache_dir, digest, making
from dafw.data.msda import stacked_msda
from dafw.data.review_files import LABELS, counted_reviews
from dafw.data.roles import Split
from dafw.errors import UserError, choose, sentence
from dafw.files import reading, replacing, user_path
from datamodules.feature_rows import FeatureModule, Part
from datamodules.review_layouts import ReviewFacts, existing_review_file, find_reviews, review_file, review_layouts
from datamodules.splits import places

log = logging.getLogger(__name__)

HALVES = ("train", "test")
Representation = Literal["counts", "msda"]


class Half(NamedTuple):
    """The reviews of a domain's training or test file: counts (n, d) as csr, and 1 for a positive review, (n,)."""

    rows: Matrix
    labels: NDArray[np.int64]


class AmazonReviews(FeatureModule):
    """Reviews of books, dvd, electronics and kitchen as counts of words and pairs of words, positive or negative.

    The files are those of the DANN paper (Ganin et al., JMLR 17 (2016)): ``<domain>_train.svmlight`` with 2,000 reviews
    and ``<domain>_test.svmlight`` with the others, in ``root``. One npz file with the arrays ``<domain>_train_data``,
    ``_indices``, ``_indptr`` and ``_y``, and as many for ``test``, will do in their place. The reviews are from Blitzer
    et al., ACL 2007.

    The files of counts of Blitzer et al. will do, too: ``<domain>/positive.review``, ``negative.review`` and
    ``unlabeled.review`` of all four domains, in ``root`` or in ``processed_acl`` below it. The first two are the
    training file. The third, whose lines have labels, is the test file. Counted are the words and pairs of words that
    are most frequent in all reviews, whatever their labels. Equally frequent ones come in alphabetical order.

    The training file is divided: a share of it, chosen by a hash of the reviews' numbers, is the validation split. The
    test file is the test split.

    Args:
        source: labelled domain or domains.
        target: domain or domains to adapt to and to test on.
        root: the folder of the files, or of the domains' folders, or the npz file.
        representation: ``counts`` as they are in the files. ``msda``: beside them the outputs of layers of a
            marginalised denoising autoencoder (:mod:`dafw.data.msda`), which are fitted on the training files of all
            domains of the run without labels. They are made once, and kept in the cache in half precision: 10 KB for
            each review and layer.
        validation: share of the training file that is the validation split (paper: a tenth).
        vocabulary: number of counts of a review.
        msda_layers: number of layers (paper: 5).
        msda_corruption: probability that a layer's input loses a feature (paper: 0.5).
        msda_ridge: see :func:`dafw.data.msda.denoising_weights` (the authors' code: 1e-5).
        base: see :class:`datamodules.feature_rows.FeatureModule`.

    Raises:
        UserError: if a file is missing or wrong, or an argument is out of range.
    """

    domain_names = ("books", "dvd", "electronics", "kitchen")
    class_names = ("negative", "positive")

    def __init__(
        self,
        source: str | list[str],
        target: str | list[str],
        *,
        root: str,
        representation: Representation = "counts",
        validation: float = 0.1,
        vocabulary: int = 5000,
        msda_layers: int = 5,
        msda_corruption: float = 0.5,
        msda_ridge: float = 1e-5,
        **base: Any,
    ) -> None:
        super().__init__(source, target, **base)
        choose("representation", representation, get_args(Representation))
        self.root, self.representation, self.vocabulary = user_path(root), representation, vocabulary
        self.validation = validation
        self.msda = {"layers": msda_layers, "corruption": msda_corruption, "ridge": msda_ridge}
        for key, value, fits in (
            ("validation", validation, 0 < validation < 1),
            ("vocabulary", vocabulary, vocabulary >= 1),
            ("msda_layers", msda_layers, msda_layers >= 1),
            ("msda_corruption", msda_corruption, 0 <= msda_corruption < 1),
            ("msda_ridge", msda_ridge, msda_ridge > 0),
        ):
            if not fits:
                raise UserError(f"data.{key} is out of range: {value}")

    @classmethod
    def count_features(cls, arguments: Mapping[str, Any]) -> int:
        """See the base; nothing is read."""
        layers = int(arguments.get("msda_layers", 5)) if arguments.get("representation") == "msda" else 0
        return int(arguments.get("vocabulary", 5000)) * (layers + 1)

    def prepare_data(self) -> None:
        """Makes the representation, in one process of each machine."""
        if self.representation == "msda":
            for name in (*self.source, *self.target):
                self._encoded(name, "train")

    def part(self, name: str, split: Split) -> Part:
        """The reviews of one domain's split."""
        half = "test" if split == "test" else "train"
        rows, labels = self._half(name, half)
        ids = [f"{name}/{half}/{number}" for number in range(len(labels))]
        encoded = rows if self.representation == "counts" else self._encoded(name, half)
        if half == "test":
            return Part(encoded, labels, ids)
        held = places(ids) < self.validation
        chosen = np.flatnonzero(held if split == "val" else ~held)
        return Part(encoded[chosen], labels[chosen], [ids[index] for index in chosen.tolist()])

    def _half(self, name: str, half: str) -> Half:
        return read_reviews(self.root, self.vocabulary)[name, half]

    def _encoded(self, name: str, half: str) -> Matrix:
        """The stacked representation of a file's reviews, (n, d), memory-mapped."""
        setting = self.request.setting
        if not setting.sees_target or setting.streams_target:
            raise UserError(
                f"data.representation msda is fitted on reviews of the target, which a {setting.name} method does not "
                "see: take counts"
            )
        domains = sorted({*self.source, *self.target})
        return encoded_reviews(self.root, self.vocabulary, tuple(domains), tuple(self.msda.items()))[name, half]


@lru_cache(maxsize=2)
def read_reviews(root: Path, vocabulary: int) -> "Reviews":
    """The files of all domains that are there.

    Raises:
        UserError: if there are none.
    """
    with reading("the file or folder", root):
        inside = [root] if root.is_file() else sorted(root.iterdir())
    stored = next((one for one in inside if one.suffix == ".npz"), None)
    texts = {path.stem: path for path in inside if path.suffix == ".svmlight"}
    if texts:
        return Reviews(_of_texts(texts, vocabulary), root)
    if stored is not None:
        return Reviews(_of_npz(stored, vocabulary), root)
    facts = review_layouts()["AmazonReviews"]
    if root.is_file() or not any(review_file(facts, find_reviews(facts, root), *one).is_file() for one in facts.each()):
        raise UserError(
            f"{root} (data.root) holds neither <domain>_train.svmlight, nor an npz file, nor <domain>/positive.review"
        )
    return Reviews(_of_authors(facts, find_reviews(facts, root), vocabulary), root)


class Reviews(dict[tuple[str, str], Half]):
    """By domain and file the reviews; a missing one is a mistake of the user."""

    def __init__(self, found: Mapping[tuple[str, str], Half], root: Path) -> None:
        super().__init__(found)
        self.root = root

    def __missing__(self, key: tuple[str, str]) -> Half:
        raise UserError(f"{self.root} (data.root) holds no {key[1]} reviews of {key[0]}: {key[0]}_{key[1]}.svmlight")


def _of_npz(path: Path, vocabulary: int) -> dict[tuple[str, str], Half]:
    from scipy import sparse

    found = {}
    try:
        with reading("the reviews", path), np.load(path, allow_pickle=False) as stored:
            for name, half in ((name, half) for name in AmazonReviews.domain_names for half in HALVES):
                head = f"{name}_{half}"
                if f"{head}_y" not in stored.files:
                    continue
                parts = [stored[f"{head}_{one}"] for one in ("data", "indices", "indptr", "y")]
                rows = sparse.csr_matrix((parts[0].astype(np.float32), *parts[1:3]), (len(parts[3]), vocabulary))
                rows.check_format(full_check=True)
                found[name, half] = _checked(head, path, rows, parts[3])
    except UserError:
        raise
    except Exception as error:  # damaged bytes, missing arrays, indices beyond the vocabulary
        raise UserError(f"{path} cannot be read as reviews of {vocabulary} counts: {sentence(error)}") from error
    return found


def _of_texts(paths: Mapping[str, Path], vocabulary: int) -> dict[tuple[str, str], Half]:
    from sklearn.datasets import load_svmlight_files

    named = {
        key: path
        for key in ((name, half) for name in AmazonReviews.domain_names for half in HALVES)
        if (path := paths.get("_".join(key)))
    }
    try:
        parts = load_svmlight_files([str(path) for path in named.values()], n_features=vocabulary, dtype=np.float32)
    except (ValueError, OSError) as error:
        raise UserError(
            f"the reviews in {next(iter(paths.values())).parent} cannot be read: {sentence(error)}"
        ) from error
    pairs = zip(named.items(), parts[::2], parts[1::2], strict=True)
    return {key: _checked("_".join(key), path, rows.tocsr(), labels) for (key, path), rows, labels in pairs}


def _of_authors(facts: ReviewFacts, home: Path, vocabulary: int) -> dict[tuple[str, str], Half]:
    """The authors' counts of the most frequent words and pairs of words of all domains."""
    from scipy import sparse

    words: dict[str, int] = {}
    data, indices, ends, labels = array("f"), array("l"), array("l", [0]), array("b")
    found: dict[tuple[str, str], list[int]] = defaultdict(list)
    for name, kind in facts.each():
        path = existing_review_file(facts, home, name, kind)
        for review in counted_reviews(path):
            if review.label is None or (kind in LABELS and review.label != kind):
                raise UserError(f"{path}, line {review.line}: the label is {review.label}: get the file again")
            found[name, "train" if kind in LABELS else "test"].append(len(labels))
            labels.append(LABELS.index(review.label))
            indices.extend(words.setdefault(word, len(words)) for word in review.counts)
            data.extend(review.counts.values())
            ends.append(len(indices))
    rows = sparse.csr_matrix((np.array(data), np.array(indices), np.array(ends)), (len(labels), len(words)))
    frequency, names = np.asarray(rows.sum(axis=0)).ravel(), [*words]
    kept = sorted(range(len(names)), key=lambda number: (-frequency[number], names[number]))[:vocabulary]
    rows = rows[:, kept]
    rows.resize(len(labels), vocabulary)
    codes = np.array(labels, np.int64)
    return {key: Half(rows[chosen], codes[chosen]) for key, chosen in found.items()}


def _checked(head: str, path: Path, rows: Matrix, labels: NDArray[Any]) -> Half:
    """The reviews of a file, whose labels are 0 and 1, or -1 and 1."""
    if not np.isin(labels, (-1, 0, 1)).all() or not np.isfinite(rows.data).all():
        raise UserError(f"{head} in {path} has labels other than 0 and 1 (or -1 and 1), or counts that are no numbers")
    rows.sum_duplicates()
    return Half(rows, (labels > 0).astype(np.int64))


@lru_cache(maxsize=1)
def encoded_reviews(
    root: Path, vocabulary: int, domains: tuple[str, ...], options: tuple[tuple[str, Any], ...]
) -> dict[tuple[str, str], Matrix]:
    """The stacked representations of some domains' files, memory-mapped. They are made once for each content.

    Args:
        root: see :class:`AmazonReviews`.
        vocabulary: number of counts.
        domains: on whose training files the layers are fitted, in alphabetical order.
        options: arguments of :func:`~dafw.data.msda.stacked_msda`.
    """
    reviews = read_reviews(root, vocabulary)
    keys = [(name, half) for name in domains for half in HALVES]
    parts = [reviews[key].rows for key in keys]
    content = hashlib.sha256()
    for part in parts:
        for values in (part.data, part.indices, part.indptr):
            content.update(np.ascontiguousarray(values).tobytes())
    mark = digest({"version": 1, "vocabulary": vocabulary, "rows": content.hexdigest(), **dict(options)})[:16]
    folder = cache_dir() / "features"
    files = [folder / f"msda-{mark}-{name}-{half}.npy" for name, half in keys]
    with making(folder / f"msda-{mark}"):
        if not all(path.exists() for path in files):
            _write_encoded(files, parts, dict(options))
    return {key: np.load(path, mmap_mode="r", allow_pickle=False) for key, path in zip(keys, files, strict=True)}


def _write_encoded(files: Sequence[Path], parts: Sequence[Matrix], options: Mapping[str, Any]) -> None:
    from scipy import sparse

    width, layers = parts[0].shape[1], options["layers"]
    log.info(
        "fitting %d layers of mSDA on %d reviews, which takes minutes", layers, sum(p.shape[0] for p in parts[::2])
    )
    made = [np.empty((part.shape[0], width * (layers + 1)), np.float16) for part in parts]
    fitted = sparse.vstack(parts[::2], format="csr")
    for number, outputs in enumerate(stacked_msda(fitted, parts, **options)):
        for all_layers, output in zip(made, outputs, strict=True):
            all_layers[:, number * width : (number + 1) * width] = output
    for path, encoded in zip(files, made, strict=True):
        with replacing(path) as file:
            np.save(file, encoded)
