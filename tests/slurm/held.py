"""A callback that holds a run in the middle, so that a test can disturb it there."""

import os
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from dafw.callbacks import Stopping

#: The variable with the folder that has a file for each run to hold. A file of the run's name and ``.reached`` answers.
HELD = "DAFW_TESTS_HELD"
#: Steps after which a run is held.
AT = 5


class Held(pl.Callback):
    """Waits after some steps while the run's file exists, or until a signal asks the run to stop."""

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        file = Path(os.environ[HELD], Path(str(trainer.default_root_dir)).name)
        if pl_module.steps_done != AT or not file.exists():
            return
        file.with_name(f"{file.name}.reached").touch()
        stopping = [callback for callback in trainer.callbacks if isinstance(callback, Stopping)]  # type: ignore[attr-defined]
        while file.exists() and not any(callback.received for callback in stopping):
            time.sleep(0.05)
