"""Plans: the dependencies of nodes, and the nodes that a change of the recipe affects."""

from __future__ import annotations

from typing import Any

import pytest

from tests.factories import make_resolved, make_spec
from tlm_core.jobs.plan import Plan, plan_of
from tlm_core.jobs.spec import JobRecord
from tlm_core.jobs.states import State
from tlm_core.names import new_id
from tlm_core.training.recipe import resolve
from tlm_core.training.stage import Place


def make_job(overrides: dict[str, Any] | None = None, *, seeds: tuple[int, ...] = (0,), **resolved: Any) -> JobRecord:
    recipe = resolve("fast", "tiny", overrides or {})
    return JobRecord(
        id="job_1",
        tenant="default",
        state=State.RUNNING,
        spec=make_spec(seeds=seeds),
        resolved=make_resolved(recipe=recipe, **resolved),
        created_at=0,
        updated_at=0,
    )


def ids(job: JobRecord) -> dict[str, str]:
    """Return artifact ids, with each artifact's id as its digest."""
    artifacts: dict[str, str] = {}
    for node in plan_of(job).nodes:
        artifacts[node.name] = node.artifact_id(artifacts, job.id)
    return artifacts


def check_order(plan: Plan) -> None:
    seen: set[str] = set()
    for node in plan.nodes:
        assert set(node.inputs.values()) <= seen, f"{node.name} comes before its inputs"
        seen.add(node.name)


def test_evaluate_gathers_the_finetuning_of_every_seed() -> None:
    plan = plan_of(make_job(seeds=(1, 2)))
    check_order(plan)
    assert {"finetune.s1", "finetune.s2"} <= set(plan.node("evaluate").inputs.values())
    assert plan.final.name == "export"
    assert [node.name for node in plan.group("main")][:2] == ["self_train", "prepare"]


def test_task_only_plan_has_no_selection_and_joint_stage() -> None:
    plan = plan_of(make_job({"joint.enabled": False, "selection.selector": "none"}, corpus_name=None))
    check_order(plan)
    names = ["validate", "baseline", "prepare", "finetune.s0", "refit.s0", "refit_linear", "evaluate", "export"]
    assert [node.name for node in plan.nodes] == names
    assert all(n.place is not Place.RETRIEVER for n in plan.nodes)


def test_dataset_selection_depends_only_on_the_task() -> None:
    job = make_job({"selection.selector": "given"}, corpus_name=None, corpus_version=None)
    check_order(plan_of(job))
    node = plan_of(job).node("select")
    assert (node.place, dict(node.inputs), dict(node.fixed)) == (Place.RETRIEVER, {"task": "validate"}, {})
    assert plan_of(job).node("prepare").inputs["selection"] == "select"


@pytest.mark.parametrize(
    ("override", "reused"),
    [
        ({"finetune.epochs": 3}, {"validate", "baseline", "select", "self_train", "prepare", "joint.s0"}),
        ({"joint.rho2": 7}, {"validate", "baseline", "select", "self_train", "prepare"}),
        ({"tokenizer.vocab_size": 500}, {"validate", "baseline", "select", "self_train"}),
        ({"selection.top_k": 7}, {"validate", "baseline"}),
        ({"selection.unique_terms": True}, {"validate", "baseline"}),
        ({"selection.per_query_cap": 2}, {"validate", "baseline"}),
        ({"selection.max_tokens": 1000}, {"validate", "baseline"}),
    ],
)
def test_change_of_recipe_reruns_only_dependent_nodes(override: dict[str, Any], reused: set[str]) -> None:
    before, after = ids(make_job()), ids(make_job(override))
    assert {name for name in before if before[name] == after[name]} - {"refit_linear"} == reused
    assert (before["refit_linear"] == after["refit_linear"]) == ("self_train" in reused)


def test_recipe_without_refit_has_the_same_artifacts_but_no_refit() -> None:
    before, after = ids(make_job()), ids(make_job({"refit": False}))
    assert before.keys() - after.keys() == {"refit.s0", "refit_linear"}
    assert {name for name in after if after[name] != before[name]} == {"evaluate", "export"}


