"""CEMA: a small model at the edge sends few images to a large model in the cloud, which learns and teaches it."""

import math
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from dafw.checkpoints import check_classes
from dafw.data.batch import Batch
from dafw.errors import UserError, choose
from dafw.losses.distillation import selective_distillation, sureness
from dafw.losses.entropy import entropy
from dafw.methods.manual import ManualOptimization
from dafw.methods.optimisation import trained_parameters
from dafw.methods.starting import fill, find_checkpoint
from dafw.methods.test_time.base import Learns, StatisticsRule, TestTimeMethod, choose_parameters
from dafw.nn.buffers import Flag
from dafw.nn.distributed import gather_rows, own_rows
from dafw.nn.layout import BatchLayout, StreamStatistics
from dafw.nn.network import Network
from dafw.nn.norm import convert_norm
from dafw.nn.stochastic_restore import generator
from dafw.nn.uploads import UploadFilter, Uploads
from dafw.nn.weights import loads_weights
from dafw.problems import Outputs
from dafw.ranges import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt


class CEMA(ManualOptimization, TestTimeMethod):
    """The edge's network serves and sends chosen images. The cloud's network learns from them, and teaches the edge's.

    Loss: of the cloud's network mean_i exp(E_max - H_i) H_i, with H_i the entropy of row i and no gradient in the
    weight. Of the edge's network :func:`~dafw.losses.distillation.selective_distillation`. Logits of both are (n, K).

    ``network`` is that of the edge. It serves each batch. Of the batch the rows that
    :class:`~dafw.nn.uploads.UploadFilter` chooses are sent. Whenever ``cloud_batch`` images have come, the cloud's
    network makes a step on them. Then the edge's network makes a step on these images, the cloud's predictions of them
    being what it learns. ``replay`` times as many images join that step, drawn from the latest ``stored`` ones, once
    ``replay_from`` are stored. If no batch of the cloud became full in a step of the stream, such replayed images alone
    make a step of the edge's network. The edge's new weights are back before the next batch.

    Chen et al., Towards Robust and Efficient Cloud-Edge Elastic Model Adaptation via Selective Entropy Distillation,
    ICLR 2024, https://arxiv.org/abs/2402.17316. The defaults are those of the authors' code for ImageNet-C, with
    batches of 64 and a ResNet-101 in the cloud. The paper's least entropy of 0.02 ln K (recalled) and its threshold
    that follows the stream are arguments; their configuration has both switched off. In their code the running
    statistics begin with those of the first batch (``statistics_start``), and each corruption starts anew, which is
    ``reset: shift`` here.

    A row counts as used if it was sent; the result says how many were. Each step reads on the host which rows those
    are. Every rank passes the whole batch of the cloud, which has the rows of all ranks. A step makes a pass of the
    edge's network, and one more for each of its updates.

    Args:
        network: of the edge: images (N, C, H, W) to features (N, d) and logits (N, K).
        cloud: network of the cloud. Without ``cloud_checkpoint`` it needs a pretrained head. The command line takes the
            checkpoint's if none is given.
        cloud_checkpoint: run or checkpoint of the cloud's network.
        margin: E_max as a share of ln K (authors' code: 0.4).
        least: E_min as a share of ln K (paper: 0.02, recalled; authors' code: none).
        redundancy: greatest cosine of a row that is sent (authors' code: 0.05).
        warm_up: rows until the greatest entropy of a row that is sent follows the stream; ``None``: it stays E_max.
        threshold_scale: factor of that entropy from then on (authors' code: 0.6).
        cloud_batch: images of a batch of the cloud (authors' code: 32).
        stored: images that the cloud keeps (authors' code: 10,000).
        replay: replayed images of a step by ``cloud_batch`` (authors' code: 3, and 4 without a full batch; here 3).
        replay_from: images that must be stored (authors' code: 256).
        entropy_weight: a of the distillation (paper: 3).
        distillation_weight: b of it (paper: 3).
        label_weight: g of it (paper: 1).
        temperature: T of it (paper: 1).
        statistics_start: what the running statistics of both networks are at first: those of the first ``batch`` that
            a network sees, or of the ``source``.
        optimizer: see the base (authors' code: SGD with momentum 0.9).
        lr: learning rate of the edge's network (authors' code: 0.0025).
        cloud_lr: of the cloud's (authors' code: 0.00025).
        base: see :class:`~dafw.methods.test_time.base.TestTimeMethod`. ``statistics`` is ``renorm``; ``learns`` holds
            for both networks.

    Raises:
        UserError: see the base; for ``ema_decay``, or if the cloud's network has no weights or other classes.
    """

    default_statistics: ClassVar[StatisticsRule] = "renorm"
    default_learns: ClassVar[Learns] = "norm"
    #: An update is due after a number of uploads, so a batch may have none, one, or more.
    backbone_passes: ClassVar[int | None] = None
    host_reads: ClassVar[int] = 1
    counts_uploads: ClassVar[bool] = True
    only_images = "keeps images that it uploads"
    search_space: ClassVar[dict[str, Any]] = {"lr": (1e-5, 1e-2), "margin": [0.2, 0.4, 0.6], "redundancy": [0.05, 0.4]}

    def __init__(  # type: ignore[no-untyped-def]
        self,
        network: Network,
        *,
        cloud: Network,
        cloud_checkpoint: str | None = None,
        margin: NonNegativeFloat = 0.4,
        least: NonNegativeFloat = 0.0,
        redundancy: NonNegativeFloat = 0.05,
        warm_up: PositiveInt | None = None,
        threshold_scale: NonNegativeFloat = 0.6,
        cloud_batch: PositiveInt = 32,
        stored: NonNegativeInt = 10_000,
        replay: NonNegativeInt = 3,
        replay_from: PositiveInt = 256,
        entropy_weight: NonNegativeFloat = 3.0,
        distillation_weight: NonNegativeFloat = 3.0,
        label_weight: NonNegativeFloat = 1.0,
        temperature: PositiveFloat = 1.0,
        statistics_start: Literal["batch", "source"] = "batch",
        optimizer: str = "momentum",
        lr: PositiveFloat = 2.5e-3,
        cloud_lr: PositiveFloat = 2.5e-4,
        **base,
    ) -> None:
        super().__init__(network, optimizer=optimizer, lr=lr, **base)
        if self.weight_average is not None:
            raise UserError("CEMA serves the weights that the cloud sends: leave out model.ema_decay")
        self.updates_per_batch, self.cloud_lr = 0, cloud_lr
        scale = math.log(self.num_classes)
        self.most, self.replay, self.replay_from = margin * scale, replay, replay_from
        self.distillation = {"entropy_weight": entropy_weight, "distillation_weight": distillation_weight}
        self.distillation |= {"label_weight": label_weight, "temperature": temperature}
        self.statistics_start = choose("statistics_start", statistics_start, ("batch", "source"))
        self.filter = UploadFilter(
            self.num_classes,
            least=least * scale,
            most=self.most,
            redundancy=redundancy,
            warm_up=warm_up,
            scale=threshold_scale,
        )
        self.uploads = Uploads(cloud_batch, stored)
        cloud.set_classes(self.num_classes)
        self.cloud = cloud
        self.cloud_from: tuple[dict[str, Any], Path] | None = None
        self.start_cloud(cloud_checkpoint)
        choose_parameters(cloud, self.learns, "CEMA", "model.cloud")
        self.cloud_layout = self._cloud_layout()
        self.edge_begun, self.cloud_begun = Flag(), Flag()
        self.eval()

    # ---- the cloud's network

    def start_cloud(self, checkpoint: str | None) -> None:
        """Fills the cloud's network."""
        if checkpoint is None:
            if not self.cloud.starts_trained:
                raise UserError(
                    "model.cloud_checkpoint must be given, or a model.cloud with a pretrained head: the cloud's network"
                    " must be trained"
                )
        elif loads_weights():
            try:
                path = find_checkpoint(checkpoint, "model.cloud_checkpoint")
            except UserError as error:
                self.lacking = error
                return
            content = fill(self.cloud, path, self.num_classes, "model.cloud_checkpoint", "model.cloud")
            self.trained_on = tuple(dict.fromkeys((*self.trained_on, *content["labelled"])))
            self.cloud_from = content, path

    def check_start(self) -> None:
        """As the base; the cloud's network must know the same classes."""
        super().check_start()
        names = () if self.datamodule is None else self.datamodule.known_names
        if self.cloud_from is not None and names:
            check_classes(*self.cloud_from, names, self.accept_changed_data)

    def _cloud_layout(self) -> BatchLayout:
        return convert_norm(self.cloud, "frozen" if self.norm == "frozen" else "joint")

    def setup(self, stage: str) -> None:
        """As the base, which gives the cloud's network a layout of its own on several ranks."""
        super().setup(stage)
        self.cloud_layout = self._cloud_layout()

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The groups of both networks, each at its rate."""
        return [*self.network.parameter_groups(self.lr), *self.cloud.parameter_groups(self.cloud_lr)]

    def pass_cloud(self, images: Tensor, track: bool) -> Outputs:
        """Outputs of the cloud's network.

        Args:
            images: (m, C, H, W), the same on every rank.
            track: whether they enter its running statistics.
        """
        by = self._statistics(not self.cloud_begun.value)
        self.cloud_begun.set()
        how = {"num_source": 0, "stream": by, "track": track, "sync": False, "rows": len(images)}
        with self.cloud_layout.temporarily(**how):
            outputs: Outputs = self.cloud(images)
        return outputs

    # ---- the stream

    def _statistics(self, first: bool) -> StreamStatistics | None:
        """By what a network normalises that has or has not seen a batch of the stream."""
        by = super().stream_statistics
        begins = first and by is not None and by.rule == "renorm" and self.statistics_start == "batch"
        return StreamStatistics("average", 1.0) if begins else by

    @property
    def stream_statistics(self) -> StreamStatistics | None:
        """See the base; the first batch makes the running statistics, if they start with it."""
        return self._statistics(not self.edge_begun.value)

    @property
    def statistics_in_words(self) -> str:
        """See the base."""
        by = super().stream_statistics
        said = self.statistics if by is None or by.rule == "batch" else f"{by.rule} {by.weight:g}"
        begins = self.statistics == "renorm" and self.statistics_start == "batch"
        return f"{said} from the first batch" if begins else said

    def training_step(self, batch: Batch, batch_idx: int) -> None:  # type: ignore[override]
        """Serves the batch, sends rows of it, and makes the updates of both networks that are due."""
        by = self.stream_statistics
        with torch.no_grad(), self.layout.temporarily(stream=by, track=by is not None and by.rule == "average"):
            outputs = self.present_outputs(batch)
        self.edge_begun.set()
        learned: list[dict[str, Tensor]] = []
        if self.learns != "nothing":
            learned = [self.learn(images, number) for number, images in enumerate(self.send(batch, outputs.logits))]
            if not learned and self._replays:
                learned = [{"distillation": self.distil(self._replayed(0))}]
        self.moves = bool(learned)
        self.keep(batch, outputs)
        nothing = outputs.logits.new_zeros(())
        found = {name: [one[name] for one in learned if name in one] for name in ("cloud", "distillation")}
        terms = {name: torch.stack(values).mean() if values else nothing for name, values in found.items()}
        self.record_step(batch, terms)

    def send(self, batch: Batch, logits: Tensor) -> list[Tensor]:
        """Sends the chosen ones of the rows that are new. The host reads which.

        Returns:
            The batches of the cloud that are full, (m, C, H, W) each.
        """
        new = slice(batch.num_again, None)
        every = gather_rows(logits[new])
        chosen = self.filter(every, entropy(every))
        self.rows_used = torch.zeros_like(batch.index, dtype=torch.bool)
        self.rows_used[new] = own_rows(chosen)
        rows = [row for row, sent in enumerate(chosen.tolist()) if sent]
        images = gather_rows(batch.x[new])
        return self.uploads.add(images[torch.tensor(rows, dtype=torch.int64).to(images.device, non_blocking=True)])

    def learn(self, images: Tensor, number: int) -> dict[str, Tensor]:
        """One step of the cloud's network on a full batch, and then one of the edge's.

        Args:
            images: (m, C, H, W).
            number: of the batch within this step.

        Returns:
            The losses.
        """
        torch.clear_autocast_cache()  # of weights that have changed, or were cast where no gradient was asked for
        entropies = entropy(self.pass_cloud(images, track=True).logits)
        loss = (sureness(entropies, self.most) * entropies).mean()
        parameters = trained_parameters(self.cloud)
        self.apply_gradients((parameters, self.gradients(loss, parameters)))
        joined = torch.cat([images, self._replayed(number)]) if self._replays else images
        return {"cloud": loss.detach(), "distillation": self.distil(joined)}

    def distil(self, images: Tensor) -> Tensor:
        """One step of the edge's network.

        Args:
            images: (m, C, H, W), which the cloud has.

        Returns:
            The loss, a scalar without a gradient.
        """
        torch.clear_autocast_cache()
        with torch.no_grad():
            labels = self.pass_cloud(images, track=False).logits
        torch.clear_autocast_cache()
        by = self.stream_statistics
        how = {"stream": by, "track": by is not None and by.rule == "renorm", "sync": False}
        with self.layout.temporarily(**how):
            logits = self.forward_rows(images, 0).logits
        loss = selective_distillation(logits, labels, most=self.most, **self.distillation)
        parameters = trained_parameters(self.network)
        self.apply_gradients((parameters, self.gradients(loss, parameters)))
        return loss.detach()

    @property
    def _replays(self) -> bool:
        """Whether stored images join a step now."""
        return bool(self.replay) and len(self.uploads.kept) >= self.replay_from

    def _replayed(self, number: int) -> Tensor:
        """Stored images at random; another number gives others."""
        drawing = generator(self.device, self.data_seed, self.step, f"replay {number}")
        return self.uploads.sample(self.replay * self.uploads.batch, drawing)
