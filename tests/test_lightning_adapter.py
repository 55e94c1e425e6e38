"""Each part of Lightning that is replaced: what that does, and that nothing is replaced where the part is gone."""

import ast
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.cli import LightningCLI
from pytorch_lightning.profilers import PassThroughProfiler, SimpleProfiler
from pytorch_lightning.strategies import DDPStrategy
from torch import Tensor, nn
from two_ranks import one_and_both

import dafw
import datamodules
from dafw import lightning_adapter as adapter
from dafw.data.batch import Batch
from dafw.methods import DANN, SourceOnly
from dafw.testing.steps import StepWatch
from dafw.testing.toys import ToyData, toy_network, toy_trainer

HERE = Path(__file__).parent


@pytest.fixture
def trainer(tmp_path: Path) -> Any:
    """A trainer that has not started."""
    return toy_trainer(tmp_path)


def fit(folder: Path, method: Any = None, data: Any = None, **options: Any) -> tuple[Any, pl.Trainer]:
    torch.manual_seed(0)
    method = method or SourceOnly(toy_network(), num_classes=3)
    trainer = toy_trainer(folder, epochs=1, limit_val_batches=0, **options)
    trainer.fit(method, datamodule=data or ToyData("a", "b", batch_size=4, steps_per_epoch=4))
    return method, trainer


def epoch_loop(trainer: Any) -> Any:
    return trainer.fit_loop.epoch_loop


# ---- what makes a step cheaper


def test_the_parts_change_no_bit_and_save_three_operations(tmp_path: Path) -> None:
    ours, theirs = StepWatch(), StepWatch()
    lean, _ = fit(tmp_path, callbacks=[ours])
    with patch("dafw.callbacks.step_logger.make_lean"):
        plain, _ = fit(tmp_path, callbacks=[theirs])
    assert [b - a for a, b in zip(ours.operations, theirs.operations, strict=True)] == [3] * 4
    saved = theirs.counters[-1] - ours.counters[-1]
    assert saved == {"div": 2, "clone": 1}
    for name, value in lean.state_dict().items():
        assert torch.equal(value, plain.state_dict()[name]), name


def test_the_loss_is_neither_divided_by_one_nor_copied(trainer: Any) -> None:
    adapter.keep_loss_as_it_is(trainer)
    made = epoch_loop(trainer).automatic_optimization.output_result_cls.from_training_step_output
    loss = torch.tensor(3.0, requires_grad=True)
    assert made(loss).closure_loss is loss
    assert made(loss).loss.data_ptr() == loss.data_ptr()
    assert not made(loss).loss.requires_grad
    assert made(loss, 2).closure_loss.item() == 1.5
    assert made({"loss": loss, "more": 1}).asdict() == {"loss": 3.0, "more": 1}
    assert made(None).loss is None


def test_accumulated_gradients_are_those_of_lightning(tmp_path: Path) -> None:
    lean, _ = fit(tmp_path, accumulate_grad_batches=2)
    with patch("dafw.callbacks.step_logger.make_lean"):
        plain, _ = fit(tmp_path, accumulate_grad_batches=2)
    for name, value in lean.state_dict().items():
        assert torch.equal(value, plain.state_dict()[name]), name


class WithoutNumber(SourceOnly):
    """Takes no ``batch_idx``."""

    def training_step(self, batch: Batch) -> Tensor:  # type: ignore[override]
        return super().training_step(batch, 0)


def test_the_signature_is_read_once(tmp_path: Path) -> None:
    """Lightning reads it at every one of the four steps."""
    module = "pytorch_lightning.loops.training_epoch_loop.is_param_in_hook_signature"
    for replaced, times in ((True, 1), (False, 4)):
        with patch(module, return_value=True) as asked:
            if replaced:
                fit(tmp_path)
            else:
                with patch("dafw.lightning_adapter.read_signature_once"):
                    fit(tmp_path)
        assert asked.call_count == times


@pytest.mark.parametrize(("method", "names"), [(SourceOnly, ["batch", "batch_idx"]), (WithoutNumber, ["batch"])])
def test_a_step_gets_what_its_signature_asks_for(tmp_path: Path, method: type[SourceOnly], names: list[str]) -> None:
    trained, trainer = fit(tmp_path, method(toy_network(), num_classes=3))
    assert trained.steps_done == 4
    expected = OrderedDict(zip(names, ("a batch", 7), strict=False))
    assert epoch_loop(trainer)._build_kwargs(OrderedDict(), "a batch", 7) == expected


