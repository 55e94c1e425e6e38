"""One thread a process, and caches inside the checkout."""

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("DAFW_CACHE", str(Path(__file__).parents[1] / ".pytest_cache" / "dafw"))
os.environ.setdefault("WANDB_SILENT", "true")
