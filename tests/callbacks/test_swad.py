"""SWAD: which segments are averaged, and what a run that averages leaves."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from golden_vectors import golden

from dafw.callbacks import SWAD, Checkpointing
from dafw.callbacks.swad import LossValley
from dafw.errors import UserError
from dafw.methods import ADDA, ERM, SHOT, Fish, FixMatch, Method, Mixup, ParetoDA, SourceOnly
from dafw.nn.norm import DomainBatchNorm
from dafw.run.identity import config_hash
from dafw.testing import Case, case, contract
from dafw.testing.cases import differences
from dafw.testing.steps import StepWatch

STEPS = 4
VECTORS = golden("swad/loss_valley.npz")
NAMES = sorted({name.partition("__")[0] for name in VECTORS})


def fall(valley: LossValley, losses: Any) -> int:
    """Closes a segment for each loss, of a model whose weight is its number; returns how many were looked at."""
    for number, loss in enumerate(losses):
        valley.close([torch.tensor([STEPS * number + (STEPS - 1) / 2], dtype=torch.float64)], float(loss))
        if valley.dead:
            return number + 1
    return len(losses)


@pytest.mark.parametrize("name", NAMES)
def test_the_authors_average(name: str) -> None:
    converge, tolerance, ratio = name.split("_")[-3:]
    valley = LossValley(int(converge), int(tolerance), float(ratio), "authors")
    used = fall(valley, VECTORS[f"{name}__losses"])
    dead = valley.dead
    (final,) = valley.finish()
    found = [
        float(valley.bottom >= 0),
        used,
        float(final),
        valley.count,
        valley.threshold,
        STEPS * valley.bottom + 3,
        dead,
    ]
    if valley.bottom < 0:
        assert float(final) == STEPS * (used - 1) + (STEPS - 1) / 2
        found[2:6] = [-1] * 4
    np.testing.assert_allclose(found, VECTORS[f"{name}__result"], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_each_segment_counts_once_and_the_average_is_their_mean(name: str) -> None:
    converge, tolerance, ratio = name.split("_")[-3:]
    valley = LossValley(int(converge), int(tolerance), float(ratio))
    losses = VECTORS[f"{name}__losses"]
    fall(valley, losses)
    (final,) = valley.finish()
    assert valley.count == len(set(valley.added)) == len(valley.added)
    if valley.bottom < 0:
        return
    assert valley.bottom in valley.added
    segments = [STEPS * number + (STEPS - 1) / 2 for number in valley.added]
    assert float(final) == pytest.approx(np.mean(segments), rel=1e-12)
    window = max(int(converge), int(tolerance))
    assert all(min(losses[n : n + window]) <= valley.threshold for n in valley.added)


@pytest.mark.parametrize("mode", ["once", "authors"])
def test_a_loss_that_only_falls_opens_no_valley(mode: Any) -> None:
    valley = LossValley(mode=mode)
    fall(valley, [2.0**-n for n in range(30)])
    (final,) = valley.finish()
    assert (valley.bottom, valley.count) == (-1, 0)
    assert float(final) == STEPS * 29 + (STEPS - 1) / 2
    assert LossValley().finish() == []


def test_a_valley_that_opens_at_once_and_is_never_left_holds_everything() -> None:
    valley = LossValley()
    fall(valley, [1.0] * 11)
    valley.finish()
    assert sorted(valley.added) == list(range(11))


class Notes(pl.Callback):
    """The weights after every step."""

    def __init__(self) -> None:
        self.weights: list[list[torch.Tensor]] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        self.weights.append([weight.detach().clone() for weight in pl_module.parameters()])


def swad(**arguments: Any) -> SWAD:
    return SWAD(**{"n_converge": 1, "n_tolerance": 2, "ratio": 100.0, "reestimate": 3, **arguments})


def test_the_average_is_the_mean_of_the_weights_after_every_step_of_its_segments(tmp_path: Path) -> None:
    item, callback, notes = case(ERM), swad(), Notes()
    method, _ = item.train(tmp_path, callbacks=[callback, notes], epochs=4)
    assert sorted(callback.valley.added) == [0, 1, 2, 3]
    for position, weight in enumerate(method.parameters()):
        mean = torch.stack([step[position] for step in notes.weights]).double().mean(0)
        torch.testing.assert_close(weight.detach().double(), mean, rtol=1e-5, atol=1e-6)


def test_the_statistics_are_means_over_further_batches_and_nothing_else_changes(tmp_path: Path) -> None:
    kept, trained = swad(reestimate=0), swad(reestimate=6)  # more than an epoch
    plain, _ = case(ERM).train(tmp_path, callbacks=[kept])
    item = case(ERM)
    data = item.make_data()
    method, _ = item.train(tmp_path, data=data, callbacks=[trained])
    layer = method.network.backbone.norm
    changed = differences(plain.state_dict(), method.state_dict())
    assert {name.rpartition(".")[2] for name in changed} == {"running_mean", "running_var", "num_batches_tracked"}
    assert int(layer.num_batches_tracked) == 6
    assert method.steps_done == plain.steps_done == 8
    again = case(ERM).make()
    again.load_state_dict(method.state_dict())
    inputs: list[torch.Tensor] = []
    again.network.backbone.norm.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    loader = data.train_dataloader()
    for done in (8, 12):
        data.trainer.lightning_module.steps_started = done  # type: ignore[union-attr]
        for batch in loader:
            with torch.no_grad():
                again.forward_rows(batch.x, batch.num_source)
    means = torch.stack([x.mean((0, 2, 3)) for x in inputs[:6]]).mean(0)
    torch.testing.assert_close(layer.running_mean, means, rtol=1e-5, atol=1e-6)
    assert layer.momentum == 0.1


def test_frozen_statistics_stay(tmp_path: Path) -> None:
    item = case(ERM, norm="frozen")
    method, _ = item.train(tmp_path, callbacks=[swad()])
    layer = method.network.backbone.norm
    assert isinstance(layer, DomainBatchNorm)
    assert torch.equal(layer.running_mean, torch.zeros(4))


def test_source_only_passes_no_target_row_for_its_statistics(tmp_path: Path) -> None:
    weights = []
    for other in (False, True):
        item = case(SourceOnly)
        method, _ = item.train(tmp_path, data=item.make_data(other_target=other), callbacks=[swad()])
        weights.append(method.state_dict())
    assert not differences(*weights)


@pytest.mark.parametrize(
    ("item", "passes"),
    [
        (case(FixMatch), 1),
        (case(Mixup, alpha=1.0), 1),
        (case(Mixup, alpha=0.0), 1),
        (case(Fish), 2),
        (case(Fish, mixed=True), 2),
        (case(ParetoDA, norm="joint", width=8, class_width=4), 2),
        (case(ParetoDA, width=8, class_width=4), 3),
    ],
    ids=lambda item: f"{item.name}-{item.arguments}" if isinstance(item, Case) else "",
)
def test_statistics_are_of_what_a_step_passes(item: Case, passes: int, tmp_path: Path) -> None:
    method, seen, stepped = item.make(), [], []

    def note(_: Any, given: tuple[torch.Tensor]) -> None:
        if method.training:
            seen.append((method.layout.num_source, given[0].clone()))

    def compare(batch: Any) -> None:
        seen.clear()
        method.seed_step()
        original(batch)
        estimated = list(seen)
        seen.clear()
        method.seed_step()
        with torch.enable_grad():
            method.losses(batch) if method.automatic_optimization else method.training_step(batch, 0)
        assert len(estimated) == len(seen) == passes
        for (rows, one), (others, other) in zip(estimated, seen, strict=True):
            assert rows == others
            assert torch.equal(one, other)
        stepped.append(batch)

    original = method.statistics_pass
    method.statistics_pass = compare  # type: ignore[method-assign]
    method.network.register_forward_pre_hook(note)
    item.train(tmp_path, method=method, callbacks=[swad()])
    assert len(stepped) == 3


def test_fixmatch_without_its_loss_and_its_control_keep_the_same_statistics(tmp_path: Path) -> None:
    control, _ = case(FixMatch, weight=0.0).train(tmp_path, callbacks=[swad()])
    plain, _ = case(SourceOnly, forward_target=True, forward_views=["strong"]).train(tmp_path, callbacks=[swad()])
    assert not differences(control.network.state_dict(), plain.network.state_dict())


def test_a_step_waits_for_nothing(tmp_path: Path) -> None:
    watch = StepWatch()
    case(ERM).train(tmp_path, callbacks=[swad(), watch])
    assert len(watch.passes) == 8
    assert not watch.host_reads


def test_accumulated_batches_count_once(tmp_path: Path) -> None:
    item, callback, notes = case(ERM), swad(reestimate=0), Notes()
    method, _ = item.train(tmp_path, callbacks=[callback, notes], accumulate_grad_batches=2)
    mean = torch.stack([step[0] for step in notes.weights[1::2]]).mean(0)
    torch.testing.assert_close(next(method.parameters()).detach(), mean, rtol=1e-5, atol=1e-6)


def test_a_finished_run_is_not_averaged_again(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    first, _ = case(ERM).train(tmp_path, callbacks=[swad(), Checkpointing(folder)])
    again, _ = case(ERM).train(tmp_path, callbacks=[swad(), Checkpointing(folder)], ckpt_path=folder / "step=8.ckpt")
    assert not differences(first.state_dict(), again.state_dict())
    served = type(first).load(str(folder / "step=8.ckpt"))
    assert not differences(first.state_dict(), served.state_dict())


@pytest.mark.parametrize(
    ("make", "options", "said"),
    [
        (lambda: case(ERM, ema_decay=0.9), {}, "leave out model.ema_decay"),
        (lambda: case(SHOT), {}, "a source-free run never sees"),
        (lambda: case(ADDA), {}, "whose weights SWAD cannot average"),
        (lambda: case(ERM), {"limit_val_batches": 0}, "limit_val_batches must not be 0"),
    ],
)
def test_where_it_cannot_average(make: Any, options: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        make().train(tmp_path, callbacks=[swad()], **options)
    with pytest.raises(UserError, match="at least 1"):
        SWAD(n_converge=0)


ARGUMENTS = {"n_converge": 1, "n_tolerance": 2, "ratio": 100.0, "reestimate": 3}
ENTRY = {"class_path": "dafw.callbacks.swad.SWAD", "init_args": ARGUMENTS}


def of(method: type[Method], **arguments: Any) -> Case:
    item = case(method, **arguments)
    return Case(item.class_path, item.arguments, item.data, item.network, f"swad_{item.name}", [ENTRY])


CASES = [of(ERM), of(FixMatch), of(SourceOnly, norm="domain_specific", forward_target=True)]


def test_a_killed_run_and_two_ranks_end_in_the_same_average(tmp_path: Path) -> None:
    assert contract.check_resume(CASES, tmp_path / "resume") == {item.name: {} for item in CASES}
    assert max(contract.check_ranks(CASES, tmp_path / "ranks").values()) <= 1e-9


def test_it_is_part_of_what_a_run_is() -> None:
    config: dict[str, Any] = {"seed_everything": 0, "model": {"class_path": "ERM"}, "trainer": {"max_epochs": 1}}

    def named(callbacks: Any) -> str:
        return config_hash({**config, "trainer": {**config["trainer"], "callbacks": callbacks}})

    plain = config_hash(config)
    assert named([]) == named(None) == named([{"class_path": "DeviceStatsMonitor"}]) == plain
    short, full = {"class_path": "SWAD"}, {"class_path": "dafw.callbacks.swad.SWAD", "init_args": {}}
    assert (
        named([short]) == named(short) == named([full]) == named([{"class_path": "DeviceStatsMonitor"}, short]) != plain
    )
    assert named([{**short, "init_args": {"ratio": 0.2}}]) not in (named([short]), plain)
    assert named([{"class_path": "mine.SWAD"}]) not in (named([short]), plain)
