"""What a method asks of the datamodule, and what it may know of it."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from dafw.data.served import ServedDomains
from dafw.data.setting import Balanced, DataRequest, Setting
from dafw.errors import UserError
from dafw.lightning_adapter import has_trainer
from dafw.problems import Problem

if TYPE_CHECKING:
    import pytorch_lightning as pl

    from dafw.evaluation.evaluator import Evaluator

    Base = pl.LightningModule
else:
    Base = object


class Requests(Base):
    """The part of every method that talks to the datamodule."""

    #: What the method may see.
    setting: ClassVar[Setting]
    #: Names of further augmented views of each input that a step needs.
    views: tuple[str, ...] = ()
    #: Whether a step needs the reference of each target image, see :class:`~dafw.data.references.References`.
    references: ClassVar[bool] = False
    #: What a step does that only images, or other inputs of one tensor, allow; empty if there is no such thing.
    only_images: str = ""
    #: Share of each target's training samples that is kept apart and comes as the batch's last rows.
    held_out: ClassVar[float] = 0.0
    #: Samples of all sources together, and of all targets together, that a batch must hold, over all ranks.
    least_rows: ClassVar[int] = 1
    #: Samples of each domain that a batch must hold, over all ranks.
    least_rows_of_domain: ClassVar[int] = 1
    #: Whether a batch must hold as many samples of the targets as of the sources.
    equal_rows: bool = False
    problem: Problem
    transductive_reason: str
    evaluator: "Evaluator"

    if TYPE_CHECKING:

        @property
        def steps_done(self) -> int: ...  # noqa: D102

    @property
    def datamodule(self) -> ServedDomains | None:
        """The datamodule at work; ``None`` without a trainer, or if the trainer has plain loaders."""
        data = None if not has_trainer(self) else getattr(self.trainer, "datamodule", None)
        return data if isinstance(data, ServedDomains) else None

    @property
    def data(self) -> ServedDomains:
        """The datamodule at work.

        Raises:
            UserError: if there is none.
        """
        data = self.datamodule
        if data is None:
            raise UserError(f"{type(self).__name__} needs a DomainDataModule: give it to the trainer as datamodule")
        return data

    def check_inputs(self) -> None:
        """Looks whether the training samples are images, if a step needs them.

        Raises:
            UserError: if they are the tokens of texts, or something else that is no tensor.
        """
        domains = [] if self.datamodule is None or not self.only_images else self.datamodule.train_domains
        for domain in domains[:1]:
            if len(domain) and not isinstance(domain.inputs[0], Tensor):
                raise UserError(
                    f"{type(self).__name__} {self.only_images}, and the samples of {domain.name} are none: take "
                    "another method"
                )

    def check_labels(self) -> None:
        """Looks whether a label of the first labelled training domain is one for the problem.

        Raises:
            UserError: if it is not.
        """
        for domain in [] if self.datamodule is None else self.datamodule.train_domains[:1]:
            if domain.labels is not None and len(domain) and not self.problem.takes(domain.labels[0]):
                raise UserError(
                    f"model.problem is {type(self.problem).__name__}, whose labels are {self.problem.label_form}, and "
                    f"those of {domain.name} are not: choose data and model.network for one problem"
                )

    @property
    def source_use(self) -> str:
        """What of the source the training uses: ``samples``, ``statistics`` that were computed of them, or ``nothing``.

        A start model may have learned the source before.
        """
        return "samples" if self.setting.sees_source else "nothing"

    @property
    def data_seed(self) -> int:
        """Seed of the datamodule at work; 0 without one."""
        data = self.datamodule
        return 0 if data is None else data.seed

    @property
    def balanced(self) -> Balanced | None:
        """Class-balanced rows that each batch shall hold beside the random ones."""
        return None

    @classmethod
    def asked_samples(cls, arguments: Mapping[str, Any]) -> DataRequest:
        """That part of the request which decides what samples train. No network is needed.

        Args:
            arguments: of the method, by name.
        """
        return DataRequest(setting=cls.setting, held_out=cls.held_out)

    @property
    def data_request(self) -> DataRequest:
        """What the method asks of the datamodule."""
        return DataRequest(
            setting=self.setting,
            views=self.views,
            references=self.references,
            maps=self.problem.is_spatial,
            held_out=self.held_out,
            least_rows=self.least_rows,
            least_rows_of_domain=self.least_rows_of_domain,
            equal_rows=self.equal_rows,
            balanced=self.balanced,
            mixed_evaluation=bool(self.transductive_reason),
            evidence=self.evaluator.reads_source,
            steps_done=lambda: self.steps_done,
            asker=type(self).__name__,
        )
