"""The metrics of a process for Prometheus. docs/operations.md explains the alerts on these metrics."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
    make_wsgi_app,
    start_http_server,
)

from tlm_core.errors import error_classes

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
REGISTRY = CollectorRegistry()
ProcessCollector(namespace="tlm", registry=REGISTRY)
_LONG = (1, 3, 10, 30, 60, 300, 600, 1_800, 7_200, 36_000, 180_000)


def start_at_zero(counter: Counter, values: Iterable[str]) -> None:
    """Set a counter to 0 for each value of its label.

    Prometheus sees no increase when a series begins with 1. Without the 0, it would miss the first event of each value.
    """
    for value in values:
        counter.labels(value)


REQUESTS = Histogram("tlm_request_seconds", "Time until an answer.", ("method", "route", "status"), registry=REGISTRY)
FAILING = Gauge("tlm_background_failing", "Whether a task fails or has stopped.", ("task",), registry=REGISTRY)
SKIPPED = Gauge("tlm_background_skipped", "Items that a background task skips.", ("task",), registry=REGISTRY)
ROUNDS = Histogram(
    "tlm_round_seconds", "Time of a round of the coordinator.",
    buckets=(0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 60, 120), registry=REGISTRY,
)  # fmt: skip
HELD = Gauge("tlm_held_jobs", "Jobs whose lease the coordinator holds.", registry=REGISTRY)
IDLE = Gauge("tlm_idle_jobs", "Held jobs that wait: none of their stages runs.", registry=REGISTRY)
CLAIMS = Counter("tlm_claims", "Claimed jobs. adopted: whether the lease had expired.", ("adopted",), registry=REGISTRY)
start_at_zero(CLAIMS, ("false", "true"))
LEASE_LOSSES = Counter("tlm_lease_losses", "Jobs that another coordinator took over.", registry=REGISTRY)
REQUEUES = Counter("tlm_requeues", "Attempts that ended and whose jobs were requeued.", ("cause",), registry=REGISTRY)
start_at_zero(REQUEUES, (code for code, error in error_classes().items() if error.retryable))
FAILURES = Counter("tlm_failures", "Jobs that failed.", ("cause",), registry=REGISTRY)
start_at_zero(FAILURES, error_classes())
FIRST_STEP = Histogram(
    "tlm_first_step_seconds", "Time from the claim of a job to its first step on a worker.",
    buckets=_LONG, registry=REGISTRY,
)  # fmt: skip
STAGES = Histogram("tlm_stage_seconds", "Time of a stage.", ("stage",), buckets=_LONG, registry=REGISTRY)
TOKENS = Gauge("tlm_tokens_per_second", "Training speed of all jobs of the coordinator.", registry=REGISTRY)
ORPHANS = Counter(
    "tlm_orphans", "Stopped submissions of ended attempts, and deleted folders without a record.",
    ("kind",), registry=REGISTRY,
)  # fmt: skip
STEP = Gauge("tlm_worker_step", "Step of the stage that a worker computes.", ("job_id", "node"), registry=REGISTRY)
SPEED = Gauge("tlm_worker_speed", "Units per second of a worker.", ("job_id", "node", "unit"), registry=REGISTRY)
PROGRESS = Gauge("tlm_worker_progress", "Rows, batches, bytes and steps that a worker has done.", registry=REGISTRY)
CHECKPOINTS = Histogram("tlm_checkpoint_seconds", "Time to store a checkpoint.", buckets=_LONG, registry=REGISTRY)


def serve_metrics(
    host: str, port: int | None, ports: int = 1, *, conditions: Callable[[], Mapping[str, str]] = dict
) -> None:
    """Serve the metrics of this process at the first free port from `port` to `port + ports - 1`.

    Without `port`, serve nothing. conditions: returns name → condition of each background task. `/readyz` returns them
    as JSON, with status 200 if all conditions are "ok", else 503. Raises OSError if no port is free.
    """
    if port is None:
        return
    *others, last = range(port, port + ports)
    for number in others:
        with suppress(OSError):
            _serve(host, number, conditions)
            return
    _serve(host, last, conditions)


def _serve(host: str, port: int, conditions: Callable[[], Mapping[str, str]]) -> None:
    server, _ = start_http_server(port, host, registry=REGISTRY)
    figures = make_wsgi_app(REGISTRY)

    def answer(environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        if environ["PATH_INFO"] != "/readyz":
            return figures(environ, start)
        shown = conditions()
        status = "200 OK" if {*shown.values()} <= {"ok"} else "503 Service Unavailable"
        start(status, [("Content-Type", "application/json")])
        return [json.dumps(dict(shown)).encode()]

    server.set_app(answer)


@dataclass(frozen=True)
class Live:
    """A metric whose value is read when Prometheus collects it."""

    name: str
    help: str
    value: float
    labels: dict[str, str] = field(default_factory=dict)


def exposition(figures: Iterable[Live] = ()) -> bytes:
    """Return the metrics of this process, and `figures`, in the text format of Prometheus."""
    live, gauges = CollectorRegistry(), dict[str, Gauge]()
    for figure in figures:
        if figure.name not in gauges:
            gauges[figure.name] = Gauge(figure.name, figure.help, tuple(figure.labels), registry=live)
        gauge = gauges[figure.name]
        (gauge.labels(**figure.labels) if figure.labels else gauge).set(figure.value)
    return generate_latest(REGISTRY) + generate_latest(live)
