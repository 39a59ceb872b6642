"""The dashboard's form for a new job."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.contract.dashboard_made import Made, fill
from tests.contract.dashboard_pages import Tags, signed_in
from tests.contract.gateway import Gateway
from tlm_core.jobs.options import LearningCurve, Prune
from tlm_core.jobs.spec import JobRecord

T = "default"


def test_a_form_sent_twice_is_one_job(gateway: Gateway) -> None:
    fill(gateway)
    browser = signed_in(gateway)
    page = Tags(browser.get("/ui/submit").text)
    key = next(given["value"] for tag, given in page.tags if tag == "input" and given.get("name") == "key")
    data = {
        "dataset": "tickets",
        "corpus": "manuals",
        "seeds": "0, 1",
        "overrides": "joint.rho2 = 5\n",
        "key": key or "",
    }
    first, second = (browser.post("/ui/submit", data=data).headers["location"] for _ in range(2))
    assert first == second
    job = gateway.parts.jobs.get(T, first.rsplit("/", 1)[1])
    assert (job.spec.seeds, job.spec.set, job.resolved.recipe.joint.rho2) == ((0, 1), {"joint.rho2": 5}, 5)
    alone = browser.post("/ui/submit", data={**data, "corpus": "", "key": "another"}).headers["location"]
    assert gateway.parts.jobs.get(T, alone.rsplit("/", 1)[1]).resolved.corpus_name is None


def test_labels_priority_and_a_limit_of_time_become_a_part_of_the_job(gateway: Gateway) -> None:
    fill(gateway)
    job = submitted(gateway, metadata="team = search\n\nrun = a = b", priority="-3", minutes="1.5")
    assert job.spec.metadata == {"team": "search", "run": "a = b"}
    assert (job.spec.priority, job.spec.max_runtime_seconds) == (-3, 90)
    shown = " ".join(Tags(signed_in(gateway).get(f"/ui/jobs/{job.id}").text).words.split())
    assert "team: search" in shown and "priority-3" in shown and "time limit1 min 30 s" in shown
    plain = submitted(gateway, metadata="", minutes=" ")
    assert (plain.spec.metadata, plain.spec.priority, plain.spec.max_runtime_seconds) == ({}, 0, None)


def test_each_kind_of_study_is_submitted_with_what_its_own_fields_say(gateway: Gateway) -> None:
    fill(gateway)
    # What stands in the fields of other kinds does not count.
    fields = {"sizes": "10, 50, 1", "levels": "0.25", "level": "0.4", "others": ["hostile", "tickets"]}
    shape = {"lstm": "LSTM-1-128", "margin": "0.02"}
    job = submitted(gateway, kind="learning_curve", models=["encoder"], **fields, **shape)
    shown = Tags(signed_in(gateway).get(f"/ui/jobs/{job.id}").text).words
    assert "learning_curve.sizes" in shown and "prune.levels" not in shown
    curve = job.spec
    assert curve.learning_curve is not None
    assert (curve.learning_curve.sizes, curve.learning_curve.models) == ((10, 50, 1), ("bilstm", "encoder"))
    lstm = curve.learning_curve.lstm
    assert (lstm.layers, lstm.hidden, lstm.embedding, curve.learning_curve.margin) == (1, 128, 128, 0.02)
    prune = submitted(gateway, kind="prune", tickets=["losing"], as_published="true", **fields).spec
    assert prune.prune is not None and prune.prune.as_published
    assert (prune.prune.levels, prune.prune.tickets) == ((0.25,), ("winning", "losing"))
    share = submitted(gateway, kind="share_tickets", own_levels="tickets = 0.2", **fields).spec
    assert share.share_tickets is not None
    assert (share.share_tickets.others, share.share_tickets.level) == (("hostile",), 0.4)
    assert share.share_tickets.tickets == {"tickets": 0.2}
    train = submitted(gateway, kind="train", **fields).spec
    assert (train.learning_curve, train.prune, train.share_tickets) == (None, None, None)


def test_the_model_of_a_job_is_pruned_whatever_stands_in_the_fields_that_it_brings(gateway: Gateway) -> None:
    trained = gateway.parts.jobs.get(T, fill(gateway).jobs["succeeded"])
    job = submitted(gateway, kind="prune", job=f" {trained.id} ", levels="0.2", scale="small", seeds="9")
    assert job.spec.pruned == trained.id
    assert (job.spec.scale, job.spec.seeds, job.spec.set) == ("tiny", trained.spec.seeds, trained.spec.set)
    assert job.resolved.reused["joint.s0"].model_dump() == (trained.result or {})["artifacts"]["joint.s0"]


def test_the_empty_form_asks_for_each_kind_as_the_api_does_by_default(gateway: Gateway) -> None:
    fill(gateway)
    page = Tags(signed_in(gateway).get("/ui/submit").text)
    given = {
        name: [
            one["value"] for tag, one in page.tags if tag == "input" and one.get("name") == name and "checked" in one
        ]
        for name in ("kind", "models", "tickets", "others")
    }
    assert given["kind"] == ["train"] and given["others"] == []
    assert given["models"] == list(LearningCurve().models) and given["tickets"] == list(Prune().tickets)
    typed = {
        one["name"]: one["value"] for tag, one in page.tags if tag == "input" and one.get("id") in ("sizes", "levels")
    }
    assert [float(one) for one in (typed["sizes"] or "").split(",")] == list(LearningCurve().sizes)
    assert [float(one) for one in (typed["levels"] or "").split(",")] == list(Prune().levels)


def submitted(gateway: Gateway, **fields: Any) -> JobRecord:
    """The job that the form has made."""
    answer = signed_in(gateway).post("/ui/submit", data={"dataset": "tickets", "corpus": "manuals", **fields})
    assert answer.status_code == 303, answer.text
    return gateway.parts.jobs.get(T, answer.headers["location"].rsplit("/", 1)[1])


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"seeds": "one"}, "whole numbers"),
        ({"overrides": "joint.rho9 = 5"}, "Did you mean"),
        ({"overrides": "joint.rho2"}, "key = value"),
        ({"overrides": "joint.rho2 = NaN"}, "NaN"),
        ({"scale": "huge"}, "/scale"),
        ({"dataset": "nope"}, "No dataset"),
        ({"kind": "guess"}, "no kind of job"),
        ({"metadata": "team search"}, "key = value"),
        ({"priority": "11"}, "/priority"),
        ({"minutes": "soon"}, "is no number"),
        ({"minutes": "-1"}, "/max_runtime_seconds"),
        ({"kind": "learning_curve", "sizes": "0.1, many"}, "is no number"),
        ({"kind": "learning_curve", "sizes": "0.1, 1", "lstm": "4x256"}, "such as 4-256"),
        ({"kind": "learning_curve", "sizes": "0.1, 1", "models": ["pretrained"]}, "go together"),
        ({"kind": "prune", "levels": "1.5"}, "between 0 and 1"),
        ({"kind": "prune", "levels": "0.2", "job": "toy"}, "/prune/job"),
        ({"kind": "share_tickets", "level": "0.3"}, "/share_tickets/others"),
        (
            {"kind": "share_tickets", "level": "0.3", "others": ["hostile"], "own_levels": "hostile = 2"},
            "below 1",
        ),
    ],
)
def test_a_form_that_cannot_be_submitted_keeps_what_was_typed(
    filled: tuple[Gateway, Made], data: Any, says: str
) -> None:
    gateway, _ = filled
    before = len(gateway.parts.jobs.list_jobs(T, limit=100)[0])
    whole = {"dataset": "tickets", "corpus": "manuals", "seeds": "0, 7", **data}
    answer = signed_in(gateway).post("/ui/submit", data=whole)
    assert (answer.status_code, says in answer.text) == (422, True), answer.text
    kept = ("seeds", "overrides", "metadata", "priority", "minutes", "sizes", "levels", "own_levels")
    assert all(value in answer.text for name, value in whole.items() if name in kept)
    ticked = {given["value"] for tag, given in Tags(answer.text).tags if tag == "input" and "checked" in given}
    assert ticked >= {*whole.get("models", ()), *whole.get("others", ())}
    assert len(gateway.parts.jobs.list_jobs(T, limit=100)[0]) == before


def test_a_preview_tells_recipe_and_cost_and_submits_nothing(filled: tuple[Gateway, Made]) -> None:
    gateway, _ = filled
    before = len(gateway.parts.jobs.list_jobs(T, limit=100)[0])
    answer = signed_in(gateway).post(
        "/ui/submit/preview", data={"dataset": "tickets", "corpus": "manuals", "overrides": "joint.rho2 = 7"}
    )
    assert answer.status_code == 200 and "ρ₂ 7" in answer.text and "4f1c2a9be07d" in answer.text
    assert re.search(r"<dt>FLOPs</dt><dd>[\d.]+ × 10", answer.text) and "built-in" in answer.text
    assert len(gateway.parts.jobs.list_jobs(T, limit=100)[0]) == before


def test_a_preview_of_a_study_tells_how_often_each_stage_runs(filled: tuple[Gateway, Made]) -> None:
    data = {"dataset": "tickets", "kind": "learning_curve", "sizes": "0.1, 1", "models": ["encoder"], "seeds": "0, 1"}
    answer = signed_in(filled[0]).post("/ui/submit/preview", data=data)
    assert answer.status_code == 200, answer.text
    assert "learning curve" in answer.text and "bilstm × 4" in answer.text and "not estimated" in answer.text
