"""The network every method trains: normalisation, a backbone, perhaps a bottleneck, and a label head."""

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, Self, get_args

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from dafw.data.hub import encoder_of
from dafw.data.imagenet import rows_of
from dafw.errors import UserError, choose, warn
from dafw.nn.attention import insert_attention, inserted_attention
from dafw.nn.backbones import make_backbone
from dafw.nn.feature_cache import FeatureCache
from dafw.nn.ibn import IBNForm
from dafw.nn.mixstyle import Pairs, insert_mixstyle
from dafw.nn.mlp import mlp, start_linear
from dafw.nn.norm import fix_affine
from dafw.nn.weights import loads_weights
from dafw.nn.whole_classifiers import other_scale, refuse_unknown_scale
from dafw.problems.model import NetworkBase
from dafw.problems.outputs import Outputs
from dafw.ranges import ClosedUnitInterval, NonNegativeFloat, NonNegativeInt, PositiveInt, Range

HeadKind = Literal["default", "weight_norm", "pretrained"]


class Network(NetworkBase):
    """Images, or the tokens of texts, to features and class scores.

    :class:`~dafw.problems.NetworkBase` says which inputs it takes. Images of several sizes are refused.

    Args:
        backbone: ``mnist_net``, ``svhn_net``, ``gtsrb_net``, ``small_bn_net``, ``small_se_net``, ``mnist_cnn``, for
            rows of features ``mlp`` or ``identity`` (:mod:`dafw.nn.feature_nets`), a timm model's name,
            ``transformers:`` and the name or folder of an encoder of texts, which takes the arguments of
            :class:`~dafw.nn.text_encoder.TextEncoder`, or the class path of an ``nn.Module`` that returns features
            (N, d). The class may have ``num_features``, which is d; otherwise d is measured on zeros. It may have
            ``make_head(num_classes)``, which builds the label head. A function that is annotated to return such a
            module will do, as torchvision's.
        weights: null, ``timm``, ``pypi`` or a file, see :func:`dafw.nn.weights.load_weights`.
        weights_keys: how names of weights in a file begin, and what the backbone calls that, as in ``{encoder.: ""}``.
        bottleneck: width of a Linear-BatchNorm-ReLU between backbone and head. Its output is then the features.
        bottleneck_norm: whether it has the BatchNorm (tllib's DAN, DeepDA, UAN and the authors of CDAN: no).
        bottleneck_relu: whether it ends in the ReLU (SHOT, UAN and the authors of CDAN: no).
        bottleneck_init: standard deviation of the initial weights of its Linear, around 0, and value of the biases;
            null: PyTorch's (MDD: 0.005 and 0.1).
        head: ``default`` is the backbone's own or a Linear. ``weight_norm`` is a Linear in which each row is a length
            times a direction, SHOT's label head (Salimans and Kingma 2016, https://arxiv.org/abs/1602.07868).
            ``pretrained`` is the classifier that ``weights`` came with. The data must then have as many classes, in the
            same order. A module of your own may then be a whole classifier: the linear layer whose output it returns
            becomes the head, and ``mean`` and ``std`` must be known.
        head_rows: outputs of the pretrained classifier that are kept, as numbers from 0 in the order of the data's
            classes; ``imagenet_r`` or ``imagenet_a``: the 200 of 1,000 that this variant has. Null keeps all.
        head_width: width of a hidden Linear-ReLU layer of the label head; null: see :meth:`make_head`.
        head_init: as ``bottleneck_init``, of each Linear of a new label head (MDD, AFN in tllib: 0.01 and 0).
        dropout: share of values to drop in training: of the bottleneck's output and of the head's hidden units. A
            network with neither drops features of the backbone (DomainBed's ``resnet_dropout``). Each rank of a
            distributed run draws its own.
        backbone_lr: learning rate of the backbone as a multiple of that of bottleneck and head. New layers in the
            backbone, those of ``squeeze_excite``, learn at the latter.
        in_channels: channels C of an image.
        input_size: side of an image in pixels, for networks built for one size; the network's own if null.
        mean: mean per channel of images in [0, 1], one value or C; a timm model's own or 0.5 if null.
        std: standard deviation per channel, in the same form.
        channels_last: keep images and convolutions in channels-last memory; if null, as
            :func:`~dafw.problems.model.prefers_channels_last` says.
        compile: compile the backbone with ``torch.compile``.
        backbone_args: further arguments of the backbone's constructor.
        frozen: keep the backbone in evaluation mode, with its weights and running statistics as they are. Only the
            bottleneck and the head learn.
        norm_affine: ``fixed`` keeps scale and shift of the backbone's batch normalisations as they are, while their
            statistics go on (``fix_bn`` in DCC's code).
        feature_cache: number of images with features that are kept in memory (:mod:`dafw.nn.feature_cache`). It needs a
            frozen backbone. Each image then passes the backbone once in all runs of a process. An augmented image
            differs each time, so it is not found again.
        ibn: ``a`` or ``b`` makes an IBN-Net of a timm ResNet, see :func:`~dafw.nn.ibn.convert_ibn`. ``weights`` may be
            those of the plain ResNet. Both parts of a layer then get the scale and shift of its batch normalisation;
            the remaining batch normalisation gets the running statistics. Without weights every normalisation starts
            with scale 1, unless ``backbone_args`` has timm's ``zero_init_last``.
        squeeze_excite: put squeeze-and-excitation behind each stage of a timm network. It starts as the identity, see
            :func:`~dafw.nn.attention.insert_attention`. The number is the reduction of the channels, 16 in most papers.
            ``weights`` are those of the network without it.
        mixstyle: stages of a ResNet or of a digit network, from 1. Behind each, training images mix their styles, see
            :class:`~dafw.nn.mixstyle.MixStyle` (paper, as recalled: 1 and 2 or 1 to 3, by data set).
        mixstyle_alpha: of the Beta distribution of the mixing weights.
        mixstyle_p: probability that a stage mixes a batch.
        mixstyle_pairs: ``random`` rows of the batch, or ``cross_domain``, rows of different domains.

    Attributes:
        num_features: width d of the features.
        head: the label head, once :meth:`set_classes` was called. Its input is the features.

    Raises:
        UserError: for an unknown backbone, an unknown argument of it, a size that it cannot take, or weights that
            cannot be loaded.
    """

    bottleneck: nn.Module | None
    feature_dropout: nn.Module | None

    def __init__(
        self,
        backbone: str = "mnist_net",
        *,
        weights: str | None = None,
        weights_keys: dict[str, str] | None = None,
        bottleneck: PositiveInt | None = None,
        bottleneck_norm: bool = True,
        bottleneck_relu: bool = True,
        bottleneck_init: tuple[NonNegativeFloat, NonNegativeFloat] | None = None,
        head: HeadKind = "default",
        head_rows: list[NonNegativeInt] | Literal["imagenet_r", "imagenet_a"] | None = None,
        head_width: PositiveInt | None = None,
        head_init: tuple[NonNegativeFloat, NonNegativeFloat] | None = None,
        dropout: Annotated[float, Range("is a share, at least 0 and below 1", 0, 1, below=True)] = 0.0,
        backbone_lr: NonNegativeFloat = 1.0,
        in_channels: PositiveInt = 3,
        input_size: PositiveInt | None = None,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        channels_last: bool | None = None,
        compile: bool = False,
        backbone_args: dict[str, Any] | None = None,
        frozen: bool = False,
        norm_affine: Literal["fixed"] | None = None,
        feature_cache: NonNegativeInt = 0,
        ibn: IBNForm | None = None,
        squeeze_excite: PositiveInt | None = None,
        mixstyle: list[NonNegativeInt] | None = None,
        mixstyle_alpha: float = 0.1,
        mixstyle_p: ClosedUnitInterval = 0.5,
        mixstyle_pairs: Pairs = "random",
    ) -> None:
        choose("head", head, get_args(HeadKind))
        if head == "weight_norm" and head_width is not None:
            raise UserError("a weight-normalised head is one layer: leave out head_width, or head: weight_norm")
        if head == "pretrained" and (weights is None or bottleneck is not None or head_width is not None):
            raise UserError("head: pretrained needs weights with a classifier, no bottleneck and no head_width")
        if head_rows is not None and head != "pretrained":
            raise UserError("head_rows are of a classifier that is kept: give head: pretrained, or leave them out")
        if head != "default" and head_init is not None:
            raise UserError(f"head_init is of the default head: leave it out, or head: {head}")
        if frozen and mixstyle:
            raise UserError("mixstyle does nothing in a frozen backbone, which is in evaluation mode")
        if frozen and squeeze_excite is not None:
            raise UserError("squeeze_excite learns nothing in a frozen backbone, where it stays the identity")
        if feature_cache and not frozen:
            raise UserError(f"feature_cache is a number of images and needs a frozen backbone, not {feature_cache}")
        if feature_cache and encoder_of(backbone) is not None:
            raise UserError(f"feature_cache keeps features of images: leave it out with the backbone {backbone}")
        if norm_affine is not None:
            choose("norm_affine", norm_affine, ("fixed",))
        keeps = head == "pretrained"
        made = make_backbone(backbone, in_channels, input_size, backbone_args or {}, weights, ibn, keeps, weights_keys)
        module, width, classifier = made
        if keeps:
            refuse_unknown_scale(backbone, module, mean, std)
        if squeeze_excite is not None:
            insert_attention(module, squeeze_excite)
        if mixstyle:
            insert_mixstyle(module, mixstyle, alpha=mixstyle_alpha, p=mixstyle_p, pairs=mixstyle_pairs)
        super().__init__(
            module,
            width if bottleneck is None else bottleneck,
            backbone_lr=backbone_lr,
            in_channels=in_channels,
            mean=mean,
            std=std,
            channels_last=channels_last,
            compile=compile,
            frozen=frozen,
        )
        if norm_affine is not None:
            fix_affine(self.backbone)
        if weights is not None and loads_weights() and (other := other_scale(self.backbone, self.mean, self.std)):
            warn(
                f"{backbone} normalises images with {other}: leave out model.network.mean and std if that is not meant"
            )
        self.backbone_name, self.head_kind = backbone, head
        rows = rows_of(head_rows) if isinstance(head_rows, str) else head_rows
        self.kept_head = KeptHead(classifier, rows) if classifier else None
        self.head_width, self.head_init, self.dropout = head_width, head_init, dropout
        self.register_module("bottleneck", None)
        if bottleneck is not None:
            drop = [nn.Dropout(dropout)] if dropout else []
            relu = [nn.ReLU(inplace=True)] if bottleneck_relu else []
            norm = [nn.BatchNorm1d(bottleneck)] if bottleneck_norm else []
            self.bottleneck = nn.Sequential(nn.Linear(width, bottleneck), *norm, *relu, *drop)
            start_linear(self.bottleneck, bottleneck_init)
        of_features = dropout > 0 and bottleneck is None and head_width is None
        self.register_module("feature_dropout", nn.Dropout(dropout) if of_features else None)
        self.register_module("head", self._modules.pop("head"))  # the order of the forward pass: the head comes last
        self.feature_cache = FeatureCache(feature_cache) if feature_cache else None
        if self.feature_cache is not None:
            self.register_load_state_dict_post_hook(_forget)  # type: ignore[no-untyped-call]

    def make_head(self, num_classes: int) -> nn.Module:
        """A new label head, (N, num_features) -> (N, num_classes).

        With ``head_width`` it is a Linear-ReLU-Linear. Behind a bottleneck it is a Linear. A network of a paper has the
        paper's head, and a user's module the head of its ``make_head``. All others have a Linear. ``head`` may ask for
        a weight-normalised Linear, or for one that starts with the weights of the pretrained classifier.

        Raises:
            UserError: if the pretrained classifier has another number of classes, or is of another form.
        """
        head = self._new_head(num_classes)
        start_linear(head, self.head_init)
        if self.kept_head is not None:
            self.kept_head.fill(head, num_classes)
        return head

    def _new_head(self, num_classes: int) -> nn.Module:
        if self.head_kind == "weight_norm":
            head: nn.Module = weight_norm(nn.Linear(self.num_features, num_classes))
            return head
        if self.head_width is not None:
            return mlp(self.num_features, [self.head_width], num_classes, dropout=self.dropout)
        own: Callable[[int], nn.Module] | None = getattr(self.backbone, "make_head", None)
        if own is not None and self.bottleneck is None:
            return own(num_classes)
        return nn.Linear(self.num_features, num_classes)

    @property
    def starts_trained(self) -> bool:
        """Whether the label head comes trained, so that the network predicts classes before any training."""
        return self.head_kind == "pretrained"

    def new_in_backbone(self) -> list[nn.Module]:
        """The attention of ``squeeze_excite``."""
        return inserted_attention(self.backbone)

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """As the base class says.

        Raises:
            UserError: if a method put a head of its own in the place of the pretrained one.
        """
        if self.kept_head is not None and not self.kept_head.used:
            raise UserError("the method makes a label head of its own: leave out model.network.head pretrained")
        return super().parameter_groups(lr)

    def forward(self, x: Any, sizes: Tensor | None = None) -> Outputs:
        """Images (N, C, H, W) to features (N, num_features) and logits (N, num_classes).

        Raises:
            RuntimeError: before :meth:`set_classes`.
            UserError: if the images have several sizes, do not fit the backbone, or its output is not (N, d).
        """
        head = self.label_head()
        if sizes is not None:
            raise UserError(
                "a classification network takes images of one size and got padded ones: set data.size, or give a"
                " data.augment that crops or resizes them to one size"
            )
        features = self.extract(x)
        return Outputs(features, head(features))

    def extract(self, x: Any) -> Tensor:
        """Images (N, C, H, W) to features (N, num_features) alone.

        Raises:
            UserError: see :meth:`forward`.
        """
        features = self.encode(x)
        if features.ndim != 2:
            shape = tuple(features.shape)
            raise UserError(f"the backbone {self.backbone_name} returns {shape}, not (N, d): it must pool its features")
        after = self.feature_dropout if self.bottleneck is None else self.bottleneck
        return features if after is None else after(features)

    def encode(self, x: Any, sizes: Tensor | None = None) -> Tensor:
        """The backbone's features of images, (N, d). A frozen backbone takes no gradient."""
        if self.feature_cache is None or not isinstance(x, Tensor):
            encoded: Tensor = super().encode(x, sizes)
        else:
            how = f"{self.mean} {self.std} {self.shift.dtype} {self.channels_last}"
            encoded = self.feature_cache(self.backbone, x, self.normalise, how)
        return encoded


