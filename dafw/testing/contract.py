"""The checks. Each takes a case and raises AssertionError; those that need other processes take many cases at once."""

import copy
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, NamedTuple

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils import _pytree

from dafw.callbacks import Checkpointing
from dafw.data.batch import Batch
from dafw.methods import ERM, Method, SourceOnly, TestTimeMethod
from dafw.methods.optimisation import trained_parameters
from dafw.run.loggers import CsvLog
from dafw.testing.cases import BATCH, EPOCHS, STEPS_PER_EPOCH, Case, differences, path_of
from dafw.testing.processes import Marks, run_ranks, run_second_process
from dafw.testing.steps import StepWatch
from dafw.testing.stream_contract import (
    check_batch_of_one,
    check_first_served,
    check_no_row_counts,
    check_restart,
    check_served_before_step,
    equal,
)
from dafw.testing.toys import ToyData

__all__ = [
    "check_batch_free_inference",
    "check_batch_of_one",
    "check_bf16",
    "check_control",
    "check_documented",
    "check_first_served",
    "check_label_blind",
    "check_no_row_counts",
    "check_no_stall",
    "check_ranks",
    "check_restart",
    "check_resume",
    "check_reversed_gradients",
    "check_round_trip",
    "check_served_before_step",
    "check_target_unread",
]


class Trained(NamedTuple):
    """A case after its training.

    Attributes:
        method: the trained method.
        trainer: its trainer.
        folder: ``metrics.csv`` of the training and, in single precision, ``checkpoints`` and ``marks.json``.
    """

    method: Method
    trainer: pl.Trainer
    folder: Path


@cache
def trained(item: Case, precision: Literal["32-true", "64-true"] = "32-true") -> Trained:
    """The case after one training that all checks share. None of them may change it.

    The folder stays until this process ends.
    """
    kept = TemporaryDirectory(prefix="dafw-trained-")
    _kept.append(kept)
    folder, callbacks = Path(kept.name), []  # type: tuple[Path, list[pl.Callback]]
    if precision == "32-true":
        checkpointing = Checkpointing(folder / "checkpoints", every=STEPS_PER_EPOCH + 1, keep=2)
        callbacks = [Marks(folder / "marks.json"), checkpointing]
    log = CsvLog(folder / "metrics.csv")
    return Trained(*item.train(folder, precision=precision, callbacks=callbacks, logger=log), folder)


_kept: list[TemporaryDirectory[str]] = []


@cache
def _trained_network(of: str) -> dict[str, Tensor]:
    """The weights of the network after the training of a case whose fields are given in JSON."""
    with TemporaryDirectory(prefix="dafw-trained-") as folder:
        method, _ = Case(**json.loads(of)).train(Path(folder))
    return method.network.state_dict()


def check_label_blind(item: Case, folder: Path) -> None:
    """Nonsense in place of all labels of the targets' training and test splits changes no bit of the trained weights.

    Nor does it change what a test-time method has served, which lies beside the weights.
    """
    honest = trained(item).method
    garbage, _ = item.train(folder, data=item.make_data(garbage=True))
    assert not differences(honest.state_dict(), garbage.state_dict())


def check_target_unread(item: Case, folder: Path) -> None:
    """A generalization method trains without validations although nothing of a target can be read.

    Before the first step alone a target's test split can be, which the datamodule compares the classes of.
    """
    data = item.make_data()
    data.forbidden = [(name, split) for name in data.target for split in ("train", "val")]
    item.train(folder, data=data, callbacks=[_ForbidTest(data)], limit_val_batches=0)


class _ForbidTest(pl.Callback):
    """From the start of training on, no test split of a target can be read."""

    def __init__(self, data: ToyData) -> None:
        self.data = data

    def on_train_start(self, *_: Any) -> None:
        """Every callback's hook comes before the method's."""
        self.data.forbidden += [(name, "test") for name in self.data.target]


def check_no_stall(item: Case, folder: Path) -> StepWatch:
    """Each step makes as many host reads and passes through the backbone as the method says: none, and one.

    Reads that a detector cannot do without, see :func:`~dafw.problems.reads.needed_reads`, are no reads of the method.
    """
    watch = StepWatch()
    item.train(folder, callbacks=[watch], limit_val_batches=0)
    assert len(watch.host_reads) == item.owner.host_reads * len(watch.passes), watch.host_reads
    assert item.owner.backbone_passes is None or set(watch.passes) == {item.owner.backbone_passes}, watch.passes
    return watch


def check_batch_free_inference(item: Case, folder: Path) -> None:
    """A prediction does not depend on what else is in the batch, nor on the padding that other images bring."""
    method = trained(item, "64-true").method
    method.eval()
    for name in (method.data.target[0], *method.data.sources[:1]):
        batch = _test_batch(item, name, 7)
        with torch.no_grad():
            together = method.evaluate(batch, name in method.data.sources)
            for row in range(len(batch)):
                alone = method.evaluate(_test_batch(item, name, 1, row), name in method.data.sources)
                _assert_close(together[row : row + 1], alone)


