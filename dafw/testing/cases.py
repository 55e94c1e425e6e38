"""A case: a method with the few arguments that make it tiny, and how to train it on toy data."""

import importlib
import inspect
import json
import math
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from dafw.errors import choose
from dafw.methods import Method, SourceOnly
from dafw.nn.detector import Detector
from dafw.nn.network import Network
from dafw.problems import Detection, NetworkBase, Problem, Segmentation
from dafw.recording import build, describe
from dafw.testing.altered import alter
from dafw.testing.dense_toys import ToySegmenter
from dafw.testing.toys import ToyData, toy_trainer
from datamodules.base import DomainDataModule

STEPS_PER_EPOCH, EPOCHS, BATCH = 4, 2, 8
#: Arguments that make a method small; most need none.
TINY: dict[str, dict[str, Any]] = {
    "AdaNPC": {"neighbours": 5, "threshold": 0.7},
    "AdaNPCBN": {"neighbours": 5, "threshold": 0.3, "optimizer": "momentum"},
    "AFN": {"entropy_weight": 0.1},
    "Dacs": {"threshold": 0.4, "decay": 0.8},
    "DAFormer": {
        **{"threshold": 0.4, "decay": 0.8, "distance_weight": 0.1, "temperature": 0.3, "least_pixels": 12},
        **{"things": ["one"], "least_share": 0.5},
        "schedule": {"class_path": "dafw.optim.schedules.WarmUp", "init_args": {"steps": 4}},
    },
    "DAFasterRCNN": {"image_width": 8, "instance_width": 8, "critic_dropout": 0.0, "regions": 8},
    "DomainPenalisation": {"beta": 2.0, "interval": 3},
    "NSA": {
        "threshold": 0.0,
        "regions": 8,
        "position_weight": 0.5,
        "border": 0,
        "texture_weights": [1.0, 1.0, 1.0],
        "decay": 0.8,
        "largest": 1.0,
    },
    "DRMRetraining": {"optimizer": "momentum", "confidence": 0.4},
    "Tent": {"optimizer": "momentum"},
    "ETA": {"margin": 0.9, "redundancy": 0.9},
    "EATA": {"margin": 0.9, "redundancy": 0.9, "weight": 1.0, "fisher_samples": 20, "fisher_batch": 8},
    "CEMA": {
        **{"margin": 1.0, "redundancy": 0.97, "cloud_batch": 4, "stored": 12, "replay": 1, "replay_from": 6},
        **{"lr": 0.05, "cloud_lr": 0.05, "warm_up": 10, "threshold_scale": 1.0},
        "cloud": {"class_path": "dafw.nn.network.Network", "init_args": {"backbone": "dafw.testing.toys.ToyNet"}},
    },
    "CAFA": {"optimizer": "momentum", "lr": 0.01, "shrinkage": 0.1},
    "Core": {"optimizer": "momentum", "lr": 0.05, "target_weight": 0.4},
    "RDumb": {"margin": 0.9, "redundancy": 0.9, "reset": 3},
    "SAR": {"margin": 0.9, "rho": 0.2, "skip": []},
    "DeYO": {"margin": 0.95, "threshold": 0.0, "patches": 3, "skip": []},
    "CDAN": {"width": 8, "depth": 1, "critic_norm": True, "entropy": True},
    "DANN": {"width": 8, "depth": 1, "critic_norm": True},
    "CoTTA": {"views": 2, "threshold": 0.6, "decay": 0.8, "restore": 0.2, "optimizer": "momentum", "lr": 0.05},
    "DCAN": {"width": 8, "block_lr": 0.5},
    "DCC": {"classes": 2, "per_class": 2, "kmeans_trials": 2, "ramp_steps": 8},
    "GroupDRO": {"rate": 0.5},
    "IDM": {"threshold": 0.4, "decay": 0.8, "patches": 2},
    "IRM": {"weight": 10.0, "anneal_steps": 6},
    "KNN": {"queue_size": 30, "neighbours": 5, "head_weight": 0.5, "optimizer": "momentum"},
    "GDCAN": {"width": 8, "block_lr": 0.5, "mode": "authors"},
    "DomainBedCDANN": {"width": 8, "depth": 1, "penalty": 0.3},
    "DomainBedDANN": {"width": 8, "depth": 1, "penalty": 0.3, "critic_lr": 2.0},
    "MDD": {"ramp_steps": 4},
    "MetaDMoE": {
        **{"pretrain": 0.375, "aggregate": 0.25, "support": 0.5, "heads": 2, "inner_lr": 0.5, "aggregator_lr": 0.05},
        "optimizer": "momentum",
    },
    "MetaDMoEAdaptation": {"heads": 2, "lr": 0.5, "reset": 3},
    "FixMatch": {"threshold": 0.5},
    "CMA": {"width": 4, "queue_size": 50, "cells": 2, "warmup_steps": 2, "share": 0.6},
    "SHOT": {"refresh_every": 3},
    "MeanTeacher": {"threshold": 0.2, "decay": 0.8, "burn_in": 0.25},
    "SourceFreeTeacher": {"threshold": 0.1, "decay": 0.8, "window": 3, "collapse": "warn"},
    "WSCoL": {
        **{"threshold": 0.1, "decay": 0.8, "window": 3, "collapse": "warn", "width": 4, "contrasted": 6},
        **{"sure": 0.2, "sure_background": 0.2, "margin": 0.0},
    },
    "MemSPM": {
        **{"items": 6, "sub_prototypes": 2, "top_k": 3, "head_width": 6, "decoder_widths": [4, 4]},
        **{"classes": 2, "per_class": 2, "kmeans_trials": 2, "ramp_steps": 8},
    },
    "MCD": {"head_widths": [6], "head_dropout": 0.0, "balance": 0.1},
    "AdaptSegNet": {"critic_width": 4, "critic_layers": 2, "weight": 0.1},
    "Advent": {"critic_width": 4, "critic_layers": 2, "weight": 0.1},
    "ParetoAdvent": {"critic_width": 4, "critic_layers": 2, "weight": 0.1},
    "ADDA": {"width": 8, "depth": 1, "critic_norm": True},
    "PADA": {"width": 8, "depth": 1, "critic_norm": True, "refresh_every": 3},
    "ParetoCDAN": {"width": 8, "depth": 1, "class_width": 4, "entropy": True},
    "ParetoDA": {"width": 8, "depth": 1, "critic_norm": True, "class_width": 4},
    "ParetoMDD": {"ramp_steps": 4, "class_width": 4},
    "RMT": {"projection": 5, "decay": 0.8, "optimizer": "momentum", "lr": 0.05},
    "ROID": {"lr": 0.01},
    "RoTTA": {"capacity": 6, "update_every": 5, "decay": 0.8, "lr": 0.01},
    "Shallow": {"classifier": "logistic", "alignment": "coral"},
    "SHOTOnline": {"lr": 0.01, "confidence": 0.4, "pseudo_weight": 0.3},
    "UAN": {"width": 8, "depth": 1, "dropout": 0.0},
    "UDIM": {"warmup": 0.0, "sharpness": {"class_path": "dafw.optim.sharpness.SAM", "init_args": {"rho": 0.05}}},
    "SDAT": {"width": 8, "depth": 1, "critic_norm": True},
    "UniOT": {"hidden": 16, "width": 8, "clusters": 5, "queue_size": 20, "warmup_steps": 1, "iterations": 20},
    "VREx": {"anneal_steps": 3},
}
#: Arguments of the toy network where the plain one will not do.
NETWORKS: dict[str, dict[str, Any]] = {name: {"backbone": "dafw.testing.toys.ToySENet"} for name in ("DCAN", "GDCAN")}
#: Arguments of a small detector of each architecture. It draws so few anchors and regions that some are left out.
DETECTORS: dict[str, dict[str, Any]] = {
    "fasterrcnn": {
        **{"proposals_in_training": 20, "proposals_in_test": 20, "head_width": 32},
        **{"anchors_per_image": 16, "regions_per_image": 12},
    },
    "fcos": {"arch": "fcos", "proposals_in_test": 20},
    "retinanet": {"arch": "retinanet", "proposals_in_test": 20, "anchor_sizes": [[12], [24]]},
}
#: The toys of each kind of problem but classes: the problem, and the network's class and arguments.
KINDS: dict[str, tuple[Problem, type[NetworkBase], dict[str, Any]]] = {
    "segmentation": (Segmentation(), ToySegmenter, {}),
    "detection": (Detection(), Detector, DETECTORS["fasterrcnn"]),
}
#: Arguments of the toys where the usual ones will not do: two sources, and a stream that is as long as the others.
TOYS: dict[str, dict[str, Any]] = {
    "MetaDMoEAdaptation": {"source": ["a", "c"], "target": "b", "count": 2 * (EPOCHS * STEPS_PER_EPOCH * BATCH - 3)}
}
#: Training samples of each domain of the toys, where the usual number would make evaluations long.
COUNTS = {"detection": 16}


