"""AdaptSegNet, ADVENT, MinEnt and ParetoAdvent: their steps against loops written by hand, padding, wrong arguments."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from dafw.data import Domain
from dafw.data.batch import Batch
from dafw.data.roles import Split
from dafw.errors import UserError
from dafw.losses.maps import pixel_information
from dafw.methods import AdaptSegNet, Advent, Method, MinEnt, ParetoAdvent, SourceOnly
from dafw.nn.map_critic import MapCritic
from dafw.nn.segmentation import SegmentationNetwork
from dafw.optim.pareto import choose_weights
from dafw.optim.schedules import Constant
from dafw.problems import MaskOutputs, Segmentation
from dafw.testing import case
from dafw.testing.cases import BATCH, EPOCHS, STEPS_PER_EPOCH, Case, differences
from dafw.testing.dense_toys import ToySegmenter
from dafw.testing.toys import toy_trainer
from datamodules.base import DomainDataModule

CRITIC: dict[str, Any] = {"critic_width": 4, "critic_layers": 2}


def make_case(owner: type[Method], *, levels: int = 2, padded: bool = False, **arguments: Any) -> Case:
    network = ToySegmenter(auxiliary=levels == 2)
    data = {"sizes": True} if padded else {}
    critics = CRITIC if issubclass(owner, AdaptSegNet) else {}
    return case(owner, network=network, kind="segmentation", data_arguments=data, levels=levels, **critics, **arguments)


def batches(item: Case) -> list[Batch]:
    data = item.make_data(steps_per_epoch=STEPS_PER_EPOCH * EPOCHS)
    data.setup("fit")
    return list(data.train_dataloader())


def two_phases(
    method: AdaptSegNet, found: list[Batch], see: Callable[[Tensor], Tensor], loss: Callable[[Tensor, float], Tensor]
) -> None:
    """The authors' loop: three phases, two optimisers, four passes of the critics, which score their source 0."""
    network, critics = method.network.train(), {"logits": method.critic, "auxiliary": method.critic_auxiliary}
    weights = {"logits": method.weight, "auxiliary": method.weight * 0.2}
    sgd = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)
    own = [parameter for critic in critics.values() for parameter in critic.parameters()]
    adam = torch.optim.Adam(own, lr=0.003, betas=(0.9, 0.99))
    for batch in found:
        sgd.zero_grad()
        adam.zero_grad()
        for parameter in own:
            parameter.requires_grad = False
        source, y = network(batch.x[:BATCH]), batch.y.long()
        ce = [F.cross_entropy(scores, y, ignore_index=255) for scores in (source.logits, source.auxiliary)]
        (ce[0] + 0.4 * ce[1]).backward()
        target = network(batch.x[BATCH:])
        sum(w * loss(critics[k](see(getattr(target, k))), 0) for k, w in weights.items()).backward()
        for parameter in own:
            parameter.requires_grad = True
        for label, outputs in enumerate((source, target)):
            for name, critic in critics.items():
                (loss(critic(see(getattr(outputs, name).detach())), label) / 2).backward()
        sgd.step()
        adam.step()


def as_authors(critic: nn.Module, gan: str) -> None:
    """Turns the last layer's scores, high for the source, into theirs, high for the target; and back."""
    last = critic.convolutions[-1]  # type: ignore[index]
    with torch.no_grad():
        for parameter in last.parameters():
            parameter.neg_()
        if gan == "least_squares":  # 1 - score
            last.bias.add_(1)


def authors_information(logits: Tensor) -> Tensor:
    p = logits.softmax(1)
    return -p * torch.log2(p + 1e-30) / math.log2(logits.shape[1])


@pytest.mark.parametrize(
    ("owner", "gan"), [(AdaptSegNet, "vanilla"), (AdaptSegNet, "least_squares"), (Advent, "vanilla")]
)
def test_a_step_is_the_two_phases_of_the_authors(owner: type[AdaptSegNet], gan: str, tmp_path: Path) -> None:
    arguments = {"gan": gan, "weight": 0.3, "critic_lr": 0.003, "weight_decay": 0.01}
    item = make_case(owner, **arguments, schedule=Constant())
    method, trainer = item.train(tmp_path, precision="64-true", method=item.make())
    reference: Any = item.make().double()
    for critic in (reference.critic, reference.critic_auxiliary):
        as_authors(critic, gan)
    see = (lambda logits: logits.softmax(1)) if owner is AdaptSegNet else authors_information

    def loss(scores: Tensor, label: float) -> Tensor:
        wanted = torch.full_like(scores, label)
        return F.mse_loss(scores, wanted) if gan != "vanilla" else F.binary_cross_entropy_with_logits(scores, wanted)

    two_phases(reference, batches(item), see, loss)
    for critic in (reference.critic, reference.critic_auxiliary):
        as_authors(critic, gan)
    assert max(differences(method.state_dict(), reference.state_dict()).values(), default=0.0) < 1e-11
    assert len(trainer.optimizers) == 1
    start = item.make().double()
    assert all(value > 1e-4 for name, value in differences(method.state_dict(), start.state_dict()).items() if value)


