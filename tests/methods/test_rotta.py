"""RoTTA, against a trajectory of its authors' code and by its properties."""

from pathlib import Path

import numpy as np
from golden_streams import GoldenNetwork, mirrored, norm_state, pass_stream
from golden_vectors import golden

from dafw.methods import RoTTA

EXACT = {"rtol": 1e-7, "atol": 1e-9}


def test_a_trajectory_of_the_authors_code(tmp_path: Path) -> None:
    a = golden("rotta/trajectory.npz")
    method = RoTTA(
        GoldenNetwork(a),
        num_classes=len(a["init_fc_b"]),
        lr=float(a["lr"]),
        momentum=float(a["beta1"]),
        capacity=int(a["memory_size"]),
        update_every=int(a["update_frequency"]),
        decay=1 - float(a["nu"]),
        statistics_momentum=float(a["alpha"]),
        augment=mirrored,
    )

    def look(method: RoTTA, k: int) -> None:
        labels = method.memory.labels[method.memory.arrivals >= 0]
        np.testing.assert_array_equal(labels.bincount(minlength=method.num_classes), a[f"occupancy{k}"])
        for who, network in (("student", method.network), ("teacher", method.teacher.module)):
            for name, value in norm_state(network).items():
                expected = a[f"{who}{k}_{name}"]
                np.testing.assert_allclose(value, expected, **EXACT, err_msg=f"{who}'s {name} after {k}")

    for k, served in enumerate(pass_stream(method, a, tmp_path, look), 1):
        np.testing.assert_allclose(served, a[f"served{k}"], **EXACT)
