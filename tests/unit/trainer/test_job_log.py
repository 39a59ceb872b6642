"""What a job's log holds of the log lines of its workers."""

from __future__ import annotations

import logging

from services.trainer.reporter import JobReporter
from services.trainer.worker import _JobLog


class Lines(JobReporter):
    """Collects the lines of a job's log."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def log_line(self, text: str) -> None:
        self.lines.append(text)


def test_log_of_a_job_has_no_names_of_modules() -> None:
    reporter = Lines()
    handler = _JobLog(reporter)
    for name, level, text in (
        ("services.trainer.worker", logging.INFO, "Started joint.s0"),
        ("services.trainer.scratch", logging.INFO, "Deleting /tmp/x, which a killed process left behind"),
        ("torch", logging.INFO, "compiled"),
        ("torch", logging.WARNING, "slow"),
    ):
        handler.handle(logging.LogRecord(name, level, "", 0, text, (), None))
    assert reporter.lines == ["info Started joint.s0", "warning torch: slow"]
