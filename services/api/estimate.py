"""Estimate the cost of a job of any kind: the work of each node, times the seconds per unit of work measured here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from statistics import median

from services.api.work import Texts, Work, length_of, shape_of, work_of
from services.common.catalog import Catalog
from services.common.jobstore import JobStore
from services.common.situation import Situation
from tlm_core.artifacts import ArtifactStore, ManifestRef
from tlm_core.errors import CorruptArtifact, NotFound
from tlm_core.jobs.plan import SEED_GROUP, Node, Plan, plan_of
from tlm_core.jobs.spec import JobRecord, JobSpec, Resolved
from tlm_core.jobs.states import State
from tlm_core.studies.params import SubsetParams
from tlm_core.training.architectures import architecture_of
from tlm_core.training.memory import MICRO_ROWS, training_bytes
from tlm_core.training.params import FinetuneParams, JointParams, PrepareParams, TrainParams
from tlm_core.training.recipe import auto_length
from tlm_core.training.stage import Place
from tlm_core.wire import Basis, Estimate, StageEstimate

START = "start"  # of the workers; not a stage, but every job waits for it
# Seconds per unit of work while nothing is measured: `make demo` on 2 cores of an AMD EPYC with AVX-512 bf16.
BUILT_IN_SECONDS = {
    "validate": 5e-4, "baseline": 3e-3, "self_train": 2e-3, "evaluate_linear": 1.0, "export_linear": 0.1,
    "select": 8.4e-8, START: 9.0, "prepare": 1.7e-6, "joint": 3.5e-12, "finetune": 5.0e-12,
    "choose": 0.1, "evaluate": 6.4e-5, "export": 9.0,
}  # fmt: skip
# From the same run: distinct passages per retrieved passage, bytes per passage, tokens per word.
_DISTINCT, _PASSAGE_BYTES, _TOKENS_PER_WORD = 0.74, 337, 1.5
_EARLIER_JOBS, _MAX_EVENTS = 30, 20_000


# Without a measurement here, the time is within these multiples of the built-in one: GPUs are faster, and a machine
# without bf16, or with other work, was six times slower.
_UNMEASURED = (0.5, 8.0)


@dataclass(frozen=True)
class Finished:
    """Measurements of a succeeded job. source: see `source_of`."""

    id: str
    source: tuple[str, str, str]
    texts: Texts
    gpu: bool


@dataclass(frozen=True)
class Setup:
    """How the nodes of a stage run: number of workers, number of seeds side by side, and precision.

    A stored time per unit of work is divided by `seeds`, so that the times of all seeds sum to that of a job.
    """

    workers: int
    seeds: int
    precision: str

    @classmethod
    def of(cls, job: JobRecord, plan: Plan, node: Node | None) -> Setup | None:
        """Return None for a stage whose time does not depend on the setup."""
        if node is None or not (isinstance(node.params, TrainParams) or node.stage.name == "evaluate"):
            return None
        return cls(job.spec.workers, plan.side_by_side(node.group), job.resolved.recipe.precision)

    def __str__(self) -> str:
        return f"{self.workers}/{self.seeds}/{self.precision}"


@dataclass(frozen=True)
class Running:
    """A job that trains now. slowdown: its seconds per unit of work, as a multiple of the built-in ones."""

    id: str
    setup: Setup
    slowdown: float


@dataclass(frozen=True)
class Known:
    """The facts about a job before it runs.

    rates: as Redis stores them. passages: their number, its maximum, and the basis. work: by name of the node.
    """

    job: JobRecord
    plan: Plan
    done: Mapping[str, ManifestRef]
    history: Sequence[Finished]
    rates: Mapping[str, str]
    running: Sequence[Running]
    texts: Sequence[Texts]
    passages: tuple[int, int, str]
    work: Mapping[str, Work | None]


def source_of(resolved: Resolved) -> tuple[str, str, str]:
    """What the selected passages depend on: the content of dataset, corpus version and selection."""
    return (resolved.datasets[0].content, str(resolved.corpus), resolved.recipe.selection.model_dump_json())


def proposed(tenant: str, spec: JobSpec, resolved: Resolved) -> JobRecord:
    """The record of a job that is not submitted, from which its plan follows."""
    return JobRecord(
        id="job_proposed", tenant=tenant, state=State.QUEUED, spec=spec, resolved=resolved, created_at=0, updated_at=0
    )


class Estimator:
    """Estimates jobs of every kind. Caches the measurements of finished jobs."""

    def __init__(self, catalog: Catalog, jobs: JobStore, artifacts: ArtifactStore) -> None:
        self._catalog, self._jobs, self._artifacts = catalog, jobs, artifacts
        self._finished: dict[str, Finished | None] = {}

    def estimate(self, tenant: str, spec: JobSpec, resolved: Resolved) -> Estimate:
        """Raises NotFound, and CorruptArtifact if a validation report is lost."""
        known = self._known(tenant, spec, resolved)
        plan, texts, recipe = known.plan, known.texts, resolved.recipe
        stages = list(_stages(known))
        shape = shape_of(recipe.model, texts[0])
        gpu_hours, gpu_reason = _gpu_hours(spec.workers, plan, stages, known.history)
        masked = recipe.joint.highest_mask_rate if recipe.joint.enabled else 0.0
        rows = min(recipe.joint.at_length(length_of(recipe.model, texts[0]), recipe.model).batch_rows, MICRO_ROWS)
        trained = [stage for stage in stages if any(
            node.stage.name == stage.stage and isinstance(node.params, TrainParams) for node in plan.nodes
        )]  # fmt: skip
        counted = (
            "counted from the sizes of model and texts" if shape else "the sizes of a published encoder are unknown"
        ) if trained else "the job trains no encoder"  # fmt: skip
        at_least, at_most = (_total(_within(stage, factor) for stage in stages) for factor in _UNMEASURED)
        unmeasured = {} if at_least == at_most else {"seconds": "not measured here; jobs that run here correct it"}
        return Estimate(
            seconds=_total(stage.seconds for stage in stages),
            seconds_at_least=at_least,
            seconds_at_most=at_most,
            flops=_total(stage.flops for stage in trained),
            tokens=_total(stage.tokens for stage in trained),
            memory_bytes=training_bytes(shape, architecture_of(shape).parameters(shape), rows, masked)
            if shape and trained
            else None,
            disk_bytes=_disk_bytes(plan, texts) if trained else None,
            gpu_hours=gpu_hours,
            passages=known.passages[0],
            passages_at_most=known.passages[1],
            stages=tuple(stages),
            reasons=unmeasured
            | dict.fromkeys(("flops", "memory_bytes", "disk_bytes"), counted)
            | {"gpu_hours": gpu_reason, "passages": known.passages[2]},
        )

    def node_seconds(self, tenant: str, spec: JobSpec, resolved: Resolved) -> dict[str, float]:
        """Expected seconds of each node that is not done; 0 for short stages of unknown duration.

        Empty if the duration of training is unknown or the validation report is lost: progress then counts nodes.
        """
        try:
            known = self._known(tenant, spec, resolved)
        except (NotFound, CorruptArtifact):
            return {}
        missing = [node for node in known.plan.nodes if node.name not in known.done]
        seconds = {node.name: _estimated(known, [node]).seconds for node in missing}
        if any(seconds[node.name] is None and isinstance(node.params, TrainParams) for node in missing):
            return {}
        return {name: float(f"{value or 0:.3g}") for name, value in seconds.items()}

    def _known(self, tenant: str, spec: JobSpec, resolved: Resolved) -> Known:
        job, history = proposed(tenant, spec, resolved), self._history(tenant)
        plan = plan_of(job)
        done = Situation.read(self._jobs, job, plan).done
        alike = [job for job in history if job.source[0] == source_of(resolved)[0]]
        alike.sort(key=lambda job: job.source != source_of(resolved))
        texts = self._texts(job, alike[0].texts if alike else None)
        passages = self._passages(job, plan, done, texts[0], alike)
        texts = [replace(work, passages=passages[0]) for work in texts]
        work = {node.name: work_of(node, _texts_of(plan, node, texts)) for node in plan.nodes}
        rates, running = self._jobs.rates(tenant), self._running(tenant)
        return Known(job, plan, done, history, rates, running, texts, passages, work)

    def _texts(self, job: JobRecord, known: Texts | None) -> list[Texts]:
        """The texts of each dataset of a job. known: those of an earlier job on the first dataset."""
        resolved, searched, texts = job.resolved, 0, []
        if resolved.corpus_name is not None and resolved.corpus_version is not None:
            searched = self._catalog.corpus(job.tenant, resolved.corpus_name).version(resolved.corpus_version).count
        own = resolved.recipe.tokenizer
        vocab = own.vocab_size if own.may_be_own else None
        for dataset in resolved.datasets:
            report = self._artifacts.read_json(self._catalog.dataset(job.tenant, dataset.id).report, "report.json")
            mean, p95 = (report["lengths"][name] * _TOKENS_PER_WORD + 2 for name in ("mean_words", "p95"))
            model, labels = resolved.recipe.model, len(report["labels"]) or 1
            task = Texts(report["counts"], mean, labels, vocab, searched=searched, auto_length=auto_length(p95))
            length = length_of(model, task)
            # A further window adds three quarters of its tokens, because it repeats a quarter of the one before.
            windows = min(max(1.0, (mean / length - 0.25) / 0.75), model.windows)
            texts.append(replace(task, tokens=min(mean, length), windows=windows))
        return [replace(known, searched=searched), *texts[1:]] if known else texts

    def _passages(
        self, job: JobRecord, plan: Plan, done: Mapping[str, ManifestRef], texts: Texts, alike: Sequence[Finished]
    ) -> tuple[int, int, str]:
        """Passages that will be selected, their maximum, and the basis of the number."""
        resolved, selection = job.resolved, job.resolved.recipe.selection
        nodes = [node.name for node in plan.nodes if node.stage.name == "select"]
        if not nodes:
            return 0, 0, "the job has no select stage"
        limits = [selection.max_passages, texts.rows["train"] * selection.top_k if selection.sized_by_queries else None]
        if selection.definition.source == "dataset":
            limits.append(self._catalog.dataset(job.tenant, resolved.dataset_id).summary.selection)
        else:
            limits.append(texts.searched)
        at_most = min(limit for limit in limits if limit is not None)
        if nodes[0] in done:
            meta = self._artifacts.manifest(done[nodes[0]]).meta
            return int(meta.get("passages", at_most)), at_most, "this selection exists already"
        if alike and alike[0].source == source_of(resolved):
            return alike[0].texts.passages, at_most, f"counted by {alike[0].id}, which selected in the same way"
        if not selection.sized_by_queries:
            return at_most, at_most, "the number of available passages, or the budget in passages"
        expected = min(at_most, round(_DISTINCT * texts.rows["train"] * selection.top_k))
        return expected, at_most, f"{_DISTINCT:.0%} of the retrieved passages, a built-in share"

    def _history(self, tenant: str) -> list[Finished]:
        """The measurements of the latest succeeded jobs, newest first, without jobs whose files are deleted."""
        ids = self._jobs.newest_in(tenant, State.SUCCEEDED, _EARLIER_JOBS)
        # The newest job is measured last, so that its rates stay stored.
        measured = {job: self._finished[job] if job in self._finished else self._measure(tenant, job)
                    for job in reversed(ids)}  # fmt: skip
        self._finished = {job: measured[job] for job in ids}
        return [job for job in self._finished.values() if job is not None]

    def _running(self, tenant: str) -> list[Running]:
        """The speeds of the jobs that train now, newest first."""
        speeds = []
        for job_id in self._jobs.newest_in(tenant, State.RUNNING, _EARLIER_JOBS):
            with suppress(NotFound, CorruptArtifact):
                job = self._jobs.get(tenant, job_id)
                if running := self._measured_now(job):
                    speeds.append(running)
        return speeds

    def _measured_now(self, job: JobRecord) -> Running | None:
        """The speed of a job that trains now."""
        progress = job.progress
        if progress is None or not progress.rate or progress.unit != "tokens":
            return None
        plan = plan_of(job)
        nodes = {node.name: node for node in plan.nodes}
        # Whether there are passages matters here, not how many.
        texts = replace(self._texts(job, None)[0], passages=int("select" in nodes))
        work = work_of(nodes[progress.node], texts) if progress.node in nodes else None
        if not work or not work.tokens or progress.stage not in BUILT_IN_SECONDS:
            return None
        setup = Setup.of(job, plan, nodes[progress.node])
        if setup is None:
            return None
        slowdown = work.tokens / progress.rate / setup.seeds / work.units / BUILT_IN_SECONDS[progress.stage]
        return Running(job.id, setup, slowdown)

    def _measure(self, tenant: str, job_id: str) -> Finished | None:
        try:
            job = self._jobs.get(tenant, job_id)
            if not job.result or not job.result.artifacts:
                return None
            plan, refs = plan_of(job), {name: entry.ref for name, entry in job.result.artifacts.items()}
            texts = self._texts(job, None)
            prepared = self._artifacts.manifest(refs["prepare"]).meta
            rows, tokens, passages = texts[0].rows, prepared["tokens"], int(prepared["passages"])
            windows = prepared.get("windows", rows)["train"]
            if job.resolved.recipe.model.max_length == "auto":
                texts[0] = replace(texts[0], auto_length=prepared["max_length"])
            first = replace(texts[0], tokens=tokens["train"] / windows, windows=windows / rows["train"],
                            vocab=int(prepared["vocab_size"]), passages=passages,
                            passage_tokens=tokens.get("passages", 0) / max(passages, 1))  # fmt: skip
            seconds: dict[str, list[float]] = {}
            for stage, node, elapsed in _elapsed(self._jobs, job, plan):
                work = work_of(node, _texts_of(plan, node, [first, *texts[1:]])) if node else Work(1.0)
                units = work.units if work else 0.0
                if node and isinstance(node.params, TrainParams):
                    units = float(self._artifacts.manifest(refs[node.name]).meta.get("flops", units))
                    cost = self._artifacts.read_json(refs[node.name], "history.json")["cost"]
                    elapsed = max(elapsed, float(cost["seconds"]))  # a resumed stage began before its last start
                if units > 0:
                    setup = Setup.of(job, plan, node)
                    each = elapsed / units / (setup.seeds if setup else 1)
                    seconds.setdefault(_rate_key(stage, setup), []).append(each)
            cost = self._artifacts.read_json(refs[plan.report], "report.json")["cost"]["total"]
        except (NotFound, CorruptArtifact, KeyError):
            return None
        self._jobs.save_rates(tenant, {key: f"{median(each)} {job.id}" for key, each in seconds.items()})
        return Finished(job.id, source_of(job.resolved), first, cost["gpu_seconds"] > 0)


def _elapsed(jobs: JobStore, job: JobRecord, plan: Plan) -> Iterator[tuple[str, Node | None, float]]:
    """(stage, node, seconds) of the workers' start and of each node that the job ran itself, from its events."""
    nodes, started = {node.name: node for node in plan.nodes}, dict[str, float]()
    published, claimed, submitted = dict[str, float](), job.created_at, None
    for event in jobs.events(job.tenant, job.id, limit=_MAX_EVENTS):
        node = nodes.get(str(event.data.get("node", "")))
        if event.type == "workers.submitted":
            submitted = event.at
        elif event.type == "stage.started" and node:
            started[node.name] = event.at
            if submitted is not None:
                yield START, None, event.at - submitted
                submitted = None
        elif event.type == "artifact.published" and node:
            published[node.name] = event.at
            # A stage that does not run on workers starts when its inputs are there.
            ready = max([claimed, *(published[source] for source in node.inputs.values() if source in published)])
            yield node.stage.name, node, event.at - started.get(node.name, ready)
        elif event.type == "job.claimed":
            claimed = event.at