class KeptHead:
    """The classifier that pretrained weights came with. Copies of a network share it.

    Args:
        state: its weights, by their names within it.
        rows: the outputs that are kept; ``None`` for all.

    Raises:
        UserError: if it has no such output.
    """

    def __init__(self, state: dict[str, Tensor], rows: Sequence[int] | None = None) -> None:
        self.state, self.used = state, False
        if rows is not None:
            outputs = min(len(value) for value in state.values())
            if max(rows, default=0) >= outputs:
                raise UserError(
                    f"model.network.head_rows names output {max(rows)} of a classifier of {outputs} classes"
                )
            self.state = {key: value[list(rows)] for key, value in state.items()}

    def fill(self, head: nn.Module, num_classes: int) -> None:
        """Puts the weights into a new head; a bias that the classifier lacks is 0.

        Raises:
            UserError: if the head has another number of classes or other layers.
        """
        classes = [value.shape[0] for value in self.state.values()][-1]
        if classes != num_classes:
            raise UserError(
                f"model.network.head pretrained keeps a classifier of {classes} classes, and {num_classes} are needed:"
                f" leave it out, or give weights of {num_classes} classes"
            )
        own = head.state_dict()
        given = {key: torch.zeros_like(value) for key, value in own.items() if key.endswith("bias")} | self.state
        if {key: value.shape for key, value in own.items()} != {key: value.shape for key, value in given.items()}:
            raise UserError(
                "model.network.head pretrained keeps a classifier whose weights, "
                f"{', '.join(self.state)}, are no single linear layer on the features of the backbone: leave it out"
            )
        head.load_state_dict(given)
        self.used = True

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self


def _forget(network: nn.Module, _: Any) -> None:
    if isinstance(network, Network) and network.feature_cache is not None:
        network.feature_cache.forget()
