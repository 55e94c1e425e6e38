"""Normalisation of a batch that holds two domains: the key ``norm``.

===============  ==============================  ==========================================  ===========
value            a training batch is normalised  running statistics                          affine
===============  ==============================  ==========================================  ===========
joint            by its own statistics           one pair, of the whole batch                shared
separate         each domain by its own          one pair, updated by source, then target    shared
domain_specific  each domain by its own          one pair per domain                         per domain
frozen           by the running statistics       never change                                shared
group            each image by its own           none                                        shared
===============  ==============================  ==========================================  ===========

``separate`` gives what two calls of the network give, one for each domain. ``domain_specific`` is Chang et al., CVPR
2019, https://arxiv.org/abs/1906.03950. In evaluation the first four use running statistics, or the test batch's own if
``BatchLayout.test_batch`` is set. On several ranks, training statistics are those of the rows of all ranks. ``group``
puts :class:`~dafw.nn.group_norm.GroupNorm` in the place of every batch normalisation, with its scale and shift.
"""

from typing import Any, Literal, NamedTuple, Self, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.lazy import LazyModuleMixin

from dafw.errors import UserError
from dafw.nn.batch_statistics import batch_statistics, normalise, normalise_by_batch, renormalise
from dafw.nn.distributed import world_size
from dafw.nn.group_norm import GroupNorm
from dafw.nn.layout import BatchLayout, StreamStatistics

NormMode = Literal["joint", "separate", "domain_specific", "frozen", "group"]
BatchNormMode = Literal["joint", "separate", "domain_specific", "frozen"]
NORM_MODES: tuple[str, ...] = get_args(BatchNormMode)
"""Those of batch normalisation."""
_BRANCH = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


class OneValue(UserError, ValueError):
    """Training statistics of one value per channel. The message names the layer."""

    def __init__(self, place: str) -> None:
        super().__init__(
            f"Expected more than 1 value per channel when training, and the batch norm {place} of model.network has"
            " one: set a larger data.batch_size (model.norm separate and domain_specific need 2 images of each domain),"
            " or model.norm frozen"
        )


class _Branch(NamedTuple):
    """The tensors of one ordinary batch normalisation."""

    weight: Tensor | None
    bias: Tensor | None
    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None


