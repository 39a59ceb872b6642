"""Measurements on the finished jobs of a tenant: the sizes of texts, and the seconds of each stage per unit of work."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import product
from statistics import median
from typing import NamedTuple

from services.api.work import Texts, Work, length_of, texts_of, work_of
from services.common.catalog import Catalog
from services.common.jobstore import JobStore
from tlm_core.artifacts.manifest import Manifest
from tlm_core.artifacts.store import ArtifactStore
from tlm_core.errors import CorruptArtifact, NotFound, UnreadableRecord
from tlm_core.jobs.plan import Node, Plan, plan_of
from tlm_core.jobs.spec import MAX_SEEDS, Event, JobRecord, Resolved
from tlm_core.jobs.states import State
from tlm_core.training.params import TrainParams
from tlm_core.training.recipe import auto_length
from tlm_core.training.speed import HAD_CORE, flop_of, rate_name
from tlm_core.training.stage import Place
from tlm_core.wire import Basis
from tlm_core.wording import counted

START = "start"  # the start of the workers: not a stage, but it takes time
_AT_ONCE = "at_once"  # a rate that holds the number of seeds at once. Earlier releases accept no fourth value per rate.
# Seconds per unit of work, which apply until a job has measured the rate.
# - The rates before "sizes" come from `make demo` on 2 cores of an AMD EPYC with AVX-512 bf16.
#   Exception: the rates of the linear model and of `validate` come from CPU times on an AMD EPYC with AVX2.
# - The rates from "sizes" on come from small studies on 2 cores with AVX2. The rates of training stages are scaled to
#   the first EPYC by the ratio of the `finetune` rates on both machines.
BUILT_IN_SECONDS = {
    "validate": 5e-5, "baseline": 1.15e-8, "self_train": 1.15e-8, "refit_linear": 1.15e-8,
    "evaluate_linear": 1.0, "export_linear": 0.1, "select": 8.4e-8, START: 9.0, "prepare": 1.7e-6,
    "joint": 3.5e-12, "finetune": 5.0e-12, "refit": 5.0e-12, "choose": 0.1, "evaluate": 6.4e-5, "export": 9.0,
    "sizes": 0.5, "subset": 0.5, "bilstm": 1.2e-4, "evaluate_bilstm": 4e-5, "curve": 3.0, "check_encoder": 1.0,
    "importance": 0.1, "ticket": 6.6e-12, "phases": 4.0,
    "merge": 1.0, "part": 2.0, "share": 5.7e-12, "shared_report": 1.0,
}  # fmt: skip
_FP32 = 8.0  # time of a FLOP on 2 cores with AVX2 in fp32, divided by the time on the first EPYC with bf16
_TOKENS_PER_WORD = 1.5  # from `make demo`
_EARLIER_JOBS, _MAX_EVENTS = 30, 20_000
_LEAST_CORE = 0.5  # If training had a core for a smaller share of its time, other programs used the cores.
_SHARED = " while other programs used the cores"
_Ran = tuple[Node | None, float, float, str]  # the node (None: a start of workers), its start, end and device


class Rate(NamedTuple):
    """Seconds per unit of work. job: id of the measured job. had_core: share of the time with a core for training."""

    seconds: float
    job: str
    had_core: float = 1.0


class Bounds(NamedTuple):
    """The bounds of an estimated time, as multiples of the estimate. reason: why the time is a range."""

    least: float
    most: float
    reason: str


# GPUs are faster than the machine of the built-in rates. A machine without bf16, or with other work, was six times
# slower. A short measurement of the device was 12 % too fast on an idle machine, and too slow on a busy one.
_BY_BUILT_IN = Bounds(0.5, 8.0, "not measured here")
_BY_DEVICE = Bounds(0.25, 3.0, "from a short measurement here")


class Pace(NamedTuple):
    """The expected `seconds` per unit of work. basis, reason: where the seconds come from, or why they are unknown.

    bounds: None if `seconds` is unknown, or was measured with the same number of seeds on free cores. at_once: one seed
    needs `at_once * seconds` per unit of work, because other seeds run at the same time.
    """

    basis: Basis
    seconds: float | None
    reason: str
    bounds: Bounds | None = None
    at_once: float = 1.0


@dataclass(frozen=True)
class Setup:
    """What a rate depends on: the stage, and for training and evaluation also workers, seeds and precision.

    - seeds: the number of seeds that run at the same time if the workers have room. A stored rate is divided by the
      number of seeds that ran at once (`_at_once`). So the times of all seeds add up to the time of the job.
    - left: the number of these seeds that are not cached. Rates do not depend on `left`, because a job also reserves a
      share of the CPUs for each cached seed.
    - passages: whether `prepare` has passages. Without passages, its time is nearly constant.
    - size: twice the binary logarithm of the work of a training step. Small steps take more seconds per unit of work.
    """

    stage: str
    workers: int = 1
    seeds: int = 1
    precision: str = ""
    passages: bool = True
    size: int = 0
    left: int = 1

    @classmethod
    def of(cls, job: JobRecord, plan: Plan, node: Node, work: Work | None, done: Collection[str] = ()) -> Setup:
        stage = node.stage.name
        if stage == "prepare":
            return cls(stage, passages=any(other.stage.name == "select" for other in plan.nodes))
        if not (isinstance(node.params, TrainParams) or stage == "evaluate"):
            return cls(stage)
        size = round(2 * math.log2(work.units / work.steps)) if work and work.steps else 0
        seeds, left = (plan.side_by_side(node.group, nodes) for nodes in ((), done))
        return cls(stage, job.spec.workers, seeds, job.resolved.recipe.precision, size=size, left=left)

    def __str__(self) -> str:
        passages = "" if self.passages else "/alone"
        return f"{self.stage}/{self.workers}/{self.seeds}/{self.precision}/{self.size}{passages}"


def pace_of(setup: Setup, rates: Mapping[str, Rate]) -> Pace:
    """Return the pace of a setup. Prefer the rate that a finished job measured in a similar setup.

    Without such a job, use the built-in rate for one worker. If the speed of the worker's device is known, scale the
    built-in rate by this speed.
    """
    built_in, flop = BUILT_IN_SECONDS.get(setup.stage), rates.get(flop_of(setup.precision))
    on_device = built_in * flop.seconds / BUILT_IN_SECONDS["joint"] if built_in and flop else math.inf
    if measured := _measured(setup, rates, on_device):
        return measured
    if built_in is None or setup.workers > 1:
        return Pace("unknown", None, f"no job with {counted(setup.workers, 'worker')} has run this stage at this size")
    if flop:
        return Pace("device", on_device, "from a short measurement of the worker's device", _BY_DEVICE)
    slower = _FP32 if setup.precision == "fp32" else 1.0
    return Pace("built-in", slower * built_in, "measured on 2 cores of a server", _BY_BUILT_IN)


def _measured(setup: Setup, rates: Mapping[str, Rate], on_device: float) -> Pace | None:
    """Return the measured pace of the most similar setup, or None if no finished job had a similar setup.

    on_device: seconds per unit of work, from a short measurement of the device; infinite without a measurement.

    - If the measured job had another number of seeds, the bounds cover three cases: more seeds use more cores, a single
      seed already uses all cores, or each seed has its own GPU.
    - If other programs used the cores during the measurement, the lower bound is the smaller of two estimates:
      - the time in which training had a core. It can be too high, because a waiting thread also uses its core.
      - the time by `on_device`.
    - If some seeds are cached, fewer seeds compete for the cores. With a core for each seed, these seeds take the
      measured time. With fewer cores than seeds, their time shrinks to at least the measured time divided by `idle`.
    """
    numbers = sorted(range(1, MAX_SEEDS + 1), key=lambda seeds: abs(seeds - setup.seeds))
    for seeds, size in product(numbers, (setup.size, setup.size - 1, setup.size + 1)):
        if rate := rates.get(str(replace(setup, seeds=seeds, size=size))):
            ran, shared = rates.get(str(Setup(_AT_ONCE, seeds=seeds))), rate.had_core < _LEAST_CORE
            # Earlier releases did not store how many seeds ran at once.
            unlike, at_once = seeds != setup.seeds, ran.seconds if ran else seeds
            least, most = min(rate.had_core, on_device / rate.seconds) if shared else 1.0, 1.0
            if unlike:
                least, most = least * at_once / max(seeds, setup.seeds), max(1.0, at_once / setup.seeds)
                most *= setup.seeds / setup.left
            elif setup.left < seeds:
                idle = at_once / (1 + (at_once - 1) * (setup.left - 1) / (seeds - 1))
                rate, at_once, least = rate._replace(seconds=idle * rate.seconds), at_once / idle, least / idle
            words = f"measured by {rate.job}" + f" with {counted(seeds, 'seed')}" * unlike + _SHARED * shared
            bounds = Bounds(least, most, f"measured{_SHARED if shared else ' with another number of seeds'}")
            return Pace("measured", rate.seconds, words, None if least == most else bounds, at_once)
    return None


@dataclass(frozen=True)
class Finished:
    """Measurements of a succeeded job. gpu: whether the job used GPUs."""

    id: str
    resolved: Resolved
    texts: Texts
    gpu: bool


def source_of(resolved: Resolved) -> tuple[str, str, str]:
    """Return three texts that determine the selected passages: dataset content, corpus version and parameters."""
    return (resolved.datasets[0].content, str(resolved.corpus), resolved.recipe.selection.model_dump_json())


def reading_of(resolved: Resolved) -> tuple[object, ...]:
    """Return what determines the sizes of the task's texts in tokens: dataset content, tokenizer and windows."""
    recipe = resolved.recipe
    return (resolved.datasets[0].content, recipe.tokenizer, recipe.model.max_length, recipe.model.windows)


