"""DomainBed's baselines, beyond the contract: what each is for."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from pytorch_lightning.callbacks import LambdaCallback
from torch import Tensor

from dafw.data.batch import Batch
from dafw.errors import UserError
from dafw.methods import (
    CORAL,
    DAN,
    DCAN,
    DRM,
    ERM,
    GDCAN,
    IRM,
    JAN,
    MMD,
    RSC,
    UDIM,
    DeepCORAL,
    Fish,
    GroupDRO,
    Method,
    Mixup,
    VREx,
)
from dafw.methods.generalization.fish import take
from dafw.methods.generalization.mixup import as_floats
from dafw.optim.schedules import Constant
from dafw.problems import Outputs
from dafw.testing import case
from dafw.testing.cases import differences
from dafw.testing.toys import toy_network


def rows(count: int, n: int = 6) -> tuple[list[Outputs], list[Tensor]]:
    """Outputs and labels of domains, the later the larger the loss."""
    generator = torch.Generator().manual_seed(8)
    y = [torch.randint(3, (n,), generator=generator) for _ in range(count)]
    logits = [torch.randn(n, 3, generator=generator) + (2 - m) * torch.eye(3)[labels] for m, labels in enumerate(y)]
    features = [torch.randn(n, 8, generator=generator) + m for m in range(count)]
    return [Outputs(f, z) for f, z in zip(features, logits, strict=True)], y


def make(method: type[Method], count: int, **arguments: Any) -> Any:
    if method in (Fish, GroupDRO):
        arguments["num_sources"] = count
    return method(toy_network(), num_classes=3, **arguments)


def risks_of(method: Any, domains: list[Outputs], labels: list[Tensor]) -> Tensor:
    return torch.stack(list(map(method.problem.loss, domains, labels)))


def penalty(method: type[Method], domains: list[Outputs], labels: list[Tensor]) -> Tensor:
    made = make(method, len(domains))
    if method is GroupDRO:
        return made.excess(risks_of(made, domains, labels))
    (term,) = made.penalise(domains, labels).values()
    return term


every_penalty = pytest.mark.parametrize("method", [CORAL, GroupDRO, IRM, MMD, VREx])


@every_penalty
def test_the_order_of_the_domains_does_not_matter(method: type[Method]) -> None:
    domains, labels = rows(3)
    torch.testing.assert_close(penalty(method, domains[::-1], labels[::-1]), penalty(method, domains, labels))


@pytest.mark.parametrize("method", [CORAL, GroupDRO, MMD, VREx])
def test_one_source_leaves_nothing_to_penalise(method: type[Method]) -> None:
    assert float(penalty(method, *rows(1))) == pytest.approx(0, abs=1e-7)


def test_irm_asks_for_one_source_to_be_classified_optimally_too() -> None:
    (one,), y = rows(1)
    assert penalty(IRM, [one], y) != 0
    flat = Outputs(one.features, torch.zeros(6, 3))
    assert penalty(IRM, [flat], [torch.tensor([0, 1, 2, 0, 1, 2])]) == 0


def test_group_dro_favours_the_worst_source() -> None:
    domains, labels = rows(3)
    method = make(GroupDRO, 3, rate=1.0)
    shares = [method.q.clone()]
    risks = risks_of(method, domains, labels)
    for _ in range(30):
        excess = method.excess(risks)
        with torch.no_grad():
            method.commit(Batch(None, None, torch.empty(0), torch.empty(0), 0))
        shares.append(method.q.clone())
    assert risks.argmax() == 2
    assert all(later[2] > earlier[2] for earlier, later in pairwise(shares[1:10]))
    torch.testing.assert_close(method.q.sum(), torch.tensor(1.0))
    torch.testing.assert_close(risks.mean() + excess, risks.max(), rtol=1e-3, atol=1e-3)


def test_vrex_is_the_variance_of_the_losses() -> None:
    domains, labels = rows(3)
    method = make(VREx, 3, early_weight=2.0)
    risks = risks_of(method, domains, labels)
    torch.testing.assert_close(method.penalise(domains, labels)["variance"], 2 * risks.var(correction=0))


@pytest.mark.parametrize("method", [IRM, VREx])
def test_the_weight_jumps_at_its_step(method: type[Method]) -> None:
    model = make(method, 2, weight=100.0, early_weight=1.0, anneal_steps=5)
    weights = []
    for started in range(1, 9):
        model.steps_started = started
        weights.append(model.penalty_weight)
    assert weights == [1.0] * 5 + [100.0] * 3
    with pytest.raises(UserError, match="anneal_steps"):
        make(method, 2, anneal_steps=-1)


@pytest.mark.parametrize("method", [IRM, VREx])
def test_the_optimiser_forgets_at_the_jump(method: type[Method], tmp_path: Path) -> None:
    """With equal weights before and after, the reset alone makes the difference; Adam's count of steps shows it."""
    weights: dict[str, Any] = {"weight": 1.0, "early_weight": 1.0, "anneal_steps": 5, "optimizer": "adam", "lr": 0.01}
    item = case(method, **weights)
    reset, trainer = item.train(tmp_path)
    kept, other = item.train(tmp_path, method=item.make(reset_optimizer=False))
    counts = [{int(state["step"]) for state in t.optimizers[0].state.values()} for t in (trainer, other)]
    assert counts == [{3}, {8}]
    assert differences(reset.state_dict(), kept.state_dict())


