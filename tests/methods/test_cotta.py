"""CoTTA by its properties; its parts are compared with the authors' in tests/losses/test_golden_self_training.py."""

from pathlib import Path
from typing import Any

import pytest
import torch

from dafw.errors import UserError
from dafw.methods import CoTTA
from dafw.testing import case
from dafw.testing.cases import TINY, differences
from dafw.testing.toys import ToyData


def trained(folder: Path, seed: int = 3, **arguments: Any) -> CoTTA:
    item = case(CoTTA, **{**TINY["CoTTA"], **arguments})
    method, _ = item.train(folder, data=item.make_data(seed=seed))
    assert isinstance(method, CoTTA)
    return method


def test_all_weights_that_are_restored_are_those_of_the_start(tmp_path: Path) -> None:
    method = trained(tmp_path, restore=1.0)
    assert not differences(dict(method.network.named_parameters()), dict(method.start.module.named_parameters()))
    moved = trained(tmp_path, restore=0.0)
    assert differences(dict(moved.network.named_parameters()), dict(moved.start.module.named_parameters()))


def test_a_share_of_the_weights_is_restored(tmp_path: Path) -> None:
    method = trained(tmp_path, restore=0.5)
    pairs = zip(method.network.parameters(), method.start.module.parameters(), strict=True)
    same = torch.cat([(own == start).flatten() for own, start in pairs])
    assert 0.4 < float(same.float().mean()) < 0.6


def test_an_unsure_batch_is_served_its_views_and_a_sure_one_is_not(tmp_path: Path) -> None:
    sure, unsure = (trained(tmp_path, threshold=threshold) for threshold in (0.0, 1.0))
    first = sure.served.step == 0
    with torch.no_grad():
        plain = differences({"served": sure.served.logits[first]}, {"served": unsure.served.logits[first]})
    assert plain
    more = trained(tmp_path, threshold=1.0, views=3)
    assert not torch.equal(unsure.served.logits[first], more.served.logits[first])


def test_views_and_restores_change_with_the_seed_and_not_otherwise(tmp_path: Path) -> None:
    one, same = (trained(tmp_path, threshold=1.0) for _ in range(2))
    assert not differences(one.state_dict(), same.state_dict())
    data = [ToyData("a", ["b", "c"], batch_size=8, seed=seed, stream_order="stored") for seed in (3, 4)]
    item = case(CoTTA, **{**TINY["CoTTA"], "threshold": 1.0})
    other = [item.train(tmp_path, data=part)[0] for part in data]
    first = other[0].served.step == 0
    assert not torch.equal(other[0].served.logits[first], other[1].served.logits[first])


def test_the_teacher_is_what_remains(tmp_path: Path) -> None:
    method = trained(tmp_path).eval()
    x = torch.rand(4, 3, 6, 6)
    with torch.no_grad():
        torch.testing.assert_close(method(x).logits, method.teacher(x).logits)
    buffers = dict(method.teacher.module.named_buffers()), dict(method.start.module.named_buffers())
    assert not differences(*buffers)


def test_a_second_teacher_is_refused() -> None:
    with pytest.raises(UserError, match="CoTTA has a teacher of its own"):
        case(CoTTA, ema_decay=0.9).make()
