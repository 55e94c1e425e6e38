"""What ParetoDA's step gives to which parameters, and what its held-out rows may do."""

import copy
import math
import pickle
import weakref
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor

from dafw.data.batch import Batch
from dafw.errors import UserError
from dafw.methods import ParetoCDAN, ParetoDA, ParetoMDD
from dafw.methods.adaptation.pareto_steps import ParetoSteps
from dafw.optim.pareto import GradientRows, choose_weights
from dafw.run.loggers import CsvLog
from dafw.testing import Case, case
from dafw.testing.cases import BATCH, EPOCHS, STEPS_PER_EPOCH
from dafw.testing.toys import toy_network

TINY: dict[str, Any] = {"width": 8, "depth": 1, "critic_norm": True, "class_width": 4}
PATH = "dafw.methods.adaptation.pareto_da.ParetoDA"
DATA = case(ParetoDA).data
STEPS = STEPS_PER_EPOCH * EPOCHS


# ---- every part descends its own


class Checked(ParetoSteps):
    """Takes the gradients of whole losses one by one, and compares a plain gradient step with them."""

    steps_checked = 0

    def weigh(self, gradients: GradientRows, held_out: Tensor) -> Tensor | tuple[float, ...]:
        self.weights = super().weigh(gradients, held_out)
        self.matrix = gradients.matrix.clone()
        return self.weights

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        before = {name: value.clone() for name, value in self.state_dict().items()}
        terms, held_out = self.pass_forward(batch)
        named = {name: p for name, p in self.named_parameters() if p.requires_grad}
        gradients = {
            term: dict(
                zip(
                    named,
                    torch.autograd.grad(value, list(named.values()), retain_graph=True, materialize_grads=True),
                    strict=True,
                )
            )
            for term, value in {**terms, "held_out": held_out}.items()
            if value is not None
        }
        self.load_state_dict(before)
        result = super().training_step(batch, batch_idx)
        rates = {id(p): group["lr"] for group in self.trainer.optimizers[0].param_groups for p in group["params"]}
        for name, parameter in named.items():
            if name.startswith("class_critics"):
                expected = gradients["class_critics"][name]
            elif name.startswith("network.head"):
                expected = gradients["supervised"][name]
            elif name.startswith("critic"):
                expected = gradients["domain"][name]
            else:
                objectives = [gradients[term][name] for term in ("supervised", "domain", "mimicking")]
                expected = sum(w * g for w, g in zip(self.weights, objectives, strict=True))
            after = before[name] - rates[id(parameter)] * expected
            torch.testing.assert_close(parameter.detach(), after, rtol=1e-9, atol=1e-12, msg=name)
        shared = [name for name in named if name.startswith("network") and not name.startswith("network.head")]
        weighed = shared if self.weigh_by == "shared" else ["network.bottleneck.0.weight"]
        rows = ("supervised", "domain", "mimicking", "held_out") if self.combination == "pareto" else ()
        for row, term in zip(self.matrix, rows, strict=True):
            whole = torch.cat([gradients[term][name].flatten() for name in weighed])
            torch.testing.assert_close(row, whole, rtol=1e-9, atol=1e-12)
        # what must not flow: into the class-wise critics from the target's surrogate, out of them into the network
        for term, value in gradients.items():
            for name, gradient in value.items():
                if name.startswith("class_critics") != (term == "class_critics"):
                    assert gradient.abs().max() == 0, (term, name)
                if term in ("mimicking", "held_out") and name.startswith("critic"):
                    assert gradient.abs().max() == 0, (term, name)
        self.steps_checked += 1
        return result


class CheckedDANN(Checked, ParetoDA):
    pass


class CheckedCDAN(Checked, ParetoCDAN):
    pass


class CheckedMDD(Checked, ParetoMDD):
    pass


ADVERSARIAL = {"gamma": 50.0, "momentum": 0.0}  # a steep ramp: the critic's gradient counts from the second step on


