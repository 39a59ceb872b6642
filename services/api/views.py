"""What the API takes and gives, as typed values with an example each."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from services.api.estimate import Estimate
from services.common.catalog_records import (
    CorpusLoad,
    CorpusRecord,
    CorpusState,
    CorpusVersion,
    DatasetRecord,
    LoadState,
    NearDuplicatesChoice,
)
from tlm_core.artifacts import FileEntry, ManifestRef
from tlm_core.jobs.plan import Plan
from tlm_core.jobs.spec import Event, JobRecord, JobSpec, Origin, Progress
from tlm_core.jobs.states import State
from tlm_core.tasks.metrics import Metric
from tlm_core.tasks.options import DatasetOptions
from tlm_core.training.recipe import Recipe

T = TypeVar("T")


class _View(BaseModel):
    model_config = ConfigDict(frozen=True)


class _Body(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Page(_View, Generic[T]):
    """One page of a list; ask for the next with `after` = id of the last one."""

    data: tuple[T, ...]
    has_more: bool


class Problem(_View):
    """An error, as RFC 9457 has it. errors: every fault found, with row and column or a JSON pointer."""

    type: str = Field(examples=["/docs/errors#not_found"])
    title: str = Field(examples=["Not Found"])
    status: int = Field(examples=[404])
    detail: str = Field(examples=["no job 'job_1'; list the jobs to see their ids"])
    code: str = Field(examples=["not_found"])
    retryable: bool = False
    facts: dict[str, Any] | None = None
    errors: list[dict[str, Any]] | None = None


class Info(_View):
    """What this service is and takes."""

    version: str
    scales: tuple[str, ...]
    recipes: tuple[str, ...]
    max_upload_bytes: int
    max_json_bytes: int
    max_predict_texts: int


# --- data sets ------------------------------------------------------------------------------------------------------


class OptionsBody(_Body):
    """How to read a data set; what is left out is guessed, and the report says why."""

    text_column: str | None = Field(None, max_length=200)
    text_pair_column: str | None = Field(None, max_length=200, description='column of second texts; "": there is none')
    label_column: str | None = Field(None, max_length=200)
    delimiter: str | None = Field(None, description="of CSV files, one character")
    metric: Metric | None = Field(None, description="pearson and spearman: the labels are amounts (regression)")
    positive_label: str | None = Field(None, max_length=1000, description="the label of which the metric f1 is taken")
    language: str | None = Field(None, pattern=r"^[a-z]{2,3}$", description="ISO 639 code")
    name: str | None = Field(None, max_length=200, description="of the task, in reports and on the model's card")
    split_seed: int = Field(0, ge=0, lt=2**32, description="decides which rows a split that is cut gets")

    def options(self) -> DatasetOptions:
        return DatasetOptions(**self.model_dump())


class HubBody(_Body):
    """A data set of the Hugging Face hub."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"name": "sciie", "hub": "yxchar/sciie-tlm", "options": {}}]}
    )

    name: str
    hub: str = Field(description="OWNER/NAME, with @REVISION and :CONFIG if needed", max_length=300)
    options: OptionsBody = OptionsBody()
    selection: str | None = Field(
        None, max_length=300, description="a file of the data set with passages for the selector `given`"
    )


class DatasetView(_View):
    """A data set. Its id always means these bytes; its name means the newest version. digest: of all its files."""

    id: str
    name: str
    version: int
    digest: str
    options: dict[str, Any]
    rows: dict[str, int] = Field(description="records of each split")
    labels: int
    warnings: int
    selection: int | None = Field(None, description="passages of the selection that it brings, if it does")
    created_at: float = Field(description="Unix seconds")

    @classmethod
    def of(cls, record: DatasetRecord) -> DatasetView:
        return cls(
            id=record.id,
            name=record.name,
            version=record.version,
            digest=record.raw.digest,
            options=record.options,
            rows=record.summary["rows"],
            labels=record.summary["labels"],
            warnings=record.summary["warnings"],
            selection=record.summary.get("selection"),
            created_at=record.created_at,
        )


class DatasetCreated(DatasetView):
    """A data set that was taken in, and what was found while it was checked."""

    report: dict[str, Any]