def test_minent_is_the_authors_loss(tmp_path: Path) -> None:
    item = make_case(MinEnt, weight=0.3, schedule=Constant())
    method, _ = item.train(tmp_path, precision="64-true", method=item.make())
    reference = item.make().double()
    network: Any = reference.network.train()
    sgd = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    for batch in batches(item):
        sgd.zero_grad()
        source, y = network(batch.x[:BATCH]), batch.y.long()
        ce = [F.cross_entropy(scores, y, ignore_index=255) for scores in (source.logits, source.auxiliary)]
        target = network(batch.x[BATCH:])
        entropies = [authors_information(scores).sum(1).mean() for scores in (target.logits, target.auxiliary)]
        (ce[0] + 0.4 * ce[1] + 0.3 * (entropies[0] + 0.2 * entropies[1])).backward()
        sgd.step()
    assert max(differences(method.state_dict(), reference.state_dict()).values(), default=0.0) < 1e-11


def outputs_of(sizes: Tensor | None, *shape: int) -> MaskOutputs:
    scores = torch.randn(*shape, dtype=torch.float64)
    return MaskOutputs(scores[:, :, ::2, ::2], scores, scores.flip(1), sizes=sizes)


@pytest.mark.parametrize("owner", [AdaptSegNet, Advent, MinEnt])
def test_padding_changes_no_loss(owner: type[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """An image alone has the losses that it has in any padding, whatever is there."""
    method = make_case(owner).make().double()
    torch.manual_seed(1)
    whole = outputs_of(None, 4, 3, 10, 13)
    grown = [F.pad(scores, (0, 6, 0, 3), value=5.0) for scores in (whole.logits, whole.logits.flip(1))]
    padded = MaskOutputs(whole.features, grown[0], grown[1], sizes=torch.tensor([[10, 13]] * 4))
    monkeypatch.setattr(owner, "logs_this_step", False)
    found = [method.adapt(outputs[:2], outputs[2:], outputs) for outputs in (whole, padded)]
    assert found[0].keys() == found[1].keys()
    for name, value in found[0].items():
        torch.testing.assert_close(value, found[1][name], msg=name)


def test_images_smaller_than_a_place_of_the_critic_train(tmp_path: Path) -> None:
    """Images of 8 x 5 pixels have no place of a critic that divides by 8, others have one."""
    item = make_case(Advent, padded=True, weight=0.1)
    item.arguments["critic_layers"] = 3
    method, _ = item.train(tmp_path, epochs=1)
    assert all(bool(value.isfinite().all()) for value in method.state_dict().values())


class Watched(ParetoAdvent):
    """Compares each step's weights with those of gradients taken by hand."""

    seen: list[Tensor]

    def weigh(self, objectives: list[Tensor], batch: Batch) -> Any:
        weights = super().weigh(objectives, batch)
        assert isinstance(weights, Tensor)
        first = len(batch) - batch.num_held_out
        with self.layout.untracked():
            held_out: MaskOutputs = self.forward_rows(batch.x[first:], None)
        objectives = [*objectives, -pixel_information(held_out.logits)]
        kernel = self.network.backbone[3].weight  # type: ignore[index]
        found = [torch.autograd.grad(one, kernel, retain_graph=True)[0].flatten() for one in objectives]
        rows = torch.stack(found)
        expected = choose_weights(rows @ rows.t(), guided=torch.tensor(False)).weights
        torch.testing.assert_close(weights.detach(), expected)
        type(self).seen.append(weights)
        return weights


def test_pareto_weights_are_those_of_the_programme(tmp_path: Path) -> None:
    Watched.seen = []
    make_case(Watched, mimicking_weight=0.5).train(tmp_path, precision="64-true")
    assert len(Watched.seen) == STEPS_PER_EPOCH * EPOCHS
    torch.testing.assert_close(torch.stack(Watched.seen).sum(1), torch.full((8,), 3.0).double())


def test_pareto_with_equal_weights_and_no_mimicking_is_advent(tmp_path: Path) -> None:
    arguments = {"levels": 2, "weight": 0.3}
    pareto = make_case(ParetoAdvent, **arguments, combination="uniform", mimicking_weight=0.0)
    method, _ = pareto.train(tmp_path)

    class HoldsOut(Advent):
        held_out = 0.1

        def forward_batch(self, batch: Batch, network: nn.Module | None = None) -> Any:
            last = len(batch) - batch.num_held_out
            return self.forward_rows(batch.x[:last], batch.num_source)

    item = make_case(Advent, **arguments)
    torch.manual_seed(5)
    network = ToySegmenter(auxiliary=True)
    advent = HoldsOut(network, num_classes=3, lr=0.05, problem=Segmentation(), **CRITIC, **arguments)
    item.train(tmp_path, method=advent, data=pareto.make_data())
    assert not differences(method.state_dict(), advent.state_dict())


def test_a_backbone_that_learns_nothing_has_no_objectives(tmp_path: Path) -> None:
    item = make_case(ParetoAdvent)
    method = item.make()
    method.network.backbone.requires_grad_(False)
    with pytest.raises(UserError, match="ParetoAdvent weighs gradients at the last kernel before the label head"):
        item.train(tmp_path, method=method)


@pytest.mark.parametrize("owner", [Advent, MinEnt])
def test_two_levels_need_an_auxiliary_head(owner: type[Method], tmp_path: Path) -> None:
    item = make_case(owner, levels=1)
    item.arguments["levels"] = 2
    with pytest.raises(UserError, match=r"model.levels is 2, but the network has no auxiliary head"):
        item.train(tmp_path)


@pytest.mark.parametrize("option", ["lr", "momentum"])
def test_the_critic_has_one_rate_and_one_momentum(option: str) -> None:
    with pytest.raises(UserError, match=rf"model.parts.critic.{option} has a key of its own: .* model.critic_{option}"):
        make_case(Advent).make(parts={"critic": {option: 0.5}})


def test_the_critics_settings_are_their_own() -> None:
    method: Any = make_case(Advent).make(lr=0.1, critic_lr=0.02, weight_decay=0.5, parts={"head": {"lr": 10.0}})
    critic, *others = method.configure_optimizers().param_groups
    assert len(critic["params"]) == 8
    assert {key: critic[key] for key in ("lr", "betas", "weight_decay")} == {
        **{"lr": 0.02, "betas": (0.9, 0.99), "weight_decay": 0.0}
    }
    assert [group["lr"] for group in others] == [0.1, 1.0]
    assert all(group["momentum"] == 0.9 and group["weight_decay"] == 0.5 for group in others)


def test_the_problem_need_not_be_given() -> None:
    for owner in (AdaptSegNet, Advent, MinEnt, ParetoAdvent):
        assert isinstance(owner(ToySegmenter(), num_classes=3).problem, Segmentation)


class Large(DomainDataModule):
    """Random images of 64 pixels with random masks of four classes."""

    domain_names = ("a", "b")
    class_names = ("ground", "disk", "square", "triangle")

    def load(self, name: str, split: Split) -> Domain:
        """Eight images."""
        drawn = torch.Generator().manual_seed(len(split))
        images = torch.randint(0, 256, (8, 3, 64, 64), dtype=torch.uint8, generator=drawn)
        return Domain(name, list(images), list(torch.randint(0, 4, (8, 64, 64), dtype=torch.uint8, generator=drawn)))


class Flops(TorchDispatchMode):
    """Counts the floating point operations within it, forward and back."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        count = flop_registry.get(func.overloadpacket)
        self.total += 0 if count is None else count(*args, **(kwargs or {}), out_val=found)
        return found


class Counted(pl.Callback):
    """Counts the operations of a step."""

    def __init__(self) -> None:
        self.flops = Flops()

    def on_train_batch_start(self, *_: Any) -> None:
        self.flops.__enter__()

    def on_train_batch_end(self, *_: Any) -> None:
        self.flops.__exit__(None, None, None)


def operations(owner: type[Method], rows: int, folder: Path, **arguments: Any) -> int:
    torch.manual_seed(0)
    network = SegmentationNetwork("unet", "tf_efficientnet_lite0")
    method = owner(network, num_classes=4, problem=Segmentation(), **arguments)
    counted, data = Counted(), Large("a", "b", batch_size=rows, steps_per_epoch=1)
    toy_trainer(folder, epochs=1, callbacks=[counted], limit_val_batches=0).fit(method, datamodule=data)
    return counted.flops.total


def test_advent_takes_at_most_1_4_times_the_operations_of_a_supervised_step(tmp_path: Path) -> None:
    """Of as many rows. Its critic passes each map once, and goes back once for itself and once for the target's maps.

    Fewer are not enough: the two gradients at the score s of a place, sigmoid(s) / 2n and -weight sigmoid(-s) / n, have
    another ratio at each place, so that neither says what the other would be within the critic.
    """
    supervised = operations(SourceOnly, 4, tmp_path)
    advent = operations(Advent, 2, tmp_path)
    assert 1.1 < advent / supervised < 1.3
    critic, x = MapCritic(4), torch.rand(1, 4, 64, 64)
    with Flops() as counter:
        critic(x)
    once = counter.total
    # of two source and two target maps: forward 4, the critic's gradients 4, back through it 2 + 2, to the maps 2
    assert (advent - supervised) / once == pytest.approx(14, abs=0.7)