def test_a_profiler_that_measures_something_stays(tmp_path: Path, trainer: Any) -> None:
    adapter.profile_nothing(trainer)
    assert type(trainer.profiler) is adapter.NoProfiler
    with trainer.profiler.profile("a"), trainer.profiler.profile("b"):
        pass
    measuring = SimpleProfiler()
    _, trained = fit(tmp_path, profiler=measuring)
    assert trained.profiler is measuring  # type: ignore[attr-defined]
    assert len(measuring.recorded_durations["run_training_batch"]) == 4


def test_the_hooks_name_takes_no_detour(tmp_path: Path) -> None:
    names: list[str] = []
    usual = nn.Module.__setattr__

    def watch(module: nn.Module, name: str, value: Any) -> None:
        names.append(name)
        usual(module, name, value)

    with patch.object(nn.Module, "__setattr__", watch):
        method, _ = fit(tmp_path)
        assert "steps_started" in names
        assert "_current_fx_name" not in names[names.index("steps_started") :]
        method.extra = nn.Linear(2, 2)
        method.weight = nn.Parameter(torch.zeros(2))
    assert {"extra.weight", "weight"} <= method.state_dict().keys()
    method._current_fx_name = "training_step"
    assert method._current_fx_name == "training_step"


# ---- the part is gone


def replaced(trainer: Any) -> dict[str, Any]:
    """What the adapter put onto a trainer."""
    loop = trainer.fit_loop.epoch_loop
    names = ("_build_kwargs", "_broadcast_sigterm_tensor")
    found = {name: value for name, value in vars(loop).items() if name in names}
    return found | {n: v for n, v in vars(loop.automatic_optimization).items() if n == "output_result_cls"}


@pytest.mark.parametrize(
    ("part", "name", "owner"),
    [
        (adapter.keep_loss_as_it_is, "output_result_cls", "automatic_optimization"),
        (adapter.read_signature_once, "_build_kwargs", ""),
        (adapter.agree_on_signals_ourselves, "_broadcast_sigterm_tensor", ""),
    ],
)
def test_nothing_is_replaced_where_lightning_lacks_it(
    trainer: Any, monkeypatch: pytest.MonkeyPatch, part: Any, name: str, owner: str
) -> None:
    part_of = epoch_loop(trainer)
    trainer.strategy.connect(SourceOnly(toy_network(), num_classes=3))
    part(trainer)
    assert name in replaced(trainer)
    delattr(getattr(part_of, owner) if owner else part_of, name)
    monkeypatch.delattr(type(getattr(part_of, owner) if owner else part_of), name)
    part(trainer)
    assert not replaced(trainer)


@pytest.mark.parametrize("gone", ["fit_loop", "profiler"])
def test_a_trainer_without_the_loop_or_the_profiler_is_left_alone(gone: str) -> None:
    kept = {"fit_loop": SimpleNamespace(epoch_loop=SimpleNamespace()), "profiler": PassThroughProfiler()}
    del kept[gone]
    trainer = SimpleNamespace(**kept)
    adapter.make_lean(trainer)
    adapter.agree_on_signals_ourselves(trainer)
    assert vars(trainer).keys() == kept.keys()
    assert not vars(getattr(getattr(trainer, "fit_loop", None), "epoch_loop", SimpleNamespace()))


def test_other_arguments_than_the_known_ones_are_lightnings_matter(trainer: Any) -> None:
    loop = type("Loop", (), {"_build_kwargs": lambda self, batch: OrderedDict(batch=batch)})()
    adapter.read_signature_once(SimpleNamespace(fit_loop=SimpleNamespace(epoch_loop=loop)))
    assert not vars(loop)


def test_a_result_without_the_copy_is_lightnings_matter(trainer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    automatic = epoch_loop(trainer).automatic_optimization
    monkeypatch.delattr(automatic.output_result_cls, "_clone_loss")
    adapter.keep_loss_as_it_is(trainer)
    assert not replaced(trainer)


# ---- several ranks


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Any]:
    """What one process and both of two ranks found."""
    return one_and_both(HERE / "lightning_over_ranks.py", tmp_path_factory.mktemp("ranks"))


def test_ranks_send_nothing_but_gradients_and_statistics(ranks: tuple[Any, Any, Any]) -> None:
    """The buffers are of two types: running statistics, and the number of batches that they are of."""
    alone, *both = ranks
    assert set(map(str, alone.values())) == {"{'host reads': 0}"}
    for found in both:
        assert found["replaced"] == {"host reads": 0}
        assert found["agree_on_signals_ourselves"] == {"broadcast_": 1, "host reads": 1}
        assert found["leave_buffers_alone"] == {"broadcast_": 2, "host reads": 0}