class DomainBatchNorm(nn.Module):
    """Batch normalisation over (N, C), (N, C, L), (N, C, H, W) or (N, C, D, H, W), in any mode but ``group``.

    State-dict keys are those of ``nn.BatchNorm``. In ``domain_specific`` mode they hold the target's branch, and the
    same names behind ``source_`` hold the source's. A checkpoint without the source's loads into both branches.

    Args:
        num_features: C.
        eps: added to the variance.
        momentum: weight of a new batch in the running statistics; ``None`` averages all batches so far, and one value
            per channel in one process, which has no variance, is then normalised by the running statistics.
        affine: whether to learn a scale and a shift per channel.
        track_running_stats: whether to keep running statistics; without them evaluation uses the batch's own.
        mode: how the two domains share statistics, see the module's table.
        layout: says which rows are source. Without it every row is target.

    Raises:
        ValueError: for an unknown mode, or ``frozen`` without running statistics. The forward pass raises it for more
            source rows than rows. It raises :class:`OneValue` for training statistics of one value per channel over all
            ranks, if all ranks have as many rows.
        UserError: in the forward pass, if the rows of two domains cannot be told apart.
    """

    _version = 2  # that of nn.BatchNorm, whose checkpoints it reads
    weight: nn.Parameter | None
    bias: nn.Parameter | None
    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None

    def __init__(
        self,
        num_features: int,
        *,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        mode: BatchNormMode = "joint",
        layout: BatchLayout | None = None,
    ) -> None:
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        self.momentum = momentum
        #: Whether training batches enter the running statistics first, and are then normalised by these.
        self.follows = False
        self.drop: nn.Module | None = None  # what timm's fused layers apply to the result
        self.act: nn.Module | None = None
        self.place = ""  # its name within the network
        #: Whether the rows are regions rather than images; they have no padding.
        self.of_regions = False
        self.register_parameter("weight", nn.Parameter(torch.ones(num_features)) if affine else None)
        self.register_parameter("bias", nn.Parameter(torch.zeros(num_features)) if affine else None)
        self.register_buffer("running_mean", torch.zeros(num_features) if track_running_stats else None)
        self.register_buffer("running_var", torch.ones(num_features) if track_running_stats else None)
        self.register_buffer("num_batches_tracked", torch.tensor(0) if track_running_stats else None)
        self._enter(mode, layout or BatchLayout())

    @classmethod
    def from_batch_norm(cls, layer: _BatchNorm, mode: BatchNormMode, layout: BatchLayout) -> Self:
        """A layer that holds the parameters and buffers of ``layer`` themselves, so that optimisers stay valid.

        Raises:
            ValueError: if ``layer`` has another forward pass than the known layers, or has no parameters yet.
        """
        _check_known(layer)
        drop, act = getattr(layer, "drop", None), getattr(layer, "act", None)
        new = cls(layer.num_features, eps=layer.eps, momentum=layer.momentum, affine=False, track_running_stats=False)
        for key in _BRANCH:
            setattr(new, key, getattr(layer, key))
        if isinstance(drop, nn.Module) and isinstance(act, nn.Module):
            new.drop, new.act = drop, act
        new._enter(mode, layout)
        return new.train(layer.training)

    def _enter(self, mode: BatchNormMode, layout: BatchLayout) -> None:
        """Switches to ``mode``. In ``domain_specific`` the source's branch begins as a copy of the present one."""
        if mode not in NORM_MODES:
            raise ValueError(f"norm must be one of {', '.join(NORM_MODES)}, not {mode!r}")
        if mode == "frozen" and self.running_mean is None:
            raise ValueError("norm: frozen needs a layer that tracks running statistics")
        self.mode, self.layout = mode, layout
        if mode != "domain_specific":
            for key in _BRANCH:
                self._parameters.pop(f"source_{key}", None)
                self._buffers.pop(f"source_{key}", None)
        elif not hasattr(self, "source_weight"):
            for key, value in self._branch(source=False)._asdict().items():
                copy = None if value is None else value.detach().clone()
                if key in ("weight", "bias"):
                    parameter = None if copy is None else nn.Parameter(copy, requires_grad=value.requires_grad)
                    self.register_parameter(f"source_{key}", parameter)
                else:
                    self.register_buffer(f"source_{key}", copy)

    def _branch(self, source: bool) -> _Branch:
        if source and self.mode == "domain_specific":
            return _Branch(*(getattr(self, f"source_{key}") for key in _BRANCH))
        return _Branch(self.weight, self.bias, self.running_mean, self.running_var, self.num_batches_tracked)

    def forward(self, x: Tensor) -> Tensor:
        """Normalises ``x`` (N, C, ...) as the mode says; the result has the same shape and dtype."""
        num_source = self.layout.num_source
        if num_source is not None and num_source > x.shape[0]:
            raise ValueError(f"num_source is {num_source}, but the batch has {x.shape[0]} rows")
        split = self.mode == "domain_specific" or (self.mode == "separate" and self._uses_batch(x))
        rows = self.layout.rows
        if split and num_source is not None and rows is not None and x.shape[0] != rows:
            raise UserError(
                f"model.norm is {self.mode}, but the batch norm {self.place} gets {x.shape[0]} rows of a batch of"
                f" {rows} images, so it cannot tell the domains apart: take joint or frozen, or another network"
            )
        if not split or not num_source:
            y = self._normalise(x, self._branch(source=False), slice(None))
        elif num_source == x.shape[0]:
            y = self._normalise(x, self._branch(source=True), slice(None))
        else:
            source, target = slice(num_source), slice(num_source, None)
            y_source = self._normalise(x[source], self._branch(source=True), source)
            y = torch.cat([y_source, self._normalise(x[target], self._branch(source=False), target)])
        if self.drop is not None:
            y = self.drop(y)
        return y if self.act is None else self.act(y)

    def _uses_batch(self, x: Tensor) -> bool:
        if self.running_mean is None:
            return True
        several = x.numel() > x.shape[1]
        if not self.training:
            return self.layout.test_batch and several
        estimates = self.momentum is None and not (self.layout.sync and world_size() > 1)
        return self.mode != "frozen" and (several or not estimates)

    def _normalise(self, x: Tensor, branch: _Branch, rows: slice) -> Tensor:
        """Normalises one part of the batch by one branch, as ``nn.BatchNorm`` does, with care for ranks and padding.

        Args:
            x: the part.
            branch: parameters and statistics.
            rows: where the part lies in the batch.
        """
        weight, bias, mean, var, batches = branch
        if self.layout.stream is not None and self.mode != "frozen":
            return self._normalise_in_stream(x, branch, rows, self.layout.stream)
        if not self._uses_batch(x):
            return F.batch_norm(x, mean, var, weight, bias, False, 0.0, self.eps)
        if not (self.layout.track and self.training):
            mean = var = batches = None
        if batches is not None:
            batches.add_(1)
        over_ranks = self.training and self.layout.sync and world_size() > 1
        inside = self.layout.inside(rows, *x.shape[2:]) if x.ndim == 4 and not self.of_regions else None
        if inside is None and self.training and x.numel() // x.shape[1] * (world_size() if over_ranks else 1) <= 1:
            raise OneValue(self.place)
        if self.follows and self.training:
            if mean is not None:
                with torch.no_grad():
                    _, *statistics = normalise_by_batch(x, None, None, self.eps, inside, over_ranks)
                self._track(branch, *statistics)
            return F.batch_norm(x, branch.running_mean, branch.running_var, weight, bias, False, 0.0, self.eps)
        if over_ranks or inside is not None:
            y, batch_mean, batch_var = normalise_by_batch(x, weight, bias, self.eps, inside, over_ranks)
        elif mean is None or var is None or self.momentum is not None:
            return F.batch_norm(x, mean, var, weight, bias, True, self.momentum or 0.0, self.eps)
        else:  # a momentum of 1 writes the batch's own statistics
            batch_mean, batch_var = torch.zeros_like(mean), torch.ones_like(var)
            y = F.batch_norm(x, batch_mean, batch_var, weight, bias, True, 1.0, self.eps)
        if mean is not None:
            self._track(branch, batch_mean, batch_var)
        return y

    def _normalise_in_stream(self, x: Tensor, branch: _Branch, rows: slice, by: StreamStatistics) -> Tensor:
        """Normalises one part of a batch of a stream, see :class:`~dafw.nn.layout.StreamStatistics`."""
        weight, bias, mean, var, _ = branch
        over_ranks = self.layout.sync and world_size() > 1
        inside = self.layout.inside(rows, *x.shape[2:]) if x.ndim == 4 and not self.of_regions else None
        if self.layout.counted is not None:
            counted = self.layout.counted.view(-1, *[1] * (x.ndim - 1)).expand(-1, 1, *x.shape[2:])
            inside = counted if inside is None else counted & inside
        several = inside is not None or x.numel() // x.shape[1] * (world_size() if over_ranks else 1) > 1
        if by.rule == "batch" and mean is not None and not several:
            return F.batch_norm(x, mean, var, weight, bias, False, 0.0, self.eps)
        if (mean is None or by.rule == "batch") and several and not over_ranks and inside is None:
            return F.batch_norm(x, None, None, weight, bias, True, 0.0, self.eps)
        batch_mean, batch_var, count = batch_statistics(x, inside, over_ranks)
        if mean is not None and var is not None and by.rule != "batch":
            if not several:
                batch_var = var
            elif not by.biased:
                batch_var = batch_var * (count / (count - 1).clamp_min(1))
            if by.rule == "renorm":
                y = renormalise(x, (batch_mean, batch_var), (mean, var), weight, bias, self.eps)
            batch_mean = torch.lerp(mean.to(batch_mean), batch_mean, by.weight)
            batch_var = torch.lerp(var.to(batch_var), batch_var, by.weight)
            if by.rule != "mixed" and self.layout.track:
                with torch.no_grad():
                    mean.copy_(batch_mean), var.copy_(batch_var)
            if by.rule == "renorm":
                return y
        return normalise(x, batch_mean, batch_var, weight, bias, self.eps)

    def _track(self, branch: _Branch, batch_mean: Tensor, batch_var: Tensor) -> None:
        """Lets the statistics of a batch, (C,) each, enter the running ones."""
        _, _, mean, var, batches = branch
        if mean is not None and var is not None and batches is not None:
            share = self.momentum if self.momentum is not None else batches.to(mean.dtype).reciprocal()
            mean.lerp_(batch_mean.detach().to(mean.dtype), share)
            var.lerp_(batch_var.detach().to(var.dtype), share)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, local: dict[str, Any], *rest: Any) -> None:
        if self.num_batches_tracked is not None and (local.get("version") or 0) < 2:  # checkpoints before torch 0.4.1
            state_dict.setdefault(f"{prefix}num_batches_tracked", self.num_batches_tracked)
        if self.mode == "domain_specific":
            for key in _BRANCH:
                if f"{prefix}{key}" in state_dict:
                    state_dict.setdefault(f"{prefix}source_{key}", state_dict[f"{prefix}{key}"])
        super()._load_from_state_dict(state_dict, prefix, local, *rest)

    def extra_repr(self) -> str:
        """What ``print`` shows between the parentheses."""
        affine, tracked = self.weight is not None, self.running_mean is not None
        return (
            f"{self.num_features}, mode={self.mode}, eps={self.eps}, momentum={self.momentum}, "
            f"affine={affine}, track_running_stats={tracked}"
        )


