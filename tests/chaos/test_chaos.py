"""The short form of `make chaos`, and the checker on histories in which each guarantee is broken."""

from __future__ import annotations

import dataclasses
import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from services.common import jobstore
from tests.chaos import harness
from tests.chaos.__main__ import read_options
from tests.chaos.checker import Answer, History, Record, Write, is_expected, violations
from tests.chaos.harness import FAST, Chaos, Fault, job_of, plan_faults
from tests.chaos.processes import BUGS, SCRIPT_BUGS, _tears
from tests.chaos.ray import JobServer
from tests.chaos.times import GOALS, missed_goals
from tests.contract.gateway import TRAIN, T
from tests.redis_server import free_port
from tests.support import wait_for
from tlm_core.jobs.spec import Event
from tlm_core.jobs.states import State

JOB = "job_1"


def made_history() -> History:
    """Return the history of one job whose first worker was lost."""
    published = ("artifact.published", 3, {"artifact": "art_1"})
    rows = [
        *(("job.submitted", 0, {}), ("job.claimed", 1, {}), ("job.requeued", 1, {}), ("job.claimed", 2, {})),
        *(("job.pause_requested", 2, {}), ("job.paused", 2, {}), ("job.resumed", 2, {}), ("job.claimed", 3, {})),
        *(published, ("job.adopted", 3, {}), ("job.succeeded", 3, {})),
    ]
    events = [Event(seq=n, type=type, at=n, attempt=attempt, data=data)
              for n, (type, attempt, data) in enumerate(rows, 1)]  # fmt: skip
    return History(
        planned={"k"},
        answers=[Answer(1, 1.1, "k", JOB, "queued", 1), Answer(12, 12.1, "k", JOB, "succeeded", 11)],
        writes=[Write(JOB, 1, 1), Write(JOB, 2, 2), Write(JOB, 3, 3)],
        records={JOB: Record("k", State.SUCCEEDED, events)},
    )


def refuse(history: History) -> None:
    history.planned.add("k2")


def lose(history: History) -> None:
    history.records.clear()


def double_job(history: History) -> None:
    history.records["job_2"] = history.records[JOB]


def double_commit(history: History) -> None:
    events = history.records[JOB].events
    events[9] = events[8].model_copy(update={"seq": 10})


def double_start(history: History) -> None:
    started = {"type": "stage.started", "data": {"node": "count"}}
    history.records[JOB].events[8:10] = [e.model_copy(update=started) for e in history.records[JOB].events[8:10]]


def go_back(history: History) -> None:
    history.answers.append(Answer(13, 13.1, "k", JOB, "running", 8))


def wrong_path(history: History) -> None:
    events = history.records[JOB].events
    events[2] = events[2].model_copy(update={"type": "job.succeeded"})


def skip_event(history: History) -> None:
    del history.records[JOB].events[9]


def stay_queued(history: History) -> None:
    record = history.records[JOB]
    history.records[JOB] = dataclasses.replace(record, state=State.QUEUED, events=record.events[:7])


def fail(history: History) -> None:
    events = history.records[JOB].events
    events[-1] = events[-1].model_copy(update={"type": "job.failed"})
    history.records[JOB] = Record("k", State.FAILED, events)


def write_late(history: History) -> None:
    history.writes.append(Write(JOB, 1, 2))


def tear(history: History) -> None:
    history.torn.append("art_1")


def test_checker_accepts_a_job_that_moved_between_workers() -> None:
    assert violations(made_history()) == []


DAMAGES = [
    (refuse, "refused job"), (lose, "lost job"), (double_job, "double job"), (double_commit, "double commit"),
    (double_start, "double start"),
    (go_back, "state went back"), (wrong_path, "state went back"), (skip_event, "lost event"),
    (stay_queued, "job without an end"), (fail, "failed job"), (write_late, "late write"), (tear, "torn artifact"),
]  # fmt: skip


@pytest.mark.parametrize(("damage", "kind"), DAMAGES)
def test_checker_finds(damage: Callable[[History], None], kind: str) -> None:
    history = made_history()
    damage(history)
    assert is_expected(violations(history), kind), violations(history)


@pytest.mark.parametrize("bug", BUGS)
def test_only_its_own_report_shows_a_planted_bug(bug: str) -> None:
    expected = read_options(["--bug", bug]).expected
    assert expected in {kind for _, kind in DAMAGES}
    others = [f"{kind}: job_1" for _, kind in DAMAGES if kind != expected]
    assert not is_expected(others, expected) and is_expected([*others, f"{expected}: job_1"], expected)


def test_run_without_a_bug_expects_no_report() -> None:
    expected = read_options([]).expected
    assert is_expected([], expected) and not is_expected(["failed job: job_1"], expected)


