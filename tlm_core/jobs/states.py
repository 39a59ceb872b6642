"""States of a job and the verbs that change them. Data only: the store applies each verb in one atomic step.

              claim                 finish
    queued ──────────► running ──────────────► succeeded
      ▲  ▲               │ │ └──────────────► failed        (fail)
      │  └─── requeue ───┘ │
      │                    ├─ pause ──► pausing ── confirm_paused ──► paused ── resume ──► queued
      │                    └─ cancel ─► cancelling ── confirm_cancelled ──► cancelled
      └─ submit

Cancelling a queued or paused job, and pausing a queued one, take effect immediately. A terminal state never changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    PAUSING = "pausing"
    PAUSED = "paused"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


TERMINAL = frozenset({State.SUCCEEDED, State.FAILED, State.CANCELLED})
ACTIVE = frozenset({State.RUNNING, State.PAUSING, State.CANCELLING})


class Verb(StrEnum):
    SUBMIT = "submit"
    CLAIM = "claim"
    REPORT = "report"
    PAUSE = "pause"
    CONFIRM_PAUSED = "confirm_paused"
    RESUME = "resume"
    CANCEL = "cancel"
    CONFIRM_CANCELLED = "confirm_cancelled"
    FINISH = "finish"
    FAIL = "fail"
    REQUEUE = "requeue"


class Guard(StrEnum):
    """Who may use a verb, in addition to the condition on the state."""

    ANYONE = "anyone"
    OWNER = "owner"  # the coordinator that holds the lease, in its attempt
    ATTEMPT = "attempt"  # a worker of the current attempt


@dataclass(frozen=True)
class Transition:
    """A verb, and the next state for each state in which the verb is allowed."""

    verb: Verb
    moves: Mapping[State, State]
    guard: Guard


_S = State

TRANSITIONS: Mapping[Verb, Transition] = {
    t.verb: t
    for t in (
        # The claim of an active job replaces an expired lease and continues its attempt.
        Transition(Verb.CLAIM, {_S.QUEUED: _S.RUNNING, **{s: s for s in sorted(ACTIVE)}}, Guard.ANYONE),
        Transition(Verb.REPORT, {s: s for s in sorted(ACTIVE)}, Guard.ATTEMPT),
        Transition(Verb.PAUSE, {_S.QUEUED: _S.PAUSED, _S.RUNNING: _S.PAUSING}, Guard.ANYONE),
        Transition(Verb.CONFIRM_PAUSED, {_S.PAUSING: _S.PAUSED}, Guard.OWNER),
        Transition(Verb.RESUME, {_S.PAUSED: _S.QUEUED}, Guard.ANYONE),
        Transition(
            Verb.CANCEL,
            {
                _S.QUEUED: _S.CANCELLED,
                _S.PAUSED: _S.CANCELLED,
                _S.RUNNING: _S.CANCELLING,
                _S.PAUSING: _S.CANCELLING,
            },
            Guard.ANYONE,
        ),
        Transition(Verb.CONFIRM_CANCELLED, {_S.CANCELLING: _S.CANCELLED}, Guard.OWNER),
        Transition(Verb.FINISH, {_S.RUNNING: _S.SUCCEEDED, _S.PAUSING: _S.SUCCEEDED}, Guard.OWNER),
        Transition(Verb.FAIL, {_S.RUNNING: _S.FAILED, _S.PAUSING: _S.FAILED}, Guard.OWNER),
        Transition(Verb.REQUEUE, {_S.RUNNING: _S.QUEUED}, Guard.OWNER),
    )
}


def allowed(verb: Verb) -> str:
    """Return the states in which `verb` is allowed, for messages."""
    return " or ".join(TRANSITIONS[verb].moves)