def _test_batch(item: Case, name: str, count: int, first: int = 0) -> Batch:
    """Some test samples of a domain, without labels."""
    data = item.make_data()
    domain = data.domain(name, "test").unlabelled().subset(range(first, first + count))
    batch: Batch = next(iter(data.evaluation_loader(domain, shard=False)))
    return batch


def _assert_close(together: Any, alone: Any) -> None:
    """Compares outputs of one image field by field. Padding is cut off, and what follows from its size left out."""
    for one in fields(alone):
        if one.name not in ("sizes", "canvas"):
            _compare(getattr(together, one.name), getattr(alone, one.name), one.name)


def _compare(together: Any, alone: Any, name: str) -> None:
    if isinstance(alone, Tensor):
        if together.ndim == alone.ndim == 4:
            together = together[..., : alone.shape[2], : alone.shape[3]]
        torch.testing.assert_close(together, alone, rtol=1e-10, atol=1e-10, msg=lambda said: f"{name}: {said}")
    elif isinstance(alone, Mapping):
        assert together.keys() == alone.keys()
        for key in alone:
            _compare(together[key], alone[key], f"{name}.{key}")
    elif isinstance(alone, list | tuple):
        for i, (one, other) in enumerate(zip(together, alone, strict=True)):
            _compare(one, other, f"{name}[{i}]")
    else:
        assert together == alone, name


def check_round_trip(item: Case, folder: Path) -> None:
    """A checkpoint makes the method again, without its constructor call."""
    folder.mkdir(parents=True, exist_ok=True)
    method, trainer, _ = trained(item)
    path = folder / "step=1.ckpt"
    trainer.save_checkpoint(path)
    again = type(method).load(str(path))
    assert again.steps_done == method.steps_done == STEPS_PER_EPOCH * EPOCHS
    assert not differences(method.state_dict(), again.state_dict())
    method.eval()
    batch = _test_batch(item, method.data.target[0], 4)
    with torch.no_grad():
        one, other = (_tensors(model.evaluate(batch, False)) for model in (method, again))
        assert one
        assert all(torch.equal(left, right) for left, right in zip(one, other, strict=True))
        if batch.sizes is None:
            one, other = (_tensors(model(batch.x)) for model in (method, again))
            assert all(torch.equal(left, right) for left, right in zip(one, other, strict=True))


def _tensors(outputs: Any) -> list[Tensor]:
    return [leaf for leaf in _pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]


def check_reversed_gradients(item: Case, folder: Path) -> None:
    """For each adversarial term: a step of the features along their gradient raises it, one of the critic lowers it."""
    data = item.make_data()
    method, _ = item.train(folder, data=data, precision="64-true", epochs=1)
    batch = next(iter(data.train_dataloader()))  # with the views that the method asks for
    method.train()

    def value(model: Method, name: str) -> Tensor:
        return model.losses(batch)[name]

    for name in method.adversarial:
        network = {id(parameter) for parameter in method.network.parameters()}
        trained = trained_parameters(method)
        groups = {
            "features": [p for p in trained if id(p) in network],
            "critic": [p for p in trained if id(p) not in network],
        }
        for group, parameters in groups.items():
            before = value(method, name)
            gradients = torch.autograd.grad(before, parameters, allow_unused=True)
            moved = copy.deepcopy(parameters)
            square = sum(float((g**2).sum()) for g in gradients if g is not None)
            assert square > 0, f"{name} has no gradient at the {group}"
            with torch.no_grad():
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    if gradient is not None:
                        parameter.sub_(1e-4 / square**0.5 * gradient)
            after = value(method, name)
            with torch.no_grad():
                for parameter, old in zip(parameters, moved, strict=True):
                    parameter.copy_(old)
            raised = float(after.detach() - before.detach())
            assert raised > 0 if group == "features" else raised < 0, f"{name} changed by {raised} at the {group}"


def check_bf16(item: Case, folder: Path) -> None:
    """Steps under bfloat16 autocast keep every weight finite."""
    method, _ = item.train(folder, precision="bf16-mixed", epochs=1)
    assert all(bool(value.isfinite().all()) for value in method.state_dict().values())


def check_documented(item: Case) -> None:
    """The docstring names the paper, the loss and the shapes; every argument is described."""
    text = item.owner.__doc__ or ""
    for what, needle in {"paper": "https://", "loss": "Loss: ", "shapes": "(n", "arguments": "Args:"}.items():
        assert needle in text or needle.upper() in text, f"{item.name}'s docstring lacks its {what} ({needle!r})"
    code = item.owner.__init__.__code__
    for argument in code.co_varnames[1 : code.co_argcount + code.co_kwonlyargcount]:
        assert f" {argument}:" in text, f"{item.name}'s docstring does not say what {argument} is"


