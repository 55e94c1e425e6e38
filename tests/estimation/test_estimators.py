"""Estimators of accuracy without labels, compared with their formulas written out."""

from dataclasses import replace
from inspect import isabstract
from itertools import combinations
from pathlib import Path
from pkgutil import iter_modules
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dafw import estimation
from dafw.errors import UserError
from dafw.estimation import ESTIMATORS, Estimator, OtherModel, SourceEvidence, digests, estimates
from dafw.estimation.base import with_range
from dafw.estimation.estimating import observe

K = 5
Array = NDArray[Any]


def classified(labels: Array, right: float, rng: np.random.Generator, scale: float = 2.0) -> Array:
    """Logits (n, K) of a network that is right about a share of the labels."""
    logits = rng.normal(size=(len(labels), K)).astype(np.float32)
    said = np.where(rng.random(len(labels)) < right, labels, rng.integers(0, K, len(labels)))
    logits[np.arange(len(labels)), said] += scale
    return logits


def kept(seed: int = 0, m: int = 300, right: float = 0.8) -> SourceEvidence:
    labels = np.random.default_rng(1).integers(0, K, m)
    logits = classified(labels, right, np.random.default_rng(seed))
    names = digests([f"photo/{i}" for i in range(m)])
    return SourceEvidence(logits, labels, names, logits[:20, :3], tuple("abcde"), ("photo",))


def target(seed: int = 0, n: int = 400, right: float = 0.5) -> Array:
    labels = np.random.default_rng(7).integers(0, K, n)
    return classified(labels, right, np.random.default_rng(100 + seed))


def softmax(logits: Array) -> Array:
    p = np.exp(logits.astype(np.float64))
    return np.asarray(p / p.sum(1, keepdims=True))


def test_confidences_as_the_papers_write_them() -> None:
    evidence, logits = kept(), target()
    found = estimates(evidence, logits)
    p, q = softmax(evidence.logits), softmax(logits)
    accuracy = (p.argmax(1) == evidence.labels).mean()
    assert found["ac"].value == pytest.approx(q.max(1).mean(), abs=1e-12)
    assert found["doc"].value == pytest.approx(accuracy - p.max(1).mean() + q.max(1).mean(), abs=1e-12)
    for name, source, of_target in (
        ("atc_mc", p.max(1), q.max(1)),
        ("atc_ne", (p * np.log(p)).sum(1), (q * np.log(q)).sum(1)),
    ):
        threshold = next(t for t in np.sort(source) if np.isclose((source < t).mean(), 1 - accuracy))
        assert found[name].value == pytest.approx((of_target >= threshold).mean(), abs=1e-12)


def test_a_threshold_is_right_on_the_source_itself_also_among_ties() -> None:
    evidence = kept()
    accuracy = (evidence.logits.argmax(1) == evidence.labels).mean()
    tied = replace(evidence, logits=1000 * evidence.logits)  # nearly every confidence is 1
    for one in (evidence, tied):
        found = estimates(one, one.logits)
        for name in ("atc_mc", "atc_ne", "doc"):
            assert found[name].value == pytest.approx(accuracy, abs=1e-9)
    wrong = replace(evidence, labels=(evidence.logits.argmax(1) + 1) % K)
    assert estimates(wrong, target())["atc_mc"].value == 0.0
    right = replace(evidence, labels=evidence.logits.argmax(1))
    assert estimates(right, right.logits)["atc_mc"].value == 1.0


def test_agreement_and_its_line() -> None:
    runs = [kept(seed, right=0.9 - 0.1 * seed) for seed in range(4)]
    seen = [target(seed, right=0.6 - 0.1 * seed) for seed in range(4)]
    found = estimates(runs[0], seen[0], others=[OtherModel(x, run) for x, run in zip(seen[1:], runs[1:], strict=True)])
    said, at_home = [x.argmax(1) for x in seen], [run.logits.argmax(1) for run in runs]
    assert found["gde"].value == pytest.approx(np.mean([(said[0] == one).mean() for one in said[1:]]))
    probit, pairs = NormalDist().inv_cdf, list(combinations(range(4), 2))
    x = [probit((at_home[i] == at_home[j]).mean()) for i, j in pairs]
    y = [probit((said[i] == said[j]).mean()) for i, j in pairs]
    slope, bias = np.polyfit(x, y, 1)
    accuracy = [probit((one == runs[0].labels).mean()) for one in at_home]
    assert found["aline_s"].value == pytest.approx(NormalDist().cdf(slope * accuracy[0] + bias), abs=1e-9)
    halves = np.asarray([[0.5 * (k in pair) for k in range(4)] for pair in pairs])
    solved = np.linalg.lstsq(halves, np.asarray(y) + slope * (halves @ accuracy - np.asarray(x)), rcond=None)[0]
    assert found["aline_d"].value == pytest.approx(NormalDist().cdf(solved[0]), abs=1e-9)


def test_estimators_get_as_many_models_as_they_need() -> None:
    alone = {name for name, kind in ESTIMATORS.items() if not kind.needs_models}
    assert set(estimates(kept(), target())) == alone
    pair = estimates(kept(), target(), others=[OtherModel(target(1))])
    assert set(pair) == {*alone, "gde"}
    assert (
        estimates(kept(), target(), others=[OtherModel(target(1)), OtherModel(target(2))]).keys() == ESTIMATORS.keys()
    )


