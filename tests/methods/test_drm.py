"""DRM: its authors' values, the mixture it serves, and what it learns, and leaves alone, while it is tested."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from golden_vectors import golden
from networks import OneBatch, measure
from torch import Tensor

from dafw.data.batch import Batch
from dafw.losses.entropy import entropy
from dafw.methods import DRM, ERM
from dafw.methods.generalization.drm import entropy_weights
from dafw.nn.network import Network
from dafw.optim.schedules import Constant
from dafw.testing import case
from dafw.testing.cases import differences
from dafw.testing.toys import toy_trainer

EXACT = {"rtol": 1e-7, "atol": 1e-9}
HEADS = [*(f"heads.{d}" for d in range(3)), "network.head"]


def arrays(name: str) -> dict[str, Tensor]:
    return {key: torch.as_tensor(value) for key, value in golden(f"drm/{name}.npz").items()}


def make(backbone: str, *sizes: tuple[str, int], **arguments: Any) -> DRM:
    network = Network(f"networks.{backbone}", backbone_args=dict(sizes))
    return DRM(network, **{"num_classes": 3, "num_sources": 3, "schedule": Constant(), **arguments}).double()


def fill(method: DRM, given: dict[str, Tensor], prefix: str) -> None:
    """Puts an array file's weights in place."""
    held = {ours: given[f"{prefix}_{theirs}"] for ours, theirs in names(given, prefix).items()}
    method.load_state_dict({**method.state_dict(), **held})


def names(given: dict[str, Tensor], prefix: str) -> dict[str, str]:
    found = {
        f"{head}.{kind}": f"classifier_list_{position}_{kind}"
        for position, head in enumerate(HEADS)
        for kind in ("weight", "bias")
    }
    if f"{prefix}_featurizer_l_weight" in given:
        found |= {f"network.backbone.linear.{kind}": f"featurizer_l_{kind}" for kind in ("weight", "bias")}
    return found


def features(given: Tensor) -> Batch:
    none = torch.zeros(len(given), dtype=torch.int64)
    return Batch(given, torch.empty(0), none, none, 0)


# ---- the authors' values


def test_a_training_step(tmp_path: Path) -> None:
    given = arrays("train_step")
    method = make("TanhLinear", ("inputs", 4), ("outputs", 5), optimizer="adam", lr=float(given["lr"]))
    fill(method, given, "before")
    data = OneBatch([given[f"x{d}"] for d in range(3)], [given[f"y{d}"] for d in range(3)])
    trainer = toy_trainer(tmp_path, epochs=1, precision="64-true", limit_val_batches=0)
    trainer.fit(method, datamodule=data)
    trained = method.state_dict()
    for ours, theirs in names(given, "after").items():
        torch.testing.assert_close(trained[ours], given[f"after_{theirs}"], **EXACT)
    fill(method, given, "before")
    terms = method.losses(data.batch)
    torch.testing.assert_close(terms["supervised"] + terms["own_heads"], given["loss"], **EXACT)


def test_weights_and_mixtures() -> None:
    given = arrays("predict")
    torch.testing.assert_close(entropy(given["logits"]), given["entropy"], **EXACT)
    gammas = [key.removeprefix("weights_gamma_") for key in given if key.startswith("weights_gamma_")]
    assert gammas
    for gamma in gammas:
        weights = entropy_weights(given["logits"], float(gamma)).exp()
        torch.testing.assert_close(weights, given[f"weights_gamma_{gamma}"], **EXACT)
        for mode, key in (("paper", "mix_all"), ("authors", "mix_code")):
            method = make("TanhLinear", ("inputs", 4), ("outputs", 5), gamma=float(gamma), mode=mode)
            fill(method, given, "p")
            method.eval().prepare_evaluation("test")
            outputs = method.evaluate(features(given["x"]), source=False)
            torch.testing.assert_close(outputs.features, given["features"], **EXACT)
            torch.testing.assert_close(outputs.logits.exp(), given[f"{key}_gamma_{gamma}"], **EXACT)


def test_the_surest_head() -> None:
    given = arrays("predict")
    for mode in ("paper", "authors"):
        method = make("TanhLinear", ("inputs", 4), ("outputs", 5), gamma=math.inf, mode=mode).eval()
        fill(method, given, "p")
        method.prepare_evaluation("test")
        served = method(given["x"]).logits
        torch.testing.assert_close(served.exp(), given["mix_min_entropy"], **EXACT)
        torch.testing.assert_close(served, given["per_sample_min_entropy_logits"].log_softmax(1), **EXACT)


