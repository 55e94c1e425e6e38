"""Channel attention by squeeze and excitation: the plain module, and one that is conditioned on the domain.

Plain: out = a x with a = sigmoid(W_2 relu(W_1 GAP(x))), Hu et al., CVPR 2018, https://arxiv.org/abs/1709.01507.
Conditioned: each domain has a W_1 of its own, and all share W_2, Li et al., AAAI 2020,
https://arxiv.org/abs/2005.06717.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from dafw.errors import UserError
from dafw.nn.distributed import gather_rows, world_size
from dafw.nn.layout import BatchLayout
from dafw.nn.precision import full_precision

GateForm = Literal["paper", "authors"]


class SqueezeExcite(nn.Module):
    """Plain attention over the channels of (N, C, H, W).

    Args:
        channels: C.
        reduction: the squeezed description is C / reduction wide.
    """

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels // reduction, 1)
        self.act = nn.ReLU(inplace=True)
        self.fc2 = nn.Conv2d(channels // reduction, channels, 1)
        self.gate: nn.Module = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        """Weighs the channels of each row: (N, C, H, W), the same shape."""
        weights: Tensor = self.gate(self.fc2(self.act(self.fc1(x.mean((2, 3), keepdim=True)))))
        return x * weights


class DoubledSigmoid(nn.Module):
    """2 sigmoid(x): a gate whose weights are 1 where the scores are 0."""

    def forward(self, x: Tensor) -> Tensor:
        """The weights, of the shape of ``x``."""
        return 2 * x.sigmoid()


def insert_attention(module: nn.Module, reduction: int) -> None:
    """Inserts squeeze-and-excitation behind each stage of a timm network, in place, which starts as the identity.

    The weights are 2 sigmoid(W_2 relu(W_1 GAP(x))), where W_2 and its bias are 0 at the start. So a pretrained network
    gives what it gave, until they learn. Names in its state do not change. The start is ours, from no paper: with it
    methods that act on channel attention can be compared with others on one pretrained network.

    Args:
        module: the backbone. A stage is a sequence of blocks, as in ResNets, EfficientNets and MobileNets.
        reduction: see :class:`SqueezeExcite`.

    Raises:
        UserError: for a network without such stages.
    """
    parts = dict(module.named_modules())
    named = [(parts.get(one["module"]), one["num_chs"]) for one in getattr(module, "feature_info", ())]
    stages = [(stage, channels) for stage, channels in named if isinstance(stage, nn.Sequential)]
    if not stages:
        raise UserError(
            "squeeze_excite follows the stages of a timm network that are sequences of blocks, as a ResNet's and an"
            f" EfficientNet's are, and {getattr(module, 'name', type(module).__name__)} has none"
        )
    for stage, channels in stages:
        layer = SqueezeExcite(channels, min(reduction, channels))
        layer.gate = DoubledSigmoid()
        nn.init.zeros_(layer.fc2.weight)
        nn.init.zeros_(layer.fc2.bias)  # type: ignore[arg-type]
        stage.add_module("squeeze_excite", layer)


def inserted_attention(module: nn.Module) -> list[nn.Module]:
    """What :func:`insert_attention` put into ``module``, also once :func:`convert_attention` has replaced it."""
    return [part for part in module.modules() if isinstance(getattr(part, "gate", None), DoubledSigmoid)]


class DomainAttention(nn.Module):
    """Attention with a squeeze for each domain. The first rows of a batch are source, the others target.

    The number of source rows is that of the :class:`~dafw.nn.layout.BatchLayout`, which batch normalisation reads too.
    So an evaluation decides which path its rows take. Both squeezes start with the weights of the plain module's.
    After :meth:`share_path` there is one path for good.

    Args:
        squeeze: 1x1 convolution C -> C / r of a plain module. It becomes the source's, and a copy the target's.
        excite: 1x1 convolution C / r -> C, shared.
        act: between the two.
        gate: from scores to weights, a sigmoid.
    """

    def __init__(self, squeeze: nn.Conv2d, excite: nn.Conv2d, act: nn.Module, gate: nn.Module) -> None:
        super().__init__()
        self.source_squeeze, self.excite, self.act, self.gate = squeeze, excite, act, gate
        self.target_squeeze = nn.Conv2d(squeeze.in_channels, squeeze.out_channels, 1, bias=squeeze.bias is not None)
        self.target_squeeze.to(squeeze.weight).load_state_dict(squeeze.state_dict())
        self.layout = BatchLayout()
        self.one_path = False

    def share_path(self) -> None:
        """Sends the target through the source's path for good, for training in which nothing teaches its own."""
        self.one_path = True
        self.target_squeeze.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """Weighs the channels of each row by its domain's path: (N, C, H, W), the same shape."""
        pooled = x.mean((2, 3), keepdim=True)
        num_source = x.shape[0] if self.one_path else min(self.layout.num_source or 0, x.shape[0])
        parts = []
        if num_source:
            parts.append(self.source_squeeze(pooled[:num_source]))
        if num_source < x.shape[0]:
            parts.append(self.squeeze_target(pooled[:num_source], pooled[num_source:]))
        hidden = parts[0] if len(parts) == 1 else torch.cat(parts)
        weights: Tensor = self.gate(self.excite(self.act(hidden)))
        return x * weights

    def squeeze_target(self, source: Tensor, target: Tensor) -> Tensor:
        """The target's description (n_t, C / r, 1, 1) of its pooled rows (n_t, C, 1, 1)."""
        squeezed: Tensor = self.target_squeeze(target)
        return squeezed


