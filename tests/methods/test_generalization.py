"""What generalization methods are given, and what they may not see."""

from pathlib import Path
from typing import Any

import pytest
import torch

from dafw.errors import UserError
from dafw.methods import ERM, MCD
from dafw.methods.generalization.base import split_domains
from dafw.optim.sharpness import SAM
from dafw.problems import Outputs
from dafw.testing import case
from dafw.testing.steps import StepWatch


def test_a_batch_holds_an_equal_share_of_each_source_and_nothing_else(tmp_path: Path) -> None:
    item = case(ERM)
    data = item.make_data(batch_size=6)
    item.train(tmp_path, data=data)
    batch = next(iter(data.train_dataloader()))
    assert batch.domain.tolist() == [0] * 6 + [1] * 6
    assert batch.num_source == len(batch) == len(batch.y)
    assert data.num_sources == 2


def test_the_rows_of_each_source() -> None:
    joint = Outputs(torch.arange(12.0).view(6, 2), torch.arange(6.0).view(6, 1))
    domains, labels = split_domains(joint, torch.arange(6), 3)
    assert [y.tolist() for y in labels] == [[0, 1], [2, 3], [4, 5]]
    assert [one.logits.flatten().tolist() for one in domains] == [[0, 1], [2, 3], [4, 5]]


def test_a_validation_scores_no_split_of_the_target_by_what_needs_its_samples(tmp_path: Path) -> None:
    item = case(ERM)
    method, _ = item.train(tmp_path)
    assert all(set(entry["validators"]) == {"source_accuracy"} for entry in method.history)
    assert all(set(entry["test"]) == {"b"} for entry in method.history)
    roles = [one.role for one in method.evaluations]
    assert roles == ["source_val", "source_val", "target_val", "target_test"]


def test_an_oracle_run_trains_on_the_target(tmp_path: Path) -> None:
    item = case(ERM)
    data = item.make_data(oracle=True)
    item.train(tmp_path, data=data)
    assert [domain.name for domain in data.train_domains] == ["b"]


def test_sam_makes_two_passes_and_counts_statistics_once(tmp_path: Path) -> None:
    item = case(ERM, sharpness=SAM(0.5))
    watch = StepWatch()
    method, trainer = item.train(tmp_path, callbacks=[watch], limit_val_batches=0)
    assert set(watch.passes) == {2}
    assert not watch.host_reads
    assert trainer.global_step == method.steps_done == len(watch.passes)
    counted = method.network.backbone.norm.num_batches_tracked
    assert int(counted) == method.steps_done


@pytest.mark.parametrize(
    ("method", "options", "said"),
    [
        (MCD, {}, "MCD makes its own updates, which follow no model.sharpness"),
        (ERM, {"accumulate_grad_batches": 2}, "no trainer.accumulate_grad_batches"),
    ],
)
def test_where_sharpness_cannot_be_followed(method: Any, options: dict[str, Any], said: str, tmp_path: Path) -> None:
    item = case(method)
    with pytest.raises(UserError, match=said):
        item.train(tmp_path, method=item.make(sharpness=SAM()), **options)
