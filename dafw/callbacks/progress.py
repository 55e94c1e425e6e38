"""Progress display: a rich bar on a terminal, otherwise one line at each validation."""

import sys
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import RichProgressBar


class _Bar(RichProgressBar):
    """Lightning's rich bar with the last logged loss terms; it never reads the device."""

    def get_metrics(self, trainer: pl.Trainer, pl_module: Any) -> dict[str, Any]:
        latest = pl_module.history[-1] if pl_module.history else {"validators": {}}
        terms = {name: f"{value:.4g}" for name, value in pl_module.last_terms.items()}
        return terms | {name: f"{value:.4g}" for name, value in latest["validators"].items() if "source" in name}


class _Lines(pl.Callback):
    """One line at each validation."""

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if trainer.is_global_zero and trainer.state.fn == "fit" and pl_module.history:
            terms = "  ".join(f"{name} {value:.4f}" for name, value in pl_module.last_terms.items())
            found = "  ".join(f"{name} {value:.4f}" for name, value in pl_module.history[-1]["validators"].items())
            print(f"step {pl_module.steps_done}/{pl_module.steps_planned}  {terms}  |  {found}", flush=True)


def progress_callback(refresh_every: int = 10) -> pl.Callback:
    """The progress display that suits the output: a bar on a terminal, otherwise lines."""
    return _Bar(refresh_rate=refresh_every) if sys.stdout.isatty() else _Lines()
