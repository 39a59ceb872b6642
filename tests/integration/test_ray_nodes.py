"""A job with several workers on two local Ray nodes, of which one is missing at first, or lost and later replaced."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis
from ray.cluster_utils import Cluster

from services.common.jobstore import JobStore
from services.trainer.coordinator import Coordinator
from services.trainer.drain import drain_nodes
from services.trainer.settings import TrainerSettings
from tests.contract.coordinator_harness import coordinator_of
from tests.contract.gateway import TRAIN, Gateway, T, add_dataset, make_gateway
from tests.e2e.stack import OVERRIDES, command_of
from tests.integration.worker_processes import Programs
from tests.redis_server import RedisServer
from tests.support import ROOT, wait_for
from tlm_client.stack.processes import list_processes
from tlm_core.jobs.spec import Event, JobRecord
from tlm_core.jobs.states import TERMINAL, State

pytestmark = [pytest.mark.e2e, pytest.mark.ray, pytest.mark.timeout(900)]
TASK_ALONE = {name: value for name, value in OVERRIDES.items() if not name.startswith("selection.")}
LOCAL = {"node_ip_address": "127.0.0.1", "dashboard_agent_listen_port": 0}
LONG = {"selection.selector": "none", "joint.budget.steps": 200, "checkpoint_steps": 10}
ENDLESS = {"selection.selector": "none", "joint.budget.seconds": 900, "checkpoint_steps": 10}  # cancelled by the test


@pytest.fixture(scope="module")
def environment(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Variables of the nodes and of the coordinator."""
    root = tmp_path_factory.mktemp("nodes")
    return {
        "TLM_TRAINER_STORAGE": str(root / "storage"),
        "TLM_TRAINER_SCRATCH": str(root / "workers"),
        "TLM_TRAINER_REDIS_URL": redis_server.url,
        "TLM_TRAINER_REDIS_PASSWORD": redis_server.password,
        "TLM_TRAINER_GROW_SECONDS": "1",
        "PYTHONPATH": str(ROOT),
        "RAY_USAGE_STATS_ENABLED": "0",
        # They keep Ray and gloo on loopback.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "GLOO_SOCKET_IFNAME": "lo",
    }


@pytest.fixture(scope="module")
def cluster(environment: dict[str, str]) -> Iterator[Cluster]:
    """A head that offers no CPU."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        cluster = Cluster(initialize_head=True, head_node_args={**LOCAL, "num_cpus": 0, "include_dashboard": False})
    yield cluster
    cluster.shutdown()


@pytest.fixture
def nodes(cluster: Cluster, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """The head and two nodes with one CPU each. Tests remove and add nodes."""
    for name, value in {**environment, "RAY_ADDRESS": cluster.address}.items():
        monkeypatch.setenv(name, value)
    while len(cluster.worker_nodes) < 2:
        cluster.add_node(num_cpus=1, **LOCAL)
    return cluster


@pytest.fixture
def settings(nodes: Cluster) -> TrainerSettings:  # noqa: ARG001
    return TrainerSettings()


@pytest.fixture
def gateway(redis_client: redis.Redis, settings: TrainerSettings) -> Gateway:
    return make_gateway(redis_client, Path(settings.storage).parent)


COUNTERS = """
import json, sys
from pathlib import Path
import ray
from services.trainer import ranks
# A local function, so that Ray passes it on by value. The nodes share this machine, and so the counter.
path = sys.argv[1]
ranks.oom_kills = lambda: int(Path(path).read_text())
ray.init(log_to_driver=False)
for line in sys.stdin:
    print(ranks.more_oom_kills(json.loads(line)), flush=True)
"""


def test_oom_counters_are_read_on_the_nodes(nodes: Cluster, tmp_path: Path) -> None:
    counter = tmp_path / "kills"
    lost, left = (node.node_id for node in nodes.worker_nodes)
    command = [sys.executable, "-c", COUNTERS, str(counter)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as reader:
        assert reader.stdin is not None and reader.stdout is not None

        def more(kills: int, before: dict[str, int]) -> bool:
            counter.write_text(str(kills))
            reader.stdin.write(json.dumps(before) + "\n")
            reader.stdin.flush()
            lines = map(str.strip, reader.stdout)  # Ray prints its own messages too.
            return next(line for line in lines if line in ("True", "False")) == "True"

        assert not more(2, {left: 2, lost: 2})
        assert more(3, {left: 3, lost: 2})
        nodes.remove_node(next(node for node in nodes.worker_nodes if node.node_id == lost), allow_graceful=False)
        assert not more(3, {left: 3, lost: 2}), "The counter of a lost node shows nothing."
        assert more(3, {left: 2, lost: 2})
        reader.stdin.close()
        assert reader.wait(60) == 0


PLACED = """
import ray
ray.init(log_to_driver=False)
@ray.remote(num_cpus=1)
def worker():
    return True
