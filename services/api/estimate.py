"""Estimate the cost of a job of any kind: the work of each node, times the seconds per unit of work."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from services.api.measurements import START, Finished, Measurements, Pace, Rate, Setup, pace_of, reading_of, source_of
from services.api.work import Texts, Work, disk_bytes, memory_bytes, shape_of, texts_of, work_of
from services.common.catalog import Catalog
from services.common.jobstore import JobStore
from services.common.situation import Situation
from tlm_core.artifacts.store import ArtifactStore
from tlm_core.errors import CorruptArtifact, NotFound
from tlm_core.jobs.plan import Node
from tlm_core.jobs.spec import JobRecord, JobSpec, Resolved
from tlm_core.jobs.states import State
from tlm_core.training.params import TrainParams
from tlm_core.training.stage import Place
from tlm_core.wire import Estimate, StageEstimate
from tlm_core.wording import counted

_DISTINCT = 0.74  # distinct passages per retrieved passage, from `make demo`
_NARROW = 0.05  # a range is returned only if its width is more than this share of the time


def proposed(tenant: str, spec: JobSpec, resolved: Resolved) -> JobRecord:
    """Return the record of a job before its submission, to compute the plan and the cost of the job."""
    return JobRecord(
        id="job_proposed", tenant=tenant, state=State.QUEUED, spec=spec, resolved=resolved, created_at=0, updated_at=0
    )


class StageCost(StageEstimate):
    """The estimate of a stage, with values that the API omits.

    gpu_seconds: the sum of the seconds of all seeds, even if the seeds run at the same time. range_reason: why
    `seconds` has bounds.
    """

    gpu_seconds: float | None = None
    range_reason: str = ""

    @property
    def least(self) -> float | None:
        return self.seconds if self.seconds_at_least is None else self.seconds_at_least

    @property
    def most(self) -> float | None:
        return self.seconds if self.seconds_at_most is None else self.seconds_at_most


@dataclass(frozen=True)
class Known:
    """What the service knows about a job before the job runs.

    history: measurements of finished jobs, newest first. rates: see `Measurements.rates`. texts: one item for each
    dataset. passages: see `Estimator._passages`. worker_gpus: the number of GPUs of each worker, None if unknown.
    """

    situation: Situation
    history: Sequence[Finished]
    rates: Mapping[str, Rate]
    texts: Sequence[Texts]
    passages: tuple[int, int, str]
    worker_gpus: float | None

    def stages(self) -> Iterator[StageCost]:
        """Yield the estimate of each stage in plan order, and one estimate for all starts of workers.

        The estimate of a stage covers its nodes that are not done.
        """
        plan, done = self.situation.plan, self.situation.done
        waiting = [node for node in plan.nodes if node.place is Place.WORKERS and node.name not in done]
        starts = {plan.start_of(node) for node in waiting}
        for stage in dict.fromkeys(node.stage.name for node in plan.nodes):
            nodes = [node for node in plan.nodes if node.stage.name == stage]
            missing = [node for node in nodes if node.name not in done]
            if starts and missing and nodes[0].place is Place.WORKERS:
                yield self.start(len(starts))
                starts = set()
            if missing:
                yield self.stage(missing)
            else:
                yield StageCost(
                    stage=stage, seconds=0, flops=0, tokens=0, basis="cached", reason="already done", gpu_seconds=0
                )

    def start(self, number: int = 1) -> StageCost:
        """Return the estimate of `number` starts of workers, one after the other."""
        return self._at_rate(Setup(START), [Work(1.0)] * number)

    def stage(self, nodes: Sequence[Node]) -> StageCost:
        """Return the estimate of `nodes`, which belong to one stage and are not done."""
        stage, job, plan = nodes[0].stage.name, self.situation.job, self.situation.plan
        if stage == "joint" and (budget := job.resolved.recipe.joint.budget.seconds) is not None:
            # The seeds train side by side, or one after another if the workers have no room for all.
            total = budget * len(nodes)
            seconds = total / plan.side_by_side(nodes[0].group)
            least, most = (None, None) if seconds == total else (seconds, total)
            return StageCost(
                stage=stage, seconds=seconds, seconds_at_least=least, seconds_at_most=most, flops=None, tokens=None,
                basis="counted", reason="the recipe limits the seconds", gpu_seconds=total,
                range_reason="the seeds train side by side only if the workers have room",
            )  # fmt: skip
        work = [work_of(node, texts_of(plan, node, self.texts)) for node in nodes]
        return self._at_rate(Setup.of(job, plan, nodes[0], work[0], self.situation.done), work)

    def _at_rate(self, setup: Setup, work: Sequence[Work | None]) -> StageCost:
        flops, tokens = (_total(getattr(item, name) if item else None for item in work) for name in ("flops", "tokens"))
        units = _total(item.units if item else None for item in work)
        pace = pace_of(setup, self.rates)
        if units is None:
            pace = Pace("unknown", None, "the sizes of encoder and tokenizer are unknown until a job loads them")
        seconds = None if units is None or pace.seconds is None else units * pace.seconds
        least = most = None
        if seconds is not None and pace.bounds is not None:
            least, most = pace.bounds.least * seconds, pace.bounds.most * seconds
        return StageCost(
            stage=setup.stage, seconds=seconds, seconds_at_least=least, seconds_at_most=most, flops=flops,
            tokens=tokens, basis=pace.basis, reason=pace.reason,
            gpu_seconds=None if seconds is None else seconds * pace.at_once,
            range_reason=f"{pace.bounds.reason}; jobs that finish here improve the estimate" if pace.bounds else "",
        )  # fmt: skip

    def gpu_hours(self, training: Sequence[StageCost]) -> tuple[float | None, str]:
        """Return (GPU hours of the stages `training`, explanation), or (None, reason why the hours are unknown)."""
        workers, seconds = self.situation.job.spec.workers, _total(stage.gpu_seconds for stage in training)
        if not training:
            return 0.0, "the job trains no encoder"
        if self.worker_gpus is not None:
            gpu, source = self.worker_gpus > 0, "as the operator of this service has set"
        elif self.history:
            gpu, source = self.history[0].gpu, f"as in {self.history[0].id}"
        else:
            return None, "no job that trains an encoder has finished here yet, so the workers' GPUs are unknown"
        if not gpu:
            return 0.0, f"no GPUs, {source}"
        if seconds is None:
            return None, "the training time is unknown"
        return seconds * workers / 3600, f"{counted(workers, 'worker')} with one GPU each, {source}"


class Estimator:
    """Estimates the cost of jobs. worker_gpus: the number of GPUs of each worker, None if unknown."""

    def __init__(
        self, catalog: Catalog, jobs: JobStore, artifacts: ArtifactStore, worker_gpus: float | None = None
    ) -> None:
        self._catalog, self._jobs, self._artifacts, self._worker_gpus = catalog, jobs, artifacts, worker_gpus
        self._measurements = Measurements(catalog, jobs, artifacts)

    def estimate(self, job: JobRecord) -> Estimate:
        """Estimate a job. Raises NotFound for deleted data, and CorruptArtifact for a damaged validation report."""
        known = self._known(job)
        plan, texts, stages = known.situation.plan, known.texts, tuple(known.stages())
        names = {node.stage.name for node in plan.nodes if isinstance(node.params, TrainParams)}
        training = [stage for stage in stages if stage.stage in names]
        counted = "counted from the sizes of model and texts" if training else "the job trains no encoder"
        if training and not shape_of(job.resolved.recipe.model, texts[0]):
            counted = "the sizes of a published encoder are unknown"
        gpu_hours, gpu_reason = known.gpu_hours(training)
        passages, passages_at_most, passages_reason = known.passages
        reasons = dict.fromkeys(("flops", "memory_bytes", "disk_bytes"), counted)
        reasons |= {"gpu_hours": gpu_reason, "passages": passages_reason}
        seconds = _total(stage.seconds for stage in stages)
        at_least, at_most = _total(stage.least for stage in stages), _total(stage.most for stage in stages)
        if seconds is None or at_least is None or at_most is None or at_most - at_least <= _NARROW * seconds:
            at_least = at_most = seconds
        else:
            widest = max(stages, key=lambda stage: (stage.most or 0) - (stage.least or 0))
            reasons["seconds"] = widest.range_reason
        return Estimate(
            seconds=seconds,
            seconds_at_least=at_least,
            seconds_at_most=at_most,
            flops=_total(stage.flops for stage in training),
            tokens=_total(stage.tokens for stage in training),
            memory_bytes=memory_bytes(job.resolved.recipe, texts[0]) if training else None,
            disk_bytes=disk_bytes(plan, texts) if training else None,
            gpu_hours=gpu_hours,
            passages=passages,
            passages_at_most=passages_at_most,
            stages=stages,
            reasons=reasons,
        )

    def node_seconds(self, job: JobRecord) -> dict[str, float]:
        """Return name → seconds that each unfinished node and each start of workers (`Plan.start_of`) adds to the job.

        - A node without training has 0 s if its time is unknown.
        - If the speed of several workers is unknown, each node has the seconds that one worker needs. During training,
          the measured speed corrects these seconds.
        - If the work of a training node is unknown, or if data is lost, the result is empty. The progress of the job
          then counts nodes instead of seconds.
        """
        try:
            known = self._known(job)
        except (NotFound, CorruptArtifact):
            return {}
        missing = [node for node in known.situation.plan.nodes if node.name not in known.situation.done]
        seconds = {node.name: known.stage([node]).seconds for node in missing}
        if any(seconds[node.name] is None and isinstance(node.params, TrainParams) for node in missing):
            alone = job.model_copy(update={"spec": job.spec.model_copy(update={"workers": 1})})
            return self.node_seconds(alone) if job.spec.workers > 1 else {}
        starts = [known.situation.plan.start_of(node) for node in missing if node.place is Place.WORKERS]
        seconds |= dict.fromkeys(starts, known.start().seconds)
        return {name: float(f"{value or 0:.3g}") for name, value in seconds.items()}

    def _known(self, job: JobRecord) -> Known:
        situation, source = Situation.read(self._jobs, job), source_of(job.resolved)
        history, texts = self._measurements.finished(job.tenant), self._measurements.texts(job)
        same = [other for other in history if source_of(other.resolved) == source]
        # An earlier job with the same dataset, tokenizer and windows has measured the texts.
        alike = [other for other in (*same, *history) if reading_of(other.resolved) == reading_of(job.resolved)]
        if alike:
            texts[0] = replace(alike[0].texts, searched=texts[0].searched)
        passages = self._passages(situation, texts[0], same)
        texts = [replace(each, passages=passages[0]) for each in texts]
        rates = self._measurements.rates(job.tenant)
        return Known(situation, history, rates, texts, passages, self._worker_gpus)

    def _passages(self, situation: Situation, texts: Texts, same: Sequence[Finished]) -> tuple[int, int, str]:
        """Return (expected passages, maximum, explanation of the first number). same: jobs with the same selection."""
        job, resolved = situation.job, situation.job.resolved
        selection, queried = resolved.recipe.selection, texts.rows["train"] * resolved.recipe.selection.top_k
        node = next((node for node in situation.plan.nodes if node.stage.name == "select"), None)
        if node is None:
            return 0, 0, "the job has no select stage"
        limits = [selection.max_passages, queried if selection.sized_by_queries else None, texts.searched]
        if selection.definition.source == "dataset":
            limits[-1] = self._catalog.dataset(job.tenant, resolved.dataset_id).summary.selection
        at_most = min(limit for limit in limits if limit is not None)
        if node.name in situation.done:
            meta = self._artifacts.manifest(situation.done[node.name]).meta
            return int(meta.get("passages", at_most)), at_most, "this selection exists already"
        if same:
            return same[0].texts.passages, at_most, f"counted by {same[0].id}, which has the same selection"
        if not selection.sized_by_queries:
            return at_most, at_most, "the number of available passages, or the budget in passages"
        expected = min(at_most, round(_DISTINCT * queried))
        return expected, at_most, f"{_DISTINCT:.0%} of the retrieved passages, a built-in share"


def _total(values: Iterable[float | None]) -> float | None:
    """Return the sum of `values`, or None if a value is None or there are no values."""
    known = list(values)
    return None if not known or None in known else sum(value for value in known if value is not None)
