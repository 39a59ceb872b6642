"""What a job will cost before it is submitted: counted work, times the rates that earlier jobs here had."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from services.api import work
from services.api.recorded import START, Facts, Finished, Recorded, source_of
from services.common.catalog import Catalog
from services.common.jobstore import JobStore
from services.common.situation import Situation
from tlm_core.artifacts import ArtifactStore, ManifestRef
from tlm_core.errors import NotFound
from tlm_core.jobs.plan import Plan, plan_of
from tlm_core.jobs.spec import JobRecord, JobSpec, Resolved
from tlm_core.jobs.states import State
from tlm_core.training.memory import MICRO_ROWS, training_bytes
from tlm_core.wire import Estimate, StageEstimate

# Where no job has run yet: seconds for one unit of work (`Facts.work`) of each stage, from `make demo` on 2 cores of
# an AMD EPYC with AVX-512 bf16.
BUILT_IN_SECONDS = {
    "validate": 5e-4, "select": 8.4e-8, START: 9.0, "prepare": 1.7e-6, "joint": 3.5e-12, "finetune": 5.0e-12,
    "choose": 0.1, "evaluate": 6.4e-5, "export": 9.0,
}  # fmt: skip
# Of the passages that the queries ask for, so many are distinct; 10,004 of 13,500 there.
_BUILT_IN_DISTINCT = 0.74
_TOKENS_A_PASSAGE = 196.0
_BYTES_A_PASSAGE = 337.0
_NEAREST = 5
# Stages whose work all workers share; how much sooner several end is not known before as many have run one.
_SHARED = ("joint", "finetune", "evaluate")


@dataclass(frozen=True)
class _Known:
    """What is known of the job beforehand. done: nodes whose artifacts exist; like: the nearest earlier job on the same
    texts, if any; searched: passages of its corpus, 0 without one, None where that is not known."""

    job: JobRecord
    plan: Plan
    done: dict[str, ManifestRef]
    texts: work.Texts | None
    labels: int
    history: Sequence[Finished]
    like: Finished | None
    searched: int | None


class Estimator:
    """Makes estimates from the recipe's plan, the data set's validation report and the jobs that finished here."""

    def __init__(self, catalog: Catalog, jobs: JobStore, artifacts: ArtifactStore) -> None:
        self._catalog = catalog
        self._jobs = jobs
        self._artifacts = artifacts
        self._recorded = Recorded(jobs, artifacts)

    def estimate(self, tenant: str, spec: JobSpec, resolved: Resolved) -> Estimate:
        """Raises NotFound, CorruptArtifact when the data set's report is lost."""
        known = self._known(tenant, spec, resolved)
        reasons: dict[str, str] = {}
        passages, at_most = self._passages(known, reasons)
        recipe = resolved.recipe
        sizes = work.sizes_of(recipe, known.labels, known.like.vocab if known.like else None)
        if spec.kind != "train":
            sizes = None
            reasons["flops"] = f"jobs of kind '{spec.kind}' are not estimated"
        elif sizes is None:
            reasons["flops"] = "a published encoder's shape is known only when its weights are loaded"
        tokens = self._tokens(known, passages)
        stages = list(_stages(known, sizes, tokens, passages))
        gpu_hours = _gpu_hours(known, stages, reasons)
        rows = min(recipe.joint.batch_rows, MICRO_ROWS)
        masked = recipe.joint.highest_mask_rate if recipe.joint.enabled else 0.0
        memory = training_bytes(sizes, sizes.parameters, rows, masked) if sizes else None
        disk = None
        if sizes and tokens is not None and spec.kind == "train":
            found = _BYTES_A_PASSAGE * (passages or 0)
            disk = work.disk_bytes(sizes, recipe, len(spec.seeds), sum(tokens.values()), found)
        reasons["memory_bytes"] = "counted from the model's shape" if memory else reasons.get("flops", "")
        reasons["disk_bytes"] = "counted from shape, seeds and tokens" if disk else "the amount of text is not known"
        return Estimate(
            seconds=_total((s.seconds for s in stages), 1),
            flops=_total((s.flops for s in stages if s.stage in ("joint", "finetune")), 0),
            tokens=_total((s.tokens for s in stages if s.stage in ("joint", "finetune")), 0),
            memory_bytes=memory,
            disk_bytes=disk,
            gpu_hours=gpu_hours,
            passages=passages,
            passages_at_most=at_most,
            stages=tuple(stages),
            reasons={key: value for key, value in reasons.items() if value},
        )

    def _known(self, tenant: str, spec: JobSpec, resolved: Resolved) -> _Known:
        job = proposed(tenant, spec, resolved)
        plan = plan_of(job)
        report = self._artifacts.read_json(self._catalog.dataset(tenant, resolved.dataset_id).report, "report.json")
        texts = work.facts_of(report)
        history = self._recorded.latest(tenant)
        source = source_of(resolved)
        same = [one for one in history if one.source[0] == source[0]]
        # The same selection first: it has the same tokenizer's text, and so the same tokens.
        like = max(same, key=lambda one: one.source == source, default=None)
        if texts is not None and like is not None and like.rows.get("train"):
            texts = replace(texts, rows=like.rows, tokens=like.tokens["train"] / like.rows["train"])
        done, searched = Situation.read(self._jobs, job, plan).done, self._corpus_size(tenant, resolved)
        return _Known(job, plan, done, texts, len(report["labels"]), history, like, searched)

    def _passages(self, known: _Known, reasons: dict[str, str]) -> tuple[int | None, int | None]:
        """Passages that will be selected: as counted by a job, else a share of what the queries can ask for."""
        resolved, selection = known.job.resolved, known.job.resolved.recipe.selection
        nodes = [node for node in known.plan.nodes if node.stage.name == "select"]
        if not nodes:
            reasons["passages"] = "nothing is selected: the job is trained on the task alone"
            return 0, 0
        if known.texts is None:
            reasons["passages"] = "the validation report has no row counts"
            return None, None
        limits = [*self._offered(known, known.texts.rows["train"]), selection.max_passages]
        at_most = min((int(limit) for limit in limits if limit is not None), default=None)
        if nodes[0].name in known.done:
            meta = self._artifacts.manifest(known.done[nodes[0].name]).meta
            if isinstance(meta.get("passages"), int):
                reasons["passages"] = "counted: this selection exists already"
                return meta["passages"], at_most
        same = [one for one in known.history if one.source == source_of(resolved)]
        if same:
            reasons["passages"] = f"counted by {same[0].job}, which selected in the same way"
            return same[0].passages, at_most
        if not selection.sized_by_queries:
            reasons["passages"] = "all that there is to take, or the budget in passages"
            return at_most, at_most
        shares = [
            one.passages / (one.rows["train"] * selection.top_k)
            for one in known.history
            if one.source[1:] == source_of(resolved)[1:] and one.passages and one.rows.get("train")
        ]
        share = median(shares) if shares else _BUILT_IN_DISTINCT
        whose = "of other jobs on this corpus" if shares else "that is built in"
        reasons["passages"] = f"{share:.0%} of what the queries can ask for, a share {whose}"
        expected = round(share * known.texts.rows["train"] * selection.top_k)
        return expected if at_most is None else min(at_most, expected), at_most

    def _offered(self, known: _Known, rows: int) -> tuple[int | None, ...]:
        """What bounds a selection before its budget does; None where that is not known."""
        resolved, selection = known.job.resolved, known.job.resolved.recipe.selection
        if selection.definition.source == "dataset":
            return (self._catalog.dataset(known.job.tenant, resolved.dataset_id).summary.get("selection"),)
        return (known.searched, rows * selection.top_k if selection.sized_by_queries else None)

    def _corpus_size(self, tenant: str, resolved: Resolved) -> int | None:
        if resolved.corpus_name is None or resolved.corpus_version is None:
            return 0
        try:
            return self._catalog.corpus(tenant, resolved.corpus_name).version(resolved.corpus_version).count
        except NotFound:
            return None

    def _tokens(self, known: _Known, passages: int | None) -> dict[str, float] | None:
        """Tokens of each split and of the passages; those of a job with the same selection exactly."""
        if known.like is not None and known.like.source == source_of(known.job.resolved):
            return {name: float(value) for name, value in known.like.tokens.items()}
        if known.texts is None or passages is None:
            return None
        lengths = known.texts.lengths(200, known.job.resolved.recipe.model.max_length)
        mean = sum(lengths) / len(lengths)
        return {split: rows * mean for split, rows in known.texts.rows.items()} | {
            "passages": passages * _passage_tokens(known)
        }


