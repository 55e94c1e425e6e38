"""DACS, DAFormer and MIC: what passes through the student, who teaches, and that without a sure pixel nobody does."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor

from dafw.data.batch import Batch
from dafw.data.padding import IGNORE
from dafw.errors import UserError
from dafw.losses.feature_distance import feature_distance
from dafw.methods import Dacs, DAFormer, SourceOnly
from dafw.methods.segmentation.dacs import Masked
from dafw.testing import case
from dafw.testing.cases import BATCH, differences
from dafw.testing.steps import StepWatch

MASKED = {"class_path": "dafw.methods.segmentation.dacs.Masked", "init_args": {"block": 3}}
PLAIN = {"jitter": 0.0, "blur": 0.0}


def trained(folder: Path, method: type[Dacs] = Dacs, sizes: bool = False, **arguments: Any) -> tuple[Any, Batch]:
    """A method after an epoch, and a batch for it."""
    item = case(method, data_arguments={"sizes": sizes}, **arguments)
    data = item.make_data()
    model, _ = item.train(folder, data=data, epochs=1, limit_val_batches=0)
    model.train()
    return model, next(iter(data.train_dataloader()))


@pytest.mark.parametrize("sizes", [False, True])
def test_half_of_the_source_classes_cover_the_target(sizes: bool, tmp_path: Path) -> None:
    model, batch = trained(tmp_path, sizes=sizes, **PLAIN)
    rows = model.rows(batch)
    source, target, mixed = batch.x[:BATCH], batch.x[BATCH:], rows.x[BATCH:]
    assert torch.equal(rows.x[:BATCH], source)
    assert torch.equal(mixed, torch.where(rows.pasted[:, None], source, target))
    assert rows.pasted.any((1, 2)).all()
    labels, _ = model.teach(batch)
    for i in range(BATCH):
        height, width = (8, 8) if batch.sizes is None else batch.sizes[BATCH + i].tolist()
        assert not rows.pasted[i, height:].any()
        assert not rows.pasted[i, :, width:].any()
        own, kept = rows.labels[i, :height, :width], rows.pasted[i, :height, :width]
        pasted = set(own[kept].unique().tolist())
        present = set(rows.labels[i].unique().tolist()) - {IGNORE}
        assert IGNORE not in pasted
        assert len(pasted) <= -(-len(present) // 2)
        assert torch.equal(kept, torch.isin(own, torch.tensor(sorted(pasted))))
        assert (labels[i, :height, :width] != IGNORE).all()
        assert (labels[i] == IGNORE).sum() == labels[i].numel() - height * width


def test_the_rows_are_a_function_of_seed_and_step(tmp_path: Path) -> None:
    model, batch = trained(tmp_path, masked=MASKED)
    one, again = model.rows(batch), model.rows(batch)
    assert torch.equal(one.x, again.x)
    assert not torch.equal(one.x[BATCH : 2 * BATCH], batch.x[BATCH:])
    model.steps_started += 1
    later = model.rows(batch)
    assert torch.equal(one.x[:BATCH], later.x[:BATCH])
    assert not torch.equal(one.x[BATCH : 2 * BATCH], later.x[BATCH : 2 * BATCH])
    assert not torch.equal(one.x[2 * BATCH :], later.x[2 * BATCH :])


class Students(pl.Callback):
    """Keeps the student's weights before training and after each step."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Tensor]] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._keep(pl_module)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        self._keep(pl_module)

    def _keep(self, method: Any) -> None:
        state = method.network.state_dict()
        self.seen.append({name: v.clone() for name, v in state.items() if v.is_floating_point()})


def test_the_teacher_is_the_average_that_it_says(tmp_path: Path) -> None:
    students = Students()
    item = case(Dacs, threshold=0.4, decay=0.7)
    model, _ = item.train(tmp_path, callbacks=[students], precision="64-true", limit_val_batches=0)
    assert isinstance(model, Dacs)
    expected = dict(students.seen[0])
    for step, student in enumerate(students.seen[1:], 1):
        decay = min(0.7, 1 - 1 / (step + 1))
        expected = {name: decay * value + (1 - decay) * student[name] for name, value in expected.items()}
    for name, value in expected.items():
        torch.testing.assert_close(model.teacher.module.state_dict()[name], value)
    assert not any(parameter.requires_grad for parameter in model.teacher.parameters())


