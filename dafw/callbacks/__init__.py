"""What happens around the steps of a run."""

from dafw.callbacks.averaging import averaging
from dafw.callbacks.checkpointing import Checkpointing
from dafw.callbacks.progress import Lines, progress_callbacks
from dafw.callbacks.restarting import RestartFromBest
from dafw.callbacks.step_logger import StepLogger
from dafw.callbacks.stopping import Stopped, Stopping
from dafw.callbacks.swad import SWAD

__all__ = [
    "SWAD",
    "Checkpointing",
    "Lines",
    "RestartFromBest",
    "StepLogger",
    "Stopped",
    "Stopping",
    "averaging",
    "progress_callbacks",
]
