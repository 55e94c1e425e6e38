"""DA Faster R-CNN: its step against two phases, its terms by hand, its controls, wrong arguments."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dafw.data.batch import Batch
from dafw.errors import UserError
from dafw.losses.box_critics import consistency, critic_loss
from dafw.methods import DAFasterRCNN
from dafw.nn.detector import Detector
from dafw.problems import BoxOutputs
from dafw.run.loggers import CsvLog
from dafw.testing import case
from dafw.testing.cases import BATCH, TINY, Case, differences

SMALL = TINY["DAFasterRCNN"]


def make_case(**arguments: Any) -> Case:
    return case(DAFasterRCNN, **{**SMALL, **arguments})


def batch_of(item: Case) -> Batch:
    data = item.make_data()
    data.setup("fit")
    batch: Batch = next(iter(data.train_dataloader()))
    return batch


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """A method without a trainer logs nothing."""
    monkeypatch.setattr(DAFasterRCNN, "logs_this_step", False)


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("arch", ["fasterrcnn", "fcos", "retinanet"])
def test_every_detector_has_both_critics(arch: str) -> None:
    """The image critic judges each level, the instance critic pooled regions."""
    item = case(DAFasterRCNN, network=Detector(arch, proposals_in_test=20), **SMALL)
    method: Any = item.make()
    terms = method.losses(batch_of(item))
    assert len(method.image_critic.critics) == 2
    for name in ("image", "instance", "consistency"):
        found = torch.autograd.grad(terms[name], list(method.network.backbone.parameters()), retain_graph=True)
        assert all(bool(gradient.isfinite().all()) for gradient in found)
        assert any(bool((gradient != 0).any()) for gradient in found), name


def gradients(losses: Tensor, parameters: list[Any]) -> list[Tensor]:
    found = torch.autograd.grad(losses, parameters, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("critic_levels", ["each", "shared"])
def test_a_step_is_two_phases(critic_levels: str) -> None:
    """Phase 1 moves the detector and fixes the critics, phase 2 the reverse; each is written by hand."""
    weights = {"image_weight": 0.7, "instance_weight": 0.3, "consistency_weight": 0.2, "reversal": 0.6}
    item = make_case(critic_levels=critic_levels, **weights)
    method: Any = item.make().double()
    batch, network = batch_of(item), method.network
    detector = list(network.parameters())
    critics = [*method.image_critic.parameters(), *method.instance_critic.parameters()]
    torch.manual_seed(3)
    terms = method.losses(batch)
    assert set(terms) == {*network.loss_names, "image", "instance", "consistency"}
    found = gradients(sum(terms.values()), [*detector, *critics])  # type: ignore[arg-type]

    outputs = network(batch.x)
    levels = list(outputs.levels.values())
    heads = list(method.image_critic.critics)
    heads = heads if critic_levels == "each" else heads * len(levels)
    scores = [head(level)[:, 0] for head, level in zip(heads, levels, strict=True)]
    truth = [torch.cat([torch.ones_like(s[:BATCH]), torch.zeros_like(s[BATCH:])]) for s in scores]
    bce = [F.binary_cross_entropy_with_logits(s, t, reduction="none") for s, t in zip(scores, truth, strict=True)]
    if critic_levels == "each":
        image: Any = sum(one.mean() for one in bce) / len(bce)
    else:
        image = torch.cat([one.flatten() for one in bce]).mean()
    boxes = network.proposals(outputs, SMALL["regions"])
    regions = network.regions(outputs, boxes)
    own = method.instance_critic(regions.features)
    of_source = torch.cat([torch.full((len(one),), float(i < BATCH)) for i, one in enumerate(boxes)]).double()
    instance = F.binary_cross_entropy_with_logits(own, of_source)
    p, start, distances = [s.sigmoid().mean((1, 2)) for s in scores], 0, []
    for number, one in enumerate(boxes):
        rows = own[start : start + len(one)].sigmoid()
        distances += [(level[number] - rows).abs() for level in p]
        start += len(one)
    same = torch.cat(distances).mean()
    torch.manual_seed(3)
    supervised: Any = sum(network.losses(outputs[:BATCH], batch.y).values())
    first = supervised - 0.6 * (0.7 * image + 0.3 * instance) + 0.6 * 0.2 * same
    second = 0.7 * image + 0.3 * instance + 0.2 * same
    wanted = gradients(first, detector) + gradients(second, critics)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(
        sum(terms[name] for name in ("image", "instance", "consistency")), second, rtol=1e-9, atol=1e-12
    )


@pytest.mark.usefixtures("quiet")
def test_the_losses_do_not_depend_on_the_images_order_nor_their_number() -> None:
    """Three source images and two target images, in any order of each domain."""
    item = make_case()
    method: Any = item.make().double().eval()
    batch = batch_of(item)
    values = []
    for rows in ([0, 1, 2, 8, 9], [2, 0, 1, 9, 8]):
        outputs = method.network(batch.x[rows])
        found = method.adapt(outputs[:3], outputs[3:], outputs)
        values.append(torch.stack([found[name] for name in ("image", "instance", "consistency")]))
    torch.testing.assert_close(values[0], values[1])


@pytest.mark.usefixtures("quiet")
def test_padding_changes_no_loss() -> None:
    item = make_case()
    method: Any = item.make().double().eval()
    x = batch_of(item).x[[0, 1, 8, 9]]
    grown = F.pad(x, (0, 16, 0, 32), value=77)
    sizes = torch.tensor([[32, 32]] * 4)
    found = []
    for outputs in (method.network(x), method.network(grown, sizes)):
        found.append(method.adapt(outputs[:2], outputs[2:], outputs))
    for name in found[0]:
        torch.testing.assert_close(found[0][name], found[1][name], rtol=1e-6, atol=1e-8, msg=name)


def test_consistency_by_hand() -> None:
    scores = [torch.tensor([[0.0, 2.0], [1.0, -1.0]]), torch.tensor([[3.0], [0.5]])]
    regions, image = torch.tensor([0.2, -0.4, 1.5]), torch.tensor([1, 0, 1])
    sigmoid = torch.sigmoid
    means = [[sigmoid(s[i]).mean() for s in scores] for i in (0, 1)]
    wanted = sum(abs(m - sigmoid(r)) for r, i in zip(regions, (1, 0, 1), strict=True) for m in means[i]) / 6
    torch.testing.assert_close(consistency(scores, regions, image, [None, None]), wanted)
    inside = torch.tensor([[True, False], [True, True]])
    means[0][0] = sigmoid(scores[0][0, 0])
    wanted = sum(abs(m - sigmoid(r)) for r, i in zip(regions, (1, 0, 1), strict=True) for m in means[i]) / 6
    torch.testing.assert_close(consistency(scores, regions, image, [inside, None]), wanted)
    constant = [torch.full((2, 3), 0.4)]
    assert consistency(constant, torch.full((3,), 0.4), image, [None]) < 1e-7
    none = torch.zeros(0)
    assert consistency(scores, none, none.long(), [None, None]) == 0
    assert critic_loss(none, none.bool()) == 0


@pytest.mark.usefixtures("quiet")
def test_without_its_weights_it_is_source_only_and_without_one_it_has_no_such_critic(tmp_path: Path) -> None:
    """The contract compares the control; here each part is switched off by itself."""
    alone = make_case(instance_weight=0.0, consistency_weight=0.0)
    method: Any = alone.make()
    assert not hasattr(method, "instance_critic")
    outputs: BoxOutputs = method.network(batch_of(alone).x)
    assert set(method.adapt(outputs[:BATCH], outputs[BATCH:], outputs)) == {"image"}
    other: Any = make_case(image_weight=0.0, consistency_weight=0.0).make()
    assert not hasattr(other, "image_critic")
    assert set(other.adapt(outputs[:BATCH], outputs[BATCH:], outputs)) == {"instance"}
    still, _ = make_case(reversal=0.0).train(tmp_path)
    control, _ = alone.train(tmp_path, method=alone.make(**DAFasterRCNN.control))
    assert not differences(still.network.state_dict(), control.network.state_dict()), "critics alone learn"


def test_the_ramp_and_the_accuracies_are_logged(tmp_path: Path) -> None:
    log = CsvLog(tmp_path / "metrics.csv")
    method, _ = make_case(gamma=10.0, reversal=0.5).train(tmp_path, logger=log)
    found: Any = method
    assert found.scale == pytest.approx(0.5 * (2 / (1 + math.exp(-10 * 7 / 8)) - 1))
    logged = {name.rpartition("/")[2]: value for row in log.rows for name, value in row.items()}
    for part in ("image", "instance"):
        shares = [float(logged[f"{part}_accuracy_{domain}"]) for domain in ("source", "target")]
        assert all(0 <= share <= 1 for share in shares)
    assert float(logged["reversal"]) > 0


class WithoutRegions(Detector):
    """A detector that says nothing of boxes that are not its own."""

    @property
    def regions(self) -> Any:  # type: ignore[override]
        raise AttributeError("no regions")


def test_an_instance_critic_needs_regions() -> None:
    network = WithoutRegions()
    said = (
        r"model\.instance_weight asks for a critic of regions, and WithoutRegions has no regions: set model\.instance"
    )
    with pytest.raises(UserError, match=said):
        DAFasterRCNN(network, num_classes=3)
    method = DAFasterRCNN(WithoutRegions(), num_classes=3, instance_weight=0.0, consistency_weight=0.0)
    assert not method.problem.supports_unsupervised_validators, "they look at features of regions"
    assert make_case().make().problem.supports_unsupervised_validators


@pytest.mark.parametrize("name", ["image_weight", "instance_weight"])
def test_the_consistency_needs_both_critics(name: str) -> None:
    with pytest.raises(UserError, match=r"model\.consistency_weight compares two critics, and one of model\.image"):
        make_case(**{name: 0.0}).make()
