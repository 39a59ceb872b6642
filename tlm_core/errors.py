"""The one error tree of the project.

TLMError
├── InvalidRequest            what was sent cannot be accepted as it is
│   ├── InvalidDataset        rows or columns at fault; carries every fault found, with row and column
│   ├── InvalidRecipe         unknown key, wrong type, impossible combination
│   └── IdempotencyMismatch   the key was used before with another body
├── Unauthorized              no key, or one that is not known
├── NotFound                  no such job, data set, corpus, file
├── Conflict                  not possible in the present state
│   ├── IllegalTransition     the job's state does not allow the verb
│   ├── StaleAttempt          the writer's attempt or lease is over; it must stop writing
│   └── AlreadyRunning        a second one of what may exist once
├── Unavailable               a component does not answer now (retryable)
│   ├── StoreUnavailable      Redis
│   ├── StoreFull             Redis has no memory or disk left; jobs wait
│   ├── IndexUnavailable      OpenSearch or the embedded index
│   ├── ClusterUnavailable    Ray
│   └── StorageUnavailable    the file system behind the artifacts
├── MissingDependency         a program or file the machine lacks
├── StorageFull               no room left
├── CorruptArtifact           bytes do not match their manifest
├── IndexMismatch             an index whose mapping or version is not ours
├── UnreadableRecord          a job's record that another release wrote and this one cannot read
├── EmptySelection            no passage of the corpus matched any query
├── RuntimeExceeded           the job ran longer than its max_runtime_seconds
└── TrainingFailed
    ├── NonFiniteLoss         the loss is not a number
    ├── OutOfMemory           even the smallest micro-batch does not fit
    └── WorkerLost            a worker died (retryable)

Each error has a stable `code` for programs, a sentence for people that says what to change, and
`retryable`: whether the same request may succeed later without any change by the user.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar


class TLMError(Exception):
    """Base of every error that the project raises on purpose."""

    code: ClassVar[str] = "error"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, **facts: Any) -> None:
        super().__init__(message)
        self.message = message
        self.facts: dict[str, Any] = facts

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self), self.message, self.facts))

    def as_dict(self) -> dict[str, Any]:
        """JSON form, as kept in a job's record and shown by the API."""
        return {
            "code": self.code,
            "message": self.message,
            "retryable": self.retryable,
            **({"facts": self.facts} if self.facts else {}),
        }


def _rebuild(cls: type[TLMError], message: str, facts: dict[str, Any]) -> TLMError:
    error = cls.__new__(cls)
    TLMError.__init__(error, message, **facts)
    if isinstance(error, InvalidDataset):
        error.faults = [Fault(**fault) for fault in facts["faults"]]
    return error


class InvalidRequest(TLMError):
    code = "invalid_request"


@dataclass(frozen=True)
class Fault:
    """One thing wrong in a data set.

    row: 1-based line or record number within the file, header excluded; None if it concerns the whole file.
    """

    code: str
    message: str
    split: str | None = None
    row: int | None = None
    column: str | None = None

    def as_dict(self) -> dict[str, Any]:
        return {
            "code": self.code,
            "message": self.message,
            "split": self.split,
            "row": self.row,
            "column": self.column,
        }


class InvalidDataset(InvalidRequest):
    code = "invalid_dataset"

    def __init__(self, message: str, faults: list[Fault]) -> None:
        super().__init__(message, faults=[fault.as_dict() for fault in faults])
        self.faults = faults


class InvalidRecipe(InvalidRequest):
    code = "invalid_recipe"


class IdempotencyMismatch(InvalidRequest):
    code = "idempotency_mismatch"


class Unauthorized(TLMError):
    code = "unauthorized"


class NotFound(TLMError):
    code = "not_found"


class Conflict(TLMError):
    code = "conflict"


class IllegalTransition(Conflict):
    code = "illegal_transition"


class StaleAttempt(Conflict):
    code = "stale_attempt"


class AlreadyRunning(Conflict):
    code = "already_running"


class Unavailable(TLMError):
    code = "unavailable"
    retryable = True


class StoreUnavailable(Unavailable):
    code = "store_unavailable"


class StoreFull(Unavailable):
    code = "store_full"


class IndexUnavailable(Unavailable):
    code = "index_unavailable"


class ClusterUnavailable(Unavailable):
    code = "cluster_unavailable"


class StorageUnavailable(Unavailable):
    code = "storage_unavailable"


class MissingDependency(TLMError):
    code = "missing_dependency"


class StorageFull(TLMError):
    code = "storage_full"


class CorruptArtifact(TLMError):
    code = "corrupt_artifact"


class IndexMismatch(TLMError):
    code = "index_mismatch"


class UnreadableRecord(TLMError):
    code = "unreadable_record"


class EmptySelection(TLMError):
    code = "empty_selection"


class RuntimeExceeded(TLMError):
    code = "runtime_exceeded"


class TrainingFailed(TLMError):
    code = "training_failed"


class NonFiniteLoss(TrainingFailed):
    code = "non_finite_loss"


class OutOfMemory(TrainingFailed):
    code = "out_of_memory"


class WorkerLost(TrainingFailed):
    code = "worker_lost"
    retryable = True


def error_classes() -> dict[str, type[TLMError]]:
    """Every class of the tree by its code."""
    found: dict[str, type[TLMError]] = {}
    pending: list[type[TLMError]] = [TLMError]
    while pending:
        cls = pending.pop()
        found[cls.code] = cls
        pending.extend(cls.__subclasses__())
    return found


def error_from_dict(data: dict[str, Any]) -> TLMError:
    """The error that `as_dict` described; an unknown code gives a plain TLMError."""
    cls = error_classes().get(data["code"], TLMError)
    return _rebuild(cls, data["message"], data.get("facts", {}))