class GatedDomainAttention(DomainAttention):
    """Attention in which target rows take the source's path while the two domains look alike.

    In each joint training batch the module compares the domains by :func:`domain_gap`, over the rows of all ranks.
    Below ``threshold`` the target shares the source's squeeze. The buffer ``shared`` holds the last decision; the host
    never reads it. While the squeeze is shared, the target's own receives gradients of zero. Li et al., TPAMI 2021,
    https://arxiv.org/abs/2103.12339.

    Args:
        squeeze: see :class:`DomainAttention`.
        excite: see :class:`DomainAttention`.
        act: see :class:`DomainAttention`.
        gate: see :class:`DomainAttention`.
        threshold: eta, below which the paths are shared (authors' code: 0.2).
        form: see :func:`domain_gap`.
    """

    shared: Tensor

    def __init__(
        self,
        squeeze: nn.Conv2d,
        excite: nn.Conv2d,
        act: nn.Module,
        gate: nn.Module,
        *,
        threshold: float = 0.2,
        form: GateForm = "paper",
    ) -> None:
        super().__init__(squeeze, excite, act, gate)
        self.threshold, self.form = threshold, form
        self.register_buffer("shared", torch.zeros((), dtype=torch.bool, device=squeeze.weight.device))

    def share_path(self) -> None:
        """As the plain module's; ``shared`` says so."""
        super().share_path()
        self.shared.fill_(True)

    def squeeze_target(self, source: Tensor, target: Tensor) -> Tensor:
        """The description by the decided path. A training batch of both domains decides anew first."""
        if self.training and source.shape[0]:
            self.shared.copy_(domain_gap(source, target, form=self.form) < self.threshold)
        return torch.where(self.shared, self.source_squeeze(target), self.target_squeeze(target))