def test_a_method_on_one_device_has_no_buffers_to_leave_alone() -> None:
    method = SourceOnly(toy_network(), num_classes=3)
    adapter.leave_buffers_alone(SimpleNamespace(strategy=SimpleNamespace(model=method)))
    adapter.leave_buffers_alone(SimpleNamespace(strategy=SimpleNamespace()))
    assert not hasattr(method, "broadcast_buffers")


# ---- outside the loops


class Marking(ToyData):
    """Marks each batch before it is moved and after."""

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        return replace(batch, index=batch.index + 1000)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        return replace(batch, index=2 * batch.index)


class Marked(SourceOnly):
    """Marks each batch itself, where the datamodule does not."""

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        return replace(batch, index=batch.index + 7)


@pytest.mark.parametrize(("data", "expected"), [(Marking, lambda i: 2 * (i + 1000)), (ToyData, lambda i: i + 7)])
def test_a_batch_is_what_lightning_gives_a_step(tmp_path: Path, data: type[ToyData], expected: Any) -> None:
    sizes: dict[str, Any] = {"batch_size": 4, "steps_per_epoch": 1}
    method, trainer = fit(tmp_path, Marked(toy_network(), num_classes=3), data("a", "b", **sizes), precision="64-true")
    raw = next(iter(trainer.datamodule.train_dataloader()))  # type: ignore[attr-defined]
    raw = replace(raw, x=raw.x.float())
    found = adapter.batch_on_device(trainer, method, raw)
    assert torch.equal(found.index, expected(raw.index))
    assert found.x.dtype == torch.float64
    given = method._on_before_batch_transfer(trainer.precision_plugin.convert_input(raw), dataloader_idx=0)
    given = trainer.strategy.batch_to_device(given, dataloader_idx=0)
    for name, value in vars(given).items():
        same = torch.equal(value, getattr(found, name)) if isinstance(value, Tensor) else value == getattr(found, name)
        assert same, name


def test_the_values_of_an_evaluation_are_returned_where_lightning_logs_them_otherwise() -> None:
    """Without the part that is replaced, loggers get them at Lightning's own step."""
    logged: list[dict[str, Tensor]] = []
    method = SimpleNamespace(trainer=SimpleNamespace(), log_dict=lambda values, **_: logged.append(values))
    adapter.log_and_return(method, {"test/a": 1 / 3}, 7)
    assert [{name: value.item() for name, value in one.items()} for one in logged] == [{"test/a": 1 / 3}]


def test_connected_without_a_fit(trainer: Any) -> None:
    method, data = DANN(toy_network(), num_classes=3, width=4), ToyData("a", "b", batch_size=4, steps_per_epoch=1)
    assert adapter.connect(trainer, method, data)
    assert data.trainer is trainer
    assert trainer.lightning_module is method


def test_not_connected_where_the_strategy_cannot() -> None:
    data = ToyData("a", "b")
    assert not adapter.connect(SimpleNamespace(strategy=SimpleNamespace()), SourceOnly, data)
    assert data.trainer is None


def test_a_method_knows_whether_it_has_a_trainer(tmp_path: Path) -> None:
    assert not adapter.has_trainer(SourceOnly(toy_network(), num_classes=3))
    assert adapter.has_trainer(fit(tmp_path)[0])


# ---- nowhere else


def lightnings_private_names(trainer: Any) -> set[str]:
    """Names with an underscore of Lightning's objects, without those of ``torch.nn.Module`` and of ``object``."""
    method, plain = pl.LightningModule(), nn.Module()
    loop = epoch_loop(trainer)
    objects = [trainer, trainer.strategy, DDPStrategy(), trainer.fit_loop, loop, loop.automatic_optimization]
    objects += [loop.val_loop, trainer.profiler, method, pl.LightningDataModule(), pl.Callback(), LightningCLI]
    found = {name for part in objects for name in dir(part) if name.startswith("_") and not name.startswith("__")}
    return found - set(dir(plain)) | {"output_result_cls", "epoch_loop"}


def test_only_the_adapter_reaches_into_lightning(trainer: Any) -> None:
    private = lightnings_private_names(trainer)
    assert {"_build_kwargs", "_ddp_kwargs", "_on_before_batch_transfer", "_trainer", "_current_fx_name"} <= private
    for package in (dafw, datamodules):
        for path in Path(package.__path__[0]).rglob("*.py"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            own = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
            used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)} - own
            assert path == Path(adapter.__file__) or not used & private, (path, used & private)
