"""The responses of the API, which the gateway writes and the client reads. Sizes are in bytes."""

from __future__ import annotations

from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field

from tlm_core.artifacts.manifest import FileEntry
from tlm_core.corpus.states import CorpusState, LoadState, NearDuplicatesChoice
from tlm_core.errors import without_details
from tlm_core.jobs.spec import JobSpec, Origin, Progress
from tlm_core.jobs.states import TERMINAL, State
from tlm_core.training.recipe import Recipe

T = TypeVar("T")
JsonObject = dict[str, Any]
Time = AwareDatetime  # RFC 3339 in JSON. Stored records have Unix seconds, which pydantic converts.


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True)


class Items(_Answer, Generic[T]):
    """A complete list."""

    data: tuple[T, ...]


class Page(Items[T], Generic[T]):
    """One page of a list. To get the next page, send the id of the last item as `after`."""

    has_more: bool


class Problem(_Answer):
    """An error as defined by RFC 9457.

    errors: data errors with row and column (at most 100 of each code), or invalid fields with a JSON pointer.
    checks: the condition of each component by name, in responses of /readyz.
    """

    type: str = Field(examples=["/docs/errors#not_found"])
    title: str = Field(examples=["Not Found"])
    status: int = Field(examples=[404])
    detail: str = Field(examples=["Unknown job 'job_1'. List the jobs to see their ids."])
    code: str = Field(examples=["not_found"])
    retryable: bool = False
    facts: JsonObject | None = None
    errors: list[JsonObject] | None = None
    checks: dict[str, str] | None = None


class Info(_Answer):
    """Version and limits of the gateway."""

    version: str
    scales: tuple[str, ...]
    recipes: tuple[str, ...]
    max_upload_bytes: int
    max_json_bytes: int
    max_predict_texts: int


class Upload(_Answer):
    """A file that is uploaded in parts. The next part starts at `offset` and has at most `part_bytes`."""

    id: str
    name: str
    size: int
    sha256: str | None
    offset: int
    part_bytes: int
    expires_seconds: int = Field(description="the gateway deletes an upload that receives no part for this time")


# --- datasets --------------------------------------------------------------------------------------------------------


class Dataset(_Answer):
    """One version of a dataset. The id always refers to this version. The name refers to the newest version."""

    id: str
    name: str
    version: int
    digest: str = Field(description="SHA-256 over all files")
    options: JsonObject = Field(description="how the files are read")
    rows: dict[str, int] = Field(description="number of rows per split")
    labels: int = Field(description="number of labels")
    warnings: int = Field(description="number of data warnings")
    selection: int | None = Field(None, description="number of passages in the selection that the dataset includes")
    created_at: Time
    error: JsonObject | None = Field(None, description="in lists: why the service cannot read the record")


class DatasetCreated(Dataset):
    """A new dataset with its validation report."""

    report: JsonObject


# --- corpora ---------------------------------------------------------------------------------------------------------


class CorpusVersion(_Answer):
    """One version of a corpus. Jobs can use it when its state is `ready`."""

    version: str
    language: str
    count: int = Field(description="number of passages")
    refused: int = Field(0, description="number of passages of this version that the index cannot hold")
    duplicates_dropped: int = Field(0, description="passages dropped because they equal an earlier passage")
    near_duplicates_dropped: int | None = Field(None, description="null if near duplicates are not dropped")
    near_duplicates_seconds: float | None = None
    state: CorpusState
    created_at: Time
    error: JsonObject | None = None


class CorpusLoad(_Answer):
    """The load of one upload into a corpus. `done` and `total` count passages; `total` is 0 while it is unknown."""

    id: str
    corpus: str
    language: str
    near_duplicates: NearDuplicatesChoice
    sources: tuple[str, ...] = Field(description="addresses that the service fetches files from")
    state: LoadState
    version: str | None
    done: int
    total: int
    waiting: str = Field("", description="why the load waits, such as a full disk; empty while it makes progress")
    error: JsonObject | None
    created_at: Time


class Corpus(_Answer):
    """A corpus with its versions and latest loads, newest first."""

    name: str
    version: str | None = Field(description="the newest version that is ready; jobs that name the corpus use it")
    versions: tuple[CorpusVersion, ...]
    loads: tuple[CorpusLoad, ...]