# ---- Mixup


def mixup_loss(method: Any, batch: Batch) -> Tensor:
    return method.losses(batch)["supervised"]


def batch_of(count: int, n: int = 4) -> Batch:
    generator = torch.Generator().manual_seed(1)
    x = torch.randint(256, (count * n, 3, 6, 6), generator=generator).to(torch.uint8)
    y = torch.randint(3, (count * n,), generator=generator)
    domain = torch.arange(count).repeat_interleave(n)
    return Batch(x, y, domain, torch.arange(count * n), count * n)


def test_mixup_with_a_tiny_alpha_is_erm_on_a_permutation() -> None:
    """All shares are 0 or 1, and the network sees one source's images in the place of another's."""
    torch.manual_seed(2)
    method = make(Mixup, 3, alpha=1e-6, norm="frozen").double()
    batch = batch_of(3)
    images, labels = (batch.x / 255).double().chunk(3), batch.y.chunk(3)
    moved = set()
    for started in range(1, 12):
        method.steps_started = started
        partners, shares = method.draw(3)
        assert set(shares) <= {0.0, 1.0}
        order = [i if share else j for i, (j, share) in enumerate(zip(partners, shares, strict=True))]
        moved.add(tuple(order))
        erm = make(ERM, 3, norm="frozen").double()
        erm.network.load_state_dict(method.network.state_dict())
        x, y = (torch.cat([parts[i] for i in order]) for parts in (images, labels))
        expected = erm.losses(Batch(x, y, batch.domain, batch.index, 12))["supervised"]
        torch.testing.assert_close(mixup_loss(method, batch), expected)
    assert len(moved) > 3


def test_mixup_mixes_images_as_much_as_losses() -> None:
    torch.manual_seed(2)
    method = make(Mixup, 3, alpha=1.0, norm="frozen").double()
    batch = batch_of(3)
    partners, shares = method.draw(3)
    assert sorted(partners) == [0, 1, 2]
    assert all(partner != i for i, partner in enumerate(partners))
    images, labels = (batch.x.double() / 255).chunk(3), batch.y.chunk(3)
    expected = torch.zeros((), dtype=torch.float64)
    for i, (j, share) in enumerate(zip(partners, shares, strict=True)):
        logits = method.forward_rows(share * images[i] + (1 - share) * images[j], 4).logits
        losses = [torch.nn.functional.cross_entropy(logits, labels[m]) for m in (i, j)]
        expected = expected + (share * losses[0] + (1 - share) * losses[1]) / 3
    torch.testing.assert_close(mixup_loss(method, batch), expected)


