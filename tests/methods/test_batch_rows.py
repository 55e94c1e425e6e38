"""How many samples a batch must hold."""

from pathlib import Path
from typing import Any

import pytest

from dafw.errors import UserError
from dafw.methods import DAN, JAN, Method
from dafw.testing import case


@pytest.mark.parametrize("method", [DAN, JAN])
@pytest.mark.parametrize("options", [{"linear": True}, {"estimator": "tllib"}])
def test_an_estimate_of_pairs_needs_equal_sides(method: type[Method], options: dict[str, Any], tmp_path: Path) -> None:
    item = case(method, **options)
    with pytest.raises(UserError, match=r"needs as many target as source samples in a batch, not 6 and 4: set data\.t"):
        item.train(tmp_path, data=item.make_data(batch_size=4, target_batch_size=6))
    item.train(tmp_path, data=item.make_data(batch_size=4, target_batch_size=4))
    with pytest.raises(UserError, match="no biased estimate in linear time"):
        case(method, linear=True, estimator="biased").make()
