"""A new setting is one object, and its first method one class: both are here, and nothing else knows of them."""

from pathlib import Path
from typing import Any, ClassVar

import pytest
from networks import measure

from dafw.data import Batch
from dafw.data.setting import Setting
from dafw.losses.entropy import information_maximisation
from dafw.methods import Losses, Method
from dafw.nn.network import Network
from dafw.run.checks import directions
from dafw.testing import case, contract
from dafw.testing.toys import ToyData, toy_trainer

CLUSTERING = Setting("clustering", sees_source=False)


class Clusters(Method):
    """Target images alone, no label and no trained model: confident predictions that are diverse over a batch.

    Loss: weight * (mean_i H(p_i) - H(mean_i p_i)) over the n rows of a batch; features (n, d), logits (n, K).

    Without its augmentation, this is the objective of Hu et al., Learning Discrete Representations via Information
    Maximizing Self-Augmented Training, ICML 2017, https://arxiv.org/abs/1702.08720.

    Args:
        network: images (N, C, H, W) to features (N, d) and logits (N, K).
        weight: weight of the loss.
        base: see :class:`~dafw.methods.base.Method`.
    """

    setting = CLUSTERING
    search_space: ClassVar[dict[str, Any]] = {"lr": (1e-3, 1e-1)}

    def __init__(self, network: Network, *, weight: float = 1.0, **base: Any) -> None:
        super().__init__(network, **base)
        self.weight = weight

    def losses(self, batch: Batch) -> Losses:
        """Information maximisation of the batch."""
        assert batch.num_source == 0
        return {"information": self.weight * information_maximisation(self.forward_batch(batch).logits)}


CASE = case(Clusters)


def test_it_trains_on_the_target_alone_and_is_measured(tmp_path: Path) -> None:
    data = ToyData("a", "b", batch_size=8, steps_per_epoch=4)
    data.forbidden = [("a", split) for split in ("train", "val", "test")]
    method = CASE.make()
    toy_trainer(tmp_path).fit(method, datamodule=data)
    assert [set(entry["validators"]) for entry in method.history] == [{"entropy", "im", "snd", "ac"}] * 2
    assert set(directions(method)) == {"entropy", "im", "snd", "ac"}
    assert {name.split("/")[1] for name in measure(toy_trainer(tmp_path), method, data)} == {"b"}


def test_its_name_is_the_settings() -> None:
    assert Clusters.setting.name == "clustering"
    assert not Clusters.is_abstract


def test_contract_in_one_process(tmp_path: Path) -> None:
    contract.check_label_blind(CASE, tmp_path)
    contract.check_no_stall(CASE, tmp_path)
    contract.check_batch_free_inference(CASE, tmp_path)
    contract.check_round_trip(CASE, tmp_path)
    contract.check_bf16(CASE, tmp_path)
    contract.check_documented(CASE)


def test_contract_in_two(tmp_path: Path) -> None:
    assert contract.check_resume([CASE], tmp_path / "resume") == {CASE.name: {}}
    assert contract.check_ranks([CASE], tmp_path / "ranks")[CASE.name] <= 1e-9


def test_a_stream_comes_without_a_source() -> None:
    with pytest.raises(ValueError, match="and no source"):
        Setting("both", streams_target=True)
    with pytest.raises(ValueError, match="sees the target"):
        Setting("neither", sees_source=False, sees_target=False, streams_target=True)
