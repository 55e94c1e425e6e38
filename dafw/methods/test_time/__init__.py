"""Methods that see a trained model and the test stream, which they learn from while they predict it."""

from dafw.methods.test_time.base import TestTimeMethod
from dafw.methods.test_time.cotta import CoTTA
from dafw.methods.test_time.drm_retraining import DRMRetraining
from dafw.methods.test_time.lame import LAME
from dafw.methods.test_time.roid import ROID
from dafw.methods.test_time.rotta import RoTTA
from dafw.methods.test_time.t3a import T3A

__all__ = ["LAME", "ROID", "T3A", "CoTTA", "DRMRetraining", "RoTTA", "TestTimeMethod"]