def path_of(owner: type) -> str:
    """Where a class is."""
    return f"{owner.__module__}.{owner.__qualname__}"


def find(path: str) -> Any:
    """What is there."""
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


@dataclass(frozen=True, eq=False)
class Case:
    """One method to check. It consists of plain values, so that other processes can make it again.

    Two cases are equal only if they are one object: the checks keep what they trained of a case by the case itself.

    Args:
        class_path: where it is.
        arguments: constructor arguments beside the network; an object as its class path and arguments.
        data: arguments of the datamodule beside the sizes.
        network: arguments of the network.
        label: what to call it, if not by the method's name.
        callbacks: what is trained with, each as its class path and arguments.
        data_path: the datamodule's class.
        network_path: the network's class.
    """

    class_path: str
    arguments: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    network: dict[str, Any] = field(default_factory=dict)
    label: str = ""
    callbacks: list[dict[str, Any]] = field(default_factory=list)
    data_path: str = path_of(ToyData)
    network_path: str = path_of(Network)

    @property
    def owner(self) -> type[Method]:
        """The method's class."""
        found: type[Method] = find(self.class_path)
        assert issubclass(found, Method)
        return found

    @property
    def name(self) -> str:
        """What it is called."""
        return self.label or self.class_path.rpartition(".")[2]

    def make(self, **changes: Any) -> Method:
        """A new method, always with the same initial weights."""
        data = self.make_data()
        arguments = {"num_classes": data.num_classes, "lr": 0.05, **self.with_source().arguments, **changes}
        if "num_sources" in inspect.signature(self.owner.__init__).parameters:
            arguments.setdefault("num_sources", data.num_sources)
        torch.manual_seed(5)
        for part in arguments.values():
            if isinstance(part, dict) and "class_path" in part:  # of the test's own: only what is imported is built
                find(part["class_path"])
        network = {"backbone": "dafw.testing.toys.ToyNet"} if self.network_path == path_of(Network) else {}
        return self.owner(find(self.network_path)(**{**network, **build(self.network)}), **build(arguments))

    def with_source(self) -> "Case":
        """The case; of a method that starts from a model, with the checkpoint of one that is trained once."""
        if not self.owner.setting.starts_from_model or "checkpoint" in self.arguments:
            return self
        parts = {name: getattr(self, name) for name in ("network", "data_path", "network_path")}
        problem = {name: value for name, value in self.arguments.items() if name == "problem"}
        served = self.make_data()
        data = {**self.data, "source": served.source, "target": served.target}
        start = getattr(self.owner, "starts_with", None) or SourceOnly
        arguments = {**TINY.get(start.__name__, {}), **problem}
        given = {**parts, "class_path": path_of(start), "data": data, "arguments": arguments}
        checkpoint = start_model(json.dumps(given))
        second = {"cloud_checkpoint"} & inspect.signature(self.owner.__init__).parameters.keys()
        return replace(self, arguments={**self.arguments, **dict.fromkeys(("checkpoint", *second), checkpoint)})

    @property
    def sources(self) -> list[str]:
        """The labelled toy domains: two for a method that sees no target."""
        return ["a"] if self.owner.setting.sees_target else ["a", "c"]

    def make_data(self, **changes: Any) -> Any:
        """New data: the toy domains a -> b, or a,c -> b for a method that sees no target, unless the case has its own.

        The stream of a test-time method has a target for each epoch of the others, of as many batches, the last of
        which is smaller.

        Args:
            changes: arguments. With ``garbage`` every label of a target's training and test split is nonsense; with
                ``other_target`` every image of these is another one.
        """
        owner: type[DomainDataModule] = find(self.data_path)
        sizes = {"batch_size": BATCH, "steps_per_epoch": STEPS_PER_EPOCH, "seed": 3}
        given = {**sizes, **self.data, **changes}
        if issubclass(owner, ToyData):
            toys: dict[str, Any] = {"source": self.sources, "target": "b"}
            if self.owner.setting.streams_target:
                tested = STEPS_PER_EPOCH * BATCH - 2
                toys |= {"target": ["b", "c"][:EPOCHS], "count": 2 * (tested - 1)}
            return owner(**{**toys, **given})
        altered = {name: given.pop(name, False) for name in ("garbage", "other_target")}
        return alter(owner(**given), **altered)

    def train(
        self,
        folder: Path,
        *,
        method: Method | None = None,
        data: DomainDataModule | None = None,
        ckpt_path: Path | None = None,
        **options: Any,
    ) -> tuple[Method, pl.Trainer]:
        """Trains on toy data; ``options`` go to the trainer."""
        method, data = method or self.make(), data or self.make_data()
        options["callbacks"] = [*build(self.callbacks), *options.get("callbacks", ())]
        epochs = 1 if self.owner.setting.streams_target else EPOCHS
        trainer = toy_trainer(folder, **{"epochs": epochs, **options})
        trainer.fit(method, datamodule=data, ckpt_path=ckpt_path, weights_only=True)
        return method, trainer


