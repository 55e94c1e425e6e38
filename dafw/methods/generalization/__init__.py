"""Methods that train on labelled sources and see nothing of the target."""

from dafw.methods.generalization.base import GeneralizationMethod
from dafw.methods.generalization.coral import CORAL
from dafw.methods.generalization.domain_adversarial import DomainBedCDANN, DomainBedDANN
from dafw.methods.generalization.drm import DRM
from dafw.methods.generalization.erm import ERM
from dafw.methods.generalization.fish import Fish
from dafw.methods.generalization.group_dro import GroupDRO
from dafw.methods.generalization.irm import IRM
from dafw.methods.generalization.knn import KNN
from dafw.methods.generalization.meta_dmoe import MetaDMoE
from dafw.methods.generalization.mixup import Mixup
from dafw.methods.generalization.mmd import MMD
from dafw.methods.generalization.rsc import RSC
from dafw.methods.generalization.udim import UDIM
from dafw.methods.generalization.vrex import VREx

__all__ = [
    "CORAL",
    "DRM",
    "ERM",
    "IRM",
    "KNN",
    "MMD",
    "RSC",
    "UDIM",
    "DomainBedCDANN",
    "DomainBedDANN",
    "Fish",
    "GeneralizationMethod",
    "GroupDRO",
    "MetaDMoE",
    "Mixup",
    "VREx",
]
