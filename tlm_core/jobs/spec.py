"""Requests for jobs and the records of jobs. Pure values: this module does no I/O and imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Generic, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    SerializeAsAny,
    StringConstraints,
    ValidationInfo,
    field_validator,
    model_validator,
)

from tlm_core.artifacts.hashing import digest_of
from tlm_core.artifacts.manifest import ManifestRef
from tlm_core.errors import InvalidRequest, TLMError, is_hub_outage
from tlm_core.fields import names_valid_fields
from tlm_core.jobs.states import State
from tlm_core.kinds import KINDS
from tlm_core.training.recipe import Recipe, RecipeName, Scale

if TYPE_CHECKING:
    from tlm_core.kinds.kind import Kind

MAX_PRIORITY = 10
MAX_SEEDS = 20
LOSSES_PER_FAULT = 3
HUB_LOSSES_PER_FAULT = 30  # 30 outages last about 4.5 hours, because the delays between attempts grow to 10 minutes

Options = TypeVar("Options", bound="KindOptions", covariant=True)
JobName = Annotated[str, StringConstraints(min_length=1, max_length=100, pattern=r"^\S[^\x00-\x1f]*$")]
LabelKey = Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=r"^[^=]+$")]
LabelValue = Annotated[str, StringConstraints(max_length=512)]


# Fields that the source job provides. A request with a source job omits them.
FROM_JOB = ("dataset", "corpus", "scale", "recipe", "seeds", "overrides")


class _Record(BaseModel):
    # JSON has no infinity, so a stored record must not contain one.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class KindOptions(_Record):
    """Options of a kind of job, in addition to dataset, corpus, recipe and seeds."""

    _names_valid_fields = names_valid_fields


class _OptionsSchema:
    """Gives `JobSpec.options` a JSON schema: the options of any registered kind."""

    def __get_pydantic_json_schema__(self, _: object, handler: GetJsonSchemaHandler) -> dict[str, object]:
        return {"anyOf": [handler(kind.options.__pydantic_core_schema__) for kind in KINDS.values()], "default": {}}


class JobSpec(_Record):
    """A request for a job."""

    _names_valid_fields = names_valid_fields

    name: JobName | None = Field(None, description="name of the job, for searches; without @ and the prefix job_")
    kind: str = Field("train", json_schema_extra=lambda schema: schema.update(enum=list(KINDS)))
    dataset: str = Field(
        "",
        description="id or name of a dataset; omit it if the options name a source job",
        min_length=1,
        max_length=200,
    )
    corpus: str | None = Field(
        None, description="NAME or NAME@VERSION of a corpus; null trains on the task alone", max_length=200
    )
    scale: Scale = "tiny"
    recipe: RecipeName = "fast"
    seeds: tuple[int, ...] = Field(
        (0,), min_length=1, max_length=MAX_SEEDS, description="one training run for each seed"
    )
    overrides: dict[str, object] = Field({}, description="changes of the recipe by dotted key: {'finetune.epochs': 5}")
    workers: int = Field(1, ge=1, le=256, description="data-parallel workers")
    max_workers: int | None = Field(
        None, le=256, description="each attempt starts as many workers as the cluster has room for, up to this number"
    )
    max_attempts: int = Field(
        3,
        ge=1,
        le=20,
        description="failures that end the job; 3 interruptions without a new checkpoint or artifact are one failure",
    )
    max_runtime_seconds: float | None = Field(
        None, gt=0, le=1e8, description="limit of the running time of all attempts together"
    )
    priority: int = Field(
        0, ge=-MAX_PRIORITY, le=MAX_PRIORITY, description="queued jobs of higher priority start first"
    )
    metadata: dict[LabelKey, LabelValue] = Field({}, max_length=16, description="your keys and values, for filters")
    options: Annotated[SerializeAsAny[KindOptions], _OptionsSchema()] = Field(
        default_factory=KindOptions, validate_default=True, description="options of the kind"
    )

    @field_validator("kind")
    @classmethod
    def _check_kind(cls, kind: str) -> str:
        if kind not in KINDS:
            raise ValueError(f"Unknown job kind '{kind[:40]}'. Valid kinds: {', '.join(KINDS)}.")
        return kind

    @field_validator("options", mode="before")
    @classmethod
    def _read_options(cls, value: object, info: ValidationInfo) -> object:
        """Return the options as an instance of the kind's options class. Errors name the invalid option."""
        if "kind" not in info.data:
            return KindOptions()  # the error about the kind suffices
        model = KINDS[info.data["kind"]].options
        if isinstance(value, model):
            return value
        return model.model_validate({} if value is None or type(value) is KindOptions else value)

    @model_validator(mode="after")
    def _check_workers(self) -> JobSpec:
        if self.max_workers is not None and self.max_workers < self.workers:
            raise ValueError(f"'max_workers' is {self.max_workers}. Increase it to 'workers' ({self.workers}) or more.")
        return self

    @model_validator(mode="after")
    def _check_dataset(self) -> JobSpec:
        if not self.dataset and self.source_job is None:
            raise ValueError("'dataset' is missing. Name a dataset.")
        return self

    @property
    def definition(self) -> Kind[KindOptions]:
        """The definition of the job's kind."""
        return KINDS[self.kind]

    @property
    def source_job(self) -> str | None:
        """The id of the job that provides the fields in FROM_JOB and the artifacts up to `evaluate`, or None."""
        return self.definition.source_job(self.options)

    @property
    def names(self) -> tuple[str, ...]:
        """The names or ids of all datasets of the job, as in the request."""
        return (self.dataset, *self.definition.datasets(self.options))

    def check(self, recipe: Recipe, options: KindOptions | None = None) -> None:
        """Raise InvalidRequest if the kind cannot use the recipe. options: if set, replace `self.options`."""
        kind = self.definition
        if recipe.scale == "instant" and not kind.instant:
            named = f", or name a finished job of another scale in '{kind.source_option}'" if kind.source_option else ""
            raise InvalidRequest(f"Kind '{kind.name}' trains encoders. Choose a scale other than 'instant'{named}.")
        if not kind.extends_train:
            others = ", ".join(other.name for other in KINDS.values() if other.extends_train)
            if recipe.profile:
                raise InvalidRequest(
                    f"Kind '{kind.name}' writes no traces. Omit 'profile', or use one of these kinds: {others}."
                )
            if recipe.selection.definition.source == "dataset":
                raise InvalidRequest(
                    f"Kind '{kind.name}' cannot use a selection that was uploaded with a dataset. Choose another "
                    f"selection.selector, or use one of these kinds: {others}."
                )
        kind.check(self.options if options is None else options, recipe, self.names)