class Preview(_View):
    """The first rows as they were read."""

    data: tuple[Any, ...]


# --- corpora --------------------------------------------------------------------------------------------------------


class VersionView(_View):
    """One version of a corpus. count: passages; refused: how many of them the index will never take.

    duplicates_dropped, near_duplicates_dropped: passages of the upload that were left out as (nearly) equal to an
    earlier one; the latter null, as are the seconds that it took, if they were to be kept.
    """

    version: str
    language: str
    count: int
    refused: int = 0
    duplicates_dropped: int = 0
    near_duplicates_dropped: int | None = None
    near_duplicates_seconds: float | None = None
    state: CorpusState
    created_at: float
    error: dict[str, Any] | None = None

    @classmethod
    def of(cls, version: CorpusVersion) -> VersionView:
        return cls(**version.model_dump(exclude={"passages"}))


class LoadView(_View):
    """An upload on its way into the index. done and total count passages; total is 0 while unknown.

    sources: the addresses that it is fetched from, if it was not sent.
    """

    id: str
    corpus: str
    language: str
    near_duplicates: NearDuplicatesChoice
    sources: tuple[str, ...]
    state: LoadState
    version: str | None
    done: int
    total: int
    error: dict[str, Any] | None
    created_at: float

    @classmethod
    def of(cls, load: CorpusLoad) -> LoadView:
        return cls(**load.model_dump(exclude={"tenant", "upload"}))


class CorpusView(_View):
    """A corpus. version: the newest that can be searched, which its name means; loads: the latest, newest first."""

    name: str
    version: str | None
    versions: tuple[VersionView, ...]
    loads: tuple[LoadView, ...]

    @classmethod
    def of(cls, corpus: CorpusRecord, loads: list[CorpusLoad]) -> CorpusView:
        ready = corpus.ready()
        return cls(
            name=corpus.name,
            version=ready.version if ready else None,
            versions=tuple(map(VersionView.of, corpus.versions)),
            loads=tuple(map(LoadView.of, loads)),
        )


class CorpusBody(_Body):
    """What is said of a corpus, wherever its files come from."""

    name: str = Field(max_length=200)
    language: str = Field("en", max_length=20)
    near_duplicates: NearDuplicatesChoice = "drop"


class CorpusOfSources(CorpusBody):
    """A corpus to be fetched by the service. sources: addresses of files or folders, or ids on the hub."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"name": "docs", "sources": ["s3://texts/articles/"]}]})

    sources: tuple[str, ...] = Field(min_length=1, max_length=1000)


class SearchBody(_Body):
    """A query to try a corpus with."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"query": "relation between two entities", "k": 5}]})

    query: str = Field(min_length=1, max_length=20_000)
    k: int = Field(10, ge=1, le=100)
    version: str | None = Field(None, max_length=64)


class Hit(_View):
    """A passage that was found, with its BM25 score."""

    id: str
    score: float
    text: str
    source: str


class SearchResult(_View):
    """The best passages, best first, of the version that was searched."""

    version: str
    hits: tuple[Hit, ...]


class RefusedPassage(_View):
    """A passage that the index will never take, and why."""

    id: str
    text: str
    source: str
    reason: str


class RefusedView(_View):
    """The passages that were left out of a version's index, in the order of the corpus; at most a thousand."""

    data: tuple[RefusedPassage, ...]


# --- jobs -----------------------------------------------------------------------------------------------------------


class StageView(_View):
    """One node of a job's plan. artifact: digest of what it left, once it is done."""

    name: str
    stage: str
    place: str
    needs: tuple[str, ...]
    done: bool
    digest: str | None = None


class JobSummary(_View):
    """A job as lists show it. Times are Unix seconds."""

    id: str
    kind: str
    state: State
    dataset: str
    corpus: str | None
    scale: str
    recipe: str
    seeds: tuple[int, ...]
    metadata: dict[str, str]
    priority: int
    origin: Origin | None = Field(description="the job that it was made from, and how")
    attempt: int
    failures: int
    created_at: float
    updated_at: float
    started_at: float | None
    finished_at: float | None
    progress: Progress | None
    error: dict[str, Any] | None

    @classmethod
    def of(cls, job: JobRecord) -> JobSummary:
        return cls(**_facts(job))


