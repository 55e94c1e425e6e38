"""What generalization methods share: labelled sources alone, an equal share of each in every batch, no target."""

from torch import Tensor

from dafw.data.batch import Batch
from dafw.methods.base import Losses, Method
from dafw.nn.distributed import gather_rows
from dafw.problems import Outputs


class GeneralizationMethod(Method):
    """Labelled sources, and nothing of the target: one forward of all rows, the supervised loss, the method's terms.

    A batch holds as many rows of each source, one source after the other, and no other rows. On several ranks each
    holds its share of every source's rows; :func:`gather_domains` brings them together where a term is not a mean over
    rows.

    A method whose layers depend on the number of sources takes ``num_sources``, which the command line fills in.
    """

    setting = "generalization"

    def penalise(self, domains: list[Outputs], labels: list[Tensor]) -> Losses:
        """Already weighted terms to add to the supervised loss.

        Args:
            domains: outputs of each of the S sources, n rows each, views of one forward's.
            labels: the labels (n,) of the same rows.
        """
        raise NotImplementedError(f"{type(self).__name__} must define penalise(domains, labels)")

    def losses(self, batch: Batch) -> Losses:
        """The supervised loss of all rows, which is the mean of the sources' losses, and :meth:`penalise`'s terms."""
        joint = self.run(batch.x, batch.num_source)
        terms = {"supervised": self.problem.loss(joint, batch.y)}
        return terms | self.penalise(*split_domains(joint, batch.y, self.num_domains(batch)))

    def num_domains(self, batch: Batch) -> int:
        """Number S of the sources in a batch, of as many rows each."""
        if self._trainer is None:
            return 1 + int(batch.domain.max())
        return len(self._datamodule.labelled)


def split_domains(joint: Outputs, labels: Tensor, count: int) -> tuple[list[Outputs], list[Tensor]]:
    """The rows of each source.

    Args:
        joint: outputs of S * n rows, n of the first source, n of the second, and so on.
        labels: (S * n,).
        count: S.

    Returns:
        The outputs (n rows) and the labels (n,) of each source, both views.
    """
    n = len(labels) // count
    starts = range(0, count * n, n)
    return [joint[start : start + n] for start in starts], [labels[start : start + n] for start in starts]


def gather_domains(domains: list[Outputs], labels: list[Tensor]) -> tuple[list[Outputs], list[Tensor]]:
    """All ranks' rows of each source, in the order of one process; see :func:`dafw.nn.distributed.gather_rows`.

    Args:
        domains: outputs of each source, n rows each on this rank.
        labels: the labels (n,) of the same rows.

    Returns:
        The same of R * n rows each, on R ranks.
    """
    outputs = [Outputs(gather_rows(one.features), gather_rows(one.logits)) for one in domains]
    return outputs, [gather_rows(y) for y in labels]