def test_runs_share_the_samples_that_both_keep() -> None:
    """The order of the samples and what one run keeps alone have no influence."""
    one, other = kept(0), kept(1)
    turned = SourceEvidence(
        other.logits[::-1], other.labels[::-1], other.samples[::-1], other.features, other.classes, other.domains
    )
    fewer = replace(other, logits=other.logits[:90], labels=other.labels[:90], samples=other.samples[:90])
    seen = observe(one, target(), [OtherModel(target(1), turned), OtherModel(target(2), fewer)])
    assert seen.size == 90
    by_name = dict(zip(one.samples.tolist(), one.logits.argmax(1), strict=True))
    common = np.sort(one.samples[:90]).tolist()
    assert seen.shared[0].tolist() == [by_name[name] for name in common]
    assert (seen.shared[1] == seen.shared[2]).all()
    nothing = observe(one, target(), [OtherModel(target(1), None), OtherModel(target(2), fewer)])
    assert nothing.size == 0
    assert np.isnan(estimates(one, target(), others=[OtherModel(target(1)), OtherModel(target(2))])["aline_s"].value)


def test_models_that_agree_equally_have_no_line() -> None:
    same = [OtherModel(target(), kept()), OtherModel(target(), kept())]
    found = estimates(kept(), target(), others=same)
    assert np.isnan(found["aline_s"].value)
    assert np.isnan(found["aline_d"].low)
    assert found["gde"].value == 1.0
    assert 0.98 < found["gde"].low < 1.0


def test_the_range_of_a_share_is_wilsons_and_a_few_source_samples_widen_it() -> None:
    found = with_range(0.5, [0.5] * 200, 100)
    assert (found.low, found.high) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    sure = with_range(1.0, [1.0] * 200, 20)
    assert sure.high == 1.0
    assert sure.low == pytest.approx(0.8389, abs=1e-4)
    few, many = (estimates(kept(m=m), target(n=2000))["atc_mc"] for m in (30, 3000))
    assert few.high - few.low > 2 * (many.high - many.low)
    assert estimates(kept(), target(), seed=1)["ac"] == estimates(kept(), target(), seed=1)["ac"]


def test_the_range_holds_the_accuracy_about_as_often_as_it_says() -> None:
    """Where the assumption holds, since source and target are one distribution."""
    rng, inside = np.random.default_rng(3), 0
    for _ in range(60):
        labels = rng.integers(0, K, 450)
        logits = classified(labels, 0.8, rng)
        evidence = replace(kept(), logits=logits[:300], labels=labels[:300])
        found = estimates(evidence, logits[300:])["atc_mc"]
        inside += found.low <= (logits[300:].argmax(1) == labels[300:]).mean() <= found.high
    assert inside >= 54


def test_what_no_estimate_can_be_made_of() -> None:
    for evidence, logits, said in (
        (kept(m=0), target(), "keeps none"),
        (kept(), target(n=0), "there is none"),
        (kept(), target()[:, :4], "4 classes, and its source samples 5"),
        (kept(), target()[0], "(n, K)"),
        (replace(kept(), logits=kept().logits[:, :1]), target()[:, :1], "two classes"),
    ):
        with pytest.raises(UserError, match=r"estimate|classes") as caught:
            estimates(evidence, logits)
        assert said in str(caught.value)
    with pytest.raises(UserError, match="another model"):
        estimates(kept(), target(), others=[OtherModel(target(n=10))])
    broken = target()
    broken[3, 1] = np.nan
    assert all(np.isnan(one.value) for one in estimates(kept(), broken).values())


def test_the_file_comes_back_and_a_damaged_one_is_one_sentence(tmp_path: Path) -> None:
    evidence, path = replace(kept(), held_out=False, start_model=True), tmp_path / "kept.safetensors"
    evidence.write(path)
    found = SourceEvidence.read(path)
    for name in ("logits", "labels", "samples", "features"):
        assert np.array_equal(getattr(found, name), getattr(evidence, name))
    assert (found.classes, found.domains, found.held_out, found.start_model) == (
        tuple("abcde"),
        ("photo",),
        False,
        True,
    )
    whole = path.read_bytes()
    for content in (b"", whole[:-9], b"garbage" * 30, whole.replace(b"samples", b"simples")):
        path.write_bytes(content)
        with pytest.raises(UserError, match="damaged"):
            SourceEvidence.read(path)
    replace(evidence, labels=evidence.labels[:3]).write(path)
    with pytest.raises(UserError, match="damaged"):
        SourceEvidence.read(path)
    with pytest.raises(UserError, match="there is no file"):
        SourceEvidence.read(tmp_path / "other.safetensors")


def test_every_estimator_is_listed() -> None:
    found = set()
    for module in iter_modules(estimation.__path__, "dafw.estimation."):
        here = __import__(module.name, fromlist=["*"])
        found |= {one for one in vars(here).values() if isinstance(one, type) and issubclass(one, Estimator)}
    assert {one for one in found if not isabstract(one)} == set(ESTIMATORS.values())
    assert all(one.title and one.reference for one in ESTIMATORS.values())


def test_the_page_lists_every_estimator() -> None:
    page = (Path(__file__).parents[2] / "docs" / "accuracy-without-labels.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    assert [name for name in ESTIMATORS if not any(f"`{name}`" in row for row in rows)] == []