class Hit(_Answer):
    """A passage that matches a query, with its BM25 score."""

    id: str
    score: float
    text: str
    source: str


class SearchResult(_Answer):
    """The best matches in one version of a corpus, best first."""

    version: str
    hits: tuple[Hit, ...]


class RefusedPassage(_Answer):
    """A passage that the index cannot hold, with the reason."""

    id: str
    text: str
    source: str
    reason: str


# --- jobs ------------------------------------------------------------------------------------------------------------


class StageState(_Answer):
    """One node of a job's plan. needs: names of the input nodes. digest: of the artifact's manifest, if done."""

    name: str
    stage: str
    place: str
    needs: tuple[str, ...]
    done: bool
    digest: str | None = None


class Waiting(_Answer):
    """Why a queued or active job does no work now."""

    code: str = Field(
        description="queued, blocked (no job can start), backoff (before the next attempt), selection_waits (for the "
        "retriever), or the code of the error that delays the job"
    )
    reason: str
    position: int | None = Field(None, description="position in the queue, from 1")
    until: Time | None = Field(None, description="earliest start after a failed attempt")


class JobSummary(_Answer):
    """A job as lists show it."""

    id: str
    name: str | None = Field(None, description="given by the user; not unique")
    kind: str
    state: State
    dataset: str
    corpus: str | None
    scale: str
    recipe: str
    seeds: tuple[int, ...]
    metadata: dict[str, str]
    priority: int
    origin: Origin | None = Field(description="the earlier job that this job retries or clones")
    attempt: int
    failures: int = Field(description="attempts that ended by a fault of the job")
    interruptions: int = Field(
        0, description="attempts that ended without a fault of the job, such as the loss of a worker"
    )
    created_at: Time
    updated_at: Time
    started_at: Time | None
    finished_at: Time | None
    progress: Progress | None = Field(description="of the last attempt; after its end, without rate and time left")
    waiting: Waiting | None = None
    silent_seconds: float | None = Field(
        None, description="seconds since the last heartbeat of the group that is silent longest; null below 30"
    )
    error: JsonObject | None
    metric: str | None = Field(None, description="the metric of `score`")
    score: float | None = Field(None, description="mean test score of the returned model over the seeds")

    @property
    def is_over(self) -> bool:
        return self.state in TERMINAL

    @property
    def seconds(self) -> float:
        """Seconds from the first start (else the submission) to the end (else the last change of the record)."""
        return ((self.finished_at or self.updated_at) - (self.started_at or self.created_at)).total_seconds()


class _Resolved(_Answer):
    spec: JobSpec
    dataset_id: str
    dataset_digest: str
    corpus_version: str | None
    resolved_recipe: Recipe
    stages: tuple[StageState, ...]


class Job(JobSummary, _Resolved):
    """A job with its stages, and with the inputs and the recipe, which are fixed when a user submits the job."""

    last_event: int


class JobEvent(_Answer):
    """One event of a job. `seq` counts from 1 without gaps. Events of type `progress` have no seq, time or attempt.

    If the event reports an error, `data` lacks the field `details`. The field `error` of the job has the details.
    """

    model_config = ConfigDict(from_attributes=True)

    type: str
    seq: int | None = None
    at: Time | None = None
    attempt: int | None = None
    data: Annotated[JsonObject, AfterValidator(without_details)] = {}


class LogLine(_Answer):
    """A line of a job's log. To read the next lines, send the id of this line as `after`."""

    id: str
    at: Time
    attempt: int
    line: str


class MetricPoint(_Answer):
    """The metrics of one report of a worker, each as a field. To read the next points, send this `id` as `after`."""

    model_config = ConfigDict(extra="allow")

    id: str
    at: Time
    attempt: int


Basis = Literal["measured", "device", "built-in", "cached", "counted", "unknown"]


class StageEstimate(_Answer):
    """The expected cost of one stage for all seeds."""

    stage: str
    seconds: float | None
    seconds_at_least: float | None = Field(None, description="null if `seconds` has no bounds")
    seconds_at_most: float | None = None
    flops: float | None
    tokens: float | None
    basis: Basis = Field(description="source of the numbers; device: a speed test; counted: from the recipe")
    reason: str = Field(description="where the numbers come from, or why they are null")


