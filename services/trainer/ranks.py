"""The workers that Ray Train starts: several, or one with a GPU. Only their submissions import this module.

Ray Train places the workers, connects them, and ends all workers when one fails. It retries nothing and stores nothing:
the coordinator starts attempts, and training resumes from the checkpoints of this service. The controller of Ray Train
imports this module too, so the top of the module imports only what the controller needs.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

import ray
import torch.distributed as dist
from ray._private.state import available_resources_per_node
from ray.exceptions import OutOfMemoryError, RayError
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError, WorkerGroupError, get_context
from ray.train._internal.utils import get_address_and_port
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util import placement_group_table
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from torch.distributed.distributed_c10d import _set_pg_timeout

from services.common.jobstore import JobStore
from services.common.logs import set_up_logging
from services.common.situation import Situation
from services.trainer.assignment import Assignment
from services.trainer.growth import Growth
from services.trainer.oom import oom_kills, report_oom
from services.trainer.process_group import join
from services.trainer.scratch import work_folder
from tlm_core.errors import Conflict, NotFound, TLMError, WorkerFailed, WorkerLost
from tlm_core.jobs.spec import Beat

if TYPE_CHECKING:
    from ray.train.v2._internal.execution.worker_group import WorkerGroup

T = TypeVar("T")
log = logging.getLogger(__name__)

_MONTH = timedelta(days=30)
# Timeout of a collective operation. It is longer than a worker waits for the storage.
_COLLECTIVE = timedelta(minutes=15)
# Timeout of a start with more than the minimum of workers: another job may use the room first.
_START = timedelta(minutes=2)
_COUNTING = timedelta(seconds=20)  # timeout for reading the counters of all machines
_WAITING_SECONDS = 10.0  # between two reports of a submission that waits for its workers

# Settings of Ray Train. It passes them on to its controller and its workers.
_ENVIRONMENT = {
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "120",
    # Disable these features of Ray Train: the service has its own working folders, logs and metrics.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_ENABLE_CONTROLLER_STRUCTURED_LOGGING": "0",
    "RAY_TRAIN_ENABLE_WORKER_STRUCTURED_LOGGING": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    # SIGTERM already informs workers that their machine stops.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}


def run_workers(assignment: Assignment) -> None:
    """Start the workers of a submission and wait for them. Raises TrainingFailedError if a worker fails.

    Reports the errors that workers cannot report, such as their death.
    """
    from services.trainer.compute import drain_on_sigterm
    from services.trainer.patience import report_error
    from services.trainer.settings import TrainerSettings

    set_up_logging("driver", assignment.ids)
    ray.init()
    drain_on_sigterm(assignment)
    settings, number = TrainerSettings(), _number_of_workers(assignment)
    # A start with the minimum of workers waits for room without limit, and the coordinator reports the wait.
    patience = _MONTH if number == assignment.workers else _START
    os.environ |= _ENVIRONMENT | {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": str(patience.total_seconds())}
    growth = Growth(assignment, number, settings.job_store(), lambda: _places(assignment), settings.grow_seconds)
    threading.Thread(target=growth.watch, daemon=True).start()
    waiting = (assignment, growth.store, growth.ended, _lacks_room)
    threading.Thread(target=report_waiting, args=waiting, daemon=True).start()
    identity = assignment.tenant, assignment.job, assignment.attempt
    with work_folder(settings.scratch, f"{assignment.job}-{assignment.attempt}-ray") as work:
        try:
            _trainer(assignment, number, work).fit()
        except TrainingFailedError as failure:
            if (error := _unreported(failure)) is not None:
                report_error(growth.store, *identity, error)
            raise
        finally:
            growth.ended.set()
    if growth.requested is not None:
        situation = Situation.read(growth.store, growth.store.get(assignment.tenant, assignment.job))
        if not situation.is_done(assignment.group):
            report_error(growth.store, *identity, growth.requested)


def report_waiting(
    assignment: Assignment, store: JobStore, ended: threading.Event, lacks_room: Callable[[], bool]
) -> None:
    """Until `ended` is set, report every 10 s that the submission waits, if `lacks_room` returns True.

    So the coordinator distinguishes a wait for room, which has no limit, from workers that do not start.
    """
    while True:
        try:
            if lacks_room():
                _report_phase(assignment, store, "waiting")
        except (Conflict, NotFound):  # The attempt has ended.
            return
        except Exception as error:  # of Redis, or of Ray while its head restarts
            log.warning("Cannot report that the submission waits: %s", error)
        if ended.wait(_WAITING_SECONDS):
            return


def _lacks_room() -> bool:
    """Return whether a placement group of this submission waits for free resources."""
    own = ray.get_runtime_context().get_job_id()  # The id of a placement group ends with the id of its Ray job.
    return any(name.endswith(own) and group["state"] == "PENDING" for name, group in placement_group_table().items())


def _report_phase(assignment: Assignment, store: JobStore, phase: Literal["waiting", "starting"]) -> None:
    store.report(assignment.tenant, assignment.job, assignment.attempt, beat=(assignment.group, Beat(phase=phase)))


def _trainer(assignment: Assignment, number: int, work: Path) -> TorchTrainer:
    return TorchTrainer(
        run_rank,
        train_loop_config={"assignment": assignment},
        torch_config=_ProcessGroup(assignment),
        scaling_config=ScalingConfig(
            num_workers=number, use_gpu=assignment.gpus > 0, resources_per_worker=_needs(assignment)
        ),
        run_config=RunConfig(
            name="ray",
            storage_path=str(work),
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=0, max_preemption_failures=0),
            worker_runtime_env={"env_vars": assignment.environment},
        ),
    )


def _needs(assignment: Assignment) -> dict[str, float]:
    """Return the resources that Ray reserves for a worker, such as {"CPU": 1.0, "GPU": 1.0}."""
    return {name: amount for name, amount in (("CPU", assignment.cpus), ("GPU", assignment.gpus)) if amount}


def _number_of_workers(assignment: Assignment) -> int:
    """Return how many workers this submission starts: as many as have room now, from `workers` to `max_workers`.

    The range of Ray Train (`num_workers=(min, max)`) is unsuitable: it counts resources that other submissions use.
    """
    return max(assignment.workers, min(_places(assignment), assignment.max_workers))


def _places(assignment: Assignment) -> int:
    """Return how many workers the cluster has room for now."""
    needs, nodes = _needs(assignment).items(), available_resources_per_node().values()
    return sum(min(int(free.get(name, 0.0) / amount + 1e-3) for name, amount in needs) for free in nodes)


def _unreported(failure: TrainingFailedError) -> WorkerLost | None:
    """Return the job's error for a failure of Ray Train, or None if the failed worker has reported its own error."""
    details = str(failure)
    if not isinstance(failure, WorkerGroupError):
        return WorkerLost("Workers did not start, or lost their machine.", details=details)
    causes = failure.worker_failures
    if any(isinstance(getattr(cause, "health_check_failure", cause), OutOfMemoryError) for cause in causes.values()):
        message = "Worker exceeded the memory of its machine, and Ray ended it. Use a machine with more memory."
        return WorkerFailed(message, details=details)
    lost = [rank for rank, cause in causes.items() if _is_of_ray(cause)]
    if not lost:
        return None
    return WorkerLost(f"Worker {lost[0]} was killed (often out of memory) or does not answer.", details=details)