def _texts_of(plan: Plan, node: Node, texts: Sequence[Texts]) -> Texts:
    """The texts of the dataset that a node depends on, reduced to its subset."""
    path = [*plan.behind(node.name), node]
    validate = next((node.name for node in path if node.stage.name == "validate"), "validate")
    chosen = texts[int(validate.partition(".")[2] or 0)]
    sizes = [node.params.size for node in path if isinstance(node.params, SubsetParams)]
    if not sizes or len(set(sizes)) > 1:
        return chosen
    train = chosen.rows["train"]
    return replace(chosen, rows={**chosen.rows, "train": round(sizes[0] if sizes[0] >= 1 else sizes[0] * train)})


def _stages(known: Known) -> Iterator[StageEstimate]:
    """Each stage of the plan in order, all nodes together, and the workers' start."""
    plan, done = known.plan, known.done
    waiting = [node for node in plan.nodes if node.place is Place.WORKERS and node.name not in done]
    # The workers of all seeds start at the same time.
    starts = {SEED_GROUP if plan.side_by_side(node.group) > 1 else node.group for node in waiting}
    for stage in dict.fromkeys(node.stage.name for node in plan.nodes):
        nodes = [node for node in plan.nodes if node.stage.name == stage]
        missing = [node for node in nodes if node.name not in done]
        if starts and missing and nodes[0].place is Place.WORKERS:
            yield _stage(START, [Work(1.0)] * len(starts), None, known)
            starts = set()
        if missing:
            yield _estimated(known, missing)
        else:
            yield StageEstimate(stage=stage, seconds=0, flops=0, tokens=0, basis="cached", reason="already done")