def test_mixup_draws_by_the_step_alone() -> None:
    method, other = make(Mixup, 4), make(Mixup, 4)
    draws = []
    for started in (1, 2, 7):
        method.steps_started = other.steps_started = started
        torch.rand(3)
        draws.append(method.draw(4))
        assert draws[-1] == other.draw(4)
    assert draws[0] != draws[1] != draws[2]


def test_mixup_of_one_source_is_erm() -> None:
    torch.manual_seed(2)
    method = make(Mixup, 1, norm="frozen")
    batch = batch_of(1)
    expected = method.problem.loss(method.forward_rows(batch.x, 4), batch.y)
    torch.testing.assert_close(mixup_loss(method, batch), expected)


@pytest.mark.parametrize("x", [[torch.zeros(3, 6, 6)], torch.zeros(2, 5, dtype=torch.int64)])
def test_what_mixup_cannot_mix(x: Any) -> None:
    with pytest.raises(UserError, match="Mixup"):
        as_floats(x, torch.float32)


# ---- RSC


def challenged(logits_of: Any, features: Tensor, y: Tensor, drop_f: float, drop_b: float) -> Tensor:
    """RSC's logits, computed row by row with numpy's percentiles."""
    f = features.detach().clone().requires_grad_()
    z = logits_of(f)
    (g,) = torch.autograd.grad(z[range(len(y)), y].sum(), f)
    kept = np.stack([row < np.percentile(row, 100 * (1 - drop_f)) for row in g.numpy()])
    muted = logits_of(features * torch.tensor(kept))
    fall = (z.softmax(1) - muted.softmax(1))[range(len(y)), y].detach().numpy()
    rows = torch.tensor(fall >= np.percentile(fall, 100 * (1 - drop_b)))
    return torch.where(rows[:, None], muted, z)


@pytest.mark.parametrize("width", [None, 5])
def test_rsc_mutes_what_matters_most(width: int | None) -> None:
    torch.manual_seed(3)
    method = RSC(toy_network(head_width=width), num_classes=3, drop_features=0.4, drop_batch=0.3).double()
    features, y = torch.randn(10, 8, dtype=torch.float64, requires_grad=True), torch.randint(3, (10,))
    found = method.challenge(Outputs(features, method.network.head(features)), y).logits
    expected = challenged(method.network.head, features, y, 0.4, 0.3)
    torch.testing.assert_close(found, expected)
    changed = (found != method.network.head(features)).any(1)
    assert int(changed.sum()) == 3


def test_rsc_raises_the_loss_of_a_linear_head() -> None:
    """Where the features speak for the class, taking the strongest away can only hurt."""
    torch.manual_seed(3)
    method = RSC(toy_network(), num_classes=3, drop_batch=1.0).double()
    features, y = torch.rand(10, 8, dtype=torch.float64, requires_grad=True), torch.randint(3, (10,))
    outputs = Outputs(features, method.network.head(features))
    score = outputs.logits.gather(1, y[:, None])
    assert (method.challenge(outputs, y).logits.gather(1, y[:, None]) <= score).all()


@pytest.mark.parametrize("width", [64, None])
def test_rsc_draws_another_mask_of_a_hidden_layer_alone(width: int | None) -> None:
    torch.manual_seed(3)
    method = RSC(toy_network(head_width=width, dropout=0.5), num_classes=3).train()
    (layer,) = [module for module in method.network.modules() if isinstance(module, torch.nn.Dropout)]
    masks: list[Tensor] = []
    layer.register_forward_pre_hook(lambda _, given: (1 + 0 * given[0],))  # what comes out is the mask
    layer.register_forward_hook(lambda _, given, out: masks.append(out))
    method.losses(batch_of(2))
    assert len(masks) == (2 if width else 1)
    assert not width or not torch.equal(*masks)


@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_rsc_drops_shares(share: float) -> None:
    with pytest.raises(UserError, match="drop_batch"):
        make(RSC, 2, drop_batch=share)


# ---- Fish