@pytest.mark.parametrize(
    ("owner", "arguments"),
    [
        (CheckedDANN, TINY),
        (CheckedDANN, {**TINY, "mode": "authors", "norm": "joint"}),
        (CheckedDANN, {**TINY, "norm": "domain_specific", "ema_decay": 0.5}),
        (CheckedDANN, {**TINY, "guided_above": 0.0}),
        (CheckedDANN, {**TINY, "weigh_by": "last"}),
        (CheckedDANN, {**TINY, "weigh_by": "last", "mode": "authors", "norm": "joint"}),
        (CheckedDANN, {**TINY, "combination": "uniform"}),
        (CheckedDANN, {**TINY, "combination": "source", "weigh_by": "last"}),
        (CheckedCDAN, {**TINY, "entropy": True}),
        (CheckedMDD, {"ramp_steps": None, "class_width": 4}),
    ],
    ids=["DANN", "authors", "domain_specific", "guided", "last", "last_authors", "uniform", "source", "CDAN", "MDD"],
)
def test_each_part_descends_its_own_objective(owner: type[Checked], arguments: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(5)
    method = owner(toy_network(bottleneck=6, backbone_lr=0.1), num_classes=3, lr=0.05, **{**arguments, **ADVERSARIAL})
    item = Case(PATH, {}, DATA)
    item.train(tmp_path, method=method, precision="64-true", log_every_n_steps=10**6)
    assert isinstance(method, Checked)
    assert method.steps_checked == STEPS
    expected = 1 if arguments.get("combination") == "source" else 5 if arguments.get("mode") == "authors" else 3
    assert float(sum(method.weights)) == pytest.approx(expected)


# ---- the gradients


class WaysBack(pl.Callback):
    """Counts the gradients that reach the first layer in each step."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        def count(module: Any, inputs: Any, output: Tensor) -> None:
            if output.requires_grad:
                output.register_hook(self.note)

        next(iter(pl_module.network.backbone.children())).register_forward_hook(count)

    def note(self, gradient: Tensor) -> None:
        self.steps[-1] += 1

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Batch, batch_idx: int) -> None:
        self.steps.append(0)


@pytest.mark.parametrize(
    ("arguments", "ways"),
    [({}, 5), ({"weigh_by": "last"}, 2), ({"combination": "uniform"}, 2), ({"combination": "source"}, 1)],
    ids=str,
)
def test_ways_back(tmp_path: Path, arguments: dict[str, Any], ways: int) -> None:
    """Source, source and target, target, held out; or once what has a weight, after the weights are known."""
    counted = WaysBack()
    Case(PATH, {**TINY, **arguments}, DATA, network={"bottleneck": 6}).train(tmp_path, callbacks=[counted])
    assert len(counted.steps) == STEPS
    assert set(counted.steps) <= {ways, ways - ("weigh_by" in arguments)}, "source alone where all the weight is on it"
    assert ways in counted.steps


def test_something_must_learn_below_the_head(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="neither learns"):
        replace(case(ParetoDA), network={"frozen": True}).train(tmp_path)
    replace(case(ParetoDA), network={"frozen": True, "bottleneck": 4}).train(tmp_path, limit_train_batches=1)


def test_gradients_of_one_objective_go_before_the_next_are_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a step holds five times the shared parameters' numbers, not eight."""
    put, grad = GradientRows.put, torch.autograd.grad
    taken: list[weakref.ref[Tensor]] = []
    rows = []

    def note(self: GradientRows, row: int, gradients: Sequence[Tensor]) -> None:
        taken[:] = [weakref.ref(gradient) for gradient in gradients]
        rows.append(row)
        put(self, row, gradients)

    def check(*arguments: Any, **options: Any) -> tuple[Tensor, ...]:
        assert all(reference() is None for reference in taken)
        return grad(*arguments, **options)

    monkeypatch.setattr(GradientRows, "put", note)
    monkeypatch.setattr(torch.autograd, "grad", check)
    case(ParetoDA).train(tmp_path)
    assert rows == [0, 1, 2, 3] * STEPS


def test_the_matrix_is_kept_and_never_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = set()
    combine = GradientRows.combine

    def note(self: GradientRows, weights: Tensor) -> list[Tensor]:
        places.add(self.matrix.data_ptr())
        return combine(self, weights)

    monkeypatch.setattr(GradientRows, "combine", note)
    trained, _ = case(ParetoDA).train(tmp_path)
    assert isinstance(trained, ParetoDA)
    assert len(places) == 1
    assert trained.state_dict().keys() == case(ParetoDA).make().state_dict().keys()
    twin = copy.deepcopy(trained)
    assert twin._gradients.matrix.numel() == 0
    assert all(one is other for one, other in zip(twin._gradients.parameters, twin._shared, strict=True))
    again = pickle.loads(pickle.dumps(trained))
    assert again._gradients.matrix.numel() == 0
    assert trained._gradients.matrix.numel() > 0


# ---- the weights


class Plain(ParetoDA):
    """Without a trainer."""

    logs_this_step = False


def method(**arguments: Any) -> Plain:
    return Plain(toy_network(), **{"num_classes": 3, **TINY, **arguments})


def as_rows(matrix: Tensor) -> GradientRows:
    rows = GradientRows([torch.zeros_like(matrix[0])], len(matrix))
    for number, row in enumerate(matrix):
        rows.put(number, [row])
    return rows


def random_matrix(seed: int) -> Tensor:
    return torch.randn(4, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def weighed(matrix: Tensor, held_out: Tensor, **arguments: Any) -> list[float]:
    weights = method(**arguments).weigh(as_rows(matrix), held_out)
    assert isinstance(weights, Tensor)
    assert weights.dtype == matrix.dtype
    return weights.tolist()


def test_weights_of_the_paper_and_of_the_authors() -> None:
    held_out, differ = torch.tensor(-0.5, dtype=torch.float64), 0
    for seed in range(10):
        matrix = random_matrix(seed)
        descent, guided = (
            choose_weights(matrix @ matrix.t(), guided=torch.tensor(asked)).weights.tolist() for asked in (False, True)
        )
        assert weighed(matrix, held_out) == pytest.approx(descent)
        authors = [weight + extra for weight, extra in zip(descent, (1, 1, 0), strict=True)]
        assert weighed(matrix, held_out, mode="authors") == pytest.approx(authors)
        excess = -0.5 + math.log(3)
        assert weighed(matrix, held_out, guided_above=excess - 0.01) == pytest.approx(guided)
        assert weighed(matrix, held_out, guided_above=excess + 0.01) == pytest.approx(descent)
        differ += guided != descent
    assert differ, "the two programmes never differ"


def test_equal_weights_where_there_is_no_solution() -> None:
    gradients = torch.tensor([[1.0, 0.0], [-1.0, 0.1], [-1.0, 0.2], [-0.1, -10.0]])
    lowest = torch.tensor(-math.log(3))
    assert weighed(gradients, lowest) == [1.0, 1.0, 1.0]
    assert weighed(gradients, lowest, mode="authors") == [4.0, 4.0, 3.0]


@pytest.mark.parametrize(("combination", "weights"), [("uniform", (1, 1, 1)), ("source", (1, 0, 0))])
def test_fixed_weights(combination: str, weights: tuple[int, ...]) -> None:
    assert method(combination=combination).weigh(as_rows(random_matrix(0)), torch.tensor(0.0)) == weights


# ---- the held-out rows


class Rows(pl.Callback):
    """Notes the images of each part of the batches."""

    def __init__(self) -> None:
        self.parts: dict[str, set[bytes]] = {"source": set(), "target": set(), "held_out": set()}

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Batch, batch_idx: int) -> None:
        last = len(batch) - batch.num_held_out
        assert len(batch.y) == batch.num_source == batch.num_held_out == BATCH
        for name, rows in zip(
            self.parts, (batch.x[: batch.num_source], batch.x[batch.num_source : last], batch.x[last:]), strict=True
        ):
            self.parts[name] |= {row.numpy().tobytes() for row in rows}


def test_held_out_rows_are_no_target_rows(tmp_path: Path) -> None:
    rows = Rows()
    case(ParetoDA).train(tmp_path, callbacks=[rows], epochs=10)
    target, held_out = rows.parts["target"], rows.parts["held_out"]
    count = DATA["count"]
    assert len(held_out) == count // 10
    assert len(target) == count - count // 10
    assert not target & held_out


class Blank(pl.Callback):
    """Blackens the held-out images."""

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Batch, batch_idx: int) -> None:
        batch.x[len(batch) - batch.num_held_out :] = 0