def _estimated(known: Known, nodes: Sequence[Node]) -> StageEstimate:
    """The estimate of nodes of one stage that are not done."""
    stage, job = nodes[0].stage.name, known.job
    if stage == "joint" and (budget := job.resolved.recipe.joint.budget.seconds) is not None:
        return StageEstimate(stage=stage, seconds=budget * len(nodes), flops=None, tokens=None, basis="counted",
                             reason="the recipe limits the seconds")  # fmt: skip
    setup = Setup.of(job, known.plan, nodes[0])
    return _stage(stage, [known.work[node.name] for node in nodes], setup, known)


def _stage(stage: str, work: Sequence[Work | None], setup: Setup | None, known: Known) -> StageEstimate:
    """A stage at the rate measured here, or at the built-in one."""
    flops, tokens = (_total(getattr(item, name) if item else None for item in work) for name in ("flops", "tokens"))
    units = _total(item.units if item else None for item in work)
    basis, rate, reason = _rate(stage, setup, known)
    if units is None:
        reason = "the work is unknown until the sizes of texts and model are known"
    elif rate is None:
        reason = f"no job with {setup.workers if setup else 1} worker(s) has run this stage here yet"
    if units is None or rate is None:
        return StageEstimate(stage=stage, seconds=None, flops=flops, tokens=tokens, basis="unknown", reason=reason)
    return StageEstimate(stage=stage, seconds=units * rate, flops=flops, tokens=tokens, basis=basis, reason=reason)