def test_fish_goes_part_of_the_way_of_steps_on_one_source_each(tmp_path: Path) -> None:
    """Against two steps of plain SGD written out, whose state is none."""
    plain: dict[str, Any] = {"optimizer": "momentum", "momentum": 0.0, "schedule": Constant(), "norm": "frozen"}
    item = case(Fish, meta_lr=0.3)
    seen: list[Batch] = []
    watch = LambdaCallback(on_train_batch_start=lambda trainer, model, batch, index: seen.append(batch))
    options: dict[str, Any] = {"epochs": 1, "limit_val_batches": 0, "callbacks": [watch]}
    method, _ = item.train(tmp_path, method=item.make(**plain), data=item.make_data(steps_per_epoch=1), **options)
    twin, (batch,) = item.make(**plain), seen
    before = {name: value.clone() for name, value in twin.network.named_parameters()}
    for m in range(2):
        rows = batch.domain == m
        loss = twin.problem.loss(twin.forward_rows(batch.x[rows], None), batch.y[rows])
        gradients = torch.autograd.grad(loss, list(twin.network.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(twin.network.parameters(), gradients, strict=True):
                parameter -= 0.05 * gradient
    for name, value in twin.network.named_parameters():
        expected = before[name] + 0.3 * (value - before[name])
        torch.testing.assert_close(method.network.get_parameter(name), expected)


def test_fish_averages_running_statistics_and_keeps_the_optimisers_state(tmp_path: Path) -> None:
    item = case(Fish, optimizer="adam", lr=0.01, ema_decay=0.5)
    method, trainer = item.train(tmp_path)
    counts = {int(state["step"]) for state in trainer.optimizers[0].state.values()}
    assert counts == {2 * method.steps_done}
    assert method.weight_average is not None
    whole, _ = item.train(tmp_path, method=item.make(meta_lr=1.0))
    name = "backbone.norm.running_mean"
    assert not torch.equal(method.network.get_buffer(name), whole.network.get_buffer(name))


def test_fish_mixed_parts_hold_every_row_once_and_all_sources() -> None:
    method = make(Fish, 3, mixed=True)
    parts = [take(torch.arange(24), part).tolist() for part in method.parts(24, 3)]
    assert sorted(row for part in parts for row in part) == list(range(24))
    assert all({row // 8 for row in part} == {0, 1, 2} for part in parts)
    with pytest.raises(UserError, match="batch_size"):
        method.parts(6, 3)
    with pytest.raises(UserError, match="meta_lr"):
        make(Fish, 3, meta_lr=0.0)


def test_what_is_searched_fits_the_shipped_recipe() -> None:
    recipe = yaml.safe_load((Path(__file__).parents[2] / "experiments/domainbed/erm.yaml").read_text(encoding="utf-8"))
    steps = recipe["data"]["init_args"]["steps_per_epoch"] * recipe["trainer"]["max_epochs"]
    for method in (ERM, DRM, UDIM):
        low, high = method.search_space["lr"]
        assert low <= recipe["model"]["init_args"]["lr"] <= high
    for annealed in (IRM, VREx):
        assert annealed.search_space["anneal_steps"][1] <= steps / 2


SIDES = ("batch_size", "target_batch_size")


@pytest.mark.parametrize(
    ("method", "sizes", "named"),
    [
        (IRM, {"batch_size": 1}, "batch_size"),
        (CORAL, {"batch_size": 1}, "batch_size"),
        (DeepCORAL, {"batch_size": 1}, "batch_size"),
        (DeepCORAL, {"target_batch_size": 1}, "target_batch_size"),
        *((method, {side: 1}, side) for method in (DAN, JAN, DCAN, GDCAN) for side in SIDES),
    ],
)
def test_one_row_of_a_domain_is_too_few(
    method: type[Method], sizes: dict[str, int], named: str, tmp_path: Path
) -> None:
    item = case(method)
    with pytest.raises(UserError, match=rf"data\.{named} must be at least 2"):
        item.train(tmp_path, data=item.make_data(**sizes))
    item.train(tmp_path, data=item.make_data(**dict.fromkeys(sizes, 2)))


def test_fish_needs_epochs(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="max_epochs"):
        case(Fish).train(tmp_path, max_steps=3)
