"""Methods that see a trained model and the test stream, which they learn from while they predict it."""

from dafw.methods.test_time.base import Learns, StatisticsRule, TestTimeMethod
from dafw.methods.test_time.batch_norm_adapt import BatchNormAdapt
from dafw.methods.test_time.cafa import CAFA
from dafw.methods.test_time.core import Core
from dafw.methods.test_time.deyo import DeYO
from dafw.methods.test_time.drm_retraining import DRMRetraining
from dafw.methods.test_time.eata import EATA, ETA, RDumb
from dafw.methods.test_time.frozen import Frozen
from dafw.methods.test_time.sar import SAR
from dafw.methods.test_time.tent import Tent

__all__ = [
    "CAFA",
    "EATA",
    "ETA",
    "SAR",
    "BatchNormAdapt",
    "Core",
    "DRMRetraining",
    "DeYO",
    "Frozen",
    "Learns",
    "RDumb",
    "StatisticsRule",
    "Tent",
    "TestTimeMethod",
]
