"""Source-only refuses what would serve the target by batch norms that nothing trained."""

import pytest

from dafw.errors import UserError
from dafw.methods import SourceOnly
from dafw.testing.toys import toy_network


def test_domain_specific_norms_need_the_target() -> None:
    with pytest.raises(UserError, match=r"target's batch norms would never be trained: take joint"):
        SourceOnly(toy_network(), num_classes=3, norm="domain_specific")
    for options in ({"forward_target": True}, {"forward_views": ["strong"]}):
        SourceOnly(toy_network(), num_classes=3, norm="domain_specific", **options)
