"""What the API answers, as values. Fields that a newer gateway adds are ignored."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from tlm_core.jobs.spec import JobSpec, Progress
from tlm_core.jobs.states import TERMINAL, State


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Dataset(_Value):
    """An uploaded data set. The id always means these bytes, the name the newest version; digest: of all files.

    rows: records of each split. selection: passages of the selection that it brings, if it does. report: what
    validation found; only in the answer to an upload.
    """

    id: str
    name: str
    version: int
    digest: str
    options: dict[str, Any] = {}
    rows: dict[str, int]
    labels: int
    warnings: int = 0
    selection: int | None = None
    created_at: float
    report: dict[str, Any] | None = None


class CorpusVersion(_Value):
    """One version of a corpus; it can be used when its state is `ready`. refused: of `count`, not in the index.

    duplicates_dropped, near_duplicates_dropped: left out of `count`; the latter None if nobody looked for them.
    """

    version: str
    state: str
    count: int = 0
    refused: int = 0
    duplicates_dropped: int = 0
    near_duplicates_dropped: int | None = None
    near_duplicates_seconds: float | None = None
    language: str = ""
    error: dict[str, Any] | None = None


class Refused(_Value):
    """A passage that an index would not take, and why."""

    id: str
    text: str
    source: str
    reason: str


class CorpusLoad(_Value):
    """An upload on its way to a version. done and total count passages; total is 0 while unknown."""

    id: str
    state: str
    version: str | None = None
    done: int = 0
    total: int = 0
    error: dict[str, Any] | None = None


class Corpus(_Value):
    """A corpus with its versions and its latest uploads, newest first. version: the one that its name means."""

    name: str
    version: str | None = None
    versions: tuple[CorpusVersion, ...] = ()
    loads: tuple[CorpusLoad, ...] = ()


class Hit(_Value):
    """A passage that a search found; score is BM25's."""

    id: str
    score: float
    text: str
    source: str


class StageState(_Value):
    """One node of a job's plan."""

    name: str
    stage: str
    done: bool


class JobSummary(_Value):
    """A job as lists show it. Times are Unix seconds."""

    id: str
    state: State
    dataset: str
    corpus: str | None = None
    scale: str
    recipe: str
    seeds: tuple[int, ...]
    metadata: dict[str, str] = {}
    priority: int = 0
    origin: dict[str, str] | None = None
    attempt: int = 0
    failures: int = 0
    created_at: float
    updated_at: float
    started_at: float | None = None
    finished_at: float | None = None
    progress: Progress | None = None
    error: dict[str, Any] | None = None

    @property
    def is_over(self) -> bool:
        return self.state in TERMINAL


class Job(JobSummary):
    """A job with what was settled when it was accepted, and its stages."""

    spec: JobSpec
    dataset_id: str
    dataset_digest: str
    corpus_version: str | None = None
    resolved_recipe: dict[str, Any]
    stages: tuple[StageState, ...]
    last_event: int = 0


class StageEstimate(_Value):
    """One stage, all seeds together. basis: measured, built-in, cached, counted or unknown; reason: says more."""

    stage: str
    seconds: float | None
    flops: float | None
    tokens: float | None
    basis: str
    reason: str


class Estimate(_Value):
    """What a job is expected to take; what cannot be told is None, and `reasons` says why."""

    seconds: float | None
    flops: float | None
    tokens: float | None
    memory_bytes: int | None
    disk_bytes: int | None
    gpu_hours: float | None
    passages: int | None
    passages_at_most: int | None
    stages: tuple[StageEstimate, ...]
    reasons: dict[str, str] = {}


class DryRun(_Value):
    """What a submission would mean, had it been one."""

    spec: JobSpec
    dataset_id: str
    dataset_digest: str
    corpus_version: str | None = None
    resolved_recipe: dict[str, Any]
    stages: tuple[StageState, ...]
    estimate: Estimate


class JobEvent(_Value):
    """One entry of a job's log; `seq` counts from 1 without gaps. A `progress` snapshot has no seq."""

    type: str
    seq: int | None = None
    at: float | None = None
    attempt: int | None = None
    data: dict[str, Any] = {}


class ModelFile(_Value):
    """One file of a finished job's result; size in bytes."""

    name: str
    size: int
    sha256: str


class Checkpoint(_Value):
    """A checkpoint that exists; metrics as they were when it was taken."""

    node: str
    step: int
    job: str
    attempt: int
    metrics: dict[str, float | None] = {}
    files: tuple[ModelFile, ...] = ()


class Series(_Value):
    """One metric of one stage as columns; total: points before thinning."""

    node: str
    name: str
    total: int
    steps: tuple[float, ...]
    at: tuple[float, ...]
    values: tuple[float, ...]


class Difference(_Value):
    """A key in which compared jobs are not all alike; values in the order of the jobs."""

    key: str
    values: tuple[Any, ...]


class Outcome(_Value):
    """What a compared job's report says; None with the reason where there is none."""

    job: str
    metric: str | None = None
    mean: dict[str, Any] | None = None
    spread: dict[str, Any] | None = None
    cost: dict[str, Any] | None = None
    reason: str | None = None


class JobSeries(_Value):
    """The curves of a compared job."""

    job: str
    series: tuple[Series, ...]


class Comparison(_Value):
    """Jobs side by side, in the order in which they were asked for."""

    jobs: tuple[JobSummary, ...]
    differences: tuple[Difference, ...]
    outcomes: tuple[Outcome, ...]
    curves: tuple[JobSeries, ...]


class Asker(_Value):
    """A train row that asked for a passage, and at which rank and score it came."""

    train_row: int
    rank: int
    score: float | None = None
    text: str | None = None
    label: str | None = None


class SelectedPassage(_Value):
    """A passage of a job's selection, with its best rank and the first of those who asked for it."""

    id: str
    text: str
    source: str
    rank: int
    score: float | None = None
    asked_by: tuple[Asker, ...] = ()
    asked_by_total: int | None = None


class Selection(_Value):
    """A page of a selection, best rank first; facts: how it was made; total: what fits the question."""

    facts: dict[str, Any]
    data: tuple[SelectedPassage, ...]
    total: int | None = None
    has_more: bool


class Webhook(_Value):
    """An endpoint that events are posted to. secret: only in the answer to its making."""

    id: str
    url: str
    events: tuple[str, ...]
    created_at: float
    disabled: str | None = None
    secret: str | None = None


class Prediction(_Value):
    """The likeliest label of one text, and the probability of every label; of a model of amounts its value."""

    label: str
    probability: float | None = None
    probabilities: dict[str, float] = {}
    value: float | None = None
