"""Stages, and the interfaces between a stage's function and the process that runs the function.

The functions do not depend on Ray, Redis or the storage. The process passes a `StageContext` to them.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict


class StopRequested(Exception):
    """The stage stopped on request; a training stage has saved a checkpoint. This is not an error of the job."""


class StageParams(BaseModel):
    """The parameters of a stage. `Node.artifact_id` hashes them into the id of the stage's artifact.

    A subclass has only the parameters that its stage reads. So a change of another option does not prevent reuse.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")


Params = TypeVar("Params", bound=StageParams, covariant=True)


class Reporter(Protocol):
    """Receives the progress of a stage. Only rank 0 calls the methods."""

    def progress(self, *, step: int, total: int, rate: float | None, unit: str, eta_seconds: float | None) -> bool:
        """Report progress. Return False if the stage must raise StopRequested. rate: number of `unit` per second."""
        ...

    def metrics(self, **values: float | int | str | None) -> None:
        """Append a point to the job's metric series. The values contain `step`."""
        ...

    def event(self, type: str, **data: object) -> None:
        """Append an event to the job's log."""
        ...


class Checkpoints(Protocol):
    """Stores the checkpoints of a stage. A checkpoint is visible once it is complete and published."""

    def latest(self) -> Path | None:
        """Return the folder of the newest published checkpoint, or None. All ranks may call this method."""
        ...

    def newest(self) -> int | None:
        """Return the step of the newest published checkpoint, or None."""
        ...

    def save(self, write: Callable[[Path], None], *, step: int, metrics: Mapping[str, float | None]) -> None:
        """Publish the files that `write` writes into an empty folder as the checkpoint of `step`. For rank 0 only.

        `write` may run later and in another thread, so `write` must not read values that training changes.
        """
        ...


@dataclass(frozen=True)
class StageContext(Generic[Params]):
    """The argument of a stage's function.

    inputs: local folder of each input artifact, by name. out: an empty local folder, in which rank 0 writes the files
    of the artifact. scratch: a local folder for temporary files.
    """

    inputs: Mapping[str, Path]
    params: Params
    out: Path
    report: Reporter
    checkpoints: Checkpoints
    rank: int = 0
    world_size: int = 1
    scratch: Path = field(default_factory=lambda: Path("."))


StageFunction = Callable[[StageContext[Any]], Mapping[str, object]]

# Metadata key of the artifact of a stage that skips its work. The value is the reason. Dependent nodes are skipped too.
DROPPED = "dropped"


class Place(StrEnum):
    """Where a stage runs."""

    COORDINATOR = "coordinator"
    RETRIEVER = "retriever"
    WORKERS = "workers"


@dataclass(frozen=True)
class Stage:
    """One stage of a job.

    function: "module:name" of a function that takes a StageContext and returns the artifact's metadata; empty for
    stages of the retriever. version: raise the number when a change of the code changes the result. Jobs then do not
    reuse older artifacts. params: the class of the stage's parameters. needs_torch: whether workers import torch for
    the stage. parallel: whether all ranks compute the stage; otherwise rank 0 computes it, and the others wait.
    """

    name: str
    function: str
    version: int
    params: type[StageParams]
    place: Place = Place.WORKERS
    needs_torch: bool = True
    parallel: bool = False

    def load(self) -> StageFunction:
        """Import the stage's module and return its function."""
        return pkgutil.resolve_name(self.function)