@pytest.mark.parametrize("name", GOALS)
def test_time_beyond_its_goal_is_reported(name: str) -> None:
    noticed, resumed = GOALS[name]
    assert missed_goals(name, noticed, resumed) == []
    assert len(missed_goals(name, noticed + 0.1, resumed)) == len(missed_goals(name, noticed, resumed + 0.1)) == 1


def test_planted_bugs_change_the_scripts_of_the_store() -> None:
    for script, line in SCRIPT_BUGS.values():
        assert line in Path(jobstore.__file__).with_name("lua").joinpath(f"{script}.lua").read_text()


def test_plan_of_a_seed_can_be_replayed() -> None:
    assert plan_faults(3, 50, 1.0) == plan_faults(3, 50, 1.0) != plan_faults(4, 50, 1.0)


def requests_of(seed: int, polls: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return what a client requests for 30 jobs, if each request needs so many tries, and each job so many polls."""
    sent: list[str] = []

    def answer(_: object, client: object, method: str, path: str, rng: random.Random, **more: Any) -> httpx.Response:  # noqa: ARG001
        [rng.choice("ab") for _ in range(polls)]  # a gateway for each try
        sent.append(f"{method} {path}")
        ended = sent[-polls:] == ["GET /v1/jobs/j"] * polls
        return httpx.Response(200, json={"id": "j", "state": "succeeded" if ended else "paused", "last_event": 1})

    monkeypatch.setattr(Chaos, "request", answer)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    chaos = Chaos.__new__(Chaos)
    chaos.history, chaos.faults, chaos.seed = History(), [], seed
    chaos.client(list(range(30)), 60.0)
    return [request for request in sent if not request.startswith("GET")]


def test_choices_of_a_client_depend_on_the_seed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    first = requests_of(1, 3, monkeypatch)
    assert requests_of(1, 4, monkeypatch) == first != requests_of(2, 3, monkeypatch)
    assert {"POST /v1/jobs/j/pause", "POST /v1/jobs/j/cancel"} <= set(first)


def test_seed_chooses_the_manifests_that_are_torn() -> None:
    paths = [f"/default/artifacts/art_{n}/job_1-1/manifest.json" for n in range(1000)]
    torn = [path for path in paths if _tears("7", path)]
    assert 250 < len(torn) < 350 and torn != [path for path in paths if _tears("8", path)]
    assert all(_tears("7", path.replace("job_1", "job_2")) for path in torn)
    assert not all(_tears("7", path.replace("job_1-1", "job_1-2")) for path in torn), "A later attempt may succeed."


@pytest.mark.parametrize("name", ["step clock", "kill worker", "lose worker", "stop gateway"])
def test_fault_without_a_target_counts_as_not_injected(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (fault,) = plan_faults(3, 1, 1.0, [name])
    monkeypatch.setattr(harness, "_FAKETIME", None)
    with subprocess.Popen(["true"], start_new_session=True) as ended:
        ended.wait()
    chaos = Chaos.__new__(Chaos)
    chaos.faults, chaos.processes = [], {("gateway", 0): ended}  # type: ignore[dict-item]
    chaos.cluster = JobServer(lambda _: pytest.fail("no worker starts"))
    chaos.inject(fault)
    chaos.cluster.close()
    assert [(f"{done['kind']} {done['target']}", done["injected"]) for done in chaos.faults] == [(name, False)]


def figures(port: int) -> dict[str, float]:
    """Return what a process shows to Prometheus, or nothing while it shows nothing."""
    with suppress(httpx.HTTPError):
        text = httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).text
        return {name: float(value) for name, value in re.findall(r"^(tlm_\S+) (\S+)$", text, re.MULTILINE)}
    return {}


def test_workers_of_a_machine_show_their_figures_at_the_next_free_ports(tmp_path: Path) -> None:
    port = free_port()
    chaos = Chaos(tmp_path, coordinators=1, gateways=1, times=FAST | {"worker_metrics_port": str(port)})
    with chaos.running(), httpx.Client(timeout=30, trust_env=False) as client:
        chaos.add_dataset()
        jobs = [chaos.submit(client, number, steps=100_000) for number in range(2)]
        steps = {f'tlm_worker_step{{job_id="{job}",node="count"}}' for job in jobs}

        def both() -> bool:
            shown = [figures(port), figures(port + 1)]
            working = all(page.get("tlm_checkpoint_seconds_count", 0) > 1 for page in shown)
            return working and steps == {name for page in shown for name in page if "worker_step" in name}

        wait_for(both, 60)
        assert figures(port)["tlm_worker_progress"] > 1
        assert figures(port)["tlm_process_resident_memory_bytes"] > 1e6


def test_almost_full_disk_of_redis_stops_what_is_new_and_nothing_else(tmp_path: Path) -> None:
    chaos = Chaos(tmp_path / "chaos", coordinators=1, gateways=1, real_disk=True)
    with chaos.running(), httpx.Client(timeout=30, trust_env=False) as client:
        chaos.add_dataset()
        running, *waiting = [chaos.submit(client, number, steps=100_000) for number in range(4)]

        def step(job: str) -> int:
            progress = chaos.store.get(T, job).progress
            return progress.step if progress is not None else 0

        wait_for(lambda: step(running) and chaos.store.get(T, waiting[1]).state is State.RUNNING, 60)
        server, url = chaos.redis.process, chaos.urls[0]
        client.headers["Authorization"] = f"Bearer {(chaos.folder / 'token').read_text().strip()}"
        with chaos.full_redis():
            new = {
                "jobs": {"json": job_of(9)},
                "datasets": {"data": {"name": "other"}, "files": {"train": ("train.csv", TRAIN)}},
                "corpora": {"data": {"name": "docs"}, "files": {"files": ("a.txt", "A text of some words. " * 20)}},
                "uploads": {"json": {"name": "a.csv", "size": 10}},
            }
            wait_for(lambda: client.post(f"{url}/v1/jobs", **new["jobs"]).status_code == 507, 20)
            for name, request in new.items():
                answer = client.post(f"{url}/v1/{name}", **request)
                assert (answer.status_code, answer.json().get("code")) == (507, "store_full"), (name, answer.text)
            before = step(running)
            client.post(f"{url}/v1/jobs/{waiting[0]}/cancel").raise_for_status()  # Its slot stays free.
            wait_for(lambda: chaos.store.get(T, waiting[0]).state is State.CANCELLED, 30)
            wait_for(lambda: step(running) > before + 5)
            assert chaos.store.get(T, waiting[2]).state is State.QUEUED
        wait_for(lambda: chaos.store.get(T, waiting[2]).state is State.RUNNING, 30)
        for name, request in new.items():
            client.post(f"{url}/v1/{name}", **request).raise_for_status()
        assert chaos.store.get(T, running).attempt == 1
        assert server is chaos.redis.process and server is not None and server.poll() is None, "Redis has not exited."


def test_coordinator_stopped_by_sigterm_releases_its_lease_at_once(tmp_path: Path) -> None:
    chaos = Chaos(tmp_path, coordinators=2, gateways=1, times=FAST | {"lease_seconds": "600"})
    with chaos.running(), httpx.Client(timeout=30, trust_env=False) as client:
        chaos.add_dataset()
        job = chaos.submit(client, 0, steps=100_000)
        before = wait_for(lambda: (record := chaos.store.get(T, job)).submissions and record, 60)
        pid = int(before.owner.split("-")[-2])
        (process,) = (process for process in chaos.processes.values() if process.pid == pid)
        os.kill(pid, signal.SIGTERM)
        wait_for(lambda: process.exitcode is not None, 30)
        assert process.exitcode == 0
        adopted = wait_for(lambda: (record := chaos.store.get(T, job)).owner not in (None, before.owner) and record, 30)
        assert (adopted.attempt, adopted.submissions) == (1, before.submissions), "Its workers run on."
        assert [event.type for event in chaos.store.events(T, job)].count("job.adopted") == 1


def test_fault_that_cannot_be_injected_fails_the_run(tmp_path: Path) -> None:
    chaos = Chaos(tmp_path / "chaos", coordinators=1, gateways=1)
    with pytest.raises(IndexError):
        chaos.run(seed=1, jobs=1, clients=1, faults=[Fault("kill", "nobody", 0, 0, 0)], patience=60)


def test_short_run_keeps_all_guarantees(tmp_path: Path) -> None:
    chaos = Chaos(tmp_path / "chaos", coordinators=2)
    faults = [
        Fault("kill", "coordinator", 0.6, 0, 1), Fault("lose", "worker", 0.5, 5, 1),
        Fault("kill", "gateway", 0.1, 0, 0.6), Fault("kill", "worker", 0.5, 0, 0.6),
        Fault("kill", "redis", 0, 0.3, 0.6), Fault("break", "storage", 0, 1, 1),
        Fault("half-open", "network", 0.9, 2, 1),
    ]  # fmt: skip
    chaos.run(seed=1, jobs=12, clients=4, faults=faults, patience=150)
    assert violations(chaos.history) == []
    assert len(chaos.history.records) == 12
    assert sum(fault["injected"] for fault in chaos.faults) >= 4
