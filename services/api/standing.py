"""Why a job does not run now, and how long its workers have not reported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from services.common.jobstore import JobStore
from services.common.situation import Situation
from tlm_core.jobs.spec import JobRecord
from tlm_core.jobs.states import ACTIVE, State
from tlm_core.stages import SELECT
from tlm_core.wire import Waiting
from tlm_core.wording import counted

_SILENT_SECONDS = 30.0


@dataclass(frozen=True)
class Standing:
    """The current situation of a job. waiting: the reason why the job does no work now, or None.

    silent_seconds: see `_silence`; None if `waiting` is set, or if the job has no workers.
    """

    waiting: Waiting | None = None
    silent_seconds: float | None = None


NOTHING_NEW = Standing()


def standings(store: JobStore, jobs: Sequence[JobRecord]) -> list[Standing]:
    """Return the standing of each job. Reads the queue only if a job is queued."""
    queued = [job for job in jobs if job.state is State.QUEUED]
    if not queued and not any(job.state in ACTIVE for job in jobs):
        return [NOTHING_NEW] * len(jobs)
    now = store.now()
    waiting = _waiting(store, queued, now) if queued else {}
    return [_standing(store, job, now, waiting.get(job.id)) for job in jobs]


def _standing(store: JobStore, job: JobRecord, now: float, waiting: Waiting | None) -> Standing:
    if waiting is not None:
        return Standing(waiting)
    if job.state not in ACTIVE:
        return NOTHING_NEW
    if job.waiting is not None:
        return Standing(Waiting(code=str(job.waiting["code"]), reason=str(job.waiting["message"])))
    if _selection_waits(job, now):
        reason = "The selection waits in the retriever: other selections run, or the index still loads."
        return Standing(Waiting(code="selection_waits", reason=reason))
    return Standing(silent_seconds=_silence(store, job, now))


def _selection_waits(job: JobRecord, now: float) -> bool:
    """Return whether the retriever has not started the current selection, and the record has not changed for 30 s."""
    selects = job.progress is not None and job.progress.stage == SELECT.name and not job.progress.total
    return job.state is State.RUNNING and selects and now - job.updated_at >= _SILENT_SECONDS


def _silence(store: JobStore, job: JobRecord, now: float) -> float | None:
    """Return the seconds since the last heartbeat of the group that is silent longest, or None below 30 s.

    A group whose nodes are all done does not count, because it sends no more heartbeats.
    """
    ages = {group: now - beat.at for group, beat in job.beats.items() if job.works(group)}
    silent = {group: age for group, age in ages.items() if age >= _SILENT_SECONDS}
    if not silent:
        return None
    situation = Situation.read(store, job)
    return max((age for group, age in silent.items() if not situation.is_done(group)), default=None)


def _waiting(store: JobStore, queued: Sequence[JobRecord], now: float) -> dict[str, Waiting]:
    """Return job id → why the job waits in the queue."""
    obstacle, positions = store.obstacle(), store.positions(queued)
    if obstacle:
        code, start = "blocked", f"No job starts now: {obstacle}"
    else:
        running = len(store.leases())
        room = f"when the service has room for another job (running jobs: {running:,})"
        code, start = "queued", f"The next job starts {room if running else 'within seconds'}."
    return {job.id: _queued(job, now, code, start, positions.get(job.id)) for job in queued}


def _queued(job: JobRecord, now: float, code: str, start: str, position: int | None) -> Waiting:
    if job.due_at is not None and not job.is_due(now):
        time = datetime.fromtimestamp(job.due_at, UTC)
        reason = f"Attempt {job.attempt} ended. The next attempt can start at {time:%H:%M:%S} UTC."
        return Waiting(code="backoff", reason=reason, position=position, until=job.due_at)
    ahead = (position or 1) - 1
    first = f"{counted(ahead, 'job')} ahead in the queue." if ahead else "Next in the queue."
    return Waiting(code=code, reason=f"{first} {start}", position=position)
