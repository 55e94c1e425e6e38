"""The contract that every method keeps, as checks that any test can call; yours included."""

from dafw.testing import contract
from dafw.testing.cases import Case, case, cases

__all__ = ["Case", "case", "cases", "contract"]
