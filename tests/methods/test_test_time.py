"""What every test-time method gets from its base and from the datamodule: a stream, and what was served on it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from networks import measure

from dafw.checkpoints import read_checkpoint
from dafw.data import Batch, Domain
from dafw.data.roles import Split
from dafw.errors import UserError
from dafw.losses.entropy import entropy
from dafw.methods import Losses, SourceOnly, TestTimeMethod
from dafw.optim.schedules import Constant
from dafw.problems import Outputs
from dafw.run.artifacts import shown_samples
from dafw.testing import Case, case, contract
from dafw.testing.cases import differences
from dafw.testing.toys import ToyData, toy_network, toy_trainer


class Surer(TestTimeMethod):
    """Makes predictions surer: the mean entropy of a batch falls."""

    control = {"weight": 0.0}

    def __init__(self, network: Any, *, weight: float = 1.0, **base: Any) -> None:
        super().__init__(network, **base)
        self.weight = weight

    def adapt(self, outputs: Outputs, batch: Batch) -> Losses:
        assert not len(batch.y)
        assert batch.num_source == 0
        return {"entropy": self.weight * entropy(outputs.logits).mean()}


CASES = [
    case(Surer),
    Case(
        **{
            **vars(case(Surer, data_arguments={"stream": "reset_each_shift"}, reset=3, optimizer="adam", lr=0.01)),
            "label": "resets",
        }
    ),
    Case(**{**vars(case(Surer, ema_decay=0.5, norm="separate", reset="shift")), "label": "average"}),
    Case(
        **{
            **vars(case(Surer, sharpness={"class_path": "dafw.optim.sharpness.SAM", "init_args": {"rho": 0.2}})),
            "label": "sam",
        }
    ),
]
STREAMS = [
    Case(**{**vars(case(Surer, data_arguments={"stream": word})), "label": word}) for word in ("mixed", "correlated")
]
every_case = pytest.mark.parametrize("item", CASES, ids=lambda item: item.name)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A checkpoint of a source model."""
    folder = tmp_path_factory.mktemp("start")
    _, trainer = case(SourceOnly).train(folder, epochs=6)
    trainer.save_checkpoint(folder / "step=1.ckpt")
    return str(folder / "step=1.ckpt")