class DatasetInput(_Record):
    """A dataset of a job. ref: the manifest of its files. options: how to read the files."""

    id: str
    ref: ManifestRef
    options: dict[str, object] = {}

    @property
    def content(self) -> str:
        """The digest of the files and `options`, without the option `name`, which changes no text or label."""
        return digest_of([self.ref.digest, {key: value for key, value in self.options.items() if key != "name"}])


class ReusedArtifact(_Record):
    """The id and the location of another job's artifact. A job uses this artifact instead of running a node."""

    artifact: str
    ref: ManifestRef


class Resolved(_Record):
    """The versions and values to which the names in a request refer at submission. Later versions have no effect."""

    dataset_id: str
    dataset: ManifestRef
    dataset_options: dict[str, object] = {}
    corpus_name: str | None = None
    corpus_version: str | None = None
    others: tuple[DatasetInput, ...] = ()  # the datasets that the options name
    pinned_options: dict[str, object] = {}  # the options, with results of jobs in place of job ids
    reused: dict[str, ReusedArtifact] = {}  # node → its artifact in the source job
    node_seconds: dict[str, float] = {}  # node, or start of workers (`Plan.start_of`) → the estimate at submission
    recipe: Recipe

    @property
    def datasets(self) -> tuple[DatasetInput, ...]:
        """All datasets of the job, in the order of the request."""
        return (DatasetInput(id=self.dataset_id, ref=self.dataset, options=self.dataset_options), *self.others)

    @property
    def corpus(self) -> str | None:
        """The corpus as "NAME@VERSION", or None."""
        return f"{self.corpus_name}@{self.corpus_version}" if self.corpus_name else None


class Origin(_Record):
    """The earlier job that this job repeats (retry) or changes (clone)."""

    job: str
    how: Literal["retry", "clone"]


class Progress(_Record):
    """The progress of a job.

    step, total, rate (`unit` per second) and stage_eta_seconds describe `node`. share (0 to 1), eta_seconds,
    nodes_done and nodes_total describe the whole job. slowdown: measured seconds of training / expected seconds.
    """

    stage: str
    node: str
    step: int = 0
    total: int = 0
    rate: float | None = None
    unit: str = "steps"
    stage_eta_seconds: float | None = None
    share: float = 0.0
    eta_seconds: float | None = None
    nodes_done: int = 0
    nodes_total: int = 0
    slowdown: float = 1.0


@dataclass(frozen=True)
class PlanInputs(Generic[Options]):
    """The values from which a kind of job computes its plan."""

    options: Options
    recipe: Recipe
    seeds: tuple[int, ...]
    datasets: tuple[DatasetInput, ...]
    names: tuple[str, ...]  # names or ids of the datasets, as in the request
    corpus: str | None  # NAME@VERSION


class ReportSummary(BaseModel):
    """The scores that a list of jobs shows. mean: split → name of the score → mean over the seeds."""

    model_config = ConfigDict(frozen=True)

    metric: str = "macro_f1"
    mean: dict[str, dict[str, float | None]] = {}

    @property
    def score(self) -> float | None:
        """The mean test score by the task's own metric."""
        return self.mean.get("test", {}).get(self.metric)


