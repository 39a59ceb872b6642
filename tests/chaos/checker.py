"""Compare the responses, the writes of workers and the records of a run with the guarantees of the service."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from tlm_core.jobs.spec import Event
from tlm_core.jobs.states import TERMINAL, State

# Event → the states that it may follow, and its state.
_MOVES: dict[str, tuple[set[State], State]] = {
    "job.claimed": ({State.QUEUED}, State.RUNNING),
    "job.succeeded": ({State.RUNNING, State.PAUSING}, State.SUCCEEDED),
    "job.failed": ({State.RUNNING, State.PAUSING}, State.FAILED),
    "job.requeued": ({State.RUNNING}, State.QUEUED),
    "job.resumed": ({State.PAUSED}, State.QUEUED),
    "job.paused": ({State.QUEUED, State.PAUSING}, State.PAUSED),
    "job.cancelled": ({State.QUEUED, State.PAUSED, State.CANCELLING}, State.CANCELLED),
}
_REQUESTS = {"job.pause_requested": State.PAUSING, "job.cancel_requested": State.CANCELLING}
_ACTIVE = {State.RUNNING, State.PAUSING, State.CANCELLING}


@dataclass(frozen=True)
class Answer:
    """A job in a response. sent_at, at: the times of request and response. key: the idempotency key of the job."""

    sent_at: float
    at: float
    key: str
    job: str
    state: str
    last_event: int


@dataclass(frozen=True)
class Write:
    """A report of a worker that the store accepted. attempt: the worker's. current: the job's before the report."""

    job: str
    attempt: int
    current: int


@dataclass(frozen=True)
class Record:
    """A job at the end of the run. key: its idempotency key, which is also its name."""

    key: str
    state: State
    events: list[Event]


@dataclass
class History:
    """All observations. planned: keys of the jobs to submit. records: by job. torn: damaged published artifacts."""

    planned: set[str] = field(default_factory=set)
    answers: list[Answer] = field(default_factory=list)
    writes: list[Write] = field(default_factory=list)
    records: dict[str, Record] = field(default_factory=dict)
    torn: list[str] = field(default_factory=list)


def violations(history: History) -> list[str]:
    """Return a line for each violation of a guarantee: its kind, a colon, and the details."""
    return [*_lost(history), *_doubled(history.records), *_torn(history.torn), *_back(history), *_late(history.writes)]


def kinds(contradictions: Iterable[str]) -> Counter[str]:
    """Return the number of lines of each kind in a result of `violations`."""
    return Counter(line.partition(":")[0] for line in contradictions)


def is_expected(contradictions: Sequence[str], kind: str) -> bool:
    """Return whether a line has this kind. With the kind "", return whether there are no lines."""
    return kind in kinds(contradictions) if kind else not contradictions


def _torn(torn: Iterable[str]) -> Iterator[str]:
    yield from (f"torn artifact: {artifact}" for artifact in torn)


def _lost(history: History) -> Iterator[str]:
    for key in sorted(history.planned - {answer.key for answer in history.answers}):
        yield f"refused job: no gateway accepted {key}"
    for key, job in sorted({(answer.key, answer.job) for answer in history.answers}):
        if job not in history.records:
            yield f"lost job: {key} was accepted as {job}, which has no record"
    for job, record in history.records.items():
        if record.state not in TERMINAL:
            yield f"job without an end: {job} is {record.state}"
        elif record.state is State.FAILED:
            yield f"failed job: {job} failed, although only the infrastructure had faults"


def _doubled(records: dict[str, Record]) -> Iterator[str]:
    for key, jobs in Counter(record.key for record in records.values()).items():
        if jobs > 1:
            yield f"double job: the idempotency key {key} made {jobs} jobs"
    for job, record in records.items():
        commits = [(e.attempt, str(e.data["artifact"])) for e in record.events if e.type == "artifact.published"]
        for commit, times in Counter(commits).items():
            if times > 1:
                yield f"double commit: attempt {commit[0]} of {job} published {commit[1]} {times} times"
        starts = [(e.attempt, str(e.data["node"])) for e in record.events if e.type == "stage.started"]
        for (attempt, node), times in Counter(starts).items():
            if times > 1:
                yield f"double start: attempt {attempt} of {job} started {node} {times} times"


def _back(history: History) -> Iterator[str]:
    """Yield a line for each gap or wrong move in the events of a job, and for each read of an outdated state."""
    for job, record in history.records.items():
        if [event.seq for event in record.events] != list(range(1, len(record.events) + 1)):
            yield f"lost event: the events of {job} have gaps"
        yield from _broken_path(job, record)
    by_job = defaultdict[str, list[Answer]](list)
    for answer in history.answers:
        by_job[answer.job].append(answer)
    for job, answers in by_job.items():
        newest = max((answer.last_event for answer in answers), default=0)
        events = history.records[job].events if job in history.records else []
        if events and newest > len(events):
            yield f"state went back: a client read event {newest} of {job}, which now has {len(events)} events"
        earlier, last_event, ends = iter(sorted(answers, key=lambda answer: answer.at)), 0, set[State]()
        before = next(earlier, None)
        for later in sorted(answers, key=lambda answer: answer.sent_at):
            while before and before.at < later.sent_at:
                last_event = max(last_event, before.last_event)
                ends |= {before.state} & TERMINAL
                before = next(earlier, None)
            if later.last_event < last_event:
                yield f"state went back: {job} was read at event {later.last_event} after a read at event {last_event}"
            if ends - {later.state}:
                yield f"state went back: {job} was {later.state} after its end"


def _broken_path(job: str, record: Record) -> Iterator[str]:
    state, attempt = State.QUEUED, 0
    for event in record.events:
        before = state
        if event.attempt < attempt:
            yield f"state went back: {job} went from attempt {attempt} to {event.attempt}"
        attempt = event.attempt
        if event.type in _REQUESTS:
            wrong = before in TERMINAL
            state = _REQUESTS[event.type] if before in _ACTIVE else before
        elif event.type in _MOVES:
            sources, state = _MOVES[event.type]
            wrong = before not in sources
        else:
            wrong = before not in _ACTIVE and event.type != "job.submitted"
        if wrong:
            yield f"state went back: {job} got {event.type} (event {event.seq}) while {before}"
    if state is not record.state:
        yield f"state went back: the events of {job} end in {state}, its record in {record.state}"


def _late(writes: Iterable[Write]) -> Iterator[str]:
    """Yield a line for each accepted write of an attempt that had ended, because a newer attempt had begun."""
    for write in writes:
        if write.current > write.attempt:
            yield f"late write: attempt {write.attempt} of {write.job} wrote after attempt {write.current} began"
