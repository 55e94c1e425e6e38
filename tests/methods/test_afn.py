"""AFN's dropout: after whatever gives the features, before the head, and never in what is served."""

import pytest
import torch
from torch import nn

from dafw.methods import AFN
from dafw.nn.dropout import NormPreservingDropout
from dafw.testing.toys import toy_network


@pytest.mark.parametrize("width", [None, 5])
def test_dropout(width: int | None) -> None:
    torch.manual_seed(0)
    method = AFN(toy_network(bottleneck=width), num_classes=3, dropout=0.5, ema_decay=0.9)
    bottleneck = method.network.bottleneck
    assert isinstance(bottleneck, nn.Sequential)
    assert isinstance(bottleneck[-1], NormPreservingDropout)
    assert len(bottleneck) == (1 if width is None else 4)
    images = torch.randint(0, 256, (4, 3, 6, 6), dtype=torch.uint8)
    method.train()
    outputs = method.forward_rows(images, 2)
    assert (outputs.features == 0).float().mean() > 0.2
    torch.testing.assert_close(outputs.logits, method.network.head(outputs.features))  # type: ignore[misc]
    plain = AFN(toy_network(bottleneck=width), num_classes=3)
    plain.load_state_dict({k: v for k, v in method.state_dict().items() if not k.startswith("weight_average")})
    method.eval()
    plain.eval()
    with torch.no_grad():
        assert torch.equal(method.network(images).logits, plain(images).logits)
