"""Progress display: a live line on a terminal, occasional plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from statistics import fmean
from typing import TYPE_CHECKING

from rich.console import Console

from tlm_client.console import as_markup
from tlm_client.transfer import FileProgress
from tlm_core.jobs import spec
from tlm_core.jobs.event_words import sentence
from tlm_core.jobs.states import ACTIVE
from tlm_core.wire import CorpusLoad, JobEvent, JobSummary, Series

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_CURVE_SECONDS = 5.0
_BLOCKS = "▁▂▃▄▅▆▇█"
_IMPORTANT = frozenset({"artifact.published", "stage.warning"})  # shown as lines, like all `job.` events


class Display:
    """Shows the progress of one operation at a time. Use the display in a `with` block."""

    def __init__(
        self, console: Console, *, plain_seconds: float = 10.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._console = console
        self._plain_seconds = plain_seconds  # between lines of plain output about the same stages
        self._clock = clock
        self._title, self._later = "", 0.0
        self._printed_at = float("-inf")
        self._printed = set[tuple[str, bool]]()  # stages of the operation, and whether they were complete
        self._last = ("", False)
        self._text = ""
        self._load_start = ("", 0.0, 0)  # state, time and passages when this state began
        self._curve = ""
        self._curve_at = float("-inf")
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Display:
        if self._console.is_terminal:
            from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

            self._bar = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                TextColumn("{task.fields[facts]}"),
                TimeElapsedColumn(),
                console=self._console,
            )
            self._bar.start()
        return self

    def __exit__(self, *_error: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def begin(self, title: str, later: float = 0.0) -> None:
        """Start the display of another operation. In plain output, the title starts each line of its progress.

        later: expected seconds of the operations that follow. The time left of a job includes these seconds.
        """
        self._title, self._later = title, later
        self._printed.clear()
        self._last = ("", False)
        if self._bar is None:
            return
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task(as_markup(title), total=None, facts="")

    def line(self, text: str) -> None:
        """Print a permanent line, above the live line if there is one."""
        self._console.print(as_markup(text))

    def update(self, stage: str, done: float, total: float, facts: str = "") -> None:
        """Show the progress of a stage. total: 0 if unknown. facts: text at the end of the line.

        Plain output gets a line at the start and the end of each stage, and every `plain_seconds` if the line changes.
        """
        if self._bar is not None:
            if self._task is None:
                self.begin(self._title)
            assert self._task is not None
            description = as_markup(f"{self._title} {stage}".strip())
            self._bar.update(
                self._task, description=description, completed=done, total=total or None, facts=as_markup(facts)
            )
            return
        percentage = f"{done / total:4.0%} " if total else ""
        text = f"{self._title} {stage} {percentage}{facts}".strip()
        now, shown = self._clock(), (stage, 0 < total <= done)
        # Seeds that train at the same time report alternately, so the start and end of a stage each get only one line.
        # A state without a share, such as waiting, gets a line each time that it begins.
        known, self._last = self._printed if total else {self._last}, shown
        if shown not in known or (now - self._printed_at >= self._plain_seconds and text != self._text):
            self._printed.add(shown)
            self._printed_at, self._text = now, text
            self.line(text)

    def job_event(self, event: JobEvent) -> None:
        """Show an event of a job. Progress updates the live line. Other important events become permanent lines."""
        if event.type == "progress":
            self.progress(spec.Progress.model_validate({"stage": "", "node": "", **event.data}))
        elif event.type.startswith("job.") or event.type in _IMPORTANT:
            self.line(sentence(event.type, event.attempt, event.data, {}) or event.type)

    def progress(self, progress: spec.Progress) -> None:
        """Show share and time left of a job, and the number, step, rate and loss curve of the stage that runs."""
        if progress.eta_seconds is not None:
            progress = progress.model_copy(update={"eta_seconds": progress.eta_seconds + self._later})
        facts = "  ".join(filter(None, (progress_facts(progress), self._curve)))
        self.update(progress.node or progress.stage, progress.share, 1.0, facts)

    def standing(self, job: JobSummary) -> None:
        """Show why an unfinished job waits, or its progress, or how long its workers have been silent."""
        silence = "" if job.silent_seconds is None else f"workers last reported {duration(job.silent_seconds)} ago"
        if job.waiting:
            self.update("waiting:", 0, 0, job.waiting.reason)
        elif job.is_over:
            return
        elif job.progress is None or job.state not in ACTIVE:
            self.update(job.state, 0, 0, silence)
        elif silence:
            self.update(job.progress.node, job.progress.share, 1.0, silence)
        else:
            self.progress(job.progress)

    def wants_curve(self) -> bool:
        """Return whether to fetch a new curve: every few seconds on a terminal."""
        return self._bar is not None and self._clock() - self._curve_at >= _CURVE_SECONDS

    def curve(self, series: Series | None) -> None:
        """Show the values of a metric as a sparkline in later lines of progress. None hides the sparkline."""
        self._curve_at = self._clock()
        self._curve = f"{series.name} {spark(series.values)} {series.values[-1]:.3g}" if series else ""

    def load(self, load: CorpusLoad) -> None:
        """Show the progress of a load, with the average rate in its current state."""
        now = self._clock()
        if load.state != self._load_start[0]:
            self._load_start = (load.state, now, load.done)
        _, start, first = self._load_start
        total = f"/{load.total:,}" if load.total else ""
        parts = [f"{load.done:,}{total} passages" if load.done or load.total else ""]
        if now > start and load.done > first:
            rate = (load.done - first) / (now - start)
            parts.append(f"{rate:,.0f}/s")
            parts.append(f"{duration((load.total - load.done) / rate)} left" if load.total else "")
        parts.append(f"waits: {load.waiting}" if load.waiting else "")
        self.update(load.state, load.done, load.total, "  ".join(filter(None, parts)))

    def bytes(self, part: FileProgress) -> None:
        """Show the progress of a download."""
        facts = "already complete" if part.skipped else f"{size(part.done)} of {size(part.size)}"
        facts += "  waits for another download into its folder" if part.waits else ""
        self.update(part.name, part.done, part.size, facts)


def size(count: float) -> str:
    """Return a number of bytes in kB, or in MB if it is at least 1 MB."""
    return f"{count / 1e6:,.1f} MB" if count >= 1e6 else f"{count / 1e3:,.1f} kB"


def spark(values: Sequence[float], width: int = 24) -> str:
    """Return a sparkline of at most `width` blocks. Each block shows the mean of some consecutive values."""
    if not values:
        return ""
    blocks = min(width, len(values))
    edges = [len(values) * n // blocks for n in range(blocks + 1)]
    means = [fmean(values[start:end]) for start, end in pairwise(edges)]
    low, high = min(means), max(means)
    steps = len(_BLOCKS) - 1
    return "".join(_BLOCKS[round((value - low) / (high - low) * steps) if high > low else 0] for value in means)


def duration(seconds: float) -> str:
    """Return the duration as `m:ss`, from one hour as `h:mm:ss`, and from two days as `3 days 4 h`."""
    minutes, remainder = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 48:
        return f"{hours // 24:,} days {hours % 24} h"
    return f"{hours}:{minutes:02d}:{remainder:02d}" if hours else f"{minutes}:{remainder:02d}"


def progress_facts(progress: spec.Progress) -> str:
    """Return step, rate, time left and stage number, such as `120/400  9,800 tokens/s  2:05 left  stage 3 of 7`."""
    parts = (
        f"{progress.step:,}/{progress.total:,}" if progress.total else "",
        f"{progress.rate:,.{0 if progress.rate >= 100 else 1}f} {progress.unit}/s" if progress.rate is not None else "",
        time_left(progress),
        f"stage {min(progress.nodes_done + 1, progress.nodes_total)} of {progress.nodes_total}"
        if progress.nodes_total
        else "",
    )
    return "  ".join(filter(None, parts))


def time_left(progress: spec.Progress) -> str:
    """Return the time left of the job, such as "2:05 left", else of the stage: "2:05 left in this stage", else ""."""
    if progress.eta_seconds is not None:
        return f"{duration(progress.eta_seconds)} left"
    own = progress.stage_eta_seconds
    return "" if own is None else f"{duration(own)} left in this stage"
