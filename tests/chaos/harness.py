"""Run jobs on real processes, inject random faults, and record what clients and workers observe."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any
from unittest.mock import patch

import httpx
from redis.exceptions import RedisError

from services.common.history import History as Streams
from services.common.history import ref_of
from services.common.jobstore import JobStore
from services.common.redis_client import DISK_FREE, key
from services.trainer.assignment import Assignment
from tests.chaos.checker import Answer, History, Record, Write
from tests.chaos.kind import ChaosOptions, content
from tests.chaos.processes import start
from tests.chaos.proxy import Proxy
from tests.chaos.ray import HasPid, JobServer, send
from tests.chaos.real_ray import RayHead
from tests.contract.gateway import TRAIN, T
from tests.redis_server import RedisServer, free_port, redis_binary
from tests.support import wait_for
from tlm_client.stack.parts import bundled_redis
from tlm_core.artifacts import ManifestRef
from tlm_core.artifacts.store import ArtifactStore
from tlm_core.errors import CorruptArtifact, NotFound, TLMError
from tlm_core.jobs.states import TERMINAL, State
from tlm_core.kinds import MODULES

# Shorter than the defaults, so that coordinators take over many jobs during a run.
FAST = {"lease_seconds": "4", "stall_seconds": "8", "poll_seconds": "0.2"}


# Lets the clock of Redis differ from that of the machine (Debian: apt install libfaketime).
_FAKETIME = next(iter(Path("/usr/lib").glob("*/faketime/libfaketime.so.1")), None)
_MOST_CLOCK_SECONDS = 300.0


@dataclass(frozen=True)
class Fault:
    """A planned fault. pick: a number from 0 to 1 that chooses the target. wait: seconds since the previous fault."""

    kind: str
    target: str
    pick: float
    seconds: float
    wait: float


# Kind, target, and shortest and longest duration in seconds.
KINDS = (
    ("step", "clock", 5, 15),
    *(("kill", "coordinator", 0, 0), ("stop", "coordinator", 1, 8), ("kill", "gateway", 0, 0)),
    *(("stop", "gateway", 1, 4), ("kill", "worker", 0, 0), ("stop", "worker", 1, 12), ("lose", "worker", 1, 8)),
    *(("kill", "redis", 0.1, 2), ("stop", "redis", 0.5, 7), ("fill", "redis", 1, 6)),
    *(("break", "storage", 0.5, 3), ("fill", "storage", 0.5, 4)),
    *((mode, "network", 0.5, 6) for mode in ("cut", "delay", "half-open")),
)
KINDS_OF_RAY = (*KINDS, ("kill", "head", 0, 0))


def plan_faults(seed: int, count: int, wait: float, only: Collection[str] = (), *, ray: bool = False) -> list[Fault]:
    """Return `count` faults, on average `wait` seconds apart. only: kinds, such as `lose worker`; by default all."""
    rng = random.Random(seed)
    possible = KINDS_OF_RAY if ray else KINDS
    kinds = [fault for fault in possible if not only or f"{fault[0]} {fault[1]}" in only]
    chosen = [rng.choice(kinds) for _ in range(count)]
    return [
        Fault(kind, target, rng.random(), rng.uniform(low, high), rng.uniform(0.3, 1.7) * wait)
        for kind, target, low, high in chosen
    ]


@dataclass
class Chaos:
    """A service with several coordinators and gateways, a cluster, and clients. `folder` has their files.

    times: settings of coordinators and workers. real_disk: mount small disks for the storage and Redis, if this process
    may; otherwise, full disks are simulated. ray: run the workers on a real Ray head. step_seconds: time of each of the
    ten steps of a job. planned: the number of faults.
    """

    folder: Path
    bug: str = ""
    coordinators: int = 3
    gateways: int = 2
    times: dict[str, str] = field(default_factory=FAST.copy)
    real_disk: bool = False
    ray: bool = False
    step_seconds: float = 0.1
    history: History = field(default_factory=History)
    faults: list[dict[str, Any]] = field(default_factory=list)
    planned: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        # The Redis of Debian hangs at its start under libfaketime, because jemalloc reads the clock.
        binary = bundled_redis() or redis_binary()
        self.redis = RedisServer(self.folder / "redis", binary=binary, environment=self._clock(0.0))
        self._disks = [(self.folder / "storage", 400 << 20), (self.redis.folder, 600 << 20)]
        for disk, size in self._disks:
            disk.mkdir()
            mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)]
            if self.real_disk and subprocess.run(mount, check=False, capture_output=True).returncode:
                say(f"Cannot mount a tmpfs at {disk}, so full disks are simulated")
                self.real_disk = False
        self.redis.start()
        if self.bug == "early-acknowledgment":
            self.redis.client().config_set("appendonly", "no")
        self.proxies = {name: Proxy(self.redis.port) for name in ("gateway", "coordinator", "worker")}
        self.artifacts = ArtifactStore(str(self.folder / "storage"), self.folder / "cache")
        self.store = JobStore(self.redis.client(), Streams(self.artifacts))
        self.cluster: JobServer | RayHead = JobServer(lambda arguments: self._start("worker", arguments))
        if self.ray:
            self.cluster = RayHead(self.folder, self._environment("worker"), self.redis)
        self.urls = [f"http://127.0.0.1:{free_port()}" for _ in range(self.gateways)]
        self.processes: dict[tuple[str, int], BaseProcess] = {}
        self.stop = threading.Event()
        self._verified = set[str]()
        self._redis_lock = threading.Lock()

    def _clock(self, ahead: float) -> dict[str, str]:
        """Set how many seconds the clock of Redis is ahead. Return the environment in which Redis reads this clock."""
        path = self.folder / "clock"
        path.with_suffix(".new").write_text(f"{ahead:+.0f}")
        path.with_suffix(".new").replace(path)
        faked = {"LD_PRELOAD": str(_FAKETIME), "FAKETIME_TIMESTAMP_FILE": str(path), "FAKETIME_CACHE_DURATION": "1"}
        return {**faked, "DONT_FAKE_MONOTONIC": "1"} if _FAKETIME else {}

    # --- processes -----------------------------------------------------------------------------------------------

    def _start(self, role: str, arguments: list[str], index: int = 0) -> BaseProcess:
        return start(role, self._environment(role, index), self.folder, self.bug, arguments)

    def _environment(self, role: str, index: int = 0) -> dict[str, str]:
        prefix = "TLM_API_" if role == "gateway" else "TLM_TRAINER_"
        values = {
            "redis_url": f"redis://127.0.0.1:{self.proxies[role].port}/0",
            "redis_password": self.redis.password,
            "storage": self.artifacts.root,
            "scratch": str(self.folder / f"{role}-{index}"),
        }
        if role == "gateway":
            values |= {"port": self.urls[index].rpartition(":")[2], "token_file": str(self.folder / "token")}
        else:
            values |= {"ray_url": self.cluster.url if role == "coordinator" else "", "concurrency": "3"}
            values |= self.times
        environment = {"CHAOS_FOLDER": str(self.folder), "CHAOS_SEED": str(self.seed)}
        if role == "coordinator" and isinstance(self.cluster, RayHead):
            values["python"] = str(self.cluster.python)
            environment |= self.cluster.token
        return environment | {f"{prefix}{name}".upper(): value for name, value in values.items()}

    def _supervise(self) -> None:
        """Restart processes that have ended, as Compose and Kubernetes do, and verify new artifacts."""
        roles = [("gateway", n) for n in range(self.gateways)] + [("coordinator", n) for n in range(self.coordinators)]
        while not self.stop.wait(0.25):
            for role, index in roles:
                process = self.processes.get((role, index))
                if process is None or not process.is_alive():
                    self.processes[role, index] = self._start(role, [], index)
            if isinstance(self.cluster, RayHead):
                self.cluster.supervise()
            with suppress(TLMError, RedisError):  # Redis or the storage is unavailable.
                self._publish_free_space()
                self._verify_artifacts()

    def _publish_free_space(self) -> None:
        """Store the free space of Redis's disk, like the loop in deploy/. The file `filler` simulates a full disk."""
        free = shutil.disk_usage(self.redis.folder).free
        if not self.real_disk and (self.redis.folder / "filler").exists():
            free = 0
        self.redis.client().set(DISK_FREE, free >> 10, ex=60)

    def _verify_artifacts(self) -> None:
        """Read each new published artifact, and record damaged and missing ones in `history.torn`."""
        bodies: dict[str, str] = self.redis.client().hgetall(key(T, "artifacts"))  # type: ignore[assignment]
        for artifact, body in bodies.items():
            if body in self._verified:
                continue
            try:
                self.artifacts.verify(ref_of(T, artifact, body))
            except (NotFound, CorruptArtifact) as error:
                self.history.torn.append(f"{artifact}: {error}")
            self._verified.add(body)

    @contextmanager
    def running(self) -> Iterator[None]:
        pool = ThreadPoolExecutor(1)
        supervision = pool.submit(self._supervise)
        try:
            with patch.dict(MODULES, chaos="tests.chaos.kind"):
                yield
        finally:
            self.stop.set()
            pool.shutdown()
            for process in self.processes.values():
                send(process, signal.SIGKILL)
            self.cluster.close()
            for proxy in self.proxies.values():
                proxy.close()
            self.redis.kill()
            for disk, _ in self._disks if self.real_disk else ():
                subprocess.run(["umount", "--lazy", str(disk)], check=True)
        supervision.result()

    # --- clients -------------------------------------------------------------------------------------------------

    def request(self, client: httpx.Client, method: str, path: str, rng: random.Random, **more: Any) -> httpx.Response:
        """Send a request to random gateways until one answers without a server error. more: arguments of httpx."""
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            with suppress(httpx.HTTPError, FileNotFoundError):
                token = (self.folder / "token").read_text().strip()
                headers = {"Authorization": f"Bearer {token}", **more.get("headers", {})}
                url = rng.choice(self.urls) + path
                response = client.request(method, url, **{**more, "headers": headers})
                if response.status_code < 500:
                    return response
            time.sleep(0.2)
        raise TimeoutError(f"no answer to {method} {path} for 120 s")

    def add_dataset(self, name: str = "toy") -> None:
        with httpx.Client(timeout=30, trust_env=False) as client:
            files = {"train": ("train.csv", TRAIN)}
            rng = random.Random(0)
            answer = self.request(client, "POST", "/v1/datasets", rng, data={"name": name}, files=files)
        assert answer.status_code == 201, answer.text

    def submit(self, client: httpx.Client, number: int, **options: Any) -> str:
        """Submit a job of the kind `chaos`, and return its id."""
        answer = self.request(client, "POST", "/v1/jobs", random.Random(0), json=job_of(number, **options))
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    def client(self, numbers: list[int], patience: float) -> None:
        """Follow one job after another. numbers: of the jobs. patience: seconds in which each must end."""
        with httpx.Client(timeout=6, trust_env=False) as client:
            for place, number in enumerate(numbers):
                self._await_faults(place / max(1, len(numbers) - 1), patience)
                name, body = name_of(number), self._body(number)
                try:
                    self.follow(client, name, body, time.monotonic() + patience)
                except TimeoutError as error:  # The checker reports this job.
                    say(f"{name}: {error}")

    def _await_faults(self, share: float, seconds: float) -> None:
        """Wait until this share of the planned faults has begun, so that fast jobs do not end before all faults."""
        wait_for(lambda: len(self.faults) >= int(self.planned * share), seconds)

    def _body(self, number: int) -> dict[str, Any]:
        """Return the request of a job. Some jobs have equal work, which is computed once."""
        return job_of(number * 4 // 5, groups=1 if self.ray else 2, step_seconds=self.step_seconds)

    def follow(self, client: httpx.Client, name: str, body: dict[str, Any], deadline: float) -> None:
        """Submit a job, follow it to its end, and sometimes pause, resume or cancel it.

        Raises TimeoutError if no gateway answers.
        """
        # Requests have a separate generator, because their number differs between runs of a seed.
        job_rng, rng = random.Random(f"{self.seed}/{name}"), random.Random(f"{self.seed}/{name}/requests")

        def ask(method: str, path: str, **more: Any) -> str:
            sent_at = time.time()
            answer = self.request(client, method, path, rng, **more)
            if answer.status_code in (200, 202):
                job = answer.json()
                seen = Answer(sent_at, time.time(), name, job["id"], job["state"], job["last_event"])
                self.history.answers.append(seen)
                return str(job["id"])
            return ""

        job = ""
        for _ in range(job_rng.choice([1, 2])):  # A client that repeats its request gets the same job.
            job = ask("POST", "/v1/jobs", json={**body, "name": name}, headers={"Idempotency-Key": name}) or job
        verbs = job_rng.choices([[], ["cancel"], ["pause", "resume"]], [8, 1, 1])[0]
        while job and time.monotonic() < deadline:
            time.sleep(rng.uniform(0.3, 0.9))
            if not ask("GET", f"/v1/jobs/{job}"):
                return
            state = self.history.answers[-1].state if self.history.answers[-1].job == job else ""
            if state in TERMINAL:
                return
            if verbs and (verbs[0] != "resume" or state == State.PAUSED) and ask("POST", f"/v1/jobs/{job}/{verbs[0]}"):
                verbs = verbs[1:]

    # --- faults --------------------------------------------------------------------------------------------------

    def inject(self, fault: Fault) -> None:
        """Inject a fault, and end it after its seconds. Record in `faults` whether its target existed (`injected`)."""
        done = {**asdict(fault), "at": time.time(), "job": "", "pid": 0, "injected": True}
        self.faults.append(done)
        if fault.target == "redis":
            self._break_redis(fault)
        elif fault.target == "clock" and not _FAKETIME:
            done["injected"] = False
        elif fault.target == "clock":
            self._clock((2 * fault.pick - 1) * _MOST_CLOCK_SECONDS)
            time.sleep(fault.seconds)
            self._clock(0.0)
        elif fault.target == "storage":
            name = "storage-broken" if fault.kind == "break" else "storage/filler" if self.real_disk else "storage-full"
            path = self.folder / name
            path.touch()
            if name == "storage/filler":
                _fill(path, leave=0)
            time.sleep(fault.seconds)
            path.unlink(missing_ok=True)
        elif fault.target == "network":
            proxy = list(self.proxies.values())[int(fault.pick * len(self.proxies))]
            proxy.set(fault.kind)
            time.sleep(fault.seconds)
            proxy.set("pass")
        elif fault.target == "head":
            assert isinstance(self.cluster, RayHead)
            done["injected"] = self.cluster.kill_head()
        elif fault.target == "worker":
            runs = self.cluster.running()
            done["injected"] = bool(runs)
            if runs:
                run = runs[int(fault.pick * len(runs))]
                done["job"] = Assignment.read(run.arguments).job
                run.lost = fault.kind == "lose"
                done["injected"] = self._signal(run.process, fault)
        else:
            targets = [process for (role, _), process in self.processes.items() if role == fault.target]
            process = targets[int(fault.pick * len(targets))]
            done["pid"] = process.pid
            done["injected"] = self._signal(process, fault)

    @staticmethod
    def _signal(process: HasPid, fault: Fault) -> bool:
        """Kill a process, or stop it for the seconds of the fault. Return whether it existed."""
        sent = send(process, signal.SIGKILL if fault.kind == "kill" else signal.SIGSTOP)
        if sent and fault.kind != "kill":
            time.sleep(fault.seconds)
            send(process, signal.SIGCONT)
        return sent

    def _break_redis(self, fault: Fault) -> None:
        with self._redis_lock:
            if fault.kind == "kill":
                self.redis.kill()
                time.sleep(fault.seconds)
                self.redis.start()
            elif fault.kind == "fill":
                with self.full_redis():
                    time.sleep(fault.seconds)
            elif self.redis.process is not None:
                self.redis.process.send_signal(signal.SIGSTOP)
                time.sleep(fault.seconds)
                self.redis.process.send_signal(signal.SIGCONT)

    @contextmanager
    def full_redis(self) -> Iterator[None]:
        """Fill the disk of Redis during the block. The remaining space is less than the service needs."""
        filler = self.redis.folder / "filler"
        filler.touch()
        if self.real_disk:
            _fill(filler, leave=100 << 20)
        yield
        filler.unlink()

    # --- the run -------------------------------------------------------------------------------------------------

    def run(self, seed: int, jobs: int, clients: int, faults: list[Fault], patience: float) -> None:
        """Run all jobs and faults. patience: seconds that a client waits for the end of a job."""
        self.planned, self.seed = len(faults), seed
        self.history.planned = {name_of(number) for number in range(jobs)}
        with self.running():
            self.add_dataset()
            with ThreadPoolExecutor(clients) as users, ThreadPoolExecutor(4) as breakers:
                runs = [users.submit(self.client, list(range(n, jobs, clients)), patience) for n in range(clients)]
                while not self.history.answers and not any(user.done() for user in runs):
                    time.sleep(0.1)
                injections = []
                for fault in faults:
                    time.sleep(fault.wait)
                    if all(user.done() for user in runs):
                        break
                    injections.append(breakers.submit(self.inject, fault))
                for user in runs:
                    user.result()
                for injection in injections:
                    injection.result()
            self.collect()

    def collect(self) -> None:
        """Read records, artifacts, logs and the writes of workers into `history`."""
        self._verify_artifacts()
        records, more = self.store.list_jobs(T, limit=10_000)
        assert not more
        for job in records:
            try:
                events = self.store.events(T, job.id, limit=100_000)
            except CorruptArtifact as error:
                self.history.torn.append(f"the events of {job.id}: {error}")
                events = []
            self.history.records[job.id] = Record(job.spec.name or "", job.state, events)
            if job.state is State.SUCCEEDED and job.result and isinstance(job.spec.options, ChaosOptions):
                self._check_result(job.id, job.result.artifacts["number"].ref, job.spec.options.number)
        # The service invalidates a damaged artifact, often before the harness reads it.
        for log in self.folder.glob("*.log"):
            lines = [line for line in log.read_text().splitlines() if '"Invalidated artifact' in line]
            self.history.torn += [str(json.loads(line)["event"]) for line in lines]
        writes = self.folder / "writes.jsonl"
        lines = writes.read_text().splitlines() if writes.exists() else []
        self.history.writes = [Write(**json.loads(line)) for line in lines]

    def _check_result(self, job: str, ref: ManifestRef, number: int) -> None:
        try:
            with self.artifacts.open(ref, "content") as handle:
                if handle.read() != content(number):
                    self.history.torn.append(f"the result of {job} has other content")
        except NotFound as error:
            self.history.torn.append(f"the result of {job}: {error}")


def name_of(number: int) -> str:
    """Return the name of a job, which is also its idempotency key."""
    return f"chaos-{number}"


def job_of(number: int, **options: Any) -> dict[str, Any]:
    """Return the body that submits a job of the kind `chaos`."""
    body = {"kind": "chaos", "dataset": "toy", "options": {"number": number, **options}}
    return {**body, "overrides": {"selection.selector": "none"}}


def _fill(path: Path, leave: int) -> None:
    """Write to a file until its disk has only `leave` free bytes."""
    with suppress(OSError), path.open("wb", buffering=0) as file:
        while shutil.disk_usage(path.parent).free > leave:
            file.write(b"0" * 100_000)


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
