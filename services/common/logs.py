"""Log lines as JSON on standard error: one object per line, with the fields of the current log context."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from tlm_core.names import JOB_ID

_SECRETS = (
    re.compile(r"(?i)(\bbearer\s+)[^\s\"',;]+"),
    re.compile(
        # Start only at the start of a word. A search from each letter needs quadratic time.
        r"(?i)((?<![\w-])[\w-]*(?:token|secret|password|credentials?|api_?key|access_?key)"
        r"[\"']?\s*[=:]\s*[\"']?)[^\s\"',;&]+"
    ),
    re.compile(r"(://[^\s/:@]*:)[^\s/@]+(?=@)"),
    re.compile(r"\b((?:tlm|hf|sk|whsec)_)[\w-]{12,}"),
)

_JOB = re.compile(rf"({JOB_ID})(?:-(\d+))?")  # in the name of a folder, the attempt follows the job id


def redacted(text: str) -> str:
    """Return `text` without passwords and tokens, for readers other than the operator."""
    for pattern in _SECRETS:
        text = pattern.sub(r"\1[redacted]", text)
    return text


def set_up_logging(service: str, fields: Mapping[str, object] = {}, *, stream: TextIO | None = None) -> None:
    """Send all logs of this process, including those of libraries, to `stream` (default: standard error).

    Each line has `event`, `level`, `logger`, `at` (ISO 8601, UTC), `service`, the items of `fields`, and the fields of
    `log_context`. Without `fields`, the log also gets the error that ends the process. The processes of an attempt set
    `fields`. Only the main function of a process calls this function.
    """

    def name_service(_: WrappedLogger, __: str, line: EventDict) -> EventDict:
        return {**line, "service": service, **fields}

    before: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="at"),
        name_service,
        structlog.processors.format_exc_info,
    ]
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=before,
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.JSONRenderer(ensure_ascii=False),
        ],
    )
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.INFO)
    if not fields:  # The traceback of a worker remains text, because users read it in the details of an error.
        sys.excepthook = lambda *error: root.critical("The process ends: %s", error[1], exc_info=error)
    # httpx and httpcore log every request at INFO, and the services poll each other.
    for noisy in ("httpx", "httpcore"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def log_context(**fields: object) -> AbstractContextManager[None]:
    """Add fields such as job_id or request_id to every log line of this task or thread inside the block."""
    return structlog.contextvars.bound_contextvars(**fields)


def ids_in(text: str) -> dict[str, object]:
    """Return the log fields `job_id` and `attempt` from a text such as ".../JOB_ID-ATTEMPT", or {} without a job id."""
    named = _JOB.search(text)
    if named is None:
        return {}
    return {"job_id": named[1]} | ({"attempt": int(named[2])} if named[2] else {})


def request_id() -> str | None:
    """Return the field `request_id` of the current log context: the id of the request in progress, or None."""
    value = structlog.contextvars.get_contextvars().get("request_id")
    return None if value is None else str(value)