def test_without_weight_the_student_is_the_supervised_one(tmp_path: Path) -> None:
    """Each domain has its own statistics; the running ones have seen mixed images in place of the target's."""
    items = case(Dacs, weight=0.0), case(SourceOnly, kind="segmentation", norm="separate", forward_target=True)
    student, plain = (item.train(tmp_path, limit_val_batches=0)[0] for item in items)
    assert not differences(*(dict(one.network.named_parameters()) for one in (student, plain)))


@pytest.mark.parametrize("masked", [None, MASKED])
def test_above_one_no_threshold_lets_the_teacher_speak(masked: Any, tmp_path: Path) -> None:
    """The student then learns from the source and its pasted pixels alone, whatever the teacher says."""
    item = case(Dacs, threshold=1.1, norm="frozen", masked=masked)
    students = [item.train(tmp_path, method=item.make(decay=decay), limit_val_batches=0)[0] for decay in (0.0, 0.99)]
    assert not differences(*(one.network.state_dict() for one in students))
    model, batch = trained(tmp_path, threshold=1.1, norm="frozen", masked=masked)
    terms, rows = model.losses(batch), model.rows(batch)
    logits = model.forward_rows(rows.x, BATCH).logits[BATCH : 2 * BATCH]
    labels = torch.where(rows.pasted, rows.labels.long(), IGNORE)
    each = torch.nn.functional.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum")
    torch.testing.assert_close(terms["mixed"], each / labels.numel())
    if masked is not None:
        assert terms["masked"] == 0


def test_masked_images_have_the_mean_colour_in_their_blocks(tmp_path: Path) -> None:
    model, batch = trained(tmp_path, masked={**MASKED, "init_args": {"block": 2, "ratio": 0.5}}, **PLAIN)
    masked, target = model.rows(batch).x[2 * BATCH :], batch.x[BATCH:]
    hidden = (masked != target).any(1)
    assert 0.3 < hidden.float().mean() < 0.7
    assert (masked.permute(0, 2, 3, 1)[hidden] == 128).all()  # the toy network's mean is one half
    blocks = hidden.view(BATCH, 4, 2, 4, 2).float().mean((2, 4))
    assert torch.equal(blocks, blocks.round())


def test_what_teaches_and_what_is_looked_at_have_no_graph(tmp_path: Path) -> None:
    model, batch = trained(tmp_path, DAFormer, masked=MASKED, distance_weight=0.1)
    labels, weights = model.teach(batch)
    assert not labels.requires_grad
    assert not weights.requires_grad
    sum(model.losses(batch).values()).backward()
    assert all(p.grad is None for part in (model.teacher, model.pretrained) for p in part.parameters())


def test_nothing_to_learn_from_is_no_nan(tmp_path: Path) -> None:
    model, batch = trained(tmp_path, DAFormer, masked=MASKED, distance_weight=0.1, least_pixels=1)
    for y in (torch.full_like(batch.y, IGNORE), torch.zeros_like(batch.y)):
        terms = model.losses(replace(batch, y=y))
        sum(terms.values()).backward()
        assert all(term.isfinite() for term in terms.values())
        assert all(p.grad.isfinite().all() for p in model.network.parameters())
    one = replace(batch, x=batch.x[:, :, :1, :1].contiguous(), y=batch.y[:, 1:2, 1:2])
    assert all(term.isfinite() for term in model.losses(one).values())


def test_features_that_did_not_move_are_at_no_distance(tmp_path: Path) -> None:
    item = case(DAFormer, threshold=0.4, norm="frozen", distance_weight=0.1, lr=1e-30)
    data = item.make_data()
    model, _ = item.train(tmp_path, data=data, epochs=1, limit_val_batches=0)
    batch = next(iter(data.train_dataloader()))
    assert model.train().losses(batch)["feature_distance"] < 1e-6
    features = torch.randn(2, 4, 3, 3, requires_grad=True)
    distance = feature_distance(features, features.detach(), torch.ones(2, 3, 3, dtype=torch.bool))
    distance.backward()
    assert features.grad is not None
    assert features.grad.isfinite().all()


def test_one_pass_of_the_student_and_one_of_each_other(tmp_path: Path) -> None:
    watch = StepWatch()
    item = case(DAFormer, threshold=0.4, masked=MASKED, distance_weight=0.1)
    item.train(tmp_path, callbacks=[watch], limit_val_batches=0)
    assert set(watch.passes) == {1}
    assert not watch.host_reads


def test_a_thing_that_is_no_class_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r'model\.things "cat"'):
        case(DAFormer, things=["cat"]).train(tmp_path)
    with pytest.raises(UserError, match=r"model\.masked\.block must be at least 1"):
        Masked(block=0)
