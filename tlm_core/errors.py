"""The error tree of the project.

Each error has a stable `code` for programs, and a message that says what to change. `retryable` states whether the
same request may succeed later without a change by the user. docs/errors.md describes every code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Self


class TLMError(Exception):
    """The base class of the project's errors. A subclass states its code: `class NotFound(TLMError, code="not_found")`.

    facts: values for programs, such as the state of a job. details: output of a library or program, such as Ray.
    """

    code: ClassVar[str] = "error"
    retryable: ClassVar[bool] = False
    # Whether the service or a machine caused the error, not the job itself.
    is_loss: ClassVar[bool] = False

    def __init_subclass__(cls, *, code: str, retryable: bool | None = None) -> None:
        cls.code = code
        if retryable is not None:
            cls.retryable = retryable
        _CLASSES.setdefault(code, cls)

    def __init__(self, message: str, *, details: str = "", **facts: object) -> None:
        super().__init__(message)
        self.message = message
        self.details = details
        self.facts = facts

    def followed_by(self, sentence: str) -> Self:
        """Return a copy of the error with one more sentence in its message."""
        return type(self)(f"{self.message} {sentence}", details=self.details, **self.facts)

    def as_dict(self) -> dict[str, object]:
        """Return the JSON object of the error: code, message and retryable, and facts and details if they exist."""
        values: dict[str, object] = {"code": self.code, "message": self.message, "retryable": self.retryable}
        values |= {"facts": self.facts} if self.facts else {}
        return values | ({"details": self.details} if self.details else {})


_CLASSES: dict[str, type[TLMError]] = {TLMError.code: TLMError}


class InvalidRequest(TLMError, code="invalid_request"):
    """The request is invalid. Change it before sending it again."""


@dataclass(frozen=True)
class Fault:
    """A data error or data warning in a dataset or a corpus. code: such as "malformed_row".

    row: number of the record, from 1. Header and blank lines do not count. None: the error concerns no single record.
    """

    code: str
    message: str
    split: str | None = None
    row: int | None = None
    column: str | None = None


class InvalidDataset(InvalidRequest, code="invalid_dataset"):
    """Rows or columns are invalid. `faults` lists the data errors with row and column, at most 100 of each code."""

    def __init__(self, message: str, faults: Sequence[Any] = (), *, details: str = "", **facts: object) -> None:
        self.faults = [fault if isinstance(fault, Fault) else Fault(**fault) for fault in faults]
        super().__init__(message, details=details, faults=[asdict(fault) for fault in self.faults], **facts)


class InvalidRecipe(InvalidRequest, code="invalid_recipe"):
    """The recipe has an unknown key, a wrong type, or an impossible combination."""


class IdempotencyMismatch(InvalidRequest, code="idempotency_mismatch"):
    """An earlier request with another body used this idempotency key."""


class Unauthorized(TLMError, code="unauthorized"):
    """The API token is missing or wrong."""


class NotFound(TLMError, code="not_found"):
    """The job, dataset, corpus, or file does not exist."""


class Conflict(TLMError, code="conflict"):
    """The current state does not allow the operation."""


class NotReady(Conflict, code="not_ready", retryable=True):
    """The resource that the request needs is not finished yet."""


class IllegalTransition(Conflict, code="illegal_transition"):
    """The job's state does not allow the verb."""


class StaleAttempt(Conflict, code="stale_attempt"):
    """The attempt or lease of the writer has ended. The writer must stop."""


class AlreadyRunning(Conflict, code="already_running", retryable=True):
    """An earlier load, stack or process is still running, and must end before a new one starts."""


class Outage(TLMError, code=TLMError.code):
    """A component does not answer or is full. A job waits until the component works again."""


class Unavailable(Outage, code="unavailable", retryable=True):
    """A component does not answer now."""

    is_loss = True


class StoreUnavailable(Unavailable, code="store_unavailable"):
    """Redis does not answer."""


class StoreFull(Unavailable, code="store_full"):
    """Redis has no memory or disk space left. Jobs wait."""


class IndexUnavailable(Unavailable, code="index_unavailable"):
    """OpenSearch or the embedded index does not answer, or an index is still being loaded."""


class ClusterUnavailable(Unavailable, code="cluster_unavailable"):
    """Ray does not answer."""


class StorageUnavailable(Unavailable, code="storage_unavailable"):
    """The storage does not answer, or is not mounted."""


class MissingDependency(TLMError, code="missing_dependency"):
    """The machine lacks a program, package or file."""


class StorageFull(Outage, code="storage_full"):
    """The storage has no space left."""


class CorruptArtifact(TLMError, code="corrupt_artifact"):
    """The files of an artifact do not match its manifest."""


class IndexMismatch(TLMError, code="index_mismatch"):
    """An index has another mapping or version than this release expects."""


class UnreadableRecord(TLMError, code="unreadable_record"):
    """A stored record is damaged, or another release wrote it in a format that this release cannot read."""


class EmptySelection(TLMError, code="empty_selection"):
    """No passage matches a query, or the filters and limits removed every passage."""


class RuntimeExceeded(TLMError, code="runtime_exceeded"):
    """The job ran longer than its max_runtime_seconds."""


class TrainingFailed(TLMError, code="training_failed"):
    """Training failed."""


class NonFiniteLoss(TrainingFailed, code="non_finite_loss"):
    """The loss is not a finite number."""


class OutOfMemory(TrainingFailed, code="out_of_memory"):
    """Even the smallest micro-batch does not fit into memory."""


class WorkerLost(TrainingFailed, code="worker_lost", retryable=True):
    """A worker died or hung."""

    is_loss = True


class WorkerFailed(WorkerLost, code="worker_failed"):
    """A worker ended with an unexpected error, or exceeded the memory of its container."""

    is_loss = False


def is_hub_outage(error: TLMError) -> bool:
    """Return whether the error is an outage of the Hugging Face hub.

    Outages of the hub have the class Unavailable itself. Outages of other components have a subclass.
    """
    return type(error) is Unavailable


def error_classes() -> Mapping[str, type[TLMError]]:
    """Return a mapping from error code to error class."""
    return _CLASSES


def error_from_dict(data: Mapping[str, object]) -> TLMError:
    """Return the error whose `as_dict` returned `data`. The class of an error with an unknown code is TLMError."""
    cls = error_classes().get(str(data["code"]), TLMError)
    return cls(str(data["message"]), details=str(data.get("details", "")), **_facts_of(data))


def without_details(error: Mapping[str, object]) -> dict[str, object]:
    """Return a copy of the JSON object of an error without the key `details`, for lists and events."""
    return {name: value for name, value in error.items() if name != "details"}


def error_from_problem(problem: Mapping[str, object], *, unknown: type[TLMError] = TLMError) -> TLMError:
    """Return the error in a problem object (RFC 9457) of a service. unknown: the class for an unknown code."""
    facts = _facts_of(problem)
    if errors := problem.get("errors"):
        facts["faults" if problem["code"] == InvalidDataset.code else "errors"] = errors
    return error_classes().get(str(problem["code"]), unknown)(str(problem["detail"]), **facts)


def _facts_of(data: Mapping[str, object]) -> dict[str, Any]:
    facts = data.get("facts")
    return dict(facts) if isinstance(facts, Mapping) else {}