class _ProcessGroup(TorchConfig):
    """The configuration with which Ray Train uses `_Backend`. `_Backend` reads the assignment from it."""

    def __init__(self, assignment: Assignment) -> None:
        super().__init__()
        self.assignment = assignment

    @property
    def backend_cls(self) -> type:
        return _Backend


class _Backend(TorchConfig().backend_cls):  # type: ignore[misc]
    """Connects the workers in a process group. Ray Train calls the methods in its controller."""

    # Each rank sees only its own GPU, as cuda:0. By default, each rank would see the GPUs of all ranks on its machine,
    # and all ranks would compute on the first GPU.
    share_cuda_visible_devices = False

    def on_start(self, worker_group: WorkerGroup, backend_config: _ProcessGroup) -> None:
        from services.trainer.patience import patiently
        from services.trainer.settings import TrainerSettings

        assignment, size = backend_config.assignment, len(worker_group)
        set_up_logging("controller", assignment.ids)
        nodes = [worker.metadata.node_id for worker in worker_group.get_workers()]
        self.kills = dict(zip(nodes, worker_group.execute(oom_kills), strict=True))
        store = TrainerSettings().job_store()
        patiently(lambda: _report_phase(assignment, store, "starting"))
        worker_group.execute(_watch_sigterm, assignment)  # in the main thread of each worker
        host, port = worker_group.execute_single(0, get_address_and_port)
        name = f"{assignment.job}.{assignment.group}.{assignment.attempt}"
        options = {"backend": "nccl" if assignment.gpus else "gloo", "timeout": _COLLECTIVE}
        joining = [
            worker_group.execute_single_async(rank, join, name, host, port, rank, size, **options)
            for rank in range(size)
        ]
        ray.get(joining, timeout=_COLLECTIVE.total_seconds())

    def on_shutdown(self, worker_group: WorkerGroup, backend_config: _ProcessGroup) -> None:
        """Report a worker that the kernel killed because memory ran out. A killed worker cannot report this."""
        status = worker_group.get_latest_poll_status()
        lost = status is not None and any(map(_is_loss, status.errors.values()))
        try:
            if lost and more_oom_kills(self.kills):
                report_oom(backend_config.assignment)
        except Exception as error:  # This error of Redis or Ray must not hide the error that ends the workers.
            log.warning("Cannot report whether the kernel killed a worker: %s", error)
        super().on_shutdown(worker_group, backend_config)


