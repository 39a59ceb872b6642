"""What a stage sees of the world: its inputs, a place to write, and a way to report.

The stages know nothing of Ray, Redis or the storage; whoever runs them gives them a `StageContext`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol


class StopRequested(Exception):
    """The job was paused or cancelled; a checkpoint has been left. Control flow, no fault, so not of the error tree."""


class Reporter(Protocol):
    """Where progress goes. Called on rank 0 only."""

    def progress(self, *, step: int, total: int, rate: float | None, unit: str, eta_seconds: float | None) -> bool:
        """Tell how far the stage is.

        Returns False when the stage has to stop: leave a checkpoint and raise StopRequested.
        """
        ...

    def metrics(self, **values: float | int | str | None) -> None:
        """Append one point to the job's metric series; `step` is among the values."""
        ...

    def event(self, type: str, **data: Any) -> None:
        """Append one typed event to the job's log."""
        ...


class Checkpoints(Protocol):
    """Where checkpoints of this stage live. A checkpoint is visible only once it is whole and published."""

    def latest(self) -> Path | None:
        """Folder of the newest published checkpoint of this stage, or None. All ranks may call it."""
        ...

    def newest(self) -> int | None:
        """Step of the newest published checkpoint of this stage, or None."""
        ...

    def save(self, write: Callable[[Path], None], *, step: int, metrics: Mapping[str, float | None]) -> None:
        """Publish what `write` puts into the empty folder it is given as the checkpoint of `step`. Rank 0 only.

        It may be called later and in another thread, so it must hold copies of all that training goes on to change.
        """
        ...


@dataclass
class StageContext:
    """Everything a stage function is given.

    inputs: local folder of each input artifact, by name. params: the stage's part of the recipe, plus `seed`.
    out: empty local folder; what is in it when the function returns becomes the artifact (rank 0 writes).
    """

    inputs: Mapping[str, Path]
    params: Mapping[str, Any]
    out: Path
    report: Reporter
    checkpoints: Checkpoints
    rank: int = 0
    world_size: int = 1
    scratch: Path = field(default_factory=lambda: Path("."))
