"""Thresholds that are fitted: the same on every rank as in one process."""

from pathlib import Path

import numpy as np
import thresholds
import torch
from thresholds import KEEP, make_data, make_method
from torch import Tensor
from two_ranks import one_and_both


def fitted_by_hand(weights: dict[str, Tensor]) -> Tensor:
    """The threshold that the sources' validation samples give, one at a time."""
    method = make_method().double()
    method.load_state_dict(weights)
    method.eval()
    assert method.rejection is not None
    data = make_data()
    images = [image for name in data.source for image in data.domain(name, "val").inputs]
    with torch.no_grad():
        logits = torch.cat([method.forward_rows(image[None], 1, method.eval_network).logits for image in images])
    scores = method.rejection.score(logits).sort().values
    return scores[int(np.ceil(KEEP * len(scores))) - 1]


def test_two_ranks_fit_what_one_process_fits(tmp_path: Path) -> None:
    assert [len(make_data().domain(name, "val")) for name in "ac"] == [15, 7]
    one, *both = one_and_both(Path(thresholds.__file__), tmp_path)
    start = fitted_by_hand(make_method().double().state_dict())
    for found in (one, *both):
        assert torch.equal(found["validation"], start)
        assert torch.equal(found["refit"], start)
        assert torch.equal(found["weights"]["rejection.fitted"], fitted_by_hand(found["weights"]))
    first, second = (found["weights"] for found in both)
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert first["rejection.fitted"] != start
