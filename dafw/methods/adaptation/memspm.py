"""MemSPM: memory-assisted sub-prototype mining."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dafw.data.batch import Batch
from dafw.errors import UserError, choose
from dafw.evaluation.columns import TestColumns
from dafw.evaluation.evaluated import ExtraTestMetrics
from dafw.methods.adaptation.dcc import DCC
from dafw.methods.adaptation.sub_prototypes import (
    Retrieved,
    examples,
    memory_columns,
    memory_numbers,
    retrieved_columns,
    style_numbers,
)
from dafw.methods.base import Losses
from dafw.methods.targets import training_outputs
from dafw.nn.decoder import Decoder
from dafw.nn.memory import Read, Reading, Start, SubPrototypeMemory, starting_rows
from dafw.nn.network import Network
from dafw.nn.precision import full_precision
from dafw.problems import Outputs
from dafw.problems.model import NetworkBase
from dafw.ranges import NonNegativeFloat, PositiveFloat, PositiveInt, Range

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from datamodules.base import DomainDataModule


class MemSPM(DCC):
    """DCC on embeddings read from a memory of sub-prototypes, instead of on the image's own features.

    z = encoder(x), (n, d), is compared with N items of S learnt sub-prototypes each. The few most similar ones,
    weighted, give the embedding z_hat, (n, d). It is classified, clustered, aligned and decoded to the image, see
    :class:`~dafw.nn.memory.SubPrototypeMemory`. The memory is the last layer of the network before its label head,
    so ``features`` are z_hat everywhere. The head is Linear-BatchNorm-Linear, logits (n, K), as in DCC's code.

    Loss: that of :class:`~dafw.methods.adaptation.dcc.DCC` + reconstruction_weight * |x - decoder(z_hat)|^2 over all
    rows of both domains. x is the network's input image, normalised per channel.

    Lai et al., Memory-Assisted Sub-Prototype Mining for Universal Domain Adaptation, ICLR 2024,
    https://arxiv.org/abs/2310.05453. No code of the authors is known. These parts of the paper are recalled: the
    frozen CLIP ViT-B/16, the adaptive threshold, DCC's losses, and the reconstruction. Clusters are matched by z_hat,
    as a caption of the paper says; DCC's code takes the head's hidden layer. **Unsure** are N, S, K, the weights of the
    losses, the reading, the similarity, the decoder, and how the memory starts. Their defaults are ours. Reviews of the
    paper say that the result still rises at S = 40, and that a fixed threshold is 10 points worse:
    ``sub_prototypes=1`` and ``threshold=0.01`` are these ablations.

    A memory of random vectors that is compared by inner products is hardly selective, and blurs the clusters that DCC
    needs. One with ``start: data``, ``cosine: true`` and ``read_temperature: 0.05`` keeps them. It gave no higher
    H-score that three seeds could show, so it is not the default (docs/results/label-sets.md).
    ``diagnostics/attention_entropy`` says how selective a memory is: 1 if all items weigh the same, 0 if one has all
    weight. A test gives ``memory_entropy``, ``memory_nmi`` and ``memory_query_nmi``, see
    :func:`~dafw.methods.adaptation.sub_prototypes.memory_numbers`.

    The control keeps memory and head, and trains them on the source alone. With ``start: data`` its memory starts from
    the same samples. It has no decoder either, since a decoder would learn from the target's images.

    Args:
        network: images (N, C, H, W) to features (N, d) and logits (N, K). Its bottleneck, if it has one, is part of the
            encoder, but learns. The paper's: ``backbone: vit_base_patch16_clip_224``, ``frozen: true``, no bottleneck.
        num_classes: number of classes to predict.
        items: number N of items of the memory (unsure).
        sub_prototypes: number S of sub-prototypes of each item (unsure; with 1 items have no sub-prototypes).
        top_k: K, the number of weights that pass the adaptive threshold (unsure).
        reading: ``per_item``: a softmax over the most similar sub-prototype of each item; ``global``: one over all
            sub-prototypes (unsure).
        start: ``random``: a memory of random vectors. ``data``: one of encoder outputs of all training samples of both
            domains, without labels, taken when ``warmup_steps`` are done; until then the head sees the encoder's
            outputs. k-means makes the items (:func:`~dafw.nn.memory.starting_rows`). Unsure.
        threshold: ``adaptive``, or a fixed value for all samples.
        cosine: compare by cosines instead of inner products (unsure); with it ``read_temperature`` must be small.
        read_temperature: divides the similarities before the softmax (unsure; MemAE has none, 1).
        head_width: hidden width of the label head; ``None``: the network's own head.
        reconstruction_weight: weight of the reconstruction (unsure); with 0 there is no decoder.
        reconstruction: ``mean`` of the squared error over an image's values, or their ``sum`` (unsure).
        reconstruction_size: height and width of the reconstruction's target, the images averaged over areas. ``None``:
            the images themselves. A small size saves most of the decoder's work.
        decoder_widths: channels of the decoder's first map and of each block's output, see
            :class:`~dafw.nn.decoder.Decoder`; ``None``: 128, 64, 32 (unsure).
        base: see :class:`~dafw.methods.adaptation.dcc.DCC`. ``cdd_weight`` is 0.1 in the paper, as recalled.

    Raises:
        UserError: for an argument out of range; in training, if inputs to reconstruct are not images.
    """

    control: ClassVar[dict[str, Any]] = {
        "balanced_weight": 0.0,
        "cdd_weight": 0.0,
        "prototype_weight": 0.0,
        "reconstruction_weight": 0.0,
    }
    control_difference_reason: ClassVar[str] = "its label head sees what a memory reads"
    search_space: ClassVar[dict[str, Any]] = {
        "sub_prototypes": [1, 5, 10, 20, 40],
        "top_k": [1, 3, 5, 10],
        "reconstruction_weight": (0.01, 1.0),
        "cdd_weight": (0.01, 1.0),
        "lr": (1e-4, 1e-1),
    }

    def __init__(  # type: ignore[no-untyped-def]
        self,
        network: Network,
        *,
        num_classes: int,
        items: PositiveInt = 100,
        sub_prototypes: PositiveInt = 40,
        top_k: PositiveInt = 5,
        reading: Reading = "per_item",
        start: Start = "random",
        threshold: Literal["adaptive"] | float = "adaptive",
        cosine: bool = False,
        read_temperature: PositiveFloat = 1.0,
        head_width: PositiveInt | None = 256,
        reconstruction_weight: NonNegativeFloat = 0.1,
        reconstruction: Literal["mean", "sum"] = "mean",
        reconstruction_size: Annotated[int, Range("is a number of pixels", 1)] | None = None,
        decoder_widths: list[PositiveInt] | None = None,
        **base,
    ) -> None:
        self.sizes, self.head_width = (items, sub_prototypes, network.num_features, top_k), head_width
        similarity: dict[str, Any] = {"normalise": cosine, "temperature": read_temperature}
        self.reading: dict[str, Any] = {"reading": reading, "threshold": threshold, "start": start, **similarity}
        super().__init__(network, num_classes=num_classes, **base)
        self.reconstruction_weight = reconstruction_weight
        self.reconstruction = choose("reconstruction", reconstruction, ("mean", "sum"))
        self.reconstruction_size = reconstruction_size
        self.decoder: Decoder | None = None
        if reconstruction_weight:
            widths = decoder_widths or (128, 64, 32)
            self.decoder = Decoder(network.num_features, len(network.mean), widths).to(network.shift)

    def build_network(self, network: NetworkBase, num_classes: int) -> None:
        """Puts the memory behind the encoder, and a label head behind the memory."""
        assert isinstance(network, Network)
        width, hidden = network.num_features, self.head_width
        memory = SubPrototypeMemory(*self.sizes, **self.reading)
        head = network.make_head(num_classes) if hidden is None else neck(width, hidden, num_classes)
        encoder = [layer for layer in (network.bottleneck, network.feature_dropout) if layer is not None]
        network.bottleneck = nn.Sequential(*encoder, memory).to(network.shift)
        network.head, network.num_classes = head.to(network.shift), num_classes

    @property
    def memory(self) -> SubPrototypeMemory:
        """The memory of the network in training."""
        network: Any = self.network
        memory: SubPrototypeMemory = network.bottleneck[-1]
        return memory

    # ---- the memory's start

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Starts the memory at the first step after the warm-up, if no clustering needed it before."""
        if self.steps_done == self.warmup_steps:
            self.start_memory()
        super().on_train_batch_start(batch, batch_idx)

    def recluster(self) -> None:
        """See :class:`~dafw.methods.adaptation.dcc.DCC`; what is clustered is read from a memory that has started."""
        self.start_memory()
        super().recluster()

    @torch.no_grad()
    def start_memory(self) -> None:
        """With ``start: data``, fills the memory from the encoder's outputs of all training samples, once.

        No label is used. The ranks share the forward; the first rank chooses, and all get its rows.
        """
        memory = self.memory
        if memory.start == "random" or bool(memory.filled):
            return
        data: Any = self.data
        queries = training_outputs(self, 0, len(data.labelled) + len(data.training_targets)).features
        rows = None
        if self.trainer.is_global_zero:
            rows = starting_rows(full_precision(queries).cpu(), *memory.memory.shape[:2])
        rows = self.trainer.strategy.broadcast(rows)
        for network in [self.network] if self.weight_average is None else [self.network, self.weight_average.module]:
            network.bottleneck[-1].fill(rows.to(memory.memory))  # type: ignore[union-attr,index]

    # ---- training

    def losses(self, batch: Batch) -> Losses:
        """All terms, from one forward of the joint batch."""
        terms = super().losses(batch)
        if self.logs_this_step and self.memory.attention_entropy is not None:
            self.diagnose("attention_entropy", self.memory.attention_entropy)
        return terms

    def extra_terms(self, batch: Batch, joint: Outputs) -> Losses:
        """The reconstruction of all rows' images from ``joint.features``, the embeddings read from the memory."""
        if self.decoder is None:
            return {}
        if batch.x.ndim != 4:
            raise UserError("only images can be reconstructed: model.reconstruction_weight 0 for other inputs")
        images = self.network.normalise(batch.x)
        if self.reconstruction_size is not None:
            images = F.adaptive_avg_pool2d(images, self.reconstruction_size)
        errors = (full_precision(self.decoder(joint.features, images.shape[2:])) - images).square().flatten(1)
        of_rows = errors.mean(1) if self.reconstruction == "mean" else errors.sum(1)
        return {"reconstruction": self.reconstruction_weight * of_rows.mean()}

    # ---- pictures

    @torch.no_grad()
    def read(self, x: Tensor) -> Read:
        """The evaluated network's memory reading for target images (N, C, H, W); call it in evaluation mode."""
        network: Any = self.eval_network
        found: Read = network.bottleneck[-1].read(network.bottleneck[:-1](network.encode(x)))
        return found

    def retrieved(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The item and the sub-prototype with the largest weight for target images (N, C, H, W), both (N,) int64."""
        return self.read(x).strongest()

    def test_columns(self, batch: Batch) -> Mapping[str, Tensor]:
        """What the memory reads for a target's batch; one more pass."""
        found = self.read(batch.x)
        return retrieved_columns(found) | memory_columns(found)

    @staticmethod
    def extra_test_metrics(targets: list[TestColumns], class_names: tuple[str, ...]) -> ExtraTestMetrics:
        """How selective the memory is, and how far sub-prototypes split a class by style.

        See :func:`~dafw.methods.adaptation.sub_prototypes.memory_numbers` and
        :func:`~dafw.methods.adaptation.sub_prototypes.style_numbers`. There are none of the latter for a single target,
        since its styles are not known.
        """
        overall = memory_numbers(targets)
        if len(targets) < 2:
            return ExtraTestMetrics(overall, {})
        names = ("codes", "weights", "query")
        domains = [
            Retrieved(**{name: one.columns[name] for name in names}, labels=one.labels, index=one.index)
            for one in targets
        ]
        styles, by_class = style_numbers(domains, class_names)
        return ExtraTestMetrics(overall | styles, by_class)

    def pictures(self, data: "DomainDataModule") -> "dict[str, Figure]":
        """``sub_prototypes``: the target's test images nearest to the sub-prototypes that a class uses most.

        The labels of the target's test split sort them into classes, see
        :func:`~dafw.methods.adaptation.sub_prototypes.examples`; nothing is trained or selected by it.
        """
        from dafw import plots

        panels = examples(self.read, data, self.device)
        if not any(panel.rows for panel in panels):
            return {}
        return {"sub_prototypes": plots.examples(panels, data.target, what="sub-prototypes")}


def neck(width: int, hidden: int, num_classes: int) -> nn.Sequential:
    """The label head of DCC's code, Linear-BatchNorm-Linear: (n, width) -> (n, num_classes)."""
    return nn.Sequential(nn.Linear(width, hidden), nn.BatchNorm1d(hidden), nn.Linear(hidden, num_classes))
