"""The plans of learning curves and pruning: what fans out, what is shared, what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from tests.factories import make_spec
from tests.unit.jobs.test_plan import check_order, ids, make_job
from tlm_core.artifacts import ManifestRef
from tlm_core.compression.masks import Mask
from tlm_core.errors import InvalidRequest
from tlm_core.jobs.nodes import DatasetInput
from tlm_core.jobs.plan import Place, plan_of
from tlm_core.jobs.spec import JobRecord
from tlm_core.kinds.learning_curve import LearningCurveOptions
from tlm_core.kinds.prune import PruneOptions
from tlm_core.training.recipe import PUBLISHED_LR, resolve

SHARE: dict[str, Any] = {"others": ["second"], "tickets": {"second": Mask.full(3, 3).as_dict()}}


def job_of(kind: str, options: dict[str, Any] | None = None, *, seeds: tuple[int, ...] = (0, 1)) -> JobRecord:
    over: dict[str, Any] = {"kind": kind, "seeds": seeds}
    if options is not None:
        over["options"] = options
    other = DatasetInput(id="ds_2", ref=ManifestRef(folder="default/datasets/ds_2", digest="2" * 64))
    job = make_job(seeds=seeds, others=(other,) if kind == "share_tickets" else ())
    return job.model_copy(update={"spec": make_spec(**over)})


@pytest.mark.parametrize("kind", ["learning_curve", "prune", "share_tickets"])
def test_every_node_comes_after_its_inputs_and_the_last_one_is_the_report(kind: str) -> None:
    plan = plan_of(job_of(kind, SHARE if kind == "share_tickets" else None))
    check_order(plan)
    assert plan.final.name == plan.report
    assert len({node.name for node in plan.nodes}) == len(plan.nodes)


def test_a_curve_has_each_model_at_each_size_and_seed() -> None:
    plan = plan_of(job_of("learning_curve", {"sizes": [50, 200], "models": ["bilstm", "encoder", "tlm"]}))
    tested = {node.name for node in plan.nodes if node.name.startswith("evaluate.")}
    models, sizes, seeds = ("bilstm", "encoder", "tlm"), (50, 200), (0, 1)
    assert tested == {f"evaluate.{m}.n{n}.s{s}" for m in models for n in sizes for s in seeds}
    assert tested <= set(plan.final.inputs.values())
    assert plan.node("finetune.bilstm.n50.s0").stage.name == "bilstm"
    assert {"trained.tlm.s0", "prepared.bilstm.s1"} <= set(plan.final.inputs)
    assert plan.final.inputs["trained.tlm.s0"] == "finetune.tlm.n200.s0"


def test_tlm_asks_with_the_subset_s_texts_alone_unless_told_otherwise() -> None:
    options: dict[str, Any] = {"sizes": [50, 200], "models": ["bilstm", "tlm"]}
    assert plan_of(job_of("learning_curve", options)).node("select.n50.s0").inputs == {"task": "subset.n50.s0"}
    more = plan_of(job_of("learning_curve", options | {"unlabelled": True}))
    assert more.node("select.n50.s0").inputs == {"task": "validate"}
    assert more.node("prepare.tlm.n50.s0").inputs["task"] == "subset.n50.s0"


def test_models_that_need_no_corpus_have_no_selection() -> None:
    plan = plan_of(job_of("learning_curve", {"sizes": [50, 200], "models": ["bilstm", "encoder"]}))
    assert not [node for node in plan.nodes if node.place is Place.RETRIEVER or node.stage.name == "joint"]


def test_a_published_encoder_brings_its_own_tokens_and_is_finetuned_alone() -> None:
    options = {"sizes": [50, 200], "models": ["bilstm", "encoder", "pretrained"], "pretrained": "hub:some/encoder"}
    plan = plan_of(job_of("learning_curve", options))
    assert plan.node("prepare.pretrained.n50.s0").params.tokenizer.source == "hub:some/encoder"
    own, published = (plan.node(f"finetune.{name}.n50.s0").params for name in ("encoder", "pretrained"))
    assert published.model.init == "hub:some/encoder"
    assert own.optimizer.lr > published.optimizer.lr == PUBLISHED_LR
    assert published.finetune.epochs == own.finetune.epochs


def with_rates(job: JobRecord, rates: list[float]) -> JobRecord:
    recipe = resolve("fast", "tiny", {"finetune.rates": rates})
    return job.model_copy(update={"resolved": job.resolved.model_copy(update={"recipe": recipe})})


@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
@pytest.mark.parametrize("kind", ["learning_curve", "prune"])
def test_encoders_and_tickets_of_a_study_try_every_rate_beside_their_seed(kind: str, seeds: tuple[int, ...]) -> None:
    options = {"sizes": [50, 200], "models": ["bilstm", "encoder"]} if kind == "learning_curve" else {"levels": [0.5]}
    plan = plan_of(with_rates(job_of(kind, options, seeds=seeds), [1e-4, 1e-3]))
    check_order(plan)
    choices = [node for node in plan.nodes if node.stage.name == "choose"]
    assert len(choices) == len(seeds) * (2 if kind == "learning_curve" else 4)
    for choice in choices:
        tries = [plan.node(source) for source in choice.inputs.values()]
        assert [node.params.optimizer.lr for node in tries] == [1e-4, 1e-3]
        assert {node.group for node in tries} == {choice.group}
    assert "choose" not in {node.stage.name for node in plan.nodes if "bilstm" in node.name}


def test_rates_that_are_one_for_a_published_encoder_are_tried_once() -> None:
    options = {"sizes": [50, 200], "models": ["bilstm", "pretrained"], "pretrained": "hub:some/encoder"}
    plan = plan_of(with_rates(job_of("learning_curve", options), [5e-4, 1e-3]))
    node = plan.node("finetune.pretrained.n50.s0")
    assert (node.stage.name, node.params.optimizer.lr) == ("finetune", PUBLISHED_LR)


def test_sharing_takes_a_single_rate() -> None:
    job = with_rates(job_of("share_tickets", SHARE), [1e-4, 1e-3])
    with pytest.raises(InvalidRequest, match=r"instead of 'finetune\.rates'"):
        job.spec.check(job.resolved.recipe)


def test_the_sizes_and_the_shape_of_the_lstm_are_the_paper_s_unless_others_are_given() -> None:
    assert LearningCurveOptions().sizes == (0.01, 0.03, 0.1, 0.3, 1.0)
    assert (LearningCurveOptions().lstm.layers, LearningCurveOptions().lstm.hidden) == (4, 256)


def test_all_models_of_a_curve_have_the_same_epochs_batches_cap_and_validations() -> None:
    options = {"sizes": [50, 200], "models": ["bilstm", "bilstm_tlm", "encoder", "tlm", "pretrained"],
               "pretrained": "hub:some/encoder"}  # fmt: skip
    job = job_of("learning_curve", options)
    changes = {"finetune.epochs": 7, "finetune.batch": 16, "finetune.max_steps": 90, "finetune.evaluations": 3}
    resolved = job.resolved.model_copy(update={"recipe": resolve("fast", "tiny", changes)})
    plan = plan_of(job.model_copy(update={"resolved": resolved}))
    for node in plan.nodes:
        if node.name.startswith("finetune."):
            part = node.params.finetune
            assert {f"finetune.{key}": getattr(part, key.removeprefix("finetune.")) for key in
                    ("epochs", "batch", "max_steps", "evaluations")} == changes, node.name  # fmt: skip


@pytest.mark.parametrize(("kind", "options"), [("prune", {}), ("share_tickets", {"others": ["second"]})])
def test_importance_is_weighed_as_the_request_says(kind: str, options: dict[str, Any]) -> None:
    for asked in (True, False):
        plan = plan_of(job_of(kind, {**options, "as_published": asked}))
        told = {node.params.as_published for node in plan.nodes if node.stage.name == "importance"}
        assert told == {asked}


def test_the_workers_of_a_seed_begin_when_its_own_selections_are_there() -> None:
    plan = plan_of(job_of("learning_curve", {"sizes": [50, 200], "models": ["bilstm", "tlm"]}))
    here = {node.name: None for node in plan.nodes if node.place is not Place.WORKERS}
    here.pop("select.n200.s1")
    assert plan.startable("curve.s0", here) and not plan.startable("curve.s1", here)


@pytest.mark.parametrize("kind", ["learning_curve", "prune", "share_tickets"])
def test_seeds_run_side_by_side_and_no_two_groups_wait_for_each_other(kind: str) -> None:
    plan = plan_of(job_of(kind, SHARE if kind == "share_tickets" else None))
    groups = {node.group for node in plan.nodes if node.place is Place.WORKERS}
    assert {"gather"} < groups and len([group for group in groups if group.endswith((".s0", ".s1"))]) == 2
    done: dict[str, Any] = {node.name: None for node in plan.nodes if node.place is not Place.WORKERS}
    while groups:
        ready = {group for group in groups if plan.startable(group, done)}
        assert ready
        done |= {node.name: None for group in ready for node in plan.group(group)}
        groups -= ready
    alone = plan_of(job_of(kind, SHARE if kind == "share_tickets" else None, seeds=(0,)))
    assert {node.group for node in alone.nodes} == {"main"}


@pytest.mark.parametrize("kind", ["prune", "share_tickets"])
def test_tickets_of_a_published_encoder_are_checked_before_any_training(kind: str) -> None:
    job = job_of(kind, SHARE if kind == "share_tickets" else {"levels": [0.5, 0.95]})
    changes = {"model.init": "hub:some/encoder", "tokenizer.source": "hub:some/encoder", "joint.enabled": False}
    resolved = job.resolved.model_copy(update={"recipe": resolve("fast", "tiny", changes)})
    plan = plan_of(job.model_copy(update={"resolved": resolved}))
    first = next(node for node in plan.nodes if node.place is Place.WORKERS)
    assert first.stage.name == "check_encoder" and first.group == "main"
    assert first.params.init == "hub:some/encoder"
    assert "check_encoder" not in {node.stage.name for node in plan_of(job).nodes}


@pytest.mark.parametrize("kind", ["train", "learning_curve", "prune", "share_tickets"])
def test_jobs_on_different_data_share_no_artifact(kind: str) -> None:
    model = {"models": ["bilstm", "pretrained"], "pretrained": "hub:some/encoder"}
    job = job_of(kind, {"learning_curve": model, "share_tickets": SHARE}.get(kind))
    changes = {"model.init": "hub:some/encoder", "tokenizer.source": "hub:some/encoder", "joint.enabled": False}
    resolved = job.resolved.model_copy(update={"recipe": resolve("fast", "tiny", changes)})
    elsewhere = resolved.model_copy(update={"dataset": ManifestRef(folder="default/datasets/ds_9", digest="9" * 64)})
    one, other = (ids(job.model_copy(update={"resolved": found})) for found in (resolved, elsewhere))
    own = {"validate.1"} if kind == "share_tickets" else set()  # its second data set is the same
    assert {name for name in one if one[name] == other[name]} == own


@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
def test_the_published_encoder_of_a_curve_is_checked_before_any_training(seeds: tuple[int, ...]) -> None:
    options = {"sizes": [50, 200], "models": ["bilstm", "tlm", "pretrained"], "pretrained": "hub:some/encoder"}
    plan = plan_of(job_of("learning_curve", options, seeds=seeds))
    for group in {node.group for node in plan.nodes if node.stage.name in ("joint", "finetune", "bilstm")}:
        first = plan.group(group)[0]
        assert first.stage.name == "check_encoder" and first.params.init == "hub:some/encoder"
    alone = plan_of(job_of("learning_curve", {"sizes": [50, 200], "models": ["bilstm", "tlm"]}, seeds=seeds))
    assert "check_encoder" not in {node.stage.name for node in alone.nodes}


def test_pruning_takes_the_dense_model_of_a_train_job_from_the_cache() -> None:
    dense, pruned = ids(job_of("train")), ids(job_of("prune"))
    shared = {name for name in dense if name != "export"}
    assert {name: dense[name] for name in shared} == {name: pruned[name] for name in shared}


def test_pruning_has_a_ticket_for_each_kind_level_and_seed() -> None:
    plan = plan_of(job_of("prune", {"levels": [0.2, 0.4], "tickets": ["winning", "losing"]}))
    tickets = [node for node in plan.nodes if node.stage.name == "ticket"]
    assert len(tickets) == 2 * 2 * 2
    node = plan.node("ticket.winning.l0.2.s1")
    assert node.inputs == {"prepared": "prepare", "importance": "importance.s1", "joint": "joint.s1"}
    assert node.params.level == 0.2 and node.params.seed == 1


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"sizes": [0.5]}, "at least 2"),
        ({"sizes": [0.5, -1]}, "above 0"),
        ({"sizes": [10.5, 20]}, "whole number"),
        ({"sizes": [0.5, 0.5]}, "occurs twice"),
        ({"sizes": [0.5, 100]}, "all sizes as shares or all as counts"),
        ({"models": ["encoder"]}, "must include 'bilstm'"),
        ({"models": ["bilstm", "pretrained"]}, "needs the option"),
        ({"pretrained": "hub:x"}, "needs the option"),
    ],
)
def test_impossible_options_of_a_curve_are_refused(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        LearningCurveOptions(**options)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"levels": [0.0]}, "above 0 and below 1"),
        ({"levels": [0.5, 0.5]}, "occurs twice"),
        ({"tickets": ["random"]}, "must include 'winning'"),
    ],
)
def test_impossible_options_of_pruning_are_refused(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        PruneOptions(**options)


def test_options_of_another_kind_are_refused() -> None:
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        make_spec(kind="train", options={"levels": [0.5]})


def test_the_whole_is_the_largest_size() -> None:
    assert LearningCurveOptions(sizes=(1.0, 0.1)).largest == 1.0
    assert LearningCurveOptions(sizes=(100, 500)).largest == 500
    assert LearningCurveOptions(sizes=(100, 1)).largest == 1


def test_a_level_that_would_empty_a_layer_is_refused_before_anything_runs() -> None:
    recipe = resolve("fast", "tiny")  # 3 layers x 3 heads
    make_spec(kind="prune").check(recipe)
    with pytest.raises(InvalidRequest, match="at most 6 heads"):
        make_spec(kind="prune", options={"levels": [0.3, 0.8]}).check(recipe)


@pytest.mark.parametrize("kind", ["learning_curve", "share_tickets"])
def test_a_trace_is_refused_where_none_would_be_kept(kind: str) -> None:
    recipe = resolve("fast", "tiny", {"profile": True})
    options = {"options": SHARE} if kind == "share_tickets" else {}
    with pytest.raises(InvalidRequest, match=f"Kind '{kind}' writes no traces"):
        make_spec(kind=kind, **options).check(recipe)
    for kept in ("train", "prune"):
        make_spec(kind=kept).check(recipe)


def test_a_curve_with_tlm_needs_something_to_retrieve() -> None:
    make_spec(kind="learning_curve").check(resolve("fast", "tiny"))
    alone = resolve("fast", "tiny", {"selection.selector": "none"})
    with pytest.raises(InvalidRequest, match="need a corpus and a joint stage"):
        make_spec(kind="learning_curve").check(alone)
    make_spec(kind="learning_curve", options={"models": ["bilstm", "encoder"]}).check(alone)


def test_the_published_encoder_of_a_curve_is_among_its_recipes() -> None:
    options = {"models": ["bilstm", "pretrained"], "pretrained": "/srv/models/one"}
    spec = make_spec(kind="learning_curve", options=options)
    recipes = spec.definition.recipes(spec.options, resolve("fast", "tiny"))
    assert [recipe.model.init for recipe in recipes] == ["counts", "/srv/models/one"]


def test_sharing_trains_each_task_alone_all_together_and_with_tickets_from_one_start() -> None:
    plan = plan_of(job_of("share_tickets", SHARE))
    assert plan.node("validate.1").fixed == {"dataset": "2" * 64}
    assert plan.node("merge").inputs == {"task.0": "validate", "task.1": "validate.1"}
    for name in ("alone.0.s0", "alone.1.s0", "multi_task.s0", "tickets.s0"):
        assert plan.node(name).inputs["joint"] == "joint.s0"
        assert plan.node(name).params.finetune.reset_head is True
    assert plan.node("multi_task.s0").params.tickets == (None, None)
    assert plan.node("tickets.s0").params.tickets == (0.15, Mask.from_dict(SHARE["tickets"]["second"]))
    assert plan.node("tickets.s0").inputs["importance.0"] == "importance.0.s0"
    assert "importance.1" not in plan.node("tickets.s0").inputs, "a mask that is given needs no importance"


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (None, "options.others"),
        ({"others": []}, "at least 1"),
        ({"others": ["b"], "tickets": {"b": 1.5}}, "Invalid ticket of 'b': 1.5"),
        ({"others": ["b"], "tickets": {"b": "best"}}, "Invalid ticket of 'b': 'best'"),
        ({"others": ["b"], "tickets": {"b": {"heads": [[0]], "blocks": [1]}}}, "leaves layer 0 without a head"),
    ],
)
def test_impossible_options_of_sharing_are_refused(options: dict[str, Any] | None, complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        make_spec(kind="share_tickets", options=options)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"others": ["b"], "level": 0.9}, "at most 6 heads"),
        ({"others": ["b"], "tickets": {"c": 0.2}}, "a ticket for 'c', but the datasets are toy, b"),
        ({"others": ["b"], "tickets": {"b": Mask.full(2, 4).as_dict()}}, "2 layers x 4 heads; this one has 3 x 3"),
    ],
)
def test_tickets_that_do_not_fit_the_model_are_refused(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InvalidRequest, match=complaint):
        make_spec(kind="share_tickets", options=options).check(resolve("fast", "tiny"))


@pytest.mark.parametrize("init", ["scratch", "hub:some/encoder"])
def test_a_ticket_for_none_of_the_tasks_is_refused_whatever_the_model_starts_from(init: str) -> None:
    recipe = resolve("fast", "tiny", {"model.init": init, "tokenizer.source": init if "hub" in init else "own"})
    with pytest.raises(InvalidRequest, match="a ticket for 'c', but the datasets are toy, b"):
        options = {"others": ["b"], "tickets": {"c": 0.2}}
        make_spec(kind="share_tickets", options=options).check(recipe)


def test_sizes_that_differ_a_little_have_nodes_of_their_own() -> None:
    options = {"sizes": [1_000_000, 1_000_001], "models": ["bilstm"]}
    names = [node.name for node in plan_of(job_of("learning_curve", options, seeds=(0,))).nodes]
    assert len(names) == len(set(names)) and "finetune.bilstm.n1000001.s0" in names