def _check_known(layer: _BatchNorm) -> None:
    """Refuses a layer that does more than what it is replaced by."""
    name = type(layer).__name__
    drop, act = getattr(layer, "drop", None), getattr(layer, "act", None)
    fused = isinstance(drop, nn.Module) and isinstance(act, nn.Module)
    known = fused or type(layer).forward in (_BatchNorm.forward, nn.SyncBatchNorm.forward)
    if not known or hasattr(layer, "aux_bn"):
        raise ValueError(f"cannot convert the normalisation layer {name}: it has a forward pass of its own")
    if isinstance(layer, LazyModuleMixin):
        raise ValueError(f"cannot convert {name}: run a first batch, which gives it its parameters")


def _replaced(child: nn.Module, mode: NormMode, layout: BatchLayout) -> DomainBatchNorm | GroupNorm | None:
    """What takes the place of a layer; ``None`` if it stays."""
    if type(child) is nn.GroupNorm:
        return GroupNorm.in_place_of(child, layout)
    if not isinstance(child, _BatchNorm):
        return None
    if mode != "group":
        return DomainBatchNorm.from_batch_norm(child, mode, layout)
    _check_known(child)
    return GroupNorm.in_place_of(child, layout)


def fix_affine(module: nn.Module) -> None:
    """Keeps scale and shift of every batch normalisation inside ``module`` as they are; running statistics go on."""
    for layer in module.modules():
        if isinstance(layer, _BatchNorm | DomainBatchNorm):
            for parameter in layer.parameters(recurse=False):
                parameter.requires_grad_(False)


