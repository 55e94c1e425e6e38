"""IBN-Net: instance and batch normalisation side by side replace the batch normalisation of a ResNet.

Pan et al., "Two at Once: Enhancing Learning and Generalization Capacities via IBN-Net", ECCV 2018,
https://arxiv.org/abs/1807.09441.  Instance normalisation uses an image's own mean and variance per channel, both in
training and in evaluation. So it removes the style, which is common to the whole image; batch normalisation keeps it.
"""

import sys
from collections.abc import Mapping
from typing import Literal, Self

import torch
from torch import Tensor, nn

from dafw.errors import UserError, choose

IBNForm = Literal["a", "b"]
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
_SUPPORTED = "timm's ResNets of BasicBlock or Bottleneck (resnet18 to resnet152, resnext*, seresnet*, wide_resnet*)"


class IBN(nn.Module):
    """Instance normalisation of the first channels, batch normalisation of the rest, each with its own scale and shift.

    The parts are the children ``IN`` and ``BN``, named as in the authors' code. ``BN`` is an ordinary layer, so
    :func:`~dafw.nn.norm.convert_norm` replaces it. With ``norm: domain_specific`` only ``BN`` has an affine per domain.

    Args:
        channels: C.
        ratio: share of the channels with instance normalisation: int(C * ratio) of them. 0 is pure batch normalisation,
            1 pure instance normalisation; the unused part is None.
        eps: constant added to the variances.
        momentum: weight of a new batch in the running statistics; None: the average of all batches so far.

    Raises:
        ValueError: a ratio outside [0, 1].
    """

    IN: nn.InstanceNorm2d | None
    BN: nn.BatchNorm2d | None

    def __init__(self, channels: int, ratio: float = 0.5, *, eps: float = 1e-5, momentum: float | None = 0.1) -> None:
        super().__init__()
        if not 0 <= ratio <= 1:
            raise ValueError(f"ratio is a share of the channels, from 0 to 1, not {ratio}")
        self.split = instance = int(channels * ratio)
        batch = channels - instance
        self.register_module("IN", nn.InstanceNorm2d(instance, eps=eps, affine=True) if instance else None)
        self.register_module("BN", nn.BatchNorm2d(batch, eps=eps, momentum=momentum) if batch else None)

    @classmethod
    def from_batch_norm(cls, layer: nn.BatchNorm2d, ratio: float = 0.5) -> Self:
        """A layer that starts with the affine parameters of ``layer``; its BN part also gets the running statistics."""
        new = cls(layer.num_features, ratio, eps=layer.eps, momentum=layer.momentum).train(layer.training)
        if layer.weight is not None:
            new.to(layer.weight).requires_grad_(layer.weight.requires_grad)
        new.load_state_dict({**new.state_dict(), **split_state(new, layer.state_dict())})
        return new

    def forward(self, x: Tensor) -> Tensor:
        """Normalises (N, C, H, W).

        Raises:
            UserError: for maps of one value; normalising them by their own statistics would erase it.
        """
        if self.IN is None:
            return self.BN(x)  # type: ignore
        _refuse_one_value(x)
        y: Tensor = self.IN(x[:, : self.split])
        return y if self.BN is None else torch.cat([y, self.BN(x[:, self.split :])], 1)