class JobResult(BaseModel):
    """The result of a succeeded job. artifacts: name of a node → its artifact."""

    model_config = ConfigDict(frozen=True)

    artifacts: dict[str, ReusedArtifact] = {}
    summary: ReportSummary = ReportSummary()


class Beat(BaseModel):
    """The last heartbeat of a submission."""

    model_config = ConfigDict(frozen=True)

    at: float = 0.0  # time of its arrival, in Unix seconds
    phase: Literal["waiting", "starting", "working"] = "working"  # waiting: for room in Ray
    idle: float = 0.0  # seconds without progress in the phase `working`
    limit: float = 0.0  # seconds without progress that are still normal
    rate: float = 0.0  # tokens per second of workers that train
    report: str = ""  # unique id of the report with this heartbeat


class JobRecord(_Record):
    """A job as stored. Records are immutable: each verb of the store writes a new one. Times are Unix seconds."""

    id: str
    tenant: str
    state: State
    spec: JobSpec
    resolved: Resolved
    origin: Origin | None = None
    request_id: str = ""  # id of the submitting request, for logs
    priority: int = 0
    attempt: int = 0  # number of the current attempt, and the fencing token of every write of its workers
    failures: int = 0  # attempts that count against `max_attempts`
    losses: int = 0  # attempts ended by an error with `is_loss`, since the last new checkpoint or artifact
    hub_losses: int = 0  # as `losses`, but for outages of the Hugging Face hub. `losses` excludes these attempts
    interruptions: int = 0  # attempts that ended without a failure of the job
    ran_seconds: float = 0.0  # running time of all attempts, except the time since `running_since`
    running_since: float | None = None
    due_at: float | None = None  # earliest start of the next attempt
    owner: str | None = None
    lease_until: float | None = None
    created_at: float
    updated_at: float
    started_at: float | None = None
    finished_at: float | None = None
    submissions: dict[str, str] = {}  # group → id of its submission in this attempt
    beats: dict[str, Beat] = {}  # group → its last heartbeat in this attempt
    draining: bool = False  # whether a machine of this attempt is shutting down
    excluded_from_cache: tuple[str, ...] = ()  # nodes whose artifacts other jobs must not reuse
    progress: Progress | None = None
    waiting: dict[str, object] | None = None  # the error of the outage that makes the attempt wait
    error: dict[str, object] | None = None
    # If an ended job has many artifacts, the storage has the references in `result` and `published`
    # (`JobReads.moved_refs`).
    result: JobResult | None = None
    checkpoints: tuple[dict[str, object], ...] = ()  # references, set when the record is archived
    published: dict[str, ManifestRef] = {}  # artifact id → its manifest, if the job is archived and has no result
    last_event: int = 0
    unreadable: bool = False  # in lists: replaces a record that cannot be read, and has only its id, state and error

    def spent(self, error: TLMError) -> tuple[int, int, int]:
        """Return the new `failures`, `losses` and `hub_losses` after `error` ended the current attempt.

        LOSSES_PER_FAULT losses, or HUB_LOSSES_PER_FAULT outages of the hub, count as one failure. An error of one type
        does not reset the count of the other type, so that a job with alternating errors also ends.
        """
        is_hub = is_hub_outage(error)
        # Earlier releases counted outages of the hub in `losses`, up to 29.
        losses = self.losses if self.losses < LOSSES_PER_FAULT else 0
        losses, hub_losses = losses + (not is_hub), self.hub_losses + is_hub
        if error.is_loss and losses < LOSSES_PER_FAULT and hub_losses < HUB_LOSSES_PER_FAULT:
            return self.failures, losses, hub_losses
        return self.failures + 1, 0, 0

    def is_due(self, now: float) -> bool:
        """Return whether the queued job can be claimed.

        The delay before an attempt also ends if the clock is set back to a time before the last change of the record.
        """
        return self.due_at is None or not self.updated_at <= now < self.due_at

    def works(self, group: str) -> bool:
        """Return whether the last heartbeat of the group in this attempt has the phase `working`."""
        return group in self.beats and self.beats[group].phase == "working"

    @property
    def plan_inputs(self) -> PlanInputs[KindOptions]:
        """The values from which the kind of the job computes the plan."""
        options, resolved = self.spec.options, self.resolved
        if resolved.pinned_options:
            options = type(options).model_validate(options.model_dump(mode="json") | resolved.pinned_options)
        return PlanInputs(
            options, resolved.recipe, self.spec.seeds, resolved.datasets, self.spec.names, resolved.corpus
        )


class Event(_Record):
    """One event of a job. seq: counts from 1 without gaps. at: Unix seconds."""

    seq: int
    type: str
    at: float
    attempt: int
    data: dict[str, object] = {}
