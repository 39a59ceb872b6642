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
RETRYABLE = frozenset({State.FAILED, State.CANCELLED})


class Verb(StrEnum):
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


_S = State

# The next state for each state in which a verb is allowed.
TRANSITIONS: Mapping[Verb, Mapping[State, State]] = {
    # These verbs need no lease. The claim of an active job replaces an expired lease and continues the same attempt.
    Verb.CLAIM: {_S.QUEUED: _S.RUNNING, **{state: state for state in sorted(ACTIVE)}},
    Verb.PAUSE: {_S.QUEUED: _S.PAUSED, _S.RUNNING: _S.PAUSING},
    Verb.RESUME: {_S.PAUSED: _S.QUEUED},
    Verb.CANCEL: {
        **dict.fromkeys((_S.QUEUED, _S.PAUSED), _S.CANCELLED),
        **dict.fromkeys((_S.RUNNING, _S.PAUSING), _S.CANCELLING),
    },
    # Only a worker of the current attempt may use this verb.
    Verb.REPORT: {state: state for state in sorted(ACTIVE)},
    # Only the coordinator that holds the lease of the current attempt may use these verbs.
    Verb.CONFIRM_PAUSED: {_S.PAUSING: _S.PAUSED},
    Verb.CONFIRM_CANCELLED: {_S.CANCELLING: _S.CANCELLED},
    Verb.FINISH: {_S.RUNNING: _S.SUCCEEDED, _S.PAUSING: _S.SUCCEEDED},
    Verb.FAIL: {_S.RUNNING: _S.FAILED, _S.PAUSING: _S.FAILED},
    Verb.REQUEUE: {_S.RUNNING: _S.QUEUED},
}


def allowed(verb: Verb) -> str:
    """Return a text with the states in which `verb` is allowed, such as "queued or running"."""
    *others, last = TRANSITIONS[verb]
    return f"{', '.join(others)} or {last}" if others else last
