"""An attempt ends at a checkpoint when more workers have had room for a while."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from services.trainer.assignment import Assignment
from services.trainer.growth import Growth
from tests.factories import make_resolved, make_spec
from tlm_core.jobs.spec import JobRecord, Progress

ROOMY, WORTH = 120.0, 960.0  # seconds
ASSIGNMENT = Assignment("t", "job_1", 3, "main", 1, 4, 1.0, 0.0)


@dataclass
class Store:
    node: str = "joint.s0"
    eta: float = WORTH
    reports: list[dict[str, object]] = field(default_factory=list)

    def get(self, tenant: str, job: str) -> JobRecord:
        progress = Progress(stage=self.node.partition(".")[0], node=self.node, stage_eta_seconds=self.eta)
        return JobRecord.model_construct(
            tenant=tenant, id=job, spec=make_spec(), resolved=make_resolved(), progress=progress
        )

    def report(self, *_: object, **values: object) -> None:
        self.reports.append(values)


def growing(store: Store, free: list[int], *, workers: int = 2) -> tuple[Growth, list[float]]:
    """Return the growth of an attempt with `workers` of 4 workers, and its clock. free: room at each look."""
    clock = [0.0]
    return Growth(ASSIGNMENT, workers, store, lambda: free.pop(0), ROOMY, lambda: clock[0]), clock  # type: ignore[arg-type]


def test_attempt_ends_once_room_has_lasted() -> None:
    store = Store()
    growth, clock = growing(store, [3, 3, 3])
    looks = []
    for now in (0.0, ROOMY - 1, ROOMY):
        clock[0] = now
        looks.append(growth.look())
    assert looks == [False, False, True]
    assert store.reports == [{"draining": True}]
    assert growth.requested is not None and growth.requested.is_loss
    assert growth.requested.message.startswith("The Ray cluster has room for 2 more workers")


@pytest.mark.parametrize(
    ("store", "free", "workers"),
    [
        (Store(), [1, 0, 1], 2),  # another job took the room
        (Store(eta=WORTH - 1), [1, 1, 1], 2),
        (Store(node="prepare"), [1, 1, 1], 2),
        (Store(node="baseline"), [1, 1, 1], 2),
        (Store(), [9, 9, 9], 4),
    ],
)
def test_attempt_goes_on(store: Store, free: list[int], workers: int) -> None:
    growth, clock = growing(store, free, workers=workers)
    for now in (0.0, ROOMY, ROOMY + 1):
        clock[0] = now
        assert not growth.look()
    assert not store.reports and growth.requested is None


def test_watch_goes_on_after_an_error_of_ray() -> None:
    looks = []

    def places() -> int:
        looks.append(len(looks))
        if len(looks) == 1:
            raise RuntimeError("The head of Ray restarts.")
        growth.ended.set()
        return 0

    growth = Growth(ASSIGNMENT, 2, Store(), places, 0.01)  # type: ignore[arg-type]
    growth.watch()
    assert looks == [0, 1]
