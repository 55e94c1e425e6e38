"""ROID, against two steps of its authors' code and by its properties."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from golden_streams import GoldenNetwork, mirrored, norm_state, pass_stream
from golden_vectors import golden

from dafw.data.target_stream import TargetStream
from dafw.methods import ROID
from dafw.testing import case
from dafw.testing.cases import TINY, differences
from dafw.testing.toys import ToyData

EXACT = {"rtol": 1e-7, "atol": 1e-9}


def test_two_steps_of_the_authors_code(tmp_path: Path) -> None:
    a = golden("roid/two_steps.npz")
    method = ROID(
        GoldenNetwork(a),
        num_classes=len(a["init_fc_b"]),
        optimizer="momentum",
        lr=float(a["lr"]),
        momentum=float(a["momentum"]),
        temperature=float(a["temperature"]),
        momentum_start=float(a["momentum_src"]),
        momentum_probabilities=float(a["momentum_probs"]),
        augment=mirrored,
    )

    def look(method: ROID, k: int) -> None:
        np.testing.assert_array_equal(method.rows_used, a[f"kept{k}"].astype(bool))
        np.testing.assert_allclose(method.recent, a[f"p_ema{k}"], **EXACT)
        for name, value in norm_state(method.network).items():
            if f"after{k}_{name}" in a:
                np.testing.assert_allclose(value, a[f"after{k}_{name}"], **EXACT, err_msg=f"{name} after {k}")

    for k, served in enumerate(pass_stream(method, a, tmp_path, look), 1):
        np.testing.assert_allclose(served, a[f"served{k}"], **EXACT)


def trained(folder: Path, **arguments: Any) -> ROID:
    method, _ = case(ROID, **{**TINY["ROID"], **arguments}).train(folder)
    assert isinstance(method, ROID)
    return method


def test_weights_are_drawn_back_to_the_start(tmp_path: Path) -> None:
    method = trained(tmp_path, momentum_start=0.0)
    assert not differences(method.network.state_dict(), method.start.module.state_dict())
    near, far = (trained(tmp_path, momentum_start=share) for share in (0.5, 1.0))
    distance = [
        sum(differences(one.network.state_dict(), one.start.module.state_dict()).values()) for one in (near, far)
    ]
    assert 0 < distance[0] < distance[1]


def test_rows_without_a_weight_are_not_used(tmp_path: Path) -> None:
    assert 0 < int(trained(tmp_path).served.used.sum()) < 60
    assert bool(trained(tmp_path, weighting=False).served.used.all())


def test_the_view_is_normalised_by_the_rows_that_count(tmp_path: Path) -> None:
    item = case(ROID)
    method = item.make()
    x, counted = torch.rand(6, 3, 6, 6), torch.tensor([True, False, True, True, False, True])
    with torch.no_grad(), method.layout.temporarily(stream=method.stream_statistics):
        alone = method.forward_rows(x[counted], 0).logits
        with method.layout.temporarily(counted=counted):
            together = method.forward_rows(x, 0).logits
    torch.testing.assert_close(together[counted], alone)


def test_its_parts_can_be_left_out(tmp_path: Path) -> None:
    plain = trained(tmp_path, prior_correction=False, consistency=False)
    assert set(plain.recent_terms()) == {"likelihood_ratio", "loss"}


def test_a_window_is_one_batch(tmp_path: Path) -> None:
    data = ToyData("a", "b", target_batch_size=1, count=14, stream=TargetStream(window=4))
    method, _ = case(ROID).train(tmp_path, data=data)
    assert bool(method.served.done.all())
    assert differences(method.network.state_dict(), method.start.module.state_dict())
    assert all(bool(value.isfinite().all()) for value in method.state_dict().values())