class InstanceNormAct(nn.Module):
    """An affine instance normalisation before an activation.

    Args:
        channels: C.
        act: the activation.
        eps: constant added to the variance.
    """

    def __init__(self, channels: int, act: nn.Module, eps: float = 1e-5) -> None:
        super().__init__()
        self.IN = nn.InstanceNorm2d(channels, eps=eps, affine=True)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W), the same shape.

        Raises:
            UserError: see :class:`IBN`.
        """
        _refuse_one_value(x)
        y: Tensor = self.act(self.IN(x))
        return y


def _refuse_one_value(x: Tensor) -> None:
    if x.shape[2] * x.shape[3] == 1:
        raise UserError(
            f"instance normalisation got maps of 1x1, (N, C, H, W) = {tuple(x.shape)}: give the network larger images"
        )


def convert_ibn(module: nn.Module, form: IBNForm, name: str | None = None) -> None:
    """Turns a timm ResNet into an IBN-Net, in place; call it before :func:`~dafw.nn.norm.convert_norm`.

    ``a``: ``bn1`` of every residual block of stages 1 to 3 becomes an :class:`IBN` of ratio 0.5. ``b``: the stem's
    ``bn1`` becomes an instance normalisation. In the last block of stages 1 and 2 another one is added, between the
    addition and the activation. The authors' code does the same (read there). New layers start with the affine
    parameters of the layers they replace; those after an addition start with scale 1 and shift 0. All other names and
    shapes stay.

    Args:
        module: the network.
        form: a or b.
        name: name of the network in errors; None: that of its class.

    Raises:
        UserError: for an unknown form, or a network without such blocks.
    """
    choose("ibn", form, ("a", "b"))
    name = name or type(module).__name__
    stages = [_blocks(module, stage, name) for stage in range(1, 4 if form == "a" else 3)]
    if form == "a":
        for block in (block for stage in stages for block in stage):
            block.bn1 = IBN.from_batch_norm(_batch_norm(block, name))
        return
    stem = _batch_norm(module, name)
    module.register_module("bn1", IBN.from_batch_norm(stem, 1.0).IN)
    for blocks in stages:
        last = blocks[-1]
        number = 3 if hasattr(last, "bn3") else 2
        act, channels = f"act{number}", getattr(last, f"bn{number}").num_features
        after = InstanceNormAct(channels, getattr(last, act), stem.eps).to(stem.weight)
        setattr(last, act, after.train(last.training))


def _blocks(module: nn.Module, stage: int, name: str) -> list[nn.Module]:
    resnet = sys.modules.get("timm.models.resnet")  # loaded if the network is one of timm's
    layer = getattr(module, f"layer{stage}", None)
    if resnet is not None and isinstance(module, resnet.ResNet) and isinstance(layer, nn.Sequential):
        found = [block for block in layer if isinstance(block, resnet.BasicBlock | resnet.Bottleneck)]
        if found:
            return found
    raise UserError(f"ibn replaces normalisation in the residual blocks of {_SUPPORTED}; {name} has none of these")


def _batch_norm(parent: nn.Module, name: str) -> nn.BatchNorm2d:
    layer = parent.bn1
    if type(layer) is not nn.BatchNorm2d:
        kind = type(layer).__name__
        raise UserError(f"ibn replaces nn.BatchNorm2d, and {name} normalises by {kind}: choose another backbone")
    return layer


def start_norms(module: nn.Module) -> None:
    """Sets scale 1 and shift 0 for every normalisation, as the authors do.

    timm starts the last normalisation of each residual block with scale 0. Both initialise convolutions in the same
    way, from a normal distribution with variance 2 / (k^2 * channels out).
    """
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d | nn.InstanceNorm2d) and layer.affine:
            nn.init.ones_(layer.weight)
            nn.init.zeros_(layer.bias)


def split_state(module: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames the weights of a plain network for ``module``, which has the layers of :func:`convert_ibn`.

    Scale and shift of a replaced batch normalisation are divided between the IN and the BN part by channel. The running
    statistics go to the BN part alone, since instance normalisation has none. A plain network lacks the instance
    normalisation after an addition; it keeps its values of ``module``. The authors' own IBN weights are accepted too.

    Args:
        module: the network with its IBN layers.
        state: weights of a plain or of an IBN network, otherwise with the names of ``module``.
    """
    found = dict(state)
    plain = not any("IN" in key.split(".") for key in found)
    for path, layer in module.named_modules():
        at = f"{path}." if path else ""
        if isinstance(layer, IBN):
            for key in ("weight", "bias", *_STATISTICS):
                value = found.pop(at + key, None)
                if value is None:
                    continue
                parts = value.ndim > 0
                if layer.IN is not None and key in ("weight", "bias"):
                    found[f"{at}IN.{key}"] = value[: layer.split]
                if layer.BN is not None:
                    found[f"{at}BN.{key}"] = value[layer.split :] if parts else value
        elif isinstance(layer, InstanceNormAct):
            block = path.rpartition(".")[0]
            for key, own in layer.IN.state_dict().items():
                if f"{block}.IN.{key}" in found:
                    found[f"{path}.IN.{key}"] = found.pop(f"{block}.IN.{key}")
                elif plain:
                    found[f"{path}.IN.{key}"] = own
        elif isinstance(layer, nn.InstanceNorm2d) and not layer.track_running_stats:
            for key in _STATISTICS:
                found.pop(at + key, None)
    return found