def test_self_training_joins_preparation_and_evaluation_where_passages_exist() -> None:
    plan = plan_of(make_job())
    check_order(plan)
    assert plan.node("prepare").inputs["self_train"] == "self_train"
    assert "self_train" not in {node.name for node in plan_of(make_job({"self_training.amounts": []})).nodes}
    assert dict(plan.node("self_train").inputs) == {"task": "validate", "baseline": "baseline", "selection": "select"}
    assert plan.node("evaluate").inputs["self_train"] == "self_train"
    alone = make_job({"selection.selector": "none"}, corpus_name=None)
    assert "self_train" not in {node.name for node in plan_of(alone).nodes}


RATES = {"finetune.rates": [1e-4, 1e-3]}


def test_rates_are_separate_nodes_and_choose_gathers_them() -> None:
    plan = plan_of(make_job(RATES, seeds=(0, 1)))
    check_order(plan)
    tries = [node for node in plan.nodes if node.stage.name == "finetune"]
    names = [f"finetune.s{seed}.lr{rate}" for seed in (0, 1) for rate in ("0.0001", "0.001")]
    assert [node.name for node in tries] == names
    assert [node.params.optimizer.lr for node in tries] == [1e-4, 1e-3] * 2
    choice = plan.node("finetune.s1")
    assert (choice.stage.name, dict(choice.inputs)) == ("choose", {"try.0": names[2], "try.1": names[3]})
    assert plan.node("evaluate").inputs["finetune.s1"] == "finetune.s1"


def test_validation_chooses_among_class_weights_and_rates() -> None:
    plan = plan_of(make_job(RATES | {"finetune.class_weights": "auto"}))
    check_order(plan)
    tries = [node for node in plan.nodes if node.stage.name == "finetune"]
    assert [(node.params.optimizer.lr, node.params.finetune.class_weights) for node in tries] == [
        (rate, weights) for rate in (1e-4, 1e-3) for weights in ("none", "balanced")
    ]
    choice = plan.node("finetune.s0")
    assert choice.params.tries[3] == {"lr": 1e-3, "class_weights": "balanced"}
    assert list(choice.inputs.values()) == [node.name for node in tries]
    weights = ids(make_job({"finetune.class_weights": "auto"}))
    for name in ("none", "balanced"):
        assert weights[f"finetune.s0.{name}"] == ids(make_job({"finetune.class_weights": name}))["finetune.s0"]


def test_tried_rate_shares_the_artifact_of_a_single_rate() -> None:
    tried, single = ids(make_job(RATES)), ids(make_job({"finetune.optimizer.lr": 1e-3}))
    assert tried["finetune.s0.lr0.001"] == single["finetune.s0"] != tried["finetune.s0"]
    extended = ids(make_job({"finetune.rates": [1e-4, 1e-3, 2e-3]}))
    assert tried["finetune.s0.lr0.0001"] == extended["finetune.s0.lr0.0001"]


def test_seeds_share_nodes_without_seed() -> None:
    first, second = ids(make_job(seeds=(0,))), ids(make_job(seeds=(1,)))
    assert first["prepare"] == second["prepare"]
    assert first["joint.s0"] != second["joint.s1"]


def test_joint_stage_with_wall_clock_budget_is_not_shared() -> None:
    job = make_job({"joint.budget.seconds": 5})
    other = job.model_copy(update={"id": "job_2"})
    assert ids(job)["prepare"] == ids(other)["prepare"]
    assert ids(job)["joint.s0"] != ids(other)["joint.s0"]
    assert ids(job)["joint.s0"] == ids(job)["joint.s0"]


def test_selection_depends_on_corpus_version() -> None:
    assert ids(make_job())["select"] != ids(make_job(corpus_version="v2"))["select"]


def test_ids_sort_by_time() -> None:
    values = [new_id("job", now) for now in (1.0, 2.0, 3_000_000_000.0)]
    assert values == sorted(values)
    assert len({len(value) for value in values}) == 1