@pytest.mark.parametrize("combination", ["pareto", "uniform"])
def test_held_out_rows_guide_and_are_not_learned_from(tmp_path: Path, combination: str) -> None:
    """Whatever they show changes weights of the objectives alone: nothing where these are fixed."""
    item = Case(PATH, {**TINY, "combination": combination, "norm": "frozen", "mode": "authors"}, DATA)
    one, _ = item.train(tmp_path)
    other, _ = item.train(tmp_path, callbacks=[Blank()])
    same = all(torch.equal(a, b) for a, b in zip(one.network.parameters(), other.network.parameters(), strict=True))
    assert same == (combination == "uniform")


# ---- the log


def test_weights_are_logged_at_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    diagnosed: list[bool] = []
    diagnose = ParetoDA.diagnose

    def note(self: ParetoDA, name: str, value: Any) -> None:
        diagnosed.append(self.logs_this_step)
        diagnose(self, name, value)

    monkeypatch.setattr(ParetoDA, "diagnose", note)
    log = CsvLog(tmp_path / "metrics.csv")
    case(ParetoDA).train(tmp_path, logger=log)
    assert diagnosed
    assert all(diagnosed)
    rows = [row for row in log.rows if row.get("diagnostics/weight_domain")]
    assert len(rows) >= STEPS // 3
    for row in rows:
        weights = [float(row[f"diagnostics/weight_{name}"]) for name in ("supervised", "domain", "mimicking")]
        assert min(weights) >= 0
        assert sum(weights) == pytest.approx(3)
        assert -math.log(3) <= float(row["diagnostics/held_out_loss"]) <= 0
        assert float(row["diagnostics/guided"]) in (0, 1)
        assert float(row["diagnostics/infeasible"]) in (0, 1)
