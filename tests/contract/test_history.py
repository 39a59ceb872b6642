"""Streams and records of jobs that have ended: moved to the storage, compressed, and read as before."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import redis

from services.api.job_artifacts import checkpoints_of, served_model, situation_of
from services.api.removal import artifacts_of, delete_job
from services.common import history
from services.common.archive import Archive
from services.common.history import History, Moved, _read_refs
from services.common.history import _read as history_of_a_job
from services.common.jobstore import JobStore
from services.common.redis_client import key
from services.common.situation import Situation
from tests.factories import make_resolved, make_spec
from tests.store_size import bytes_per_copy, bytes_per_job, run_long_job
from tlm_core.artifacts.store import ArtifactStore
from tlm_core.errors import CorruptArtifact, NotFound, StorageUnavailable
from tlm_core.jobs.spec import JobRecord

T = "default"


@pytest.fixture
def artifacts(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(str(tmp_path / "storage"), tmp_path / "cache")


@pytest.fixture
def store(redis_client: redis.Redis, artifacts: ArtifactStore) -> JobStore:
    return JobStore(redis_client, History(artifacts))


def running(store: JobStore) -> JobRecord:
    store.submit(T, make_spec(), make_resolved())
    job = store.claim("a", 30)
    assert job is not None
    return job


def report(store: JobStore, job: JobRecord, steps: range) -> None:
    """Report one point and one line for each step."""
    for first in range(steps.start, steps.stop, 1000):
        page = range(first, min(first + 1000, steps.stop))
        metrics, logs = [{"node": "joint.s0", "step": step} for step in page], [f"line {step}" for step in page]
        store.report(T, job.id, 1, metrics=metrics, logs=logs)


def steps_of(store: JobStore, job: JobRecord) -> list[object]:
    return [point["step"] for point in store.metrics(T, job.id, limit=100_000)]


def folders(artifacts: ArtifactStore, job: JobRecord) -> list[str]:
    return sorted(path.name for path in Path(artifacts.path(T, "jobs", job.id)).glob("*"))


def test_long_curve_keeps_its_beginning(store: JobStore, redis_client: redis.Redis) -> None:
    job = running(store)
    for first in range(0, 25_000, 5_000):
        report(store, job, range(first, first + 5_000))
        assert Archive(store).move_marked() == 1, "the stream is long"
        assert redis_client.xlen(key(T, "metrics", job.id)) == 0
    report(store, job, range(25_000, 25_010))
    assert steps_of(store, job) == list(range(25_010))
    assert store.logs(T, job.id, limit=1)[0]["line"] == "line 0"


def test_endless_curve_keeps_its_beginning_and_its_peaks(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "_MAX_ENTRIES", 3000)
    job = running(store)
    for first in range(0, 12_000, 2_000):
        page = range(first, first + 2_000)
        points = [{"node": "joint.s0", "step": step, "loss": 99.0 if step == 7 else 1 / (step + 1)} for step in page]
        points += [{"node": "joint.s1", "step": step, "loss": -1.0} for step in page]
        store.report(T, job.id, 1, metrics=points, logs=[f"line {step}" for step in page])
        assert Archive(store).move_marked() == 1
    stored = store.metrics(T, job.id, limit=100_000)
    assert len(stored) <= 3000
    for node in ("joint.s0", "joint.s1"):
        steps = [int(str(point["step"])) for point in stored if point["node"] == node]
        assert steps[0] < 10 and steps == sorted(steps)
        assert max(later - earlier for earlier, later in itertools.pairwise([*steps, 12_000])) < 200
    assert [point["step"] for point in stored if point["loss"] == 99.0] == [7]
    assert store.last_logs(T, job.id, 1)[0]["line"] == "line 11999"


def test_short_streams_of_a_running_stage_stay_in_redis(store: JobStore, artifacts: ArtifactStore) -> None:
    job = running(store)
    report(store, job, range(100))
    assert Archive(store).move_marked() == 0
    assert folders(artifacts, job) == []


def test_pages_continue_from_the_storage_into_redis(store: JobStore, artifacts: ArtifactStore) -> None:
    job = running(store)
    report(store, job, range(3_000))
    Archive(store).move_marked()
    report(store, job, range(3_000, 3_100))
    after, seen = "0", []
    while page := store.metrics(T, job.id, after=after, limit=700):
        seen += [point["step"] for point in page]
        after = str(page[-1]["id"])
    assert seen == list(range(3_100))
    assert [line["line"] for line in store.last_logs(T, job.id, 102)] == [f"line {step}" for step in range(2998, 3100)]
    newest = store.last_logs(T, job.id, 2)
    assert store.last_logs(T, job.id, 5, after=newest[0]["id"]) == newest[1:]
    assert len(folders(artifacts, job)) == 1


def test_ended_job_has_no_streams_in_redis(
    store: JobStore, artifacts: ArtifactStore, redis_client: redis.Redis
) -> None:
    job = run_long_job(store, artifacts, points=100, lines=10)
    assert [name for name in redis_client.scan_iter(f"*{job.id}*") if redis_client.type(name) == "stream"] == []
    assert len(store.metrics(T, job.id)) == 200
    events = store.events(T, job.id)
    assert [event.seq for event in events] == list(range(1, job.last_event + 1))
    assert events[-1].type == "job.succeeded"
    assert store.events(T, job.id, after=job.last_event) == []


def test_streams_of_an_earlier_release_move_too(redis_client: redis.Redis, store: JobStore) -> None:
    job = running(JobStore(redis_client))
    store.finish(job, "a", {})
    redis_client.delete("tlm:to-move")
    Archive(store).mark_streams()
    assert Archive(store).move_marked() == 1
    assert not redis_client.exists(key(T, "events", job.id))
    assert len(store.events(T, job.id)) == 3


class _Interrupted(History):
    """Calls `meanwhile` between the write of the files and the change of the store, or before the write."""

    meanwhile: Callable[[], object]
    early: bool

    def write(self, *args: object) -> Moved:
        if self.early:
            self.meanwhile()
        moved = super().write(*args)  # type: ignore[arg-type]
        if not self.early:
            self.meanwhile()
        return moved


def interrupted(
    client: redis.Redis, artifacts: ArtifactStore, meanwhile: Callable[[], object], *, early: bool = False
) -> Archive:
    history = _Interrupted(artifacts)
    object.__setattr__(history, "early", early)
    object.__setattr__(history, "meanwhile", meanwhile)
    return Archive(JobStore(client, history))


def test_two_movers_lose_and_repeat_nothing(
    store: JobStore, redis_client: redis.Redis, artifacts: ArtifactStore
) -> None:
    job = running(store)
    report(store, job, range(3_000))
    interrupted(redis_client, artifacts, Archive(store).move_marked).move_marked()
    assert steps_of(store, job) == list(range(3_000))
    assert len(folders(artifacts, job)) == 1


@pytest.mark.parametrize("damaged", [False, True], ids=["deleted files", "half-deleted files"])
def test_mover_whose_files_another_one_replaced_reports_no_loss(
    store: JobStore,
    redis_client: redis.Redis,
    artifacts: ArtifactStore,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    damaged: bool,
) -> None:
    monkeypatch.setattr(history, "_read", history_of_a_job.__wrapped__)  # without its cache
    job = running(store)
    report(store, job, range(3_000))
    Archive(store).move_marked()
    report(store, job, range(3_000, 6_000))

    def replace_files() -> None:
        (before,) = folders(artifacts, job)
        Archive(store).move_marked()
        if damaged:
            folder = Path(artifacts.path(T, "jobs", job.id)) / before
            shutil.copytree(folder.with_name(folders(artifacts, job)[0]), folder)
            (folder / "metrics.gz").write_bytes(b"")

    interrupted(redis_client, artifacts, replace_files, early=True).move_marked()
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
    assert steps_of(store, job) == list(range(6_000))


def test_job_that_ends_during_a_move_is_moved_again(
    store: JobStore, redis_client: redis.Redis, artifacts: ArtifactStore
) -> None:
    job = running(store)
    report(store, job, range(3_000))
    interrupted(redis_client, artifacts, lambda: store.finish(job, "a", {})).move_marked()
    assert Archive(store).move_marked() == 1
    assert Archive(store).move_marked() == 0
    assert not redis_client.exists(key(T, "events", job.id))
    assert [event.seq for event in store.events(T, job.id)] == [1, 2, 3]


def test_reader_survives_a_move_between_its_two_reads(
    store: JobStore, redis_client: redis.Redis, artifacts: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = running(store)
    report(store, job, range(3_000))
    Archive(store).move_marked()
    report(store, job, range(3_000, 6_000))
    read = History.read

    def read_after_a_move(self: History, *args: object) -> object:
        monkeypatch.setattr(History, "read", read)
        Archive(store).move_marked()
        return read(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(History, "read", read_after_a_move)
    assert steps_of(store, job) == list(range(6_000))
    assert redis_client.xlen(key(T, "metrics", job.id)) == 0
    assert len(folders(artifacts, job)) == 1


def test_deleted_job_leaves_no_history(store: JobStore, redis_client: redis.Redis, artifacts: ArtifactStore) -> None:
    job = running(store)
    store.finish(job, "a", {})
    ended = store.get(T, job.id)
    interrupted(redis_client, artifacts, lambda: delete_job(store, artifacts, ended)).move_marked()
    assert folders(artifacts, job) == []
    assert Archive(store).move_marked() == 0, "the mark is gone"


def test_storage_that_is_away_delays_the_move_and_loses_nothing(
    store: JobStore, artifacts: ArtifactStore, tmp_path: Path
) -> None:
    job = running(store)
    report(store, job, range(3_000))
    with artifacts.errors("marking", writes=True):
        (tmp_path / "storage").rename(tmp_path / "away")
    store._history.artifacts._is_new = lambda: False  # type: ignore[union-attr]
    with pytest.raises(StorageUnavailable):
        Archive(store).move_marked()
    assert steps_of(store, job) == list(range(3_000))
    (tmp_path / "away").rename(tmp_path / "storage")
    assert Archive(store).move_marked() == 1


@pytest.mark.parametrize("kind", ["train", "learning_curve"])
@pytest.mark.parametrize("fails", [False, True])
def test_archived_job_reads_as_before(
    store: JobStore, artifacts: ArtifactStore, redis_client: redis.Redis, kind: str, *, fails: bool
) -> None:
    job = run_long_job(store, artifacts, points=10, lines=5, fails=fails, kind=kind)
    assert Archive(store).archive_ended(3600) == 0, "it ended less than an hour ago"
    situation, produced = Situation.read(store, job), artifacts_of(store, job)
    assert len(situation.done) == len(situation.plan.nodes) == len(produced)
    assert situation_of(store, job).done == situation.done
    checkpoints = checkpoints_of(store, job)
    trained = sum(node.stage.name in ("joint", "finetune", "bilstm") for node in situation.plan.nodes)
    assert len(checkpoints) == 2 * trained > 0
    assert store.named_folders(T) >= {checkpoint.ref.folder for checkpoint in checkpoints}
    assert Archive(store).archive_ended(-60) == 1
    assert Archive(store).archive_ended(-60) == 0
    archived = store.get(T, job.id)
    assert archived.model_copy(update={"checkpoints": (), "published": {}}) == job
    assert (situation_of(store, archived).done, artifacts_of(store, archived)) == (situation.done, produced)
    assert checkpoints_of(store, archived) == checkpoints
    assert store.list_jobs(T)[0] == [archived]
    assert store.state(T, job.id) == job.state
    assert len(store.metrics(T, job.id, limit=100_000)) == 10 * trained
    assert not redis_client.hlen(key(T, "artifacts"))
    assert store.named_folders(T) >= {ref.folder for ref in situation.done.values()}
    delete_job(store, artifacts, archived)
    with pytest.raises(NotFound):
        store.get(T, job.id)
    assert not list(Path(artifacts.path(T)).glob("*/*"))


def test_second_archiver_of_a_failed_job_keeps_its_artifacts(
    store: JobStore, artifacts: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = run_long_job(store, artifacts, points=100, lines=10, fails=True)
    situation, read = Situation.read(store, job), redis.Redis.hmget

    def archived_meanwhile(*args: object) -> object:
        monkeypatch.setattr(redis.Redis, "hmget", read)
        assert Archive(store).archive_ended(-60) == 1  # another coordinator
        return read(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(redis.Redis, "hmget", archived_meanwhile)
    Archive(store).archive_ended(-60)
    archived = store.get(T, job.id)
    assert situation_of(store, archived).done == situation.done
    assert store.named_folders(T) >= {ref.folder for ref in situation.done.values()}


def test_job_is_deleted_while_it_is_archived(store: JobStore, redis_client: redis.Redis) -> None:
    job = running(store)
    store.finish(job, "a", {})
    Archive(store).move_marked()
    redis_client.delete(key(T, "job", job.id))
    assert Archive(store).archive_ended(-60) == 1
    assert not redis_client.exists(key(T, "job", job.id)) and not redis_client.exists("tlm:ended")


def test_damaged_record_or_history_delays_no_other_job(
    store: JobStore, redis_client: redis.Redis, artifacts: ArtifactStore
) -> None:
    jobs = [running(store) for _ in range(3)]
    for job in jobs:
        report(store, job, range(3_000))
    Archive(store).move_marked()
    for job in jobs:
        store.finish(job, "a", {})
    (file,) = Path(artifacts.path(T, "jobs", jobs[0].id)).glob("*/logs.gz")
    file.write_bytes(b"x" * file.stat().st_size)
    history_of_a_job.cache_clear()
    Archive(store).move_marked()
    assert [redis_client.exists(key(T, "events", job.id)) for job in jobs] == [1, 0, 0]
    with pytest.raises(CorruptArtifact, match="delete the job"):
        store.logs(T, jobs[0].id)
    redis_client.hset(key(T, "job", jobs[1].id), "result", "{")
    Archive(store).archive_ended(-60)
    assert not redis_client.hexists(key(T, "job", jobs[2].id), "spec")
    redis_client.hset(key(T, "job", jobs[2].id), "packed", "damaged")
    assert [job.unreadable for job in store.list_jobs(T)[0]] == [True, True, False]


@pytest.mark.parametrize("damaged", ["{", "[]"])
def test_damaged_record_is_archived_once_it_is_restored(
    store: JobStore, redis_client: redis.Redis, damaged: str
) -> None:
    jobs = [running(store) for _ in range(2)]
    for job in jobs:
        store.finish(job, "a", {})
    Archive(store).move_marked()
    restored, other = (key(T, "job", job.id) for job in jobs)
    redis_client.hset(restored, "result", damaged)
    assert Archive(store).archive_ended(-60) == 2
    assert [redis_client.hexists(record, "spec") for record in (restored, other)] == [True, False]
    redis_client.hdel(restored, "result")
    assert Archive(store).archive_ended(60) == 0, "the next try follows later"
    assert Archive(store).archive_ended(-60) == 1
    assert not redis_client.hexists(restored, "spec")


@pytest.mark.parametrize("fail", [False, True])
def test_ended_jobs_need_little_memory(
    store: JobStore, redis_client: redis.Redis, artifacts: ArtifactStore, *, fail: bool
) -> None:
    """tests/store_size.py measures 100,000 jobs."""
    recent, archived = bytes_per_job(store, redis_client, artifacts, jobs=1_000, recent=200, fail=fail)
    assert recent <= 50_000 and archived <= 5_000


@pytest.mark.parametrize("fails", [False, True])
def test_learning_curve_with_three_seeds_needs_little_memory(
    store: JobStore, redis_client: redis.Redis, artifacts: ArtifactStore, *, fails: bool
) -> None:
    job = run_long_job(store, artifacts, points=2, lines=1, fails=fails, kind="learning_curve", seeds=3)
    assert bytes_per_copy(redis_client, job, 50) <= 50_000
    assert Archive(store).archive_ended(-60) == 1
    assert bytes_per_copy(redis_client, job, 50) <= 5_000


def test_job_with_lost_references_can_be_read_and_deleted(
    store: JobStore, redis_client: redis.Redis, artifacts: ArtifactStore
) -> None:
    job = run_long_job(store, artifacts, points=2, lines=1, kind="learning_curve")
    done, produced = situation_of(store, job).done, artifacts_of(store, job)
    assert job.id not in store.named_folders(T)
    shutil.rmtree(artifacts.path(T, "jobs", job.id))
    _read_refs.cache_clear()
    assert job.id in store.named_folders(T), "its folders stay"
    assert (situation_of(store, job).done, artifacts_of(store, job)) == (done, produced)
    situation = Situation.read(store, job)
    store.invalidate_artifact(T, situation.artifact_id(situation.plan.node(situation.plan.report)))
    assert situation_of(store, job).done == {}
    delete_job(store, artifacts, job)
    assert redis_client.hlen(key(T, "artifacts")) == 0


def test_named_folders_of_a_remote_storage_need_no_copies(redis_client: redis.Redis, tmp_path: Path) -> None:
    artifacts = ArtifactStore(f"memory://{tmp_path.name}", tmp_path / "cache")
    store = JobStore(redis_client, History(artifacts))
    job = run_long_job(store, artifacts, points=2, lines=1, kind="learning_curve")
    done = situation_of(store, job).done
    shutil.rmtree(tmp_path / "cache")
    _read_refs.cache_clear()
    assert store.named_folders(T) >= {ref.folder for ref in done.values()}
    assert not (tmp_path / "cache").exists()
    (file,) = artifacts.fs.glob(artifacts.path(T, "jobs", job.id, "*", "refs.gz"))
    artifacts.fs.pipe_file(file, b"")
    _read_refs.cache_clear()
    assert job.id in store.named_folders(T), "an empty file is damaged"


def test_model_is_served_while_the_storage_is_away(store: JobStore, artifacts: ArtifactStore, tmp_path: Path) -> None:
    job, *others = (run_long_job(store, artifacts, points=2, lines=1, seeds=4) for _ in range(6))
    served = served_model(store, job)
    for other in others:
        store.events(T, other.id)
    artifacts._is_new = lambda: False
    (tmp_path / "storage").rename(tmp_path / "away")
    assert served_model(store, job) == served


def test_artifacts_of_a_result_are_known_although_the_record_is_unreadable(
    store: JobStore, redis_client: redis.Redis, artifacts: ArtifactStore
) -> None:
    job = run_long_job(store, artifacts, points=200, lines=10)
    produced = artifacts_of(store, job)
    redis_client.hset(key(T, "job", job.id), "spec", "{")
    (unreadable,), _ = store.list_jobs(T)
    assert unreadable.unreadable and artifacts_of(store, unreadable) == produced
    redis_client.hset(key(T, "job", job.id), "packed", "damaged")
    assert artifacts_of(store, unreadable) == set()
