"""Methods that see a trained model and the test stream, which they learn from while they predict it."""

from dafw.methods.test_time.adanpc import AdaNPC, AdaNPCBN
from dafw.methods.test_time.base import Learns, StatisticsRule, TestTimeMethod
from dafw.methods.test_time.batch_norm_adapt import BatchNormAdapt
from dafw.methods.test_time.cafa import CAFA
from dafw.methods.test_time.cema import CEMA
from dafw.methods.test_time.core import Core
from dafw.methods.test_time.cotta import CoTTA
from dafw.methods.test_time.deyo import DeYO
from dafw.methods.test_time.drm_retraining import DRMRetraining
from dafw.methods.test_time.eata import EATA, ETA, RDumb
from dafw.methods.test_time.frozen import Frozen
from dafw.methods.test_time.lame import LAME
from dafw.methods.test_time.meta_dmoe_adaptation import MetaDMoEAdaptation
from dafw.methods.test_time.rmt import RMT
from dafw.methods.test_time.roid import ROID
from dafw.methods.test_time.rotta import RoTTA
from dafw.methods.test_time.sar import SAR
from dafw.methods.test_time.shot_online import SHOTOnline
from dafw.methods.test_time.t3a import T3A
from dafw.methods.test_time.tent import Tent

__all__ = [
    "CAFA",
    "CEMA",
    "EATA",
    "ETA",
    "LAME",
    "RMT",
    "ROID",
    "SAR",
    "T3A",
    "AdaNPC",
    "AdaNPCBN",
    "BatchNormAdapt",
    "CoTTA",
    "Core",
    "DRMRetraining",
    "DeYO",
    "Frozen",
    "Learns",
    "MetaDMoEAdaptation",
    "RDumb",
    "RoTTA",
    "SHOTOnline",
    "StatisticsRule",
    "Tent",
    "TestTimeMethod",
]
