"""ROID, against two steps of its authors' code and by its properties."""

from pathlib import Path

import numpy as np
from golden_streams import GoldenNetwork, mirrored, norm_state, pass_stream
from golden_vectors import golden

from dafw.methods import ROID

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