class Measurements:
    """The measurements of finished jobs, with a cache in memory."""

    def __init__(self, catalog: Catalog, jobs: JobStore, artifacts: ArtifactStore) -> None:
        self._catalog, self._jobs, self._artifacts = catalog, jobs, artifacts
        self._finished: dict[str, dict[str, Finished | None]] = {}  # tenant → its latest jobs

    def texts(self, job: JobRecord) -> list[Texts]:
        """Return a Texts for each dataset of a job, from the counts in the validation reports."""
        resolved, searched, texts = job.resolved, 0, []
        if resolved.corpus_name is not None and resolved.corpus_version is not None:
            searched = self._catalog.corpus(job.tenant, resolved.corpus_name).version(resolved.corpus_version).count
        model, tokenizer = resolved.recipe.model, resolved.recipe.tokenizer
        vocab = tokenizer.vocab_size if tokenizer.may_be_own else None
        for dataset in resolved.datasets:
            report = self._artifacts.read_json(self._catalog.dataset(job.tenant, dataset.id).report, "report.json")
            mean, p95 = (report["lengths"][name] * _TOKENS_PER_WORD + 2 for name in ("mean_words", "p95"))
            labels = len(report["labels"]) or 1
            task = Texts(report["counts"], mean, labels, vocab, searched=searched, auto_length=auto_length(p95))
            length = length_of(model, task)
            # Each further window repeats a quarter of the previous window, so it adds three quarters of its tokens.
            windows = min(max(1.0, (mean / length - 0.25) / 0.75), model.windows)
            texts.append(replace(task, tokens=min(mean, length), windows=windows))
        return texts

    def finished(self, tenant: str) -> list[Finished]:
        """Return measurements of the latest succeeded jobs, newest first. Measure new jobs and store their rates."""
        ids = self._jobs.newest_in(tenant, State.SUCCEEDED, _EARLIER_JOBS)
        known, latest = self._finished.get(tenant, {}), dict[str, Finished | None]()
        # Measure the newest job last, so that its rates replace those of older jobs.
        for job_id in reversed(ids):
            latest[job_id] = known.get(job_id)
            if job_id not in known:
                with suppress(NotFound, CorruptArtifact, UnreadableRecord, KeyError):
                    latest[job_id] = self._measure(self._jobs.get(tenant, job_id))
        self._finished[tenant] = latest  # in one step, because other threads read and replace this entry
        return [job for job_id in ids if (job := latest[job_id]) is not None]

    def rates(self, tenant: str) -> dict[str, Rate]:
        """Return `str(setup)` → rate, from the newest finished job with this setup.

        If a rate depends on the device, it is for the device of the newest worker. The rate with the name
        `flop_of(precision)` is the seconds per FLOP.
        """
        stored, rates = self._jobs.rates(tenant), dict[str, Rate]()
        device = stored.pop("device", "")
        for name, value in sorted(stored.items()):
            measured, _, kind = name.partition(" on ")
            if kind in ("", device):
                seconds, job_id, *others = value.split()
                rates[measured] = Rate(float(seconds), job_id, *map(float, others[:1]))
        return rates

    def _measure(self, job: JobRecord) -> Finished | None:
        """Measure a succeeded job and store its rates. Return None for a learning curve, and for a job without encoder.

        A learning curve prepares only subsets, so it does not measure the texts of the whole dataset.
        """
        if not (artifacts := self._jobs.result_of(job)):
            return None
        plan, refs = plan_of(job), {name: entry.ref for name, entry in artifacts.items()}
        texts = self.texts(job)
        if prepared := refs.get("prepare"):
            texts[0] = _as_prepared(texts[0], job, self._artifacts.manifest(prepared))
        rates: dict[str, list[tuple[float, float]]] = {}
        ran = list(_elapsed(self._jobs.events(job.tenant, job.id, limit=_MAX_EVENTS), job, plan))
        seeds_at_once = _at_once(ran, plan)
        for node, start, end, device in ran:
            elapsed = end - start
            work = work_of(node, texts_of(plan, node, texts)) if node else Work(1.0)
            setup = Setup.of(job, plan, node, work) if node else Setup(START)
            units, had_core = work.units if work else 0.0, 1.0
            at_once = seeds_at_once if setup.seeds > 1 else 1.0
            if node and node.stage.name == "refit_linear" and "self_train" in node.inputs:
                continue  # The work depends on the choice of validation. Jobs without self-training measure the rate.
            if node and work and isinstance(node.params, TrainParams):
                meta = self._artifacts.manifest(refs[node.name]).meta
                if work.flops is not None:  # The unit of work of a BiLSTM is a token.
                    units = float(meta.get("flops", units))
                cost = self._artifacts.read_json(refs[node.name], "history.json")["cost"]
                elapsed = max(elapsed, float(cost["seconds"]))  # A resumed stage began before its last start.
                # Training on a GPU or with several workers has no core while it waits.
                if setup.workers == 1 and not cost.get("gpu_seconds"):
                    had_core = float(meta.get(HAD_CORE, 1.0))
            if units > 0 and at_once is not None:
                name = rate_name(str(setup), device) if setup.precision else str(setup)
                rates.setdefault(name, []).append((elapsed / units / at_once, had_core))
                rates[str(Setup(_AT_ONCE, seeds=setup.seeds))] = [(at_once, 1.0)]
        cost = self._artifacts.read_json(refs[plan.report], "report.json")["cost"]["total"]
        medians = {name: map(median, zip(*each, strict=True)) for name, each in rates.items()}
        self._jobs.save_rates(job.tenant, {name: f"{rate} {job.id} {core}" for name, (rate, core) in medians.items()})
        return Finished(job.id, job.resolved, texts[0], cost["gpu_seconds"] > 0) if prepared else None


