"""What a user asks for, and what the service keeps of it. Pure values: no I/O, no torch."""

from __future__ import annotations

import secrets
import time
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from tlm_core.artifacts import ManifestRef
from tlm_core.compression.masks import Mask
from tlm_core.jobs.nodes import DatasetInput, ReusedArtifact
from tlm_core.jobs.options import LearningCurve, Prune, ShareTickets
from tlm_core.jobs.states import State
from tlm_core.training.recipe import Recipe, Scale

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
MAX_PRIORITY = 10
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"


def new_id(prefix: str, now: float | None = None) -> str:
    """A new id such as `job_01h…`: sorts by time (milliseconds), ends in 50 random bits."""
    value = int((time.time() if now is None else now) * 1000) << 50 | secrets.randbits(50)
    digits = ""
    for _ in range(19):
        value, digit = divmod(value, 32)
        digits = _ALPHABET[digit] + digits
    return f"{prefix}_{digits}"


LabelKey = Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=r"^[^=]+$")]
LabelValue = Annotated[str, StringConstraints(max_length=512)]


# What a request leaves out that names a job whose model is pruned: that job brings it.
FROM_JOB = ("dataset", "corpus", "scale", "recipe", "seeds", "set")


class JobSpec(BaseModel):
    """A request for a job, as the user sends it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["train", "learning_curve", "prune", "share_tickets"] = "train"
    dataset: str = Field(
        "",
        description="id or name of an uploaded data set; only `prune.job` brings its own",
        min_length=1,
        max_length=200,
    )
    corpus: str | None = Field(None, description="name, or name@version, of a corpus; none: task only", max_length=200)
    scale: Scale = "tiny"
    recipe: Literal["fast", "paper"] = "fast"
    seeds: tuple[int, ...] = Field((0,), min_length=1, max_length=20, description="one run of joint and finetune each")
    set: dict[str, Any] = Field({}, description="recipe overrides by dotted key, such as {'joint.rho2': 5}")
    workers: int = Field(1, ge=1, le=256, description="data-parallel workers")
    max_attempts: int = Field(3, ge=1, le=20, description="tries before a job that keeps failing is given up")
    max_runtime_seconds: float | None = Field(
        None, gt=0, le=1e8, description="running time of all attempts together after which the job is ended"
    )
    priority: int = Field(
        0, ge=-MAX_PRIORITY, le=MAX_PRIORITY, description="of the jobs that wait, higher ones are taken first"
    )
    metadata: dict[LabelKey, LabelValue] = Field({}, max_length=16, description="your labels")
    learning_curve: LearningCurve | None = Field(None, description="options of that kind; none: its defaults")
    prune: Prune | None = Field(None, description="options of that kind; none: its defaults")
    share_tickets: ShareTickets | None = Field(None, description="options of that kind, which needs them")

    @model_validator(mode="after")
    def _options_of_the_kind(self) -> JobSpec:
        for kind in ("learning_curve", "prune", "share_tickets"):
            if getattr(self, kind) is not None and self.kind != kind:
                raise ValueError(f"the options '{kind}' belong to a job of that kind, not to '{self.kind}'")
        if self.kind == "share_tickets" and self.share_tickets is None:
            raise ValueError("a job of kind 'share_tickets' says in 'share_tickets.others' which data sets share")
        if not self.dataset and self.pruned is None:
            raise ValueError("'dataset' is missing; name an uploaded data set")
        return self

    @property
    def pruned(self) -> str | None:
        """The job whose model is pruned, if one was named."""
        return self.prune.job if self.prune else None


class Resolved(BaseModel):
    """What the request meant when it was accepted; nothing published later changes it.

    tickets: data set, by the name it has in the request → mask, of those that were named by their `prune` job.
    reused: node → its artifact in the job whose model is pruned.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    dataset_id: str
    dataset: ManifestRef
    dataset_options: dict[str, Any] = {}
    corpus_name: str | None = None
    corpus_version: str | None = None
    others: tuple[DatasetInput, ...] = ()
    tickets: dict[str, Mask] = {}
    reused: dict[str, ReusedArtifact] = {}
    recipe: Recipe

    @property
    def datasets(self) -> tuple[DatasetInput, ...]:
        """All datasets of the job, in the order of the request."""
        return (DatasetInput(id=self.dataset_id, ref=self.dataset, options=self.dataset_options), *self.others)

    @property
    def corpus(self) -> str | None:
        """The corpus as "NAME@VERSION", or None."""
        return f"{self.corpus_name}@{self.corpus_version}" if self.corpus_name else None


class Origin(BaseModel):
    """The job that another one was made from, and how: retried as it was, or cloned with changes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    job: str
    how: Literal["retry", "clone"]


class Progress(BaseModel):
    """How far a job is. rate in `unit` per second; eta_seconds until the end of the stage."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    stage: str
    node: str
    step: int = 0
    total: int = 0
    rate: float | None = None
    unit: str = "steps"
    eta_seconds: float | None = None
    nodes_done: int = 0
    nodes_total: int = 0


class JobRecord(BaseModel):
    """A job as stored. Never changed in place: a verb of the store makes the next one.

    attempt: number of the current try, the fencing token of every write a worker makes.
    failures: attempts that ended by a fault (a pause is none). submissions: what this attempt has asked the cluster
    to run, group → submission id. excluded_from_cache: nodes whose artifacts other jobs must not reuse.
    ran_seconds: of attempts that are over; running_since: of the one under way.
    Times are Unix seconds.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    tenant: str
    state: State
    spec: JobSpec
    resolved: Resolved
    origin: Origin | None = None
    priority: int = 0
    attempt: int = 0
    failures: int = 0
    ran_seconds: float = 0.0
    running_since: float | None = None
    owner: str | None = None
    lease_until: float | None = None
    created_at: float
    updated_at: float
    started_at: float | None = None
    finished_at: float | None = None
    submissions: dict[str, str] = {}
    excluded_from_cache: tuple[str, ...] = ()
    progress: Progress | None = None
    error: dict[str, Any] | None = None
    result: dict[str, Any] | None = None
    last_event: int = 0


class Event(BaseModel):
    """One entry of a job's log; `seq` counts from 1 without gaps. at: Unix seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seq: int
    type: str
    at: float
    attempt: int
    data: dict[str, Any] = {}