class Estimate(_Answer):
    """The expected cost of a job, without its time in the queue. Unknown values are null."""

    seconds: float | None
    seconds_at_least: float | None = Field(
        None, description="lower bound of `seconds`, or equal to `seconds` if the range is small or unknown"
    )
    seconds_at_most: float | None = None
    flops: float | None
    tokens: float | None
    memory_bytes: int | None = Field(description="of one worker, without the memory of libraries")
    disk_bytes: int | None = Field(description="of the artifacts")
    gpu_hours: float | None
    passages: int | None
    passages_at_most: int | None = Field(description="upper limit from queries, top_k and budget")
    stages: tuple[StageEstimate, ...]
    reasons: dict[str, str] = Field(description="name of a value → its source, or why the value is null")

    def sources(self) -> dict[str, list[str]]:
        """Return reason → names of the stages and values with this reason, without `seconds` of the whole job."""
        result: dict[str, list[str]] = {}
        values = [(name.replace("_", " "), reason) for name, reason in self.reasons.items() if name != "seconds"]
        for name, reason in [*((s.stage, s.reason) for s in self.stages), *values]:
            result.setdefault(reason, []).append(name)
        return result


class DryRun(_Resolved):
    """A job that was validated but not submitted, with its estimate."""

    estimate: Estimate


class Series(_Answer):
    """The points of one metric of one node. Point i consists of entry i of `steps`, `at` and `values`."""

    node: str
    name: str
    total: int = Field(description="number of points before thinning")
    steps: tuple[float, ...] = Field(description="ascending")
    at: tuple[Time, ...]
    values: tuple[float, ...]


class Difference(_Answer):
    """A key of the request or recipe in which the compared jobs differ, with one value for each job."""

    key: str
    values: tuple[object, ...]


class ModelScores(_Answer):
    """The mean test scores of one model of a job, and their spread over the seeds."""

    name: str = Field(
        description="majority, linear, self_trained, encoder, stock, ensemble or combined; other names in a study"
    )
    mean: dict[str, float | None]
    spread: dict[str, float | None]
    file: str = Field("", description="the files that contain this model, and its seeds; or empty")


class Outcome(_Answer):
    """Scores and cost of a compared job, or the reason why they are missing. mean, spread: of the returned model."""

    job: str
    metric: str | None = None
    mean: dict[str, dict[str, float | None]] | None = Field(None, description="mean over the seeds, by split and score")
    spread: dict[str, dict[str, float | None] | str] | None = None
    cost: dict[str, dict[str, float]] | None = Field(
        None, description="by stage, and `total`: flops, tokens, seconds, gpu_seconds"
    )
    models: tuple[ModelScores, ...] = ()
    reason: str | None = None


class Verdict(_Answer):
    """Whether the model of a job is better on test than the model of the first compared job, by a paired bootstrap."""

    job: str
    verdict: Literal["better", "worse", "not distinguishable"] | None = None
    value: float | None = Field(None, description="score of this job minus that of the first job")
    low: float | None = Field(None, description="lower end of the 95 % interval of `value`; `high` is the upper end")
    high: float | None = None
    reason: str | None = Field(None, description="why there is no verdict")


class JobSeries(_Answer):
    """The metric series of a compared job."""

    job: str
    series: tuple[Series, ...]


class Comparison(_Answer):
    """Jobs side by side, in the order of the request."""

    jobs: tuple[JobSummary, ...]
    differences: tuple[Difference, ...]
    outcomes: tuple[Outcome, ...]
    verdicts: tuple[Verdict, ...] = Field((), description="one for each job except the first")
    curves: tuple[JobSeries, ...]


# --- results ---------------------------------------------------------------------------------------------------------


class Checkpoint(_Answer):
    """A checkpoint of a job, with the metrics of the checkpoint's step."""

    node: str
    step: int
    job: str
    attempt: int
    metrics: dict[str, float | None]
    files: tuple[FileEntry, ...]


class Model(_Answer):
    """The files of a job's returned model or, before its export, of the linear model. digest: SHA-256 of manifest."""

    digest: str
    size: int
    files: tuple[FileEntry, ...]
    final: bool = Field(True, description="false for the linear model of a job that has not returned a model")
    note: str | None = Field(None, description="why the model is not final")