def _as_prepared(texts: Texts, job: JobRecord, prepared: Manifest) -> Texts:
    """Return `texts` with the sizes that the stage `prepare` counted. prepared: the manifest of its artifact."""
    facts, tokens = prepared.meta, prepared.meta["tokens"]
    windows, passages = facts["windows"]["train"], int(facts["passages"])
    is_auto = job.resolved.recipe.model.max_length == "auto"
    return replace(
        texts,
        tokens=tokens["train"] / windows,
        windows=windows / texts.rows["train"],
        vocab=int(facts["vocab_size"]),
        passages=passages,
        passage_tokens=tokens["passages"] / passages if passages else texts.passage_tokens,
        auto_length=facts["max_length"] if is_auto else texts.auto_length,
    )


def _at_once(ran: Iterable[_Ran], plan: Plan) -> float | None:
    """Return the mean number of seeds that ran at once, as if none were cached. None: fewer than two ran."""
    spans = sorted((start, end, n.group) for n, start, end, _ in ran if n and plan.side_by_side(n.group) > 1)
    passed, until = 0.0, -math.inf
    for start, end, _ in spans:
        passed += max(0.0, end - max(start, until))
        until = max(until, end)
    others = len({group for _, _, group in spans}) - 1
    if others < 1 or not passed:
        return None
    ran_at_once, side = sum(end - start for start, end, _ in spans) / passed, plan.side_by_side(spans[0][2])
    return min(max(1.0, 1 + (ran_at_once - 1) * (side - 1) / others), side)


