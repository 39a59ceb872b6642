"""Events of a job as sentences."""

from __future__ import annotations

import re
from typing import Any

import pytest

from services.api.dashboard.job_pages import event_line
from services.api.dashboard.progress import node_titles
from services.api.estimate import proposed
from tests.factories import make_resolved, make_spec
from tests.support import ROOT
from tlm_core.jobs.event_words import _SENTENCES
from tlm_core.jobs.plan import SEED_GROUP, plan_of
from tlm_core.jobs.spec import Event

# The type of an event in a call of `event`, or a type of the store with its prefix.
REPORTED = re.compile(
    r"""(?:(?<=event\(")[\w.]+|(?<=["'])(?:job|workers|stage|artifact|attempt|checkpoint)\.[a-z_]+)(?=["'])(?<!\.html)"""
)


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
            "Attempt 2 ended: Gone. The next attempt starts in 1 s.",
        ),
        ("refit", {"model": "self_trained"}, "Fitting the self-trained model again, also on validation"),
        ("baseline", {"rows": 1320}, "Fitting the linear model on 1,320 rows"),
        ("workers.submitted", {"group": "main"}, "Starting workers"),
        ("workers.submitted", {"group": f"{SEED_GROUP}2"}, "Starting workers for seed 2"),
        ("job.claimed", {"owner": "host-7"}, "A coordinator started attempt 2"),
        ("job.moved", {"node": "joint.s0", "place": "{x}"}, "job.moved · node joint.s0 · place {x}"),
        ("job.failed", {}, "job.failed"),
    ],
)
def test_event_is_a_sentence(type: str, data: dict[str, Any], words: str) -> None:
    titles = node_titles(plan_of(proposed("default", make_spec(), make_resolved())))
    assert event_line(Event(seq=1, type=type, at=0, attempt=2, data=data), titles).words == words


def test_every_event_that_the_code_reports_has_words() -> None:
    types = set()
    for path in (file for folder in ("services", "tlm_core") for file in (ROOT / folder).rglob("*")):
        if path.suffix in (".py", ".lua") and path.name != "event_words.py":
            types |= set(REPORTED.findall(path.read_text(encoding="utf-8")))
    assert types > {"baseline", "job.claimed", "stage.resumed", "workers.submitted"}
    assert types <= _SENTENCES.keys()