@lru_cache
def start_model(of: str) -> str:
    """A checkpoint of a model to start from, trained on the source; it stays until this process ends.

    Args:
        of: fields of the case that trains it, in JSON.
    """
    folder = TemporaryDirectory(prefix="dafw-start-")
    _kept.append(folder)
    _, trainer = Case(**json.loads(of)).train(Path(folder.name))
    path = Path(folder.name, "step=1.ckpt")
    trainer.save_checkpoint(path)
    return str(path)


_kept: list[TemporaryDirectory[str]] = []


def case(
    method: type[Method],
    *,
    kind: str | None = None,
    problem: Problem | None = None,
    network: NetworkBase | None = None,
    data: type[DomainDataModule] | None = None,
    data_arguments: dict[str, Any] | None = None,
    **arguments: Any,
) -> Case:
    """The case of a method on the toys, with the arguments that make it tiny, or on data of your own.

    On toy masks: ``case(MyMethod, kind="segmentation", weight=0.5)``. On your data:
    ``case(MyMethod, problem=MyProblem(), network=MyNetwork(), data=MyData, data_arguments={...})``.

    Args:
        method: its class.
        kind: of the toys; the first of the method's kinds, or classes, if ``None``.
        problem: in place of the kind's.
        network: in place of the kind's; each training makes a new one with the same arguments.
        data: in place of the toy data. It must take the arguments of :class:`~datamodules.base.DomainDataModule`.
        data_arguments: constructor arguments of the data, such as source and target.
        arguments: constructor arguments of the method, in place of the tiny ones.
    """
    name = method.__name__
    if kind is None:
        kind = "classification" if not method.kinds or "classification" in method.kinds else method.kinds[0]
    given = dict(data_arguments or ({} if data else TOYS.get(name, {})))
    arguments = arguments or dict(TINY.get(name, {}))
    made: dict[str, Any] = {"network": NETWORKS.get(name, {})}
    kind = kind or (*method.kinds, "classification")[0]
    if choose("kind of toys", kind, ("classification", *KINDS)) != "classification":
        toy, owner, options = KINDS[kind]
        problem, made = problem or toy, {"network": options, "network_path": path_of(owner)}
        given = given if data else {"kind": kind, **given}
    if problem is not None:
        arguments["problem"] = describe(problem)
    if network is not None:
        described = describe(network)
        made = {"network": described["init_args"], "network_path": described["class_path"]}
    if method.held_out and not data:
        given.setdefault("count", math.ceil(BATCH / method.held_out))
    elif kind in COUNTS and not data:
        given.setdefault("count", COUNTS[kind])
    return Case(path_of(method), arguments, given, data_path=path_of(data or ToyData), **made)


def cases() -> list[Case]:
    """One case for every public method of :mod:`dafw.methods`."""
    import dafw.methods

    found = [getattr(dafw.methods, name) for name in dafw.methods.__all__]
    return [case(m) for m in found if isinstance(m, type) and issubclass(m, Method) and not m.is_abstract]


def write_cases(found: list[Case], path: Path) -> None:
    """For another process."""
    path.write_text(json.dumps([asdict(item.with_source()) for item in found]))


def read_cases(path: Path) -> list[Case]:
    """From another process."""
    return [Case(**item) for item in json.loads(path.read_text())]


def differences(one: dict[str, Tensor], other: dict[str, Tensor]) -> dict[str, float]:
    """Largest absolute difference of each tensor of two state dicts with the same keys; bitwise equal ones left out."""
    assert one.keys() == other.keys(), one.keys() ^ other.keys()
    return {
        name: float((value.double() - other[name].double()).abs().max())
        for name, value in one.items()
        if not torch.equal(value, other[name])
    }