def _elapsed(events: Iterable[Event], job: JobRecord, plan: Plan) -> Iterator[_Ran]:
    """Yield (node, start, end, device) for each node that the job ran. For a start of workers, the node is None.

    Workers report in batches, so the report that a node started can be late. Therefore the start of a node is the end
    of the previous node of its group in the attempt. Only the start of the first node comes from the report.
    """
    nodes, started = {node.name: node for node in plan.nodes}, dict[str, tuple[float, str]]()
    last: dict[str, tuple[float, str]] = {}  # group of worker stages → last end, device
    published, claimed, submitted = dict[str, float](), job.created_at, None
    for event in events:
        node = nodes.get(str(event.data.get("node", "")))
        if event.type == "workers.submitted":
            # If Ray did not answer at first, this event can be later than the start of the workers. Then ignore it.
            if event.data.get("group") not in {nodes[name].group for name in started}:
                submitted = event.at
        elif event.type == "stage.started" and node:
            started[node.name] = event.at, str(event.data.get("device", ""))
            if submitted is not None:
                yield None, submitted, event.at, ""
                submitted = None
        elif event.type == "artifact.published" and node:
            published[node.name] = event.at
            # A stage without workers starts when its inputs are published.
            ready = max([claimed, *(published[source] for source in node.inputs.values() if source in published)])
            group = node.group if node.place is Place.WORKERS else node.name
            ended, device = last.get(group, (None, ""))
            start, device = started.get(node.name, (ready, device))
            start = start if ended is None else ended
            last[group] = event.at, device
            yield node, start, event.at, device
        elif event.type == "job.claimed":
            claimed, submitted = event.at, None
            started.clear()
            last.clear()
