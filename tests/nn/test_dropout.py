import pytest
import torch

from dafw.nn.dropout import NormPreservingDropout


def test_the_squared_norm_stays_on_average_and_inference_changes_nothing() -> None:
    torch.manual_seed(0)
    layer, x = NormPreservingDropout(0.4), torch.randn(1, 200_000)
    dropped = layer(x)
    assert dropped.square().sum().item() == pytest.approx(x.square().sum().item(), rel=0.02)
    assert (dropped == 0).float().mean().item() == pytest.approx(0.4, abs=0.01)
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], x[kept] / 0.6**0.5)
    assert layer.eval()(x) is x
    assert NormPreservingDropout(0.0)(x) is x


def test_a_wrong_share() -> None:
    with pytest.raises(ValueError, match="below 1, not 1"):
        NormPreservingDropout(1.0)
