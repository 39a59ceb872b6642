"""What a background task remembers of the items that it skips."""

from __future__ import annotations

import io
import json
import logging
import signal
import threading
from collections.abc import Collection

import httpx
import pytest

from services.common.background import Background, conditions, stopped_by_signals
from services.common.logs import set_up_logging
from services.common.metrics import REGISTRY, serve_metrics
from tests.redis_server import free_port
from tlm_core.errors import StoreUnavailable


def run_round(task: Background, items: Collection[str], damaged: Collection[str]) -> None:
    with task.round():
        for name in items:
            with task.item(name):
                if name in damaged:
                    raise ValueError("damaged")


def skipped(task: Background) -> float | None:
    return REGISTRY.get_sample_value("tlm_background_skipped", {"task": task.name})


def test_item_that_another_process_finishes_is_no_longer_skipped(caplog: pytest.LogCaptureFixture) -> None:
    task = Background("items")
    for _ in range(2):
        run_round(task, ["a", "b", "c"], damaged=["a", "b"])
    assert (list(task.skipped), skipped(task)) == (["a", "b"], 2)
    assert sum("skipped" in record.message for record in caplog.records) == 2, "Each is logged once."
    run_round(task, ["b", "c"], damaged=["b"])
    assert (list(task.skipped), skipped(task)) == (["b"], 1)


def test_process_without_a_server_shows_its_failing_tasks() -> None:
    port, tasks = free_port(), (Background("loads"), Background("orphans"))
    serve_metrics("127.0.0.1", port, conditions=lambda: conditions(tasks))
    url = f"http://127.0.0.1:{port}"
    ready = httpx.get(f"{url}/readyz", trust_env=False)
    assert (ready.status_code, ready.json()) == (200, {"loads": "ok", "orphans": "ok"})
    with tasks[1].round():
        raise ValueError("a bug")
    ready = httpx.get(f"{url}/readyz", trust_env=False)
    assert (ready.status_code, ready.json()["loads"]) == (503, "ok")
    assert "The task 'orphans' fails: ValueError: a bug" in ready.json()["orphans"]
    assert 'tlm_background_failing{task="orphans"} 1' in httpx.get(f"{url}/metrics", trust_env=False).text
    with tasks[1].round():
        pass
    assert httpx.get(f"{url}/readyz", trust_env=False).status_code == 200


@pytest.mark.parametrize(("seconds", "waits"), [(5.0, [5.0, 5.0]), (21_600.0, [600.0, 21_600.0])])
def test_task_that_repeats_rarely_begins_soon(seconds: float, waits: list[float]) -> None:
    class Stop(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            waited.append(timeout)
            return len(waited) == 2

    waited, rounds = list[float | None](), list[None]()
    Background("orphans").repeat(lambda: rounds.append(None), seconds, Stop())
    assert (waited, len(rounds)) == (waits, 1)


def test_sigterm_stops_a_process_that_is_about_to_wait() -> None:
    handlers = [(number, signal.getsignal(number)) for number in (signal.SIGTERM, signal.SIGINT)]
    try:
        stop = stopped_by_signals()
        with stop._cond:  # as `wait` does at its begin and end
            signal.raise_signal(signal.SIGTERM)
        assert stop.wait(10)
    finally:
        for number, handler in handlers:
            signal.signal(number, handler)


def test_incomplete_round_forgets_no_skipped_item() -> None:
    task = Background("items")
    run_round(task, ["a", "b"], damaged=["b"])
    with task.round(), task.item("a"):
        raise StoreUnavailable("away")
    assert list(task.skipped) == ["b"]


def test_line_about_a_skipped_item_has_its_ids() -> None:
    stream, root = io.StringIO(), logging.getLogger()
    before = root.handlers, root.level
    try:
        set_up_logging("api", stream=stream)
        with Background("test").item("job 1", job_id="job_1"):
            raise ValueError
    finally:
        root.handlers, root.level = before
    assert json.loads(stream.getvalue())["job_id"] == "job_1"


def test_task_logs_once_that_it_works_again(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    task = Background("items")
    with task.round():
        raise StoreUnavailable("away")
    run_round(task, [], damaged=[])
    run_round(task, [], damaged=[])
    assert [record.message for record in caplog.records if "works again" in record.message] == [
        "Background task 'items' works again"
    ]


def test_task_logs_each_wait_also_after_an_error(caplog: pytest.LogCaptureFixture) -> None:
    task = Background("items")
    for error in (StoreUnavailable("away"), ValueError("a bug"), StoreUnavailable("away")):
        with task.round():
            raise error
    assert sum("waits" in record.message for record in caplog.records) == 2
