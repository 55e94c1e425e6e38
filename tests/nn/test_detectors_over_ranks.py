"""Two ranks find the losses and the gradients of one process, also if one of them has no box."""

from pathlib import Path

import torch
from two_ranks import one_and_both


def test_two_ranks_find_what_one_process_finds(tmp_path: Path) -> None:
    one, *ranks = one_and_both(Path(__file__).with_name("detectors_over_ranks.py"), tmp_path)
    for both in ranks:
        assert one.keys() == both.keys()
        for name, value in one.items():
            torch.testing.assert_close(
                both[name], value, rtol=1e-9, atol=1e-10, msg=lambda said, name=name: name + said
            )
