"""What generalization methods share: labelled sources alone, an equal share of each in every batch, no target."""

from typing import Literal

from torch import Tensor

from dafw.data.batch import Batch
from dafw.data.setting import Setting
from dafw.errors import UserError, choose
from dafw.methods.base import Losses, Method
from dafw.nn.distributed import gather_rows
from dafw.nn.norm import DomainBatchNorm
from dafw.problems import NetworkBase, Outputs

GENERALIZATION = Setting("generalization", sees_target=False)


class GeneralizationMethod(Method, abstract=True):
    """Labelled sources, and nothing of the target: one forward of all rows, the supervised loss, the method's terms.

    A batch holds as many rows of each source, one source after the other, and no other rows. On several ranks each
    holds its share of every source's rows; :func:`gather_domains` brings them together where a term is not a mean over
    rows.

    A method whose layers depend on the number of sources takes ``num_sources``, which the command line fills in.

    Args:
        network: images (N, C, H, W) to features (N, d) and logits (N, K).
        test_statistics: what batch normalisation normalises an evaluation batch by, the ``running`` statistics or those
            of the ``batch`` itself. The latter is transductive, for a prediction depends on the other rows of its
            batch, and the result says so; some published numbers were measured that way (UDIM's authors' code). A batch
            is ``data.eval_batch_size`` samples of the split in a random order, which is always the same one; on several
            ranks a rank's own share of them. Training does not depend on it: a checkpoint can be evaluated both ways,
            with ``dafw test --ckpt_path FILE --model.test_statistics batch`` or
            ``load(path, test_statistics="batch")``.
        base: see :class:`~dafw.methods.base.Method`.

    Raises:
        UserError: if ``test_statistics`` is ``batch`` and the network has no batch normalisation, or if ``norm`` is
            ``domain_specific``.
    """

    setting = GENERALIZATION

    def __init__(  # type: ignore[no-untyped-def]
        self, network: NetworkBase, *, test_statistics: Literal["running", "batch"] = "running", **base
    ) -> None:
        super().__init__(network, **base)
        if self.norm == "domain_specific":
            raise UserError(
                "model.norm is domain_specific, but no target image passes through the network in training, so that the"
                " target's batch norms would never be trained: take joint"
            )
        self.test_statistics = choose("test_statistics", test_statistics, ("running", "batch"))
        if test_statistics == "batch":
            self.transductive_reason = normalise_by_test_batch(self)

    def penalise(self, domains: list[Outputs], labels: list[Tensor]) -> Losses:
        """Already weighted terms to add to the supervised loss.

        Args:
            domains: outputs of each of the S sources, n rows each, views of one forward's.
            labels: the labels (n,) of the same rows.
        """
        raise NotImplementedError(f"{type(self).__name__} must define penalise(domains, labels)")

    def losses(self, batch: Batch) -> Losses:
        """The supervised loss of all rows, which is the mean of the sources' losses, and :meth:`penalise`'s terms."""
        joint = self.forward_batch(batch)
        terms = {"supervised": self.problem.loss(joint, batch.y)}
        return terms | self.penalise(*split_domains(joint, batch.y, self.num_domains(batch)))

    def num_domains(self, batch: Batch) -> int:
        """Number S of the sources in a batch, of as many rows each."""
        data = self.datamodule
        return 1 + int(batch.domain.max()) if data is None else len(data.labelled)


def normalise_by_test_batch(method: Method) -> str:
    """Lets batch normalisation normalise each evaluation batch by its own statistics.

    Returns:
        Why predictions then depend on the other samples of the test set.

    Raises:
        UserError: if the network has no batch normalisation.
    """
    if not any(isinstance(layer, DomainBatchNorm) for layer in method.network.modules()):
        raise UserError("model.test_statistics: batch needs a network with batch normalisation")
    method.layout.test_batch = True
    return "batch statistics of the test batch"


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