result = worker.remote()
print(bool(ray.wait([result], timeout=5)[0]), flush=True)
input()
print(ray.get(result), flush=True)
"""


def test_drained_node_gets_no_more_workers(nodes: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)  # for the command `ray`
    drained, other = nodes.worker_nodes
    nodes.remove_node(other)
    drain_nodes([(nodes.address, drained.node_id)])
    command = [sys.executable, "-c", PLACED]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdin is not None and driver.stdout is not None
        lines = (line.strip() for line in driver.stdout)
        answers = (line == "True" for line in lines if line in ("True", "False"))  # Ray prints its own messages too.
        assert not next(answers)
        nodes.add_node(num_cpus=1, **LOCAL)
        driver.stdin.write("\n")
        driver.stdin.flush()
        assert next(answers)
    nodes.remove_node(drained)


@dataclass
class Run:
    """A submitted job and the coordinator that drives it."""

    jobs: JobStore
    coordinator: Coordinator
    job_id: str

    @property
    def job(self) -> JobRecord:
        return self.jobs.get(T, self.job_id)

    def events(self, kind: str) -> list[Event]:
        return [event for event in self.jobs.events(T, self.job_id) if event.type == kind]

    @property
    def trained(self) -> list[int]:
        """The number of workers in each attempt that trained."""
        started = [event.data for event in self.events("stage.started")]
        return [data["workers"] for data in started if data["node"] == "joint.s0"]

    def until(self, condition: Callable[[], object]) -> None:
        wait_for(lambda: self.coordinator.round() or condition(), 300)


@pytest.fixture
def run(
    gateway: Gateway,
    settings: TrainerSettings,
    request: pytest.FixtureRequest,
) -> Run:
    """A job with the number of workers that the test's parameter states."""
    jobs, programs = gateway.parts.jobs, Programs()
    request.addfinalizer(programs.close)
    coordinator = coordinator_of(gateway, programs, settings)
    add_dataset(gateway, "toy", {"train": TRAIN})
    with gateway.test_client() as api:
        body = {"dataset": "toy", "overrides": TASK_ALONE} | request.param
        return Run(jobs, coordinator, api.post("/v1/jobs", json=body).json()["id"])


@pytest.mark.parametrize("run", [{"max_workers": 2, "overrides": TASK_ALONE | ENDLESS}], indirect=True)
def test_job_shrinks_when_a_node_is_lost_and_grows_with_another(run: Run, nodes: Cluster) -> None:
    run.until(lambda: run.events("checkpoint.published"))
    nodes.remove_node(next(iter(nodes.worker_nodes)), allow_graceful=False)
    run.until(lambda: [event for event in run.events("checkpoint.published") if event.attempt == 2])
    nodes.add_node(num_cpus=1, **LOCAL)
    run.until(lambda: run.events("stage.resumed")[1:])
    assert (run.job.state, run.job.attempt, run.job.failures) == (State.RUNNING, 3, 0)
    assert run.trained == [2, 1, 2], "Each attempt starts with the workers that find room."
    assert "next attempt can start more workers" in run.events("job.requeued")[1].data["message"]
    assert {event.data["code"] for event in run.events("attempt.error")} == {"worker_lost"}
    lost, grown = (event.data["step"] for event in run.events("stage.resumed"))
    assert 0 < lost < grown
    run.jobs.cancel(T, run.job_id)
    run.until(lambda: run.job.state is State.CANCELLED)


@pytest.mark.parametrize("run", [{"workers": 2, "overrides": TASK_ALONE | LONG}], indirect=True)
def test_two_workers_wait_for_room_and_resume_after_one_is_killed(
    run: Run, nodes: Cluster, environment: dict[str, str]
) -> None:
    def ranks() -> list[int]:
        pids = list_processes({"TLM_TRAINER_STORAGE": environment["TLM_TRAINER_STORAGE"]})
        return [pid for pid in pids if command_of(pid).startswith(b"ray::RayTrainWorker")]

    nodes.remove_node(next(iter(nodes.worker_nodes)))
    run.until(lambda: "main" in run.job.beats)
    assert run.job.beats["main"].phase == "waiting"
    assert not run.events("stage.started")[1:], "Only the coordinator's stage has run."
    nodes.add_node(num_cpus=1, **LOCAL)
    # Reports are buffered, so the start of a stage can be reported after its first checkpoint.
    run.until(lambda: run.events("checkpoint.published") and run.trained)
    assert (run.job.attempt, run.trained, len(ranks())) == (1, [2], 2)
    step = run.events("checkpoint.published")[-1].data["step"]
    os.kill(ranks()[0], signal.SIGKILL)
    run.until(lambda: run.events("stage.resumed"))
    assert (run.job.attempt, run.job.failures, run.trained) == (2, 0, [2, 2])
    (resumed,) = run.events("stage.resumed")
    assert (resumed.attempt, resumed.data["node"]) == (2, "joint.s0")
    assert resumed.data["step"] >= step > 0
    run.until(lambda: run.job.state in TERMINAL)
    assert (run.job.state, run.job.attempt, run.job.failures) == (State.SUCCEEDED, 2, 0)
    wait_for(lambda: not ranks())
