"""Each log line about one job, attempt, load or request has its ids."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pytest

from services.api.removal import delete_job, finish_removals
from services.common.history import History, Moved
from services.common.logs import ids_in, log_context
from services.common.redis_client import REMOVALS, key
from services.loader import loads
from services.loader.loads import LoadWorker
from services.retriever.index_loads import IndexLoads
from services.retriever.indexes import CorpusKey, EmbeddedIndexes
from services.retriever.selection_runs import SelectionRuns
from services.trainer.held_job import HeldJob
from services.trainer.sweeper import StorageSweeper, Sweeper
from tests.contract.coordinator_harness import CoordinatorHarness, T
from tests.contract.gateway import REF, Gateway
from tests.factories import make_resolved, make_spec
from tests.support import wait_for
from tlm_core.artifacts import ManifestRef
from tlm_core.errors import IllegalTransition, StorageUnavailable, StoreUnavailable, WorkerLost

JOB = f"job_{'1' * 19}"
LOST = ManifestRef(folder=f"{T}/artifacts/art_1/{JOB}-3", digest="1" * 64)
Ids = dict[str, object]


def failing(error: Exception) -> Callable[..., NoReturn]:
    def fail(*_: object, **__: object) -> NoReturn:
        raise error

    return fail


@dataclass
class Place:
    """What a case needs to cause a log line."""

    gateway: Gateway
    harness: CoordinatorHarness
    patch: pytest.MonkeyPatch
    folder: Path

    def held(self) -> tuple[Any, Ids]:
        """Return a coordinator that holds a job, and the ids of its lines."""
        with log_context(request_id="req_1"):
            job_id = self.harness.submit()
        coordinator = self.harness.coordinator()
        coordinator.round()
        return coordinator, {"job_id": job_id, "attempt": 1, "request_id": "req_1"}

    def loads(self) -> IndexLoads:
        return IndexLoads(EmbeddedIndexes(self.folder / "indexes"), self.harness.artifacts, threading.Event())


def stopped_submission(place: Place) -> tuple[str, Ids]:
    harness = place.harness
    with log_context(request_id="req_1"):
        job_id = harness.submit()
    harness.until_submitted(harness.coordinator(), job_id)
    harness.store.requeue(harness.job(job_id), "a", WorkerLost("lost"), 60)
    Sweeper(harness.store, harness.cluster).sweep()
    return "Stopping submission", {"job_id": job_id, "attempt": 1, "request_id": "req_1"}


def deleted_folder(place: Place) -> tuple[str, Ids]:
    harness, retriever = place.harness, place.gateway.parts.retriever
    sweeper = StorageSweeper(harness.store, harness.artifacts, retriever)
    Path(harness.artifacts.path(LOST.folder)).mkdir(parents=True)
    sweeper.sweep()
    harness.store.ahead += 8 * 86_400
    sweeper.sweep()
    return "Deleting", {"job_id": JOB, "attempt": 3}


def lost_step(place: Place) -> tuple[str, Ids]:
    coordinator, ids = place.held()
    place.patch.setattr(HeldJob, "advance", failing(IllegalTransition("paused", state="pausing")))
    coordinator.round()
    return f"Job {ids['job_id']} was paused or cancelled", ids


def released_job(place: Place) -> tuple[str, Ids]:
    coordinator, ids = place.held()
    place.gateway.client.delete(key(T, "job", str(ids["job_id"])))
    coordinator.round()
    return f"Released job {ids['job_id']}", ids


def skipped_job(place: Place) -> tuple[str, Ids]:
    coordinator, ids = place.held()
    place.patch.setattr(coordinator, "_step", failing(ValueError("a bug")))
    coordinator.round()
    return "Background task 'rounds' skipped", ids


def kept_lease(place: Place) -> tuple[str, Ids]:
    coordinator, ids = place.held()
    place.patch.setattr(place.harness.store, "renew", failing(StoreUnavailable("away")))
    coordinator._release_leases()
    return "Cannot release the lease", ids


def unreadable_claim(place: Place) -> tuple[str, Ids]:
    job_id = place.harness.submit()
    place.gateway.client.hset(key(T, "job", job_id), "spec", "{}")
    place.harness.coordinator().round()
    return "Cannot read the claimed job", {"job_id": job_id}


def failed_delivery(place: Place) -> tuple[str, Ids]:
    parts = place.gateway.parts
    parts.webhooks.add(T, "https://example.com/hook", ("job.cancelled",))
    parts.deliverer.round()
    job = parts.jobs.submit(T, make_spec(), make_resolved())[0]
    parts.jobs.cancel(T, job.id)
    place.patch.setattr(parts.deliverer, "_send", failing(ValueError("a bug")))
    parts.deliverer.round()
    return "Background task 'webhooks' skipped", {"job_id": job.id}


def delayed_removal(place: Place) -> tuple[str, Ids]:
    parts = place.gateway.parts
    job = parts.jobs.submit(T, make_spec(), make_resolved())[0]
    place.patch.setattr(parts.artifacts, "delete", failing(StorageUnavailable("away")))
    delete_job(parts.jobs, parts.artifacts, parts.jobs.cancel(T, job.id))
    return f"Files of {job.id}", {"job_id": job.id}


def damaged_removal(place: Place) -> tuple[str, Ids]:
    place.gateway.client.hset(REMOVALS, f"{T}/{JOB}", "{}")
    finish_removals(place.gateway.parts)
    return "Background task 'removals' skipped", {"job_id": JOB}


def lost_history(place: Place) -> tuple[str, Ids]:
    History(place.harness.artifacts)._earlier_rows(JOB, Moved(ref=LOST, last={"logs": "1-0"}), "logs", lambda: True)
    return "The storage has lost the older logs", {"job_id": JOB}


def lost_selection(place: Place) -> tuple[str, Ids]:
    loads, store = place.loads(), place.harness.artifacts
    SelectionRuns(loads, store, place.folder, threading.Event(), at_once=1)._exists(LOST)
    return "The selection in", {"job_id": JOB, "attempt": 3}


def failed_index_load(place: Place) -> tuple[str, Ids]:
    loads = place.loads()
    place.patch.setattr(loads, "_fill", failing(ValueError("a bug")))
    with log_context(request_id="req_1"):
        loads.put(CorpusKey(T, "docs", "v1"), "corpus", "en")
    loads.close()
    return "Load of corpus 'docs'", {"request_id": "req_1"}


def lost_lease_of_a_load(place: Place) -> tuple[str, Ids]:
    parts, renewed = place.gateway.parts, threading.Event()
    worker = LoadWorker(parts.catalog, parts.artifacts, parts.retriever, place.folder)
    with log_context(request_id="req_1"):
        load = parts.catalog.add_load(T, "docs", "en", REF)

    def lose(*_: object) -> NoReturn:
        renewed.set()
        raise StoreUnavailable("away")

    def step(_: object) -> None:
        place.patch.setattr(parts.catalog, "lease_load", lose)
        place.patch.setattr(loads, "_LEASE_SECONDS", 0.03)
        with worker._renewed_lease(load):
            assert renewed.wait(10)

    place.patch.setattr(worker, "_step", step)
    worker.round()
    return f"The lease on load {load.id}", {"load_id": load.id, "request_id": "req_1"}


@pytest.mark.parametrize(
    "cause",
    [
        stopped_submission, deleted_folder, lost_step, released_job, skipped_job, kept_lease, unreadable_claim,
        failed_delivery, delayed_removal, damaged_removal, lost_history, lost_selection, failed_index_load,
        lost_lease_of_a_load,
    ],
)  # fmt: skip
def test_line_has_the_ids(
    cause: Callable[[Place], tuple[str, Ids]],
    gateway: Gateway,
    harness: CoordinatorHarness,
    lines: Callable[[], list[dict[str, Any]]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    begin, ids = cause(Place(gateway, harness, monkeypatch, tmp_path / "scratch"))
    line = wait_for(lambda: [line for line in lines() if line["event"].startswith(begin)], 10)[0]
    assert {name: value for name, value in line.items() if name.endswith("_id") or name == "attempt"} == ids


def test_ids_of_a_folder_are_those_of_its_job() -> None:
    assert ids_in(f"t/artifacts/art_1/{JOB}-12/file") == {"job_id": JOB, "attempt": 12}
    assert (ids_in(f"t/jobs/{JOB}"), ids_in("t/datasets/ds_1")) == ({"job_id": JOB}, {})