def proposed(tenant: str, spec: JobSpec, resolved: Resolved) -> JobRecord:
    """The record of a job that is not submitted, for what asks a record for its plan."""
    return JobRecord(
        id="job_proposed", tenant=tenant, state=State.QUEUED, spec=spec, resolved=resolved, created_at=0.0,
        updated_at=0.0,
    )  # fmt: skip


def _passage_tokens(known: _Known) -> float:
    """Mean of a passage, of the newest job that selected any."""
    for one in known.history:
        if one.passages and one.tokens.get("passages"):
            return one.tokens["passages"] / one.passages
    return _TOKENS_A_PASSAGE


def _stages(
    known: _Known, sizes: work.Sizes | None, tokens: dict[str, float] | None, passages: int | None
) -> Iterable[StageEstimate]:
    """Each stage of the plan in its order, seeds together, and the workers' start."""
    seeds = len(known.job.spec.seeds)
    names: dict[str, list[str]] = {}
    for node in known.plan.nodes:
        names.setdefault(node.stage.name, []).append(node.name)
    if known.job.spec.kind != "train":
        for stage in names:
            yield StageEstimate(
                stage=stage, seconds=None, flops=None, tokens=None, basis="unknown",
                reason=f"the stages of a job of kind '{known.job.spec.kind}' are not estimated",
            )  # fmt: skip
        return
    started = False
    for stage, nodes in names.items():
        left = [name for name in nodes if name not in known.done]
        on_workers = known.plan.node(nodes[0]).place == "workers"
        if on_workers and left and not started:
            started = True
            yield _timed(known, START, 1.0, None)
        if not left:
            yield StageEstimate(
                stage=stage, seconds=0.0, flops=0.0, tokens=0.0, basis="cached", reason="an earlier job has left this"
            )
            continue
        one = _training(known, stage, sizes, passages)
        if one is not None and known.job.resolved.recipe.joint.budget.seconds is not None and stage == "joint":
            yield _by_clock(known, len(left))
        elif stage in ("joint", "finetune"):
            yield _timed(known, stage, one.flops * len(left) if one else None, one.times(len(left)) if one else None)
        else:
            rows = known.texts.rows if known.texts else None
            facts = Facts(rows, tokens or {}, seeds, float(known.searched or 0)) if rows else None
            unknown = facts is None or (tokens is None and stage in ("prepare", "evaluate"))
            unknown = unknown or (known.searched is None and stage == "select")
            yield _timed(known, stage, None if unknown or facts is None else facts.work(stage, 0.0), None)


