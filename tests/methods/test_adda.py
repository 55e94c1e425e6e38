"""ADDA: its two parts against a loop written by hand, what stays still in the second, and who serves whom."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dafw.data.batch import Batch
from dafw.errors import UserError
from dafw.methods import ADDA
from dafw.optim.schedules import Constant
from dafw.testing import case
from dafw.testing.cases import BATCH, EPOCHS, STEPS_PER_EPOCH, Case, differences

STEPS = STEPS_PER_EPOCH * EPOCHS


def make_case(**arguments: object) -> Case:
    return case(ADDA, **{"width": 8, "depth": 1, **arguments})


def trained(folder: Path, *, epochs: int = EPOCHS, **arguments: object) -> tuple[ADDA, list[Batch]]:
    """A method in the second part, and the batches that it saw."""
    item = make_case(**arguments)
    method, _ = item.train(folder, epochs=epochs, precision="64-true")
    assert isinstance(method, ADDA)
    data = item.make_data(steps_per_epoch=STEPS)
    data.setup("fit")
    return method.train(), list(data.train_dataloader())


def by_hand(method: ADDA, batches: list[Batch], *, start: int, reversed_loss: bool) -> None:
    """Pretraining, then two optimisers, the critic's and the encoder's, both from the same outputs."""
    network = method.network.train()
    assert network.head is not None
    first = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)
    for batch in batches[:start]:
        first.zero_grad()
        F.cross_entropy(network(batch.x[:BATCH]).logits, batch.y).backward()
        first.step()
    source = copy.deepcopy(network).eval()
    options = {"lr": 0.02, "momentum": 0.9, "weight_decay": 0.01}
    d, g = (torch.optim.SGD(part.parameters(), **options) for part in (method.critic, network.backbone))
    for i, batch in enumerate(batches[start:]):
        with torch.no_grad():
            real = source(batch.x[:BATCH]).features
        made = network(batch.x[BATCH:]).features

        def judge(real: Tensor, made: Tensor) -> tuple[Tensor, Tensor]:
            domain = torch.cat([torch.ones(BATCH), torch.zeros(BATCH)]).double()
            scores = method.critic(torch.cat([real, made])).squeeze(1)
            return F.binary_cross_entropy_with_logits(scores, domain), scores[BATCH:].sigmoid().log()

        scale = 2 * (2 / (1 + torch.exp(torch.tensor(-i / 4)).item()) - 1)
        wrong, fooled = judge(real, made)
        g.zero_grad()
        (-scale * wrong if reversed_loss else -fooled.mean()).backward()
        d.zero_grad()
        judge(real, made.detach())[0].backward()
        for optimizer in (d, g):
            optimizer.step()


@pytest.mark.parametrize("encoder_loss", ["inverted", "reversed"])
@pytest.mark.parametrize("pretrain", [0.4, 0.75])
def test_against_a_loop_written_by_hand(tmp_path: Path, encoder_loss: str, pretrain: float) -> None:
    own = {"pretrain": pretrain, "adversarial_lr": 0.4, "encoder_loss": encoder_loss, "ramp_steps": 4}
    method, batches = trained(tmp_path, weight_decay=0.01, schedule=Constant(), **own)
    expected = make_case().make().double()
    assert isinstance(expected, ADDA)
    by_hand(expected, batches, start={0.4: 4, 0.75: 6}[pretrain], reversed_loss=encoder_loss == "reversed")
    for name in ("network", "critic"):
        found = differences(getattr(method, name).state_dict(), getattr(expected, name).state_dict())
        assert all(difference < 1e-10 for difference in found.values()), found


def test_the_source_encoder_and_the_head_stay_still(tmp_path: Path) -> None:
    halfway, _ = trained(tmp_path, weight=0.0, weight_decay=0.1)
    method, _ = trained(tmp_path, weight_decay=0.1)
    kept, went_on = method.source_encoder.module.state_dict(), method.network.state_dict()
    assert not differences(halfway.source_encoder.module.state_dict(), kept), "what the critic does reaches the copy"
    moved = differences(kept, went_on)
    learnt = [name for name, _ in method.network.named_parameters()]
    assert not [name for name in moved if name.startswith("head")]
    assert [name for name in learnt if name in moved] == [name for name in learnt if not name.startswith("head")]
    still = differences(halfway.source_encoder.module.state_dict(), halfway.network.state_dict())
    assert not set(still) & set(learnt), "with weight 0 the encoder keeps its weights"
    assert still, "but its batch statistics go on"


def test_the_encoder_raises_and_the_critic_lowers_the_critics_loss(tmp_path: Path) -> None:
    method, batches = trained(tmp_path, norm="frozen")
    optimizer = method.trainer.optimizers[0]
    for parts, sign in ((method.encoder, 1), (list(method.critic.parameters()), -1)):
        optimizer.state.clear()
        chosen = {id(parameter) for parameter in parts}
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 if {id(p) for p in group["params"]} & chosen else 0.0
        before = method.adversarial_step(batches[0])["domain"]
        after = method.adversarial_step(batches[0])["domain"]
        assert sign * (after - before).item() > 0


def test_each_domain_is_evaluated_by_its_encoder(tmp_path: Path) -> None:
    method, batches = trained(tmp_path)
    path = tmp_path / "step=8.ckpt"
    method.trainer.save_checkpoint(path)
    again = ADDA.load(str(path))
    for model in (method.eval(), again.double()):
        with torch.no_grad():
            source, target = (model.evaluate(batches[0], source) for source in (True, False))
            assert torch.equal(source.logits, model.source_encoder(batches[0].x).logits)
            assert torch.equal(target.logits, model.network(batches[0].x).logits)
        assert not torch.equal(source.logits, target.logits)
    young, _ = trained(tmp_path, pretrain=0.99)
    with torch.no_grad():
        both = [young.eval().evaluate(batches[0], source).logits for source in (True, False)]
    assert torch.equal(*both), "in the first part there is one encoder"


def test_the_copy_is_never_in_training_mode() -> None:
    method = make_case().make()
    assert isinstance(method, ADDA)
    modes = [{module.training for module in method.train(mode).source_encoder.modules()} for mode in (True, False)]
    assert modes == [{False}, {False}]
    assert method.train().network.training
    assert not any(parameter.requires_grad for parameter in method.source_encoder.parameters())


def test_wrong_arguments() -> None:
    with pytest.raises(UserError, match="pretrain"):
        make_case(pretrain=1.0).make()
    with pytest.raises(UserError, match="domain_specific"):
        make_case(norm="domain_specific").make()
