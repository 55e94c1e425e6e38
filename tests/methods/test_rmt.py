"""RMT by its properties; its losses are compared with the authors' in tests/losses/test_golden_self_training.py."""

import copy
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from dafw.errors import UserError
from dafw.methods import RMT
from dafw.nn.modes import evaluation_mode
from dafw.testing import Case, case, contract
from dafw.testing.cases import TINY
from dafw.testing.toys import ToyData, toy_trainer

REPLAY = Case(**{**vars(case(RMT, **{**TINY["RMT"], "source_weight": 1.0})), "label": "replay"})


def test_prototypes_are_the_means_of_the_classes_under_the_start_model(tmp_path: Path) -> None:
    method, _ = case(RMT).train(tmp_path)
    data: Any = method.data
    with torch.no_grad(), evaluation_mode(method):
        images, labels = [], []
        for domain in data.source_domains("train"):
            images += [domain.inputs[i] for i in range(len(domain))]
            labels += [int(label) for label in domain.labels]
        features = method.start.module(torch.stack(images)).features
    for number in range(3):
        expected = features[torch.tensor(labels) == number].mean(0)
        torch.testing.assert_close(method.prototypes[number], expected, rtol=1e-5, atol=1e-6)
    assert bool(method.known.all())
    assert method.source_use == "statistics"


def test_the_contract_with_replayed_source_samples(tmp_path: Path) -> None:
    contract.check_label_blind(REPLAY, tmp_path)
    contract.check_bf16(REPLAY, tmp_path)
    found = contract.check_ranks([REPLAY], tmp_path / "ranks")
    assert max(found.values()) <= 1e-9, found
    method, _ = REPLAY.train(tmp_path / "again")
    assert method.source_use == "samples"
    assert "source" in method.recent_terms()


def test_replay_goes_on_after_a_stop(tmp_path: Path) -> None:
    assert contract.check_resume([REPLAY], tmp_path) == {"replay": {}}


def test_without_the_source_replay_is_refused(tmp_path: Path) -> None:
    class Lost(ToyData):
        """Data whose source is not there."""

        def source_domains(self, split: Any) -> Any:
            raise UserError("the folder of a is not there")

    item = case(RMT, **{**TINY["RMT"], "source_weight": 1.0, "contrast_weight": 0.0})
    data = Lost("a", "b", batch_size=8)
    with pytest.raises(UserError, match=r"model\.source_weight replays .* \(the folder of a is not there\): give"):
        toy_trainer(tmp_path, epochs=1).fit(item.make(), datamodule=data)


def test_a_class_that_the_source_lacks_is_never_the_nearest(tmp_path: Path) -> None:
    method = case(RMT).make()
    method.prototypes.copy_(-torch.ones_like(method.prototypes))
    method.prototypes[1] = 0
    method.known.copy_(torch.tensor([True, False, True]))
    assert bool((method.nearest(torch.ones(2, 8)) == -1).all())


def test_student_and_teacher_are_served_together(tmp_path: Path) -> None:
    method, _ = case(RMT).train(tmp_path)
    x = torch.rand(4, 3, 6, 6)
    with torch.no_grad():
        one, other = method.eval().network(x).logits, method.teacher(x).logits
        torch.testing.assert_close(method(x).logits, (one + other) / 2)
    assert not torch.allclose(one, other)


def test_a_second_teacher_is_refused() -> None:
    with pytest.raises(UserError, match="RMT has a teacher of its own"):
        case(RMT, ema_decay=0.9).make()


WARM = Case(**{**vars(case(RMT, **{**TINY["RMT"], "warmup_samples": 20})), "label": "warm_up"})


class FirstStep(pl.Callback):
    """Notes student and teacher before the first step."""

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Before the step."""
        if not batch_idx:
            models = pl_module.network, pl_module.teacher.module
            self.weights = [[one.detach().clone() for one in model.parameters()] for model in models]


def test_the_warm_up_moves_student_and_teacher_before_the_stream(tmp_path: Path) -> None:
    noted = FirstStep()
    item = WARM.with_source()
    method, _ = item.train(tmp_path, callbacks=[noted])
    assert isinstance(method, RMT)
    assert method.source_use == "samples"
    start = list(method.start.module.parameters())
    for weights in noted.weights:
        assert not all(torch.equal(one, other) for one, other in zip(weights, start, strict=True))
    method.restart()
    for weights, model in zip(noted.weights, (method.network, method.teacher.module), strict=True):
        assert all(torch.equal(one, other) for one, other in zip(weights, model.parameters(), strict=True))


def test_the_warm_up_follows_the_formula(tmp_path: Path) -> None:
    noted = FirstStep()
    method, _ = WARM.train(tmp_path, callbacks=[noted], precision="64-true")
    assert isinstance(method, RMT)
    student = copy.deepcopy(method.start.module).requires_grad_(True)
    teacher, decay = copy.deepcopy(student), method.teacher.decay
    optimizer = torch.optim.SGD(student.parameters(), lr=0.0, momentum=0.9)
    batches = list(method.data.shuffled_once(method.data.source_domains("train"), 20, 8, 0))
    layout = method.layout
    for number, batch in enumerate(batches, 1):
        optimizer.param_groups[0]["lr"] = method.lr * number / 3
        with layout.temporarily(stream=method.stream_statistics, track=False, num_source=0):
            labels, logits = teacher(batch.x).logits.detach(), student(batch.x).logits
        p, q = logits.softmax(1), labels.softmax(1)
        loss = -0.5 * (q * p.log() + p * q.log()).sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for own, theirs in zip(teacher.parameters(), student.parameters(), strict=True):
                own.lerp_(theirs, 1 - decay)
    assert len(batches) == 3
    for weights, model in zip(noted.weights, (student, teacher), strict=True):
        for one, other in zip(weights, model.parameters(), strict=True):
            torch.testing.assert_close(one, other.detach())


def test_the_contract_with_a_warm_up(tmp_path: Path) -> None:
    contract.check_label_blind(WARM, tmp_path)
    contract.check_control(WARM, tmp_path / "control")
    contract.check_restart(WARM, tmp_path / "restart")
    found = contract.check_ranks([WARM], tmp_path / "ranks")
    assert max(found.values()) <= 1e-9, found
    assert contract.check_resume([WARM], tmp_path / "resume") == {"warm_up": {}}