def norm_parameters(module: nn.Module) -> list[nn.Parameter]:
    """Scale and shift of every batch, layer and group normalisation inside ``module``; those that are fixed left out.

    Args:
        module: a network.
    """
    kinds = (_BatchNorm, DomainBatchNorm, nn.LayerNorm, nn.GroupNorm)
    layers = [one for one in module.modules() if isinstance(one, kinds)]
    found = {p: None for layer in layers for p in layer.parameters(recurse=False) if p.requires_grad}
    return list(found)


def convert_norm(module: nn.Module, mode: NormMode, skip: nn.Module | None = None) -> BatchLayout:
    """Puts every batch normalisation inside ``module`` into ``mode``; parameters and buffers remain the same objects.

    It replaces ``nn.BatchNorm1d/2d/3d``, ``nn.SyncBatchNorm``, and timm's layers with a fused activation, which stays.
    A ``DomainBatchNorm`` changes its mode. ``nn.GroupNorm`` is replaced by one that leaves out padding, in every mode.
    Other layers that have a ``BatchLayout`` get the one that is returned. The rows within a part that has an attribute
    ``rows_are_regions`` are no images: there padding means nothing, and domains cannot be told apart.

    Args:
        module: a network, changed in place.
        mode: joint, separate, domain_specific, frozen or group.
        skip: a part that is left as it is.

    Returns:
        The ``BatchLayout`` that all layers read. Set its ``num_source`` before each forward pass.

    Raises:
        ValueError: for an unknown mode, for a layer that cannot be converted, or if ``module`` itself is a layer to be
            replaced.
        UserError: for a mode that tells domains apart, if there is a layer whose rows are regions.
    """
    if mode not in get_args(NormMode):
        raise ValueError(f"norm must be one of {', '.join(get_args(NormMode))}, not {mode!r}")
    if isinstance(module, _BatchNorm):
        name = type(module).__name__
        raise ValueError(f"a {name} cannot be replaced from within: pass the network that holds it")
    layout = BatchLayout()
    converted: dict[nn.Module, DomainBatchNorm | GroupNorm] = {}  # a layer may be registered in two places
    skipped = set() if skip is None else set(skip.modules())
    regions = {one for part in module.modules() if getattr(part, "rows_are_regions", False) for one in part.modules()}
    for place, parent in [one for one in module.named_modules() if one[1] not in skipped]:
        if isinstance(parent, DomainBatchNorm):
            if mode == "group":
                raise ValueError("norm: group needs a network whose batch normalisations were not converted before")
            parent._enter(mode, layout)
        elif isinstance(getattr(parent, "layout", None), BatchLayout):
            parent.layout = layout
        for name, child in parent._modules.items():
            if child is None or (new := converted.get(child) or _replaced(child, mode, layout)) is None:
                continue
            where = f"{place}.{name}".lstrip(".")
            if parent in regions and isinstance(new, DomainBatchNorm) and mode in ("separate", "domain_specific"):
                raise UserError(
                    f"model.norm is {mode}, but the rows of the batch norm {where} are regions, so it cannot tell the"
                    " domains apart: take joint, frozen or group, or another network"
                )
            if child not in converted:
                converted[child], new.of_regions = new, parent in regions
                if isinstance(new, DomainBatchNorm):
                    new.place = where
            parent._modules[name] = new
    return layout