def _training(known: _Known, stage: str, sizes: work.Sizes | None, passages: int | None) -> work.Work | None:
    recipe = known.job.resolved.recipe
    if sizes is None or known.texts is None:
        return None
    if stage == "joint":
        return work.joint_work(recipe, sizes, known.texts, _passage_tokens(known), retrieves=bool(passages))
    return work.finetune_work(recipe, sizes, known.texts) if stage == "finetune" else None


def _by_clock(known: _Known, seeds: int) -> StageEstimate:
    seconds = known.job.resolved.recipe.joint.budget.seconds
    assert seconds is not None
    return StageEstimate(
        stage="joint", seconds=seconds * seeds, flops=None, tokens=None, basis="counted",
        reason="the recipe gives the seconds; how much is done in them is seen when they are over",
    )  # fmt: skip


def _timed(known: _Known, stage: str, amount: float | None, done: work.Work | None) -> StageEstimate:
    """Seconds for `amount` of work, by the nearest jobs that ran this stage, else by the built-in rate.

    Of a stage that all workers share, only jobs with as many of them count, and the built-in rate is of one.
    """
    flops, tokens = (done.flops, done.tokens) if done else (None, None)
    chosen, workers = _nearest(known, stage), known.job.spec.workers
    reason = ""
    if amount is None:
        reason = "the work cannot be counted before the texts and the model's shape are known"
    elif stage in _SHARED and (chosen[0].workers if chosen else 1) != workers:
        reason = f"no job with {workers} worker(s) has run this stage here yet, and how well they share it is not known"
    if amount is None or reason:
        return StageEstimate(stage=stage, seconds=None, flops=flops, tokens=tokens, basis="unknown", reason=reason)
    if chosen:
        rates = [took.seconds / took.work for one in chosen for took in one.took if took.stage == stage]
        reason = f"measured on {len(rates)} run(s) of this stage in {', '.join(one.job for one in chosen)}"
        # A start may have waited until the cluster had room for it, which is no work of the job's own.
        seconds, basis = (min(rates) if stage == START else median(rates)) * amount, "measured"
    else:
        reason = "no job has run this stage here yet: the built-in rate, of `make demo` on 2 cores"
        seconds, basis = BUILT_IN_SECONDS[stage] * amount, "built-in"
    return StageEstimate.model_validate(
        {"stage": stage, "seconds": seconds, "flops": flops, "tokens": tokens, "basis": basis, "reason": reason}
    )


def _nearest(known: _Known, stage: str) -> list[Finished]:
    """The jobs that ran a stage and are most like this one: as many workers before all, then a model as wide.

    Only those as near as the nearest: a rate changes with the size of the model.
    """
    model, workers = known.job.resolved.recipe.model, known.job.spec.workers
    width = model.layers * model.hidden

    def distance(one: Finished) -> tuple[bool, float]:
        return (one.workers != workers, abs(math.log(one.width / width)))

    ran = [one for one in known.history if any(took.stage == stage for took in one.took)]
    nearest = sorted(ran, key=distance)[:_NEAREST]
    return [one for one in nearest if distance(one) == distance(nearest[0])]


def _gpu_hours(known: _Known, stages: Sequence[StageEstimate], reasons: dict[str, str]) -> float | None:
    if not known.history:
        reasons["gpu_hours"] = "no job has finished here yet, so whether its workers have GPUs is not known"
        return None
    if not known.history[0].gpu:
        reasons["gpu_hours"] = f"{known.history[0].job} ran without GPUs"
        return 0.0
    seconds = _total((s.seconds for s in stages if s.stage in ("joint", "finetune")), 1)
    if seconds is None:
        reasons["gpu_hours"] = "the time of training is not known"
        return None
    reasons["gpu_hours"] = f"{known.job.spec.workers} worker(s) with a GPU each, as {known.history[0].job} had"
    return seconds * known.job.spec.workers / 3600


def _total(values: Iterable[float | None], digits: int) -> float | None:
    """The sum; None if one of them is not known, or there is none."""
    found: list[Any] = list(values)
    return None if None in found or not found else round(math.fsum(found), digits)
