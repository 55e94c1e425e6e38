"""Models that an adaptation starts from: exported ones, and plain classifiers of timm."""

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dafw.data.preparing import Fitted, Preparation
from dafw.errors import UserError
from dafw.export.folder import MODEL, Exported, read_weights
from dafw.files import replacing, user_path
from dafw.methods import Method, SourceOnly
from dafw.nn.network import Network
from dafw.nn.weights import SUFFIXES, without_weights
from dafw.problems.model import NetworkBase
from dafw.recording import build, describe, may_name
from dafw.run.directory import EVIDENCE


@dataclass(frozen=True)
class Start:
    """A trained model to adapt.

    Attributes:
        checkpoint: its file.
        method: what serves it, in evaluation mode.
        classes: names of its classes.
        how: how an image is prepared.
        evidence: the file of its source evidence, which may not exist; ``None`` if there is none.
    """

    checkpoint: Path
    method: Any
    classes: tuple[str, ...]
    how: Preparation
    evidence: Path | None

    def network(self) -> Any:
        """A new network with the weights of the served one."""
        from dafw.methods.starting import fill

        with without_weights():
            network = build(describe(self.method.network))
        network.set_classes(len(self.classes))
        fill(network, self.checkpoint, len(self.classes))
        return network


def exported_start(folder: Path, work: Path, trust: bool) -> Start:
    """The network of an exported model of the form safetensors.

    Args:
        folder: the exported model.
        work: where the checkpoint is written.
        trust: whether the module of a network of the user's own may be imported.

    Raises:
        UserError: if the model holds no network that can be trained, or names a module that is not trusted.
    """
    config = Exported.read(folder)
    check_classifier(folder, config.kind)
    if config.network is None or config.prepare is None:
        raise UserError(
            f"{folder} holds no network that can be trained further: export the run with --to safetensors, or give the"
            " run itself"
        )
    for name in _named(config.network):
        module = name.rpartition(".")[0]
        if module and not may_name(module):
            if not trust:
                raise UserError(
                    f"{folder} names the class {name}, whose module dafw would import: say --trust true if you know it"
                )
            try:
                importlib.import_module(module)
            except ImportError as error:
                raise UserError(f"{folder} names the class {name}, and there is no module {module}") from error
    prefix = config.network_prefix
    weights = read_weights(folder / MODEL["safetensors"])
    own = {key.removeprefix(prefix): one for key, one in weights.items() if key.startswith(prefix)}
    held = {key: one.float() if one.is_floating_point() else one for key, one in own.items()}
    try:
        with without_weights():
            network = build(dict(config.network))
        if not isinstance(network, NetworkBase):
            raise UserError("it is no network")
        network.set_classes(len(config.classes))
        network.load_state_dict({key: held[key] for key in network.state_dict()})
    except UserError as error:
        raise UserError(f"the network of {folder} cannot be made: {error}") from error
    except (RuntimeError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"the network of {folder} cannot be trained further: a method changed its layers, or the files do not fit"
            " each other; give the run itself"
        ) from error
    labelled: Sequence[str] = config.about.get("labelled", [])
    return _start(network, config.classes, config.prepare, work, folder / EVIDENCE, labelled)


def check_classifier(given: str | Path, kind: str) -> None:
    """Refuses a model that gives no class for each image.

    Args:
        given: what the user calls the model.
        kind: of what it predicts.

    Raises:
        UserError: saying what to do.
    """
    if kind != "classification":
        raise UserError(
            f"dafw adapt is for classifiers, and {given} is for {kind}: train on with dafw fit and --model.checkpoint"
            " RUN, by a method for it"
        )


def _named(network: Mapping[str, Any]) -> list[str]:
    inner = network.get("init_args")
    named = [str(network.get("class_path"))]
    if isinstance(inner, dict):
        named += [str(inner.get(key)) for key in ("backbone", "arch") if inner.get(key) is not None]
    return named


def plain_start(given: str, work: Path, classes: Sequence[str], backbone: str | None) -> Start:
    """A whole classifier of timm, by its name or by a file of its weights.

    Args:
        given: the name, or the file.
        work: where the checkpoint is written.
        classes: names of its classes; their numbers if empty.
        backbone: the timm model that the file is of.

    Raises:
        UserError: if there is no such model, or its classes are another number.
    """
    is_file = user_path(given).is_file()
    if is_file and backbone is None:
        raise UserError(f"{given} holds weights and does not say of which network: give --backbone, a model of timm")
    if not is_file and ("/" in given or Path(given).suffix in SUFFIXES):
        raise UserError(f"there is no {given}: give an exported model, a run, a file of weights or a model of timm")
    network = Network(backbone or given, weights=given if is_file else "timm", head="pretrained")
    kept = network.kept_head
    assert kept is not None
    count = [value.shape[0] for value in kept.state.values()][-1]
    names = tuple(classes) or tuple(map(str, range(count)))
    if len(names) != count:
        raise UserError(f"{given} has {count} classes, and --classes names {len(names)}")
    network.set_classes(count)
    return _start(network, names, _preparation(network), work, None, ())


def _preparation(network: Network) -> Preparation:
    """How timm evaluates the model: the short side scaled to size / crop_pct, then the middle."""
    config = getattr(network.backbone, "pretrained_cfg", None) or {}
    size = int((config.get("test_input_size") or config.get("input_size") or (3, 224, 224))[-1])
    return Fitted(size, int(size / float(config.get("crop_pct") or 0.875)))


def _start(
    network: Any,
    classes: tuple[str, ...],
    how: Preparation,
    work: Path,
    evidence: Path | None,
    labelled: Sequence[str],
) -> Start:
    """Writes a checkpoint to start from, and makes what serves the network as it is."""
    described = describe(network)
    arguments = {key: one for key, one in described["init_args"].items() if key not in ("weights", "weights_keys")}
    if arguments.get("head") == "pretrained":
        arguments["head"] = "default"
    state: dict[str, Tensor] = {f"network.{key}": one for key, one in network.state_dict().items()}
    made = {"network": {"class_path": described["class_path"], "init_args": arguments}, "num_classes": len(classes)}
    owner = f"{SourceOnly.__module__}.{SourceOnly.__qualname__}"
    said = {
        "method": {"class_path": owner, "init_args": made},
        "steps": 0,
        "history": [],
        "record": {"unlogged": [], "latest": {}},
        "labelled": [str(one) for one in labelled],
        "classes": list(classes),
        "samples": {},
        "eval_network": "network.",
    }
    path = work / "start.ckpt"
    with replacing(path) as file:
        torch.save({"state_dict": state, "dafw": said}, file)
    method = Method.load(str(path))
    return Start(path, method, classes, how, evidence)