def test_the_authors_validations_choose_a_head_for_the_batch() -> None:
    given = arrays("predict")
    method = make("TanhLinear", ("inputs", 4), ("outputs", 5), mode="authors").eval()
    fill(method, given, "p")
    torch.testing.assert_close(method(given["x"]).logits, given["batch_min_entropy_logits_code"], **EXACT)
    assert "batch" in method.transductive_reason
    alone = torch.cat([method(row).logits for row in given["x"].split(1)])
    torch.testing.assert_close(alone, given["per_sample_min_entropy_logits"], **EXACT)


@pytest.mark.parametrize("gamma", ["1", "min"])
@pytest.mark.parametrize(("labels", "theirs"), [("own",) * 2, ("shared", "last"), ("uniform",) * 2, ("mixture", "drm")])
def test_retraining(labels: str, theirs: str, gamma: str) -> None:
    given = arrays(f"adapt_{theirs}_gamma{gamma}")
    method = make(
        "Identity",
        ("width", given["features"].shape[1]),
        mode="authors",
        retrain="heads",
        gamma=math.inf if gamma == "min" else float(given["gamma"]),
        retrain_labels=labels,
        retrain_confidence=float(given["beta"]),
        retrain_steps=int(given["steps"]),
        lr=2 * float(given["lr"]),
        retrain_lr=0.5,
    ).eval()
    fill(method, given, "before")
    before = {name: value.clone() for name, value in method.state_dict().items()}
    method.stream = method.start_stream()
    outputs = method.evaluate(features(given["features"]), source=False)
    torch.testing.assert_close(outputs.logits.exp(), given["output"], **EXACT)
    for position, head in enumerate(method.stream.heads):
        for kind in ("weight", "bias"):
            after = given[f"after_classifier_list_{position}_{kind}"]
            torch.testing.assert_close(getattr(head, kind).detach(), after, **EXACT)
    assert not differences(method.state_dict(), before)


# ---- the mixture


def test_properties_of_the_weights() -> None:
    torch.manual_seed(0)
    logits = 3 * torch.randn(4, 6, 5, dtype=torch.float64)
    weights = entropy_weights(logits, 2.0).exp()
    torch.testing.assert_close(weights.sum(0), torch.ones(6, dtype=torch.float64))
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(entropy_weights(logits[order], 2.0).exp(), weights[order])
    torch.testing.assert_close(entropy_weights(logits, 0.0).exp(), torch.full_like(weights, 0.25))
    surest = torch.nn.functional.one_hot(entropy(logits).argmin(0), 4).T.double()
    torch.testing.assert_close(entropy_weights(logits, 1e4).exp(), surest)
    assert torch.equal(entropy_weights(logits, math.inf).exp(), surest)


def test_a_head_without_any_doubt_has_a_finite_weight() -> None:
    logits = torch.tensor([[[1e4, 0.0, 0.0]], [[1.0, 0.0, 0.0]], [[0.0, 1e4, 0.0]]])
    for gamma in (0.5, 5.0, math.inf):
        weights = entropy_weights(logits, gamma).exp()
        assert bool(weights.isfinite().all())
        assert float(weights.sum()) == pytest.approx(1)
        assert float(weights[1]) < 0.1


def test_heads_that_agree_are_served_as_one() -> None:
    method = case(DRM).make().eval()
    assert method.network.head is not None
    for head in method.heads:
        head.load_state_dict(method.network.head.state_dict())
    x = torch.rand(5, 3, 6, 6)
    expected = method.network(x).logits
    torch.testing.assert_close(method(x).logits.softmax(1), expected.softmax(1))


def test_one_source_whose_head_is_tied_is_erm() -> None:
    method = case(DRM).make(num_sources=1, weight=0.3)
    assert method.network.head is not None
    method.heads[0].load_state_dict(method.network.head.state_dict())
    batch = Batch(torch.rand(6, 3, 6, 6), torch.arange(6) % 3, torch.zeros(6, dtype=torch.int64), torch.arange(6), 6)
    erm = case(ERM).make()
    terms = method.train().losses(batch)
    torch.testing.assert_close(sum(terms.values()), erm.train().losses(batch)["supervised"])


def test_the_control_is_served_as_erm_is(tmp_path: Path) -> None:
    item, data = case(DRM), case(DRM).make_data()
    control, trainer = item.train(tmp_path, method=item.make(**DRM.control), data=data)
    erm, other = case(ERM).train(tmp_path)
    assert measure(trainer, control, data) == measure(other, erm, data)
    assert control.history == erm.history
