"""The one progress display: stage, step, rate, time left. A live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from tlm_client.download import Part
from tlm_client.models import CorpusLoad, JobEvent
from tlm_core.jobs import spec

_PLAIN_SECONDS = 10.0
_CURVE_SECONDS = 5.0
_BLOCKS = "▁▂▃▄▅▆▇█"


class Display:
    """Shows one thing under way at a time. Use it in a `with` block; `line` prints above the live line."""

    def __init__(self, console: Console, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._title = ""
        self._shown_at = float("-inf")
        self._shown_stage = ""
        self._pace = _Pace("", 0.0, 0)
        self._curve = ""
        self._curve_at = float("-inf")
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Display:
        if self._console.is_terminal:
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

    def __exit__(
        self, _type: type[BaseException] | None, _value: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def begin(self, title: str) -> None:
        """Name what is under way from now on."""
        self._title = title
        self._shown_stage = ""
        if self._bar is None:
            self.line(title)
            return
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task(escape(title), total=None, facts="")

    def line(self, text: str) -> None:
        """Print a line that stays."""
        self._console.print(escape(text))

    def update(self, stage: str, done: float, total: float, facts: str) -> None:
        """How far `stage` is; total 0: not known. On plain output a line for each stage, and one now and then."""
        if self._bar is not None:
            if self._task is None:
                self.begin(self._title)
            assert self._task is not None
            description = escape(f"{self._title} {stage}".strip())
            self._bar.update(
                self._task, description=description, completed=done, total=total or None, facts=escape(facts)
            )
            return
        now = self._clock()
        if stage != self._shown_stage or now - self._shown_at >= _PLAIN_SECONDS:
            self._shown_at, self._shown_stage = now, stage
            share = f"{done / total:4.0%} " if total else ""
            self.line(f"{self._title} {stage} {share}{facts}".strip())

    # --- what is shown of the things that take time -----------------------------------------------------------------

    def job_event(self, event: JobEvent) -> None:
        """A job's event: snapshots move the bar, the rest that a person wants to know becomes a line."""
        if event.type == "progress":
            self.progress(spec.Progress.model_validate({"stage": "", "node": "", **event.data}))
        elif (text := _told(event)) is not None:
            self.line(text)

    def progress(self, at: spec.Progress) -> None:
        parts = [f"{at.step}/{at.total}" if at.total else ""]
        parts.append(f"{at.rate:,.1f} {at.unit}/s" if at.rate is not None else "")
        parts.append(f"{duration(at.eta_seconds)} left" if at.eta_seconds is not None else "")
        parts.append(f"stage {min(at.nodes_done + 1, at.nodes_total)} of {at.nodes_total}" if at.nodes_total else "")
        parts.append(self._curve)
        self.update(at.node or at.stage, at.step, at.total, "  ".join(part for part in parts if part))

    def wants_curve(self) -> bool:
        """Whether a fresh curve would be shown: on a terminal, every few seconds."""
        return self._bar is not None and self._clock() - self._curve_at >= _CURVE_SECONDS

    def curve(self, found: tuple[str, Sequence[float]] | None) -> None:
        """The metric to show as a spark line from now on."""
        self._curve_at = self._clock()
        self._curve = f"{found[0]} {spark(found[1])} {found[1][-1]:.3g}" if found else ""

    def load(self, load: CorpusLoad) -> None:
        if load.state != self._pace.of:
            self._pace = _Pace(load.state, self._clock(), load.done)
        rate = self._pace.rate(self._clock(), load.done)
        parts = [
            f"{load.done:,}/{load.total:,} passages" if load.total else f"{load.done:,} passages" * bool(load.done)
        ]
        if rate:
            parts.append(f"{rate:,.0f}/s")
            parts.append(f"{duration((load.total - load.done) / rate)} left" if load.total else "")
        self.update(load.state, load.done, load.total, "  ".join(part for part in parts if part))

    def bytes(self, part: Part) -> None:
        self.update(part.name, part.done, part.size, f"{part.done / 1e6:.1f}/{part.size / 1e6:.1f} MB")


@dataclass(frozen=True)
class _Pace:
    """From when and which count on the rate of a state of a load is taken."""

    of: str
    since: float
    first: int

    def rate(self, now: float, done: int) -> float | None:
        """Per second on average since then; None while there is nothing to tell it from."""
        return (done - self.first) / (now - self.since) if now > self.since and done > self.first else None


def spark(values: Sequence[float], width: int = 24) -> str:
    """The course of some numbers as a line of blocks, each the mean of its part."""
    if not values:
        return ""
    parts = min(width, len(values))
    edges = [len(values) * n // parts for n in range(parts + 1)]
    means = [fmean(values[start:end]) for start, end in pairwise(edges)]
    low, high = min(means), max(means)
    steps = len(_BLOCKS) - 1
    return "".join(_BLOCKS[round((value - low) / (high - low) * steps) if high > low else 0] for value in means)


def duration(seconds: float) -> str:
    """Minutes and seconds, with hours if there are any."""
    whole = max(0, round(seconds))
    hours, rest = divmod(whole, 3600)
    minutes, left = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{left:02d}" if hours else f"{minutes}:{left:02d}"


def _told(event: JobEvent) -> str | None:
    data = event.data
    match event.type:
        case "artifact.published":
            return f"{data.get('node', data.get('stage'))} is done"
        case "checkpoint.published":
            return None
        case "job.requeued":
            return (
                f"attempt {event.attempt} ended: {data.get('message')}; trying again in {data.get('delay_seconds')} s"
            )
        case "job.waiting":
            return f"waiting: {data.get('message')}"
        case "job.failed":
            return f"failed: {data.get('message')}"
        case kind if kind.startswith("job."):
            return kind.removeprefix("job.").replace("_", " ")
    return None