def _rate(stage: str, setup: Setup | None, known: Known) -> tuple[Basis, float | None, str]:
    """Return the basis, the seconds per unit of work, and their source.

    The source is the newest job that ran the stage in the same way, or else a job that trains now.
    """
    if stored := known.rates.get(_rate_key(stage, setup)):
        seconds, job = stored.split()
        return "measured", float(seconds), f"measured by {job}"
    rate = BUILT_IN_SECONDS.get(stage)
    for running in known.running:
        if rate is not None and setup == running.setup:
            return "measured", rate * running.slowdown, f"measured by {running.id}, which runs"
    return "built-in", rate if setup is None or setup.workers == 1 else None, "from 2 cores of a server"


def _rate_key(stage: str, setup: Setup | None) -> str:
    """The name of a stored rate."""
    return stage if setup is None else f"{stage}/{setup}"


def _within(stage: StageEstimate, factor: float) -> float | None:
    """The seconds of a stage, times a factor unless they are measured."""
    return stage.seconds * factor if stage.seconds is not None and stage.basis == "built-in" else stage.seconds


def _gpu_hours(
    workers: int, plan: Plan, stages: Sequence[StageEstimate], history: Sequence[Finished]
) -> tuple[float | None, str]:
    if not history:
        return None, "no job has finished here yet, so the workers' GPUs are unknown"
    if not history[0].gpu:
        return 0.0, f"{history[0].id} ran without GPUs"
    names = {node.stage.name for node in plan.nodes if isinstance(node.params, TrainParams)}
    seconds = _total(stage.seconds for stage in stages if stage.stage in names)
    if seconds is None:
        return None, "the training time is unknown"
    return seconds * workers / 3600, f"{workers} worker(s) with one GPU each, like {history[0].id}"


def _disk_bytes(plan: Plan, texts: Sequence[Texts]) -> int | None:
    """Bytes of the artifacts: passages, token stores, and parameters in float32. The export holds them twice."""
    total = 0.0
    for node in plan.nodes:
        own = _texts_of(plan, node, texts)
        if isinstance(node.params, JointParams | FinetuneParams):
            shape = shape_of(node.params.model, own)
            if shape is None:
                return None
            exported = 4 * architecture_of(shape).exported_parameters(shape)
            total += 4 * architecture_of(shape).parameters(shape) if isinstance(node.params, JointParams) else exported
        elif isinstance(node.params, PrepareParams):
            tokens = own.task_tokens + own.passages * own.passage_tokens
            total += own.passages * _PASSAGE_BYTES + tokens * (2 if (own.vocab or 0) < 2**16 else 4)
            total += 4 * (own.vocab or 0) * (node.params.vector_width or 0)
        elif node.stage.name in ("choose", "export"):
            total += exported * (2 if node.stage.name == "export" else 1)
    return round(total)


def _total(values: Iterable[float | None]) -> float | None:
    """The sum, or None if a value is unknown or there is none."""
    known = list(values)
    return None if not known or None in known else sum(value for value in known if value is not None)
