"""What the checks of a case share: one training in each precision."""

from pathlib import Path

import torch

from dafw.methods import DANN, ERM, Method
from dafw.testing import Case, case, contract
from dafw.testing.cases import differences


def weights(method: Method) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in method.state_dict().items()}


def test_the_checks_leave_it_as_it_was(tmp_path: Path) -> None:
    item = case(DANN)
    methods = [contract.trained(item).method, contract.trained(item, "64-true").method]
    before = [weights(method) for method in methods]
    contract.check_label_blind(item, tmp_path)
    contract.check_round_trip(item, tmp_path)
    contract.check_batch_free_inference(item, tmp_path)
    contract.check_control(item, tmp_path)
    after = [contract.trained(item).method, contract.trained(item, "64-true").method]
    assert all(one is other for one, other in zip(methods, after, strict=True))
    assert not any(differences(old, method.state_dict()) for old, method in zip(before, after, strict=True))


def test_two_cases_share_none() -> None:
    one, other = (Case("dafw.methods.generalization.erm.ERM", label="erm") for _ in range(2))
    assert one.owner is ERM
    assert contract.trained(one).method is not contract.trained(other).method
