"""Names of the optimisers that a method can be trained with: timm's, without those that need second derivatives."""

from functools import lru_cache

from timm.optim import get_optimizer_info, list_optimizers  # type: ignore[attr-defined]

from dafw.errors import UserError, choose


@lru_cache
def usable_optimizers() -> tuple[str, ...]:
    """Names of timm's optimisers that step on first derivatives alone, in alphabetical order."""
    names = sorted(map(str, list_optimizers()))
    return tuple(name for name in names if not get_optimizer_info(name).second_order)


def choose_optimizer(name: str) -> str:
    """Returns ``name`` if a method can be trained with this optimiser.

    Raises:
        UserError: if timm does not know it, or if it needs second derivatives, which no training step computes.
    """
    if name not in usable_optimizers() and name in map(str, list_optimizers()):
        raise UserError(
            f"the optimizer {name} needs second derivatives, which no training step computes: take adamw or momentum"
        )
    return choose("optimizer", name, usable_optimizers())