def more_oom_kills(before: Mapping[str, int]) -> bool:
    """Return whether the kernel has killed more processes since `before` because memory ran out.

    before: id of a Ray node → its earlier number of such kills. Ignores a node that does not return its number within
    `_COUNTING`, for example because its container has ended.
    """
    count = ray.remote(num_cpus=0, max_retries=0)(oom_kills)
    reads = {node: count.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, False)) for node in before}
    nodes = {reading.remote(): node for node, reading in reads.items()}
    for result in ray.wait(list(nodes), num_returns=len(nodes), timeout=_COUNTING.total_seconds())[0]:
        with suppress(RayError):
            if ray.get(result) > before[nodes[result]]:
                return True
    return False


def _is_loss(error: Exception) -> bool:
    """Return whether the error of a rank may come from the death of this rank or of another rank."""
    return _is_of_ray(error) or (isinstance(error, TLMError) and error.is_loss)


def _is_of_ray(error: Exception) -> bool:
    """Return whether Ray reports that a rank died or does not answer. A rank reports its own errors."""
    return type(getattr(error, "health_check_failure", error)).__module__.startswith("ray.")


def _watch_sigterm(assignment: Assignment) -> None:
    from services.trainer.compute import drain_on_sigterm

    set_up_logging("worker", assignment.ids)  # until `compute` adds the rank
    drain_on_sigterm(assignment)


def run_rank(config: dict[str, Assignment]) -> None:
    """Run the stages on one rank. Ray Train calls this function in a thread of each worker."""
    from services.trainer.compute import compute
    from tlm_core.training.objective import connected

    context = get_context()
    # Rank 0 may compute a stage alone for hours, so broadcasts may wait for a month. The creation of the group may not.
    group = dist.new_group(backend="gloo", timeout=_COLLECTIVE)
    _set_pg_timeout(_MONTH, group)

    def broadcast(value: T) -> T:
        values = [value]
        with connected():
            dist.broadcast_object_list(values, src=0, group=group)
        return values[0]

    compute(config["assignment"], context.get_world_rank(), context.get_world_size(), broadcast)