@torch.no_grad()
def domain_gap(source: Tensor, target: Tensor, *, form: GateForm = "paper") -> Tensor:
    """tanh(|r_s - r_t| / |r_t|) with r = mean / sqrt(variance + 1e-5) over all entries of a domain, over all ranks.

    ``authors`` divides by r_t with its sign, as the authors' code does (read there). A negative r_t, which is common
    in front of a ReLU, makes the gap negative, which is below any threshold.

    Args:
        source: (n_s, ...), the rows of this rank. Every rank has as many.
        target: (n_t, ...), as ``source``.
        form: see above.

    Returns:
        A scalar in [0, 1), or (-1, 1) for ``authors``.
    """
    moments = torch.stack([torch.stack(torch.var_mean(full_precision(x), correction=0)) for x in (source, target)])
    if world_size() > 1:
        ranks = gather_rows(moments[None])
        mean = ranks[:, :, 1].mean(0)
        variance = (ranks[:, :, 0] + (ranks[:, :, 1] - mean).square()).mean(0)
        moments = torch.stack([variance, mean], 1)
    ratios = []
    for (variance, mean), x in zip(moments, (source, target), strict=True):
        count = x.numel() * world_size()
        ratios.append(mean / (variance * (count / max(count - 1, 1)) + 1e-5).sqrt())
    r_s, r_t = ratios
    return torch.tanh((r_s - r_t).abs() / (r_t if form == "authors" else r_t.abs().clamp_min(1e-12)))


def convert_attention(
    module: nn.Module, *, gated: bool = False, threshold: float = 0.2, form: GateForm = "paper"
) -> list[DomainAttention]:
    """Puts domain-conditioned attention in place of every squeeze-and-excitation inside ``module``.

    It knows :class:`SqueezeExcite`, and those of timm with two 1x1 convolutions, an activation and a gate:
    ``legacy_seresnet*``, ``legacy_seresnext*``, ``legacy_senet154``, ``seresnet*``, RegNetY, ... Both paths start with
    the pretrained squeeze. Call it before :func:`~dafw.nn.norm.convert_norm`, which gives all layers their layout.

    Args:
        module: a network, changed in place.
        gated: :class:`GatedDomainAttention` instead of :class:`DomainAttention`.
        threshold: see :class:`GatedDomainAttention`.
        form: see :class:`GatedDomainAttention`.

    Returns:
        The new modules, in the network's order.

    Raises:
        UserError: if the network has no squeeze-and-excitation.
    """
    made: list[DomainAttention] = []
    for parent in list(module.modules()):
        for name, child in parent._modules.items():
            parts = _parts(child)
            if parts is not None and child is not None:
                new = GatedDomainAttention(*parts, threshold=threshold, form=form) if gated else DomainAttention(*parts)
                parent._modules[name] = new.train(child.training)
                made.append(new)
    if not made:
        name = getattr(module, "backbone_name", type(module).__name__)
        raise UserError(
            f"domain-conditioned attention replaces squeeze-and-excitation modules, and {name} has none: choose a"
            " backbone that has them, such as legacy_seresnet50, seresnet50 or small_se_net, or give"
            " model.network.squeeze_excite"
        )
    return made


def domain_attentions(module: nn.Module) -> list[DomainAttention]:
    """The domain-conditioned attention inside ``module``, in its order."""
    return [part for part in module.modules() if isinstance(part, DomainAttention)]


def _parts(layer: nn.Module | None) -> tuple[nn.Conv2d, nn.Conv2d, nn.Module, nn.Module] | None:
    """Squeeze, excitation, activation and gate, if ``layer`` is a squeeze-and-excitation that does nothing else."""
    squeeze, excite = getattr(layer, "fc1", None), getattr(layer, "fc2", None)
    act = getattr(layer, "act", None) or getattr(layer, "relu", None)
    gate = getattr(layer, "gate", None) or getattr(layer, "sigmoid", None)
    if not (isinstance(squeeze, nn.Conv2d) and isinstance(excite, nn.Conv2d)):
        return None
    if not (isinstance(act, nn.Module) and isinstance(gate, nn.Module)):
        return None
    plain = not getattr(layer, "add_maxpool", False) and isinstance(getattr(layer, "bn", nn.Identity()), nn.Identity)
    fits = (squeeze.in_channels, squeeze.out_channels) == (excite.out_channels, excite.in_channels)
    return (squeeze, excite, act, gate) if plain and fits and squeeze.kernel_size == (1, 1) else None
