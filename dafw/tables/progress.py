"""Reports the progress of a launch: a live display on a terminal, a line for each finished run elsewhere."""

from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from dafw import escape
from dafw.tables.caption import duration


class Reporter(Protocol):
    """What a launcher tells its display."""

    def begin(self, total: int, skipped: int) -> None:
        """A launch begins. It has ``total`` runs, and ``skipped`` of them are done."""

    def started(self, label: str) -> None:
        """A run was handed to a worker."""

    def ended(self, label: str, text: str, seconds: float | None) -> None:
        """A run is done, and ``text`` is its number. Without seconds, another process made it."""

    def failed(self, label: str, error: str, log: str, again: bool) -> None:
        """An attempt failed. ``again`` says whether another one follows."""

    def waiting(self, label: str) -> None:
        """Another process works on the run."""

    def close(self) -> None:
        """The launch ended."""


class Lines:
    """Prints a line for each event, for logs and pipes."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.total, self.done = 0, 0
        self.busy: set[str] = set()

    def begin(self, total: int, skipped: int) -> None:
        """Prints how many runs there are to make."""
        self.total, self.done = total, skipped
        self.say(f"{total} runs, {skipped} done already")

    def say(self, text: str, style: str = "") -> None:
        """Prints one line."""
        self.console.print(Text(escape.terminal(text), style=style), soft_wrap=True)

    def started(self, label: str) -> None:
        """Prints nothing. The line follows when the run ends."""

    def ended(self, label: str, text: str, seconds: float | None) -> None:
        """Prints the number of a run."""
        self.done += 1
        how = "made by another process" if seconds is None else f"in {duration(seconds)}"
        self.say(f"[{self.done}/{self.total}] {label}: {text} {how}")

    def failed(self, label: str, error: str, log: str, again: bool) -> None:
        """Prints what went wrong, and where to read more."""
        self.say(
            f"{label}: {error}; {'trying once more' if again else 'no number'}, see {log}", "yellow" if again else "red"
        )

    def waiting(self, label: str) -> None:
        """Prints it once for each run."""
        if label not in self.busy:
            self.busy.add(label)
            self.say(f"{label}: another process is at it, its result will be read")

    def close(self) -> None:
        """Does nothing."""


class Live(Lines):
    """Prints the lines, and shows a bar for the table and a clock for each run below them."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        self.progress = Progress(*columns, console=console, refresh_per_second=1, transient=True)
        self.tasks: dict[str, int] = {}

    def begin(self, total: int, skipped: int) -> None:
        """Shows the bar."""
        super().begin(total, skipped)
        self.whole = self.progress.add_task("table", total=total, completed=skipped)
        self.progress.start()

    def started(self, label: str) -> None:
        """Adds a clock."""
        self.tasks[label] = self.progress.add_task(f"  {escape.terminal(label)}", total=None)

    def _remove(self, label: str) -> None:
        task = self.tasks.pop(label, None)
        if task is not None:
            self.progress.remove_task(task)  # type: ignore[arg-type]

    def ended(self, label: str, text: str, seconds: float | None) -> None:
        """Removes the clock, moves the bar."""
        self._remove(label)
        super().ended(label, text, seconds)
        self.progress.update(self.whole, completed=self.done)

    def failed(self, label: str, error: str, log: str, again: bool) -> None:
        """Removes the clock."""
        self._remove(label)
        super().failed(label, error, log, again)

    def waiting(self, label: str) -> None:
        """Removes the clock."""
        self._remove(label)
        super().waiting(label)

    def close(self) -> None:
        """Takes the display away."""
        self.progress.stop()


def make_reporter(console: Console) -> Reporter:
    """The live display for a terminal, and lines for anything else."""
    return Live(console) if console.is_terminal else Lines(console)