def check_control(item: Case, folder: Path) -> None:
    """With the adaptation switched off, the network trains bit for bit as under source-only that sees the target.

    That of a generalization method trains as under ERM.

    Where a method's ``control_difference_reason`` says that it cannot, that must be so; and its weights must be the
    same whatever the target's images are, once batch normalisation is frozen; those of a source-free method must be the
    source model's. A control that learns from the targets must be label-blind instead.
    """
    owner = item.owner
    control, _ = item.train(folder, method=item.make(**owner.control))
    active = trained(item).method
    still = isinstance(active, TestTimeMethod) and (
        active.learns == "nothing" or not trained_parameters(active.network)
    )
    if not still:  # else what it serves is compared below
        assert differences(active.network.state_dict(), control.network.state_dict()), "the adaptation changes nothing"
    shared = {"norm": control.norm, "forward_target": True, "forward_views": list(owner.views)}
    if not owner.setting.sees_target:
        shared = {"norm": control.norm}
    kept = {name: value for name, value in item.arguments.items() if name in ("ema_decay", "sharpness", "problem")}
    baseline = SourceOnly if owner.setting.sees_target else ERM
    case = replace(item, class_path=path_of(baseline), arguments={**kept, **shared}, callbacks=[], label="")
    plain = _trained_network(json.dumps(asdict(case)))
    same = control.network.state_dict().keys() == plain.keys()
    same = same and not differences(control.network.state_dict(), plain)
    if not owner.control_difference_reason:
        assert same
        return
    assert not same, "it says that its control is not source-only, but it is"
    if owner.control_learns_target:
        garbage, _ = item.train(folder, method=item.make(**owner.control), data=item.make_data(garbage=True))
        assert not differences(control.network.state_dict(), garbage.network.state_dict())
        return
    if owner.setting.starts_from_model:
        before, after = (model.network.named_parameters() for model in (item.make(), control))
        assert all(torch.equal(one, other) for (_, one), (_, other) in zip(before, after, strict=True))
    blind = {**owner.control, "norm": "frozen"}
    ours, _ = item.train(folder, method=item.make(**blind))
    if owner.setting.streams_target:
        _check_served(item, active, ours)
    others, _ = item.train(folder, method=item.make(**blind), data=item.make_data(other_target=True))
    assert not differences(dict(ours.network.named_parameters()), dict(others.network.named_parameters()))


def _check_served(item: Case, active: Method, control: Method) -> None:
    """A test-time method's control serves what its start predicts, under frozen statistics; the method does not."""
    data, moved = item.make_data(), False
    for name in data.target:
        domain = data.domain(name, "test")
        for batch in data.evaluation_loader(domain, shard=False):
            with torch.no_grad():
                ours, theirs = (m.eval().evaluate_variants(batch.unlabelled(domain), False) for m in (active, control))
            torch.testing.assert_close(theirs[""].logits, theirs["_without_adaptation"].logits)
            moved |= not torch.allclose(ours[""].logits, theirs[""].logits)
    assert moved, "the adaptation changes nothing that is served"


def check_resume(items: list[Case], folder: Path) -> dict[str, dict[str, Any]]:
    """Trains each case in one go here; in a second process, from a checkpoint in the middle of an epoch, to the end.

    Returns:
        For each case, what differs: it must be empty.
    """
    for item in items:
        shutil.copytree(trained(item).folder, folder / item.name)
    run_second_process(items, folder)
    return {item.name: _resume_differences(folder / item.name) for item in items}


def _resume_differences(folder: Path) -> dict[str, Any]:
    last = STEPS_PER_EPOCH * EPOCHS
    one, other = (
        torch.load(folder / where / f"step={last}.ckpt", weights_only=True) for where in ("checkpoints", "resumed")
    )
    found: dict[str, Any] = dict(differences(one["state_dict"], other["state_dict"]))
    for key in ("optimizer_states", "dafw", "run", "global_step", "epoch"):
        if not equal(one[key], other[key]):
            found[key] = (one[key], other[key])
    for name in ("metrics.csv", "marks.json"):
        texts = [(folder / prefix / name).read_text() for prefix in ("", "again")]
        if texts[0] != texts[1]:
            found[name] = texts
    return found


def check_ranks(items: list[Case], folder: Path) -> dict[str, float]:
    """Trains each case in float64 in one process and on two ranks that share its batch.

    Returns:
        For each case, the largest difference of any weight, buffer or logged value: at most 1e-9, unless the
        method's ``rank_difference_reason`` says what each rank does on its own by design.
    """
    assert BATCH % 2 == 0
    run_ranks(items, folder)
    found = {}
    for item in items:
        alone = trained(item, "64-true")
        ranks = torch.load(folder / f"{item.name}.pt", weights_only=True)
        worst = max(differences(alone.method.state_dict(), ranks).values(), default=0.0)
        one, two = (CsvLog(path).rows for path in (alone.folder / "metrics.csv", folder / f"{item.name}-two.csv"))
        assert [row.keys() for row in one] == [row.keys() for row in two]
        for left, right in zip(one, two, strict=True):
            worst = max([worst, *(abs(float(left[k]) - float(right[k])) for k in left if left[k] != right[k])])
        found[item.name] = worst
    return found
