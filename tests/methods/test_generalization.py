"""What generalization methods are given, what they may not see, and what they are evaluated with."""

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
from dafw.testing.cases import differences
from dafw.testing.steps import StepWatch
from dafw.testing.toys import toy_network


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
    assert all(set(entry["validators"]) == {"source_accuracy", "source_loss"} for entry in method.history)
    assert all(set(entry["test"]) == {"b"} for entry in method.history)
    roles = [one.role for one in method.evaluator.evaluations]
    assert roles == ["source_val", "source_val", "target_val", "target_test"]


@pytest.mark.parametrize("asked", [False, True])
def test_a_validation_passes_no_sample_through_the_network_that_it_need_not(tmp_path: Path, asked: bool) -> None:
    item = case(ERM)
    method, data = item.make(), item.make_data(evaluate_train=asked)
    samples: list[int] = []

    def count(module: torch.nn.Module, given: tuple[Any, ...]) -> None:
        if not module.training:
            samples.append(len(given[0]))

    method.network.backbone.register_forward_pre_hook(count)
    data.forbidden = [("b", "train")]
    item.train(tmp_path, method=method, data=data)
    splits = [("a", "val"), ("c", "val"), ("b", "val"), ("b", "test")]
    splits += [("a", "train"), ("c", "train")] if asked else []
    assert sum(samples) == len(method.history) * sum(len(data.load(name, split)) for name, split in splits)  # type: ignore[arg-type]
    assert len(samples) == len(method.history) * len(splits)  # one large batch each
    validators = method.history[-1]["validators"]
    assert ("source_train_accuracy" in validators) == asked
    if asked:
        scores = []
        for name in ("a", "c"):
            (batch,) = data.evaluation_loader(data.load(name, "train"))
            with torch.no_grad():
                scores.append(
                    float((method.eval().evaluate(batch, source=True).logits.argmax(1) == batch.y).float().mean())
                )
        assert validators["source_train_accuracy"] == pytest.approx(sum(scores) / 2)


def test_the_loss_on_the_sources_validation_splits_is_a_mean_over_samples_then_over_sources(tmp_path: Path) -> None:
    item = case(ERM)
    data = item.make_data(eval_batch_size=8)  # 21 samples: the last batch is smaller
    method, _ = item.train(tmp_path, data=data)
    losses = []
    for name in ("a", "c"):
        (batch,) = item.make_data().evaluation_loader(data.load(name, "val"))
        with torch.no_grad():
            losses.append(float(method.problem.loss(method.eval().evaluate(batch, source=True), batch.y)))
    assert method.history[-1]["validators"]["source_loss"] == pytest.approx(sum(losses) / 2, rel=1e-5)


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
        (ERM, {"gradient_clip_val": 1.0}, "no trainer.gradient_clip_val"),
        (ERM, {"accumulate_grad_batches": 2}, "no trainer.accumulate_grad_batches"),
    ],
)
def test_where_sharpness_cannot_be_followed(method: Any, options: dict[str, Any], said: str, tmp_path: Path) -> None:
    item = case(method)
    with pytest.raises(UserError, match=said):
        item.train(tmp_path, method=item.make(sharpness=SAM()), **options)


def test_a_trained_model_is_evaluated_by_running_statistics_or_by_the_test_batchs(tmp_path: Path) -> None:
    item = case(ERM)
    method, trainer = item.train(tmp_path, precision="64-true")
    path = tmp_path / "step=8.ckpt"
    trainer.save_checkpoint(path)
    domain = item.make_data().load("b", "test")
    images = torch.stack([domain.inputs[i] for i in range(7)])
    loaded = {how: ERM.load(str(path), test_statistics=how).double() for how in ("running", "batch")}
    before = {name: value.clone() for name, value in loaded["batch"].state_dict().items()}
    with torch.no_grad():
        together, alone = (
            {how: torch.cat([one(part).logits for part in parts]) for how, one in loaded.items()}
            for parts in ([images], images.split(1))
        )
        torch.testing.assert_close(together["running"], method.eval()(images).logits)
        torch.testing.assert_close(together["running"], alone["running"])
        assert (together["batch"] - alone["batch"]).abs().max() > 1e-3
        method.train()
        torch.testing.assert_close(together["batch"], method(images).logits)
    assert all(torch.equal(value, before[name]) for name, value in loaded["batch"].state_dict().items())
    assert loaded["running"].transductive_reason == ""
    assert loaded["batch"].transductive_reason == "batch statistics of the test batch"


def test_training_does_not_depend_on_the_statistics_of_the_test(tmp_path: Path) -> None:
    found = [case(ERM, test_statistics=how, ema_decay=0.8).train(tmp_path)[0] for how in ("running", "batch")]
    assert not differences(*(method.state_dict() for method in found))
    scores = [[entry["validators"] for entry in method.history] for method in found]
    assert scores[0] != scores[1]


def test_the_test_batchs_statistics_of_a_network_that_has_none() -> None:
    network = toy_network("dafw.nn.digits.MNISTNet", backbone_args={"input_size": 28})
    with pytest.raises(UserError, match="needs a network with batch normalisation"):
        ERM(network, num_classes=3, test_statistics="batch")


def test_batch_norms_that_only_the_target_would_train() -> None:
    with pytest.raises(UserError, match="norm is domain_specific, but no target image"):
        case(ERM).make(norm="domain_specific")


def test_a_transductive_method_is_evaluated_in_an_order_that_is_not_by_class(tmp_path: Path) -> None:
    item = case(ERM)
    orders = {}
    for statistics in ("running", "batch"):
        data = item.make_data()
        item.train(tmp_path, method=item.make(test_statistics=statistics), data=data)
        loader = data.evaluation_loader(data.load("b", "test"))
        orders[statistics] = torch.cat([batch.index for batch in loader]).tolist()
    assert orders["running"] == sorted(orders["batch"])
    assert orders["batch"] != orders["running"]
