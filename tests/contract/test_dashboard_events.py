"""Events of a job as sentences."""

from __future__ import annotations

from typing import Any

import pytest

from services.api.dashboard.job_pages import event_line
from services.api.dashboard.progress import node_titles
from services.api.estimate import proposed
from tests.factories import make_resolved, make_spec
from tlm_core.jobs.plan import plan_of
from tlm_core.jobs.spec import Event


@pytest.mark.parametrize(
    ("type", "data", "words"),
    [
        ("artifact.published", {"node": "joint.s0", "stage": "joint", "artifact": "a"}, "Finished joint (seed 0)"),
        ("artifact.published", {"node": "self_train", "stage": "self_train"}, "Finished self train"),
        ("stage.started", {"node": "of another plan"}, "Started of another plan"),
        (
            "checkpoint.published",
            {"node": "prepare", "step": 1200},
            "Stored a checkpoint of prepare at step 1,200",
        ),
        (
            "job.requeued",
            {"message": "Gone.", "delay_seconds": 1.0},
            "Attempt 2 ended: Gone. The next one starts in 1 s.",
        ),
        ("job.claimed", {"owner": "host-7"}, "A coordinator started attempt 2"),
        ("job.moved", {"node": "joint.s0", "place": "{x}"}, "job.moved · node joint.s0 · place {x}"),
        ("job.failed", {}, "job.failed"),
    ],
)
def test_event_is_a_sentence(type: str, data: dict[str, Any], words: str) -> None:
    titles = node_titles(plan_of(proposed("default", make_spec(), make_resolved())))
    assert event_line(Event(seq=1, type=type, at=0, attempt=2, data=data), titles).words == words
