"""A job with several workers on two local Ray nodes, of which one is lost and later replaced."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from ray.cluster_utils import Cluster

from services.trainer.settings import TrainerSettings
from tests.contract.coordinator_harness import coordinator_of
from tests.contract.gateway import TRAIN, Gateway, T, add_dataset, make_gateway
from tests.e2e.stack import OVERRIDES
from tests.integration.worker_processes import Programs
from tests.redis_server import RedisServer
from tests.support import ROOT, wait_for
from tlm_core.jobs.spec import Event
from tlm_core.jobs.states import TERMINAL, State

pytestmark = [pytest.mark.e2e, pytest.mark.ray, pytest.mark.timeout(900)]
TASK_ALONE = {name: value for name, value in OVERRIDES.items() if not name.startswith("selection.")}
LOCAL = {"node_ip_address": "127.0.0.1", "dashboard_agent_listen_port": 0}
LONG = {"selection.selector": "none", "joint.budget.steps": 2000, "checkpoint_steps": 10}


@pytest.fixture
def gateway(redis_client: redis.Redis, tmp_path: Path) -> Gateway:
    return make_gateway(redis_client, tmp_path)


@pytest.fixture
def settings(gateway: Gateway, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> TrainerSettings:
    """The settings of the coordinator and, in the environment, those of the nodes."""
    values = {
        "TLM_TRAINER_STORAGE": str(gateway.root / "storage"),
        "TLM_TRAINER_SCRATCH": str(gateway.root / "workers"),
        "TLM_TRAINER_REDIS_URL": redis_server.url,
        "TLM_TRAINER_REDIS_PASSWORD": redis_server.password,
        "TLM_TRAINER_GROW_SECONDS": "1",
        "PYTHONPATH": str(ROOT),
        "RAY_USAGE_STATS_ENABLED": "0",
        # They keep Ray and gloo on loopback.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    return TrainerSettings()


@pytest.fixture
def nodes(settings: TrainerSettings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:  # noqa: ARG001
    """A head that offers no CPU, and two nodes with one each."""
    cluster = Cluster(initialize_head=True, head_node_args={**LOCAL, "num_cpus": 0, "include_dashboard": False})
    for _ in range(2):
        cluster.add_node(num_cpus=1, **LOCAL)
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    yield cluster
    cluster.shutdown()


def test_job_shrinks_when_a_node_is_lost_and_grows_with_another(
    gateway: Gateway, settings: TrainerSettings, nodes: Cluster, request: pytest.FixtureRequest
) -> None:
    jobs, programs = gateway.parts.jobs, Programs()
    request.addfinalizer(programs.close)
    coordinator = coordinator_of(gateway, programs, settings)
    add_dataset(gateway, "toy", {"train": TRAIN})
    with gateway.test_client() as api:
        body = {"dataset": "toy", "max_workers": 2, "overrides": TASK_ALONE | LONG}
        job_id = api.post("/v1/jobs", json=body).json()["id"]

    def events(kind: str) -> list[Event]:
        return [event for event in jobs.events(T, job_id) if event.type == kind]

    def run_until(condition: Callable[[], object]) -> None:
        wait_for(lambda: coordinator.round() or condition(), 300)

    run_until(lambda: events("checkpoint.published"))
    nodes.remove_node(next(iter(nodes.worker_nodes)), allow_graceful=False)
    run_until(lambda: [event for event in events("checkpoint.published") if event.attempt == 2])
    nodes.add_node(num_cpus=1, **LOCAL)
    run_until(lambda: jobs.get(T, job_id).state in TERMINAL)
    job = jobs.get(T, job_id)
    assert (job.state, job.attempt, job.failures) == (State.SUCCEEDED, 3, 0)
    trained = [event.data["workers"] for event in events("stage.started") if event.data["node"] == "joint.s0"]
    assert trained == [2, 1, 2], "Each attempt starts with the workers that find room."
    assert "ended at a checkpoint to grow" in events("job.requeued")[1].data["message"]
    assert {event.data["code"] for event in events("attempt.error")} == {"worker_lost"}
    assert events("stage.resumed")[0].data["step"] > 0
