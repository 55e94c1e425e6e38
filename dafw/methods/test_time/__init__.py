"""Methods that see a trained model and the test stream, which they learn from while they predict it."""

from dafw.methods.test_time.base import TestTimeMethod
from dafw.methods.test_time.drm_retraining import DRMRetraining

__all__ = ["DRMRetraining", "TestTimeMethod"]
