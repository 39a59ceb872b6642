"""What finished jobs of this installation took, stage by stage: the measure that estimates are made with."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from services.common.jobstore import JobStore
from tlm_core.artifacts import ArtifactStore, ManifestRef
from tlm_core.errors import CorruptArtifact, NotFound
from tlm_core.jobs.plan import Plan, plan_of
from tlm_core.jobs.spec import Event, JobRecord, Resolved
from tlm_core.jobs.states import State

_LATEST = 30
_EVENTS = 20_000
# The workers' start is no stage, but it takes its time in every job.
START = "start"
_TRAINED = ("joint", "finetune")


@dataclass(frozen=True)
class Took:
    """One stage of one job. work: see `Facts.work`.

    seconds: wall clock, from its (last) start to its publication; of a stage that went on from a checkpoint at least
    those that training has counted, as its work is all of it, too.
    """

    stage: str
    work: float
    seconds: float


@dataclass(frozen=True)
class Finished:
    """A job that succeeded. rows: of each split; tokens: of each part of its prepared data; passages: selected.

    source: what the number of passages hangs on. width: layers times hidden of its model. gpu: whether it used one.
    """

    job: str
    took: tuple[Took, ...]
    width: int
    workers: int
    source: tuple[str, str, str]
    rows: Mapping[str, int]
    tokens: Mapping[str, int]
    passages: int
    vocab: int
    gpu: bool


class Recorded:
    """Reads the latest finished jobs; each once. Thread-safe."""

    def __init__(self, jobs: JobStore, artifacts: ArtifactStore) -> None:
        self._jobs = jobs
        self._artifacts = artifacts
        self._known: dict[str, Finished | None] = {}
        self._lock = threading.Lock()

    def latest(self, tenant: str) -> list[Finished]:
        """Newest first; a job whose files are gone is left out."""
        page, _ = self._jobs.list_jobs(tenant, state=State.SUCCEEDED, limit=_LATEST)
        with self._lock:
            self._known = {job.id: self._known[job.id] for job in page if job.id in self._known}
            for job in page:
                if job.id not in self._known:
                    self._known[job.id] = self._read(job)
            return [found for job in page if (found := self._known[job.id]) is not None]

    def _read(self, job: JobRecord) -> Finished | None:
        if not job.result or "artifacts" not in job.result:
            return None
        plan = plan_of(job)
        refs = {name: ManifestRef(**entry["ref"]) for name, entry in job.result["artifacts"].items()}
        try:
            metas = {name: self._artifacts.manifest(ref).meta for name, ref in refs.items()}
            rows = self._artifacts.read_json(refs["validate"], "task.json")["counts"]
            cost = self._artifacts.read_json(refs["evaluate"], "report.json")["cost"]["total"]
            prepared = metas["prepare"]
            trained = {
                node.name: float(self._artifacts.read_json(refs[node.name], "history.json")["cost"]["seconds"])
                for node in plan.nodes
                if node.stage.name in _TRAINED and metas.get(node.name, {}).get("flops")
            }
            searched = (metas.get("select", {}).get("corpus") or {}).get("passages", 0)
            facts = Facts(rows, prepared["tokens"], len(job.spec.seeds), float(searched))
        except (NotFound, CorruptArtifact, KeyError):
            return None
        model, resolved = job.resolved.recipe.model, job.resolved
        events = self._jobs.events(job.tenant, job.id, limit=_EVENTS)
        return Finished(
            job=job.id,
            took=tuple(_took(job, plan, metas, trained, facts, events)),
            width=model.layers * model.hidden,
            workers=job.spec.workers,
            source=source_of(resolved),
            rows=rows,
            tokens=prepared["tokens"],
            passages=int(prepared["passages"]),
            vocab=int(prepared["vocab_size"]),
            gpu=cost["gpu_seconds"] > 0,
        )


@dataclass(frozen=True)
class Facts:
    """What the work of a stage is counted from. rows, tokens: of each split; of the passages too, in tokens.

    searched: passages of the corpus that is selected from, 0 without one.
    """

    rows: Mapping[str, int]
    tokens: Mapping[str, float]
    seeds: int
    searched: float = 0.0

    def work(self, stage: str, flops: float) -> float:
        """How much a stage does: rows to check, queries times passages that each looks through, tokens to cut, FLOPs to
        train, tokens to evaluate for all seeds; 1 where the time hangs on nothing that is known."""
        match stage:
            case "validate":
                return float(sum(self.rows.values()))
            case "select":
                return float(self.rows["train"]) * self.searched
            case "prepare":
                return float(sum(self.tokens.values()))
            case "joint" | "finetune":
                return flops
            case "evaluate":
                return float(self.seeds * sum(self.tokens.get(split, 0) for split in ("validation", "test")))
        return 1.0


def source_of(resolved: Resolved) -> tuple[str, str, str]:
    """Data set, corpus version and how is selected, each by what names its content."""
    corpus = f"{resolved.corpus_name}@{resolved.corpus_version}"
    return (resolved.datasets[0].content, corpus, resolved.recipe.selection.model_dump_json())


def _took(
    job: JobRecord,
    plan: Plan,
    metas: Mapping[str, Mapping[str, Any]],
    trained: Mapping[str, float],
    facts: Facts,
    events: Sequence[Event],
) -> Iterator[Took]:
    """Each stage that this job ran itself, from its events; what it took from the cache has none.

    trained: seconds that each node which trains has counted, over all attempts and jobs that had a part in it.
    """
    began: dict[str, float] = {}
    mark, submitted = job.created_at, None
    for event in events:
        node = str(event.data.get("node", ""))
        if event.type == "workers.submitted":
            submitted = event.at
        elif event.type == "stage.started":
            began[node] = event.at
            if submitted is not None:
                yield Took(START, 1.0, event.at - submitted)
                submitted = None
        elif event.type == "artifact.published" and node in metas:
            stage = plan.node(node).stage.name
            work = facts.work(stage, float(metas[node].get("flops", 0.0)))
            if work > 0:
                yield Took(stage, work, max(event.at - began.get(node, mark), trained.get(node, 0.0)))
        if event.type in ("job.claimed", "artifact.published"):
            mark = event.at