class Watch(pl.Callback):
    """Keeps the batches."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Batch, index: int) -> None:
        """Keeps one."""
        self.batches.append(batch)


class Watched(Surer):
    """Notes what the model gives at the start of each step."""

    def losses(self, batch: Batch) -> Losses:
        self.eval()
        with torch.no_grad():
            self.noted = [*getattr(self, "noted", []), self.forward(batch.x).logits]
            self.steps_at = [*getattr(self, "steps_at", []), self.network.state_dict()["head.weight"].clone()]
        self.train()
        return super().losses(batch)


def run(folder: Path, start: str, data: ToyData | None = None, **arguments: Any) -> tuple[Watched, Watch, ToyData]:
    data = data or ToyData("a", ["b", "c"], target_batch_size=8, seed=3)
    method = Watched(toy_network(), **{"num_classes": 3, "lr": 0.05, "checkpoint": start, **arguments})
    watch = Watch()
    toy_trainer(folder, epochs=1, callbacks=[watch]).fit(method, datamodule=data)
    return method, watch, data


# ---- the stream


def test_each_test_sample_comes_once_in_an_order_of_seed_and_target(start: str, tmp_path: Path) -> None:
    _, watch, data = run(tmp_path, start)
    sizes = [len(batch) for batch in watch.batches]
    assert sizes == [8, 8, 5] * 2
    assert [batch.domain.unique().tolist() for batch in watch.batches] == [[0]] * 3 + [[1]] * 3
    orders = [torch.cat([b.index for b in watch.batches[first : first + 3]]).tolist() for first in (0, 3)]
    assert all(sorted(order) == list(range(21)) for order in orders)
    assert orders[0] != orders[1]
    assert orders[0] != list(range(21))
    for batch, row in ((batch, row) for batch in watch.batches for row in range(len(batch))):
        domain = data.load("bc"[int(batch.domain[row])], "test")
        assert torch.equal(batch.x[row], domain.inputs[int(batch.index[row])])
    _, alone, _ = run(tmp_path, start, ToyData("a", "c", target_batch_size=8, seed=3))
    assert torch.cat([batch.index for batch in alone.batches]).tolist() == orders[1]
    _, other, _ = run(tmp_path, start, ToyData("a", "c", target_batch_size=8, seed=4))
    assert torch.cat([batch.index for batch in other.batches]).tolist() != orders[1]
    stored = ToyData("a", "c", target_batch_size=8, stream_order="stored")
    _, plain, _ = run(tmp_path, start, stored)
    assert torch.cat([batch.index for batch in plain.batches]).tolist() == list(range(21))


def test_nothing_but_test_splits_is_read_and_nothing_is_augmented(start: str, tmp_path: Path) -> None:
    def explode(x: Any) -> Any:
        raise AssertionError("a sample of the stream was augmented")

    data = ToyData("a", ["b", "c"], batch_size=8, augment=explode)
    data.forbidden = [(name, split) for name in "abc" for split in ("train", "val")]
    data.forbidden.append(("a", "test"))
    method, _, _ = run(tmp_path, start, data)
    found = measure(toy_trainer(tmp_path), method, data)
    assert {name.split("/")[1] for name in found} == {"b", "c"}
    assert method.steps_done == 6
    assert data.evaluations("validate") == []


def test_the_stream_is_passed_exactly_once(start: str, tmp_path: Path) -> None:
    method = Surer(toy_network(), num_classes=3, checkpoint=start)
    with pytest.raises(UserError, match=r"passes once over its stream: give trainer\.max_epochs 1, not 2"):
        toy_trainer(tmp_path, epochs=2).fit(method, datamodule=ToyData("a", "b", batch_size=8))
    with pytest.raises(UserError, match=r"passes over its whole stream: give no trainer\.max_steps"):
        toy_trainer(tmp_path, epochs=1, max_steps=2).fit(method, datamodule=ToyData("a", "b", batch_size=8))


def test_a_stream_has_no_oracle(start: str, tmp_path: Path) -> None:
    method = Surer(toy_network(), num_classes=3, checkpoint=start)
    with pytest.raises(UserError, match="a test-time method learns from none"):
        toy_trainer(tmp_path, epochs=1).fit(method, datamodule=ToyData("a", "b", batch_size=8, oracle=True))


# ---- what is served


def test_a_batch_is_served_before_it_is_learned(start: str, tmp_path: Path) -> None:
    method, watch, data = run(tmp_path, start)
    assert differences(method.network.state_dict(), method.start.module.state_dict())
    assert bool(method.served.done.all())
    for batch, expected in zip(watch.batches, method.noted, strict=True):
        domain = data.load("bc"[int(batch.domain[0])], "test")
        torch.testing.assert_close(method.served.of(domain, batch.index), expected)
    later = method.eval()(torch.stack([data.load("b", "test").inputs[i] for i in range(21)])).logits
    assert not torch.allclose(later, method.served.of(data.load("b", "test"), torch.arange(21)))


def test_metrics_are_of_what_was_served_and_of_the_start(start: str, tmp_path: Path) -> None:
    method, _, data = run(tmp_path, start, lr=0.5)
    found = measure(toy_trainer(tmp_path), method, data)
    source = SourceOnly.load(start)
    for name in "bc":
        labels = torch.as_tensor(data.load(name, "test").labels)
        served = method.served.of(data.load(name, "test"), torch.arange(21)).argmax(1)
        assert found[f"test/{name}/accuracy"] == pytest.approx(float((served == labels).float().mean()))
        images = torch.stack([data.load(name, "test").inputs[i] for i in range(21)])
        plain = source(images).logits.argmax(1)
        expected = float((plain == labels).float().mean())
        assert found[f"test/{name}/accuracy_without_adaptation"] == pytest.approx(expected)


def test_a_test_asks_the_start_model_alone(start: str, tmp_path: Path) -> None:
    method, _, data = run(tmp_path, start)
    passes = {"start": 0, "present": 0}
    for name, network in (("start", method.start.module), ("present", method.eval_network)):
        network.register_forward_hook(lambda *_, name=name: passes.update({name: passes[name] + 1}))
    measure(toy_trainer(tmp_path), method, data)
    batches = sum(-(-len(data.load(name, "test")) // data.eval_batch_size) for name in "bc")
    assert passes == {"start": batches, "present": 0}


def test_what_was_served_is_found_in_a_part_of_a_target_and_after_loading(start: str, tmp_path: Path) -> None:
    data = ToyData("a", ["b", "c"], batch_size=8, count=1200, eval_batch_size=100)  # more than pictures show
    method = Surer(toy_network(), num_classes=3, checkpoint=start)
    trainer = toy_trainer(tmp_path, epochs=1)
    trainer.fit(method, datamodule=data)
    shown = [one for one in shown_samples(method, data) if one.domain == "c"]
    step = -(-601 // method.problem.most_shown)
    expected = method.served.of(data.load("c", "test"), torch.arange(0, 601, step))
    assert step > 1
    found = torch.cat([one.outputs.logits for one in shown])  # in a random order
    torch.testing.assert_close(found[found[:, 0].argsort()], expected[expected[:, 0].argsort()])
    trainer.save_checkpoint(tmp_path / "step=2.ckpt")
    again, turned = Surer.load(str(tmp_path / "step=2.ckpt")), ToyData("a", ["c", "b"], count=1200)
    one, other = (measure(toy_trainer(tmp_path), m, d) for m, d in ((method, data), (again, turned)))
    assert one == other
    assert again.steps_done == method.steps_done


def test_what_was_not_served_is_not_predicted(start: str, tmp_path: Path) -> None:
    method, _, _ = run(tmp_path, start, ToyData("a", "b", batch_size=8))
    for evaluate in (toy_trainer(tmp_path).test, toy_trainer(tmp_path).predict):
        with pytest.raises(UserError, match=r"the stream has not served c/\d+ of c, and .* let dafw fit pass"):
            evaluate(method, datamodule=ToyData("a", "c", batch_size=8, stream_order="stored"))


def test_going_on_needs_the_same_stream(start: str, tmp_path: Path) -> None:
    method, _, _ = run(tmp_path, start, ToyData("a", "b", batch_size=8))
    other = Surer(toy_network(), num_classes=3, checkpoint=start)
    other.load_state_dict(method.state_dict())
    with pytest.raises(UserError, match="a stream of other samples than the data has now"):
        toy_trainer(tmp_path, epochs=1).fit(other, datamodule=ToyData("a", "c", batch_size=8))


def test_two_samples_of_one_name_are_refused(start: str, tmp_path: Path) -> None:
    class Twice(ToyData):
        def load(self, name: str, split: Split) -> Domain:
            domain = super().load(name, split)
            return domain.subset(np.asarray([0, 1, 2, 2])) if split == "test" else domain

    method = Surer(toy_network(), num_classes=3, checkpoint=start)
    with pytest.raises(UserError, match="two test samples of b have the same name"):
        toy_trainer(tmp_path, epochs=1).fit(method, datamodule=Twice("a", "b", batch_size=2))


def test_label_free_validators_do_not_apply(start: str) -> None:
    method = Surer(toy_network(), num_classes=3, checkpoint=start)
    assert not method.supports_unsupervised_validators
    assert "adapted" in method.transductive_reason


# ---- the start


@pytest.mark.parametrize(
    ("arguments", "restarts"), [({}, [0]), ({"reset": "shift"}, [0, 3]), ({"reset": 2}, [0, 2, 4])]
)
def test_resets(arguments: dict[str, Any], restarts: list[int], start: str, tmp_path: Path) -> None:
    method, _, _ = run(tmp_path, start, ema_decay=0.9, **arguments)
    first = read_checkpoint(start)["state_dict"]["network.head.weight"]
    assert [step for step, weight in enumerate(method.steps_at) if torch.equal(weight, first)] == restarts


def test_a_reset_forgets_the_optimisers_state_and_the_running_statistics(start: str, tmp_path: Path) -> None:
    data = ToyData("a", ["b", "c"], target_batch_size=8, seed=3)
    constant = {"reset": "shift", "optimizer": "adam", "lr": 0.01, "schedule": Constant()}
    both, _, _ = run(tmp_path, start, data, **constant)
    alone, _, _ = run(tmp_path, start, ToyData("a", "c", target_batch_size=8, seed=3), **constant)
    domain = data.load("c", "test")
    assert torch.equal(both.served.of(domain, torch.arange(21)), alone.served.of(domain, torch.arange(21)))
    assert not differences(both.network.state_dict(), alone.network.state_dict())


# ---- the contract, on steps that Lightning makes


@every_case
def test_contract(item: Case, tmp_path: Path) -> None:
    contract.check_label_blind(item, tmp_path)
    contract.check_round_trip(item, tmp_path)
    contract.check_batch_free_inference(item, tmp_path)
    contract.check_bf16(item, tmp_path)


def test_control_and_stalls(tmp_path: Path) -> None:
    contract.check_control(CASES[0], tmp_path / "control")
    contract.check_no_stall(CASES[0], tmp_path / "stall")


def test_resume_and_ranks(tmp_path: Path) -> None:
    items = [*CASES, *STREAMS]
    assert contract.check_resume(items, tmp_path / "resume") == {item.name: {} for item in items}
    found = contract.check_ranks(items, tmp_path / "ranks")
    assert max(found.values()) <= 1e-9, found


def test_labels_of_the_test_split_are_garbled_for_the_label_blind_check() -> None:
    honest, garbage = (CASES[0].make_data(garbage=garbage).load("b", "test") for garbage in (False, True))
    assert not np.array_equal(np.asarray(honest.labels), np.asarray(garbage.labels))
