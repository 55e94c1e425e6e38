"""What those test-time methods share that correct predictions and leave the network alone."""

from typing import ClassVar

from dafw.errors import UserError
from dafw.methods.test_time.base import Learns, TestTimeMethod


class CorrectingMethod(TestTimeMethod, abstract=True):
    """Serves other scores than the network's. No weight of the network changes; :meth:`serve` is all of the method.

    The arguments are those of :class:`~dafw.methods.test_time.base.TestTimeMethod`; ``learns`` is ``nothing``.

    Raises:
        UserError: see the base; for another value of ``learns``.
    """

    default_learns: ClassVar[Learns] = "nothing"

    def choose_parameters(self) -> None:
        """Refuses that anything learns."""
        if self.learns != "nothing":
            raise UserError(f"no weight learns in {type(self).__name__}: leave out model.learns {self.learns}")
