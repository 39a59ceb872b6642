"""Log lines as JSON on standard error: one object a line, with what is bound to the running task beside the event."""

from __future__ import annotations

import logging
import sys
from contextlib import AbstractContextManager
from typing import Any, TextIO

import structlog
from structlog.typing import Processor


def set_up_logging(service: str, *, level: str = "INFO", stream: TextIO | None = None) -> None:
    """Send the logs of this process, those of libraries too, to `stream` (standard error). Called once, by a main.

    Every line has `event`, `level`, `logger`, `at` (ISO 8601, UTC), `service`, and the facts bound by `facts`.
    """

    def name_service(_: Any, __: str, line: structlog.typing.EventDict) -> structlog.typing.EventDict:
        line["service"] = service
        return line

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
    root.setLevel(level)
    # httpx and httpcore tell of every request at INFO; polls of other services would bury all else.
    for noisy in ("httpx", "httpcore"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def facts(**bound: Any) -> AbstractContextManager[None]:
    """Within it, every log line of this task or thread carries these facts (job_id, attempt, stage, request_id)."""
    return structlog.contextvars.bound_contextvars(**bound)
