"""Repeats calls that fail because of an outage of Redis or of the storage."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_delay, wait_exponential

from services.common.jobstore import JobStore
from services.common.logs import redacted
from tlm_core.errors import Outage, TLMError
from tlm_core.pulse import PULSE

log = logging.getLogger(__name__)

PATIENCE_SECONDS = 600.0
_DETAILS = 4000  # maximum number of characters of an error's details
_Value = TypeVar("_Value")


def patiently(call: Callable[[], _Value]) -> _Value:
    """Call `call` until it raises no Outage, and return its result. `call` must be safe to repeat.

    Raises the last Outage after PATIENCE_SECONDS.
    """
    retrying = Retrying(
        retry=retry_if_exception_type(Outage),
        stop=stop_after_delay(PATIENCE_SECONDS),
        wait=wait_exponential(multiplier=0.1, max=10.0),
        before_sleep=_wait,
        reraise=True,
    )
    return retrying(call)


def report_error(store: JobStore, tenant: str, job: str, attempt: int, error: TLMError) -> None:
    """Append the event of an error that ends an attempt, so that the coordinator can read it. Redacts the details."""
    data = error.as_dict() | ({"details": redacted(error.details)[-_DETAILS:]} if error.details else {})
    patiently(lambda: store.report(tenant, job, attempt, events=[("attempt.error", data)]))


def _wait(state: RetryCallState) -> None:
    PULSE.advance()  # A wait is not a hang.
    if state.attempt_number == 1 and state.outcome is not None:
        log.warning("Waiting: %s", state.outcome.exception())