class JobView(JobSummary):
    """A job with everything that was settled when it was accepted, and its stages."""

    spec: JobSpec
    dataset_id: str
    dataset_digest: str
    corpus_version: str | None
    resolved_recipe: Recipe
    stages: tuple[StageView, ...]
    last_event: int

    @classmethod
    def build(cls, job: JobRecord, plan: Plan, done: dict[str, ManifestRef]) -> JobView:
        stages = tuple(
            StageView(
                name=node.name,
                stage=node.stage,
                place=node.place,
                needs=tuple(sorted(set(node.inputs.values()))),
                done=node.name in done,
                digest=done[node.name].digest if node.name in done else None,
            )
            for node in plan.nodes
        )
        return cls(
            **_facts(job),
            spec=job.spec,
            dataset_id=job.resolved.dataset_id,
            dataset_digest=job.resolved.dataset.digest,
            corpus_version=job.resolved.corpus_version,
            resolved_recipe=job.resolved.recipe,
            stages=stages,
            last_event=job.last_event,
        )


class DryRun(_View):
    """What a submission would mean: all that would be settled, its stages with those that are done, and its cost."""

    spec: JobSpec
    dataset_id: str
    dataset_digest: str
    corpus_version: str | None
    resolved_recipe: Recipe
    stages: tuple[StageView, ...]
    estimate: Estimate

    @classmethod
    def build(cls, job: JobRecord, plan: Plan, done: dict[str, ManifestRef], estimate: Estimate) -> DryRun:
        settled = JobView.build(job, plan, done).model_dump(include=set(cls.model_fields) - {"estimate"})
        return cls(**settled, estimate=estimate)


def _facts(job: JobRecord) -> dict[str, Any]:
    spec = job.spec
    shared = ("id", "state", "origin", "attempt", "failures", "created_at", "updated_at", "started_at", "finished_at",
              "progress", "error")  # fmt: skip
    asked = ("kind", "dataset", "corpus", "scale", "recipe", "seeds", "metadata", "priority")
    return {name: getattr(job, name) for name in shared} | {name: getattr(spec, name) for name in asked}


class EventPage(Page[Event]):
    """Events in order; ask for the next with `after` = seq of the last one."""


class CheckpointView(_View):
    """A checkpoint that exists. metrics: as they were when it was taken."""

    node: str
    step: int
    job: str
    attempt: int
    metrics: dict[str, float | None]
    files: tuple[FileEntry, ...]


class ModelView(_View):
    """The exported model: every file with its size and SHA-256. digest: of the whole."""

    digest: str
    size: int
    files: tuple[FileEntry, ...]


class Provenance(_View):
    """Which train row asked for a passage, and at which rank (from 1) and score it came."""

    train_row: int
    rank: int
    score: float | None
    text: str | None = Field(None, description="how the row begins, while the job's task is at hand")
    label: str | None = Field(None, description="its label, in regression its amount, while the task is at hand")


class PassageView(_View):
    """A passage of a job's selection, with its best rank, its score if it has one, and who asked for it."""

    id: str
    text: str
    source: str
    rank: int
    score: float | None
    asked_by: tuple[Provenance, ...] = Field(description="the first of them, as they stand in the provenance")
    asked_by_total: int | None = None


class SelectionView(_View):
    """A page of a selection, best rank first, and how the selection was made."""

    facts: dict[str, Any]
    data: tuple[PassageView, ...]
    total: int | None = Field(None, description="passages that fit what was asked for")
    has_more: bool


class PredictBody(_Body):
    """Texts to classify; `pairs` are the second texts of a model that takes two."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"texts": ["We evaluate on SciERC."]}]})

    texts: tuple[str, ...] = Field(min_length=1, max_length=256)
    pairs: tuple[str, ...] | None = Field(None, max_length=256)


class Prediction(_View):
    """The likeliest label of one text, and the probability of every label; of a model of amounts its value."""

    label: str = Field(description="in regression: what the value is of")
    probability: float | None = None
    probabilities: dict[str, float] = {}
    value: float | None = Field(None, description="the amount, where the task is regression")


class Predictions(_View):
    """One prediction for each text, in their order."""

    data: tuple[Prediction, ...]