class FinishedModel(_Answer):
    """The model of a succeeded job. Predictions address it by the id of the job or by an alias."""

    job: str
    name: str | None = Field(description="of the job")
    aliases: tuple[str, ...]
    dataset: str
    corpus: str | None
    scale: str
    metric: str | None
    score: float | None = Field(description="mean test score of the returned model over the seeds")
    finished_at: Time | None


class Provenance(_Answer):
    """A train row whose query selected a passage, with the rank (from 1) and score of the passage."""

    train_row: int
    rank: int
    score: float | None
    text: str | None = Field(None, description="start of the row's text, if the task is available")
    text_pair: str | None = Field(None, description="start of the second text of a pair, if the task is available")
    label: str | None = Field(None, description="the row's label or regression target, if the task is available")

    @property
    def texts(self) -> str:
        """The starts of the row's texts. A bar separates the two texts of a pair, because both form one query."""
        return " ║ ".join(filter(None, (self.text, self.text_pair)))


class SelectedPassage(_Answer):
    """A passage of a job's selection with its best rank and score."""

    id: str
    text: str
    source: str
    rank: int
    score: float | None
    provenance: tuple[Provenance, ...] = Field(description="the first train rows whose queries selected the passage")
    provenance_total: int


class Selection(_Answer):
    """A page of a selection, best rank first. facts: the content of `selection.json`."""

    facts: JsonObject
    data: tuple[SelectedPassage, ...]
    total: int = Field(description="number of passages that match the filters")
    has_more: bool


class SuspectLabel(_Answer):
    """A row of train or validation whose label is probably wrong. row: number of the row in the file, from 1."""

    split: str
    row: int
    label: str = Field(description="the label in the dataset")
    suggested: str = Field(description="the most probable other label")
    score: float = Field(description="probability that the suggested label is right, if one of the two labels is right")
    text: str | None = Field(None, description="start of the row's text, if the task is available")
    text_pair: str | None = Field(None, description="start of the second text of a pair, if the task is available")


class SuspectLabels(Items[SuspectLabel]):
    """The most suspect labels, best rank first."""

    total: int = Field(description="number of rows whose suggested label is more probable than the given label")
    neighbors: bool = Field(description="whether the score of a row depends on the labels of adjacent rows in the file")


class Prediction(_Answer):
    """The most likely label of a text with the probability of each label; in regression, the predicted value."""

    label: str | None = Field(description="null if the model abstained; in regression, the name of the target")
    probability: float | None = Field(None, description="probability of the most likely label")
    probabilities: dict[str, float] = {}
    abstained: bool = Field(False, description="whether the probability is lower than `min_confidence`")
    value: float | None = Field(None, description="the predicted target, in regression only")


class PredictingModel(_Answer):
    """The model that answered a request for predictions."""

    name: str = Field(description="linear, self_trained, encoder, ensemble or combined")
    final: bool = Field(description="false for the linear model of a job that has not returned a model")
    note: str | None = Field(None, description="why the model is not final")


class Predictions(Items[Prediction]):
    """One prediction for each text, in the order of the texts."""

    model: PredictingModel


# --- webhooks --------------------------------------------------------------------------------------------------------


EventType = Literal[
    "job.submitted", "job.claimed", "job.adopted", "job.requeued", "job.pause_requested", "job.paused", "job.resumed",
    "job.cancel_requested", "job.cancelled", "job.succeeded", "job.failed",
]  # fmt: skip


class Webhook(_Answer):
    """An endpoint that receives events."""

    id: str
    url: str
    events: tuple[EventType, ...]
    created_at: Time
    disabled: str | None = Field(None, description="why the gateway stopped sending events")
    error: JsonObject | None = Field(None, description="in lists: why the service cannot read the record")


class WebhookCreated(Webhook):
    """A new endpoint. Only this answer contains the secret that verifies signatures."""

    secret: str


class WebhookAttempt(_Answer):
    """One attempt to deliver an event."""

    message: str
    type: str
    at: Time
    number: int = Field(description="number of the attempt, from 1")
    status: int | None = Field(description="HTTP status of the response")
    error: str | None = Field(description="why there is no response")
    next_at: Time | None = Field(description="time of the next attempt")
