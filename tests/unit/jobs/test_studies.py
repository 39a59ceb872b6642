"""Plans and options of learning curves, pruning and ticket sharing."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from tests.factories import make_spec
from tests.unit.jobs.test_plan import check_order, ids, make_job
from tlm_core.artifacts import ManifestRef
from tlm_core.compression.masks import Mask
from tlm_core.errors import InvalidRequest
from tlm_core.jobs.plan import plan_of
from tlm_core.jobs.spec import DatasetInput, JobRecord
from tlm_core.kinds import KINDS
from tlm_core.kinds.learning_curve import LearningCurveOptions
from tlm_core.kinds.prune import PruneOptions
from tlm_core.training.recipe import PUBLISHED_LR, resolve
from tlm_core.training.stage import Place

SHARE: dict[str, Any] = {"others": ["second"], "tickets": {"second": Mask.full(3, 3).as_dict()}}


def job_of(kind: str, options: dict[str, Any] | None = None, *, seeds: tuple[int, ...] = (0, 1)) -> JobRecord:
    over: dict[str, Any] = {"kind": kind, "seeds": seeds}
    if options is not None:
        over["options"] = options
    other = DatasetInput(id="ds_2", ref=ManifestRef(folder="default/datasets/ds_2", digest="2" * 64))
    job = make_job(seeds=seeds, others=(other,) if kind == "share_tickets" else ())
    return job.model_copy(update={"spec": make_spec(**over)})


@pytest.mark.parametrize("kind", ["learning_curve", "prune", "share_tickets"])
def test_last_node_is_the_report_and_names_are_unique(kind: str) -> None:
    plan = plan_of(job_of(kind, SHARE if kind == "share_tickets" else None))
    check_order(plan)
    assert plan.final.name == plan.report
    assert len({node.name for node in plan.nodes}) == len(plan.nodes)


def test_curve_tests_each_model_at_each_size_and_seed() -> None:
    plan = plan_of(job_of("learning_curve", {"sizes": [50, 200], "models": ["bilstm", "encoder", "tlm"]}))
    tested = {node.name for node in plan.nodes if node.name.startswith("evaluate.")}
    models, sizes, seeds = ("bilstm", "encoder", "tlm"), (50, 200), (0, 1)
    assert tested == {f"evaluate.{m}.n{n}.s{s}" for m in (*models, "linear") for n in sizes for s in seeds}
    assert tested <= set(plan.final.inputs.values())
    assert plan.node("finetune.bilstm.n50.s0").stage.name == "bilstm"
    assert {"trained.tlm.s0", "prepared.bilstm.s1"} <= set(plan.final.inputs)
    assert plan.final.inputs["trained.tlm.s0"] == "finetune.tlm.n200.s0"


def test_curve_fits_the_linear_model_at_each_point_in_one_group() -> None:
    plan = plan_of(job_of("learning_curve", {"sizes": [50, 200, 1], "models": ["bilstm"]}, seeds=(3, 4)))
    ends = [f"n{size}.s{seed}" for size in (50, 200) for seed in (3, 4)]
    fitted = [node for node in plan.nodes if node.stage.name == "baseline"]
    assert [node.name for node in fitted] == [*(f"baseline.{end}" for end in ends), "baseline.n1.s3"]
    assert [node.inputs["task"] for node in fitted] == [*(f"subset.{end}" for end in ends), "validate"]
    assert {node.group for node in fitted} == {plan.node(f"evaluate.linear.{ends[0]}").group} == {"main"}
    assert {f"evaluate.linear.{end}" for end in [*ends, "n1.s3"]} <= set(plan.final.inputs.values())
    assert plan.final.inputs["trained.linear"] == "baseline.n1.s3"
    retrieving = plan_of(job_of("learning_curve", {"sizes": [50, 1], "models": ["bilstm", "tlm"]}))
    assert {node.group for node in retrieving.nodes if "linear" in node.name} == {"baseline"}, (
        "it runs during selection"
    )


def test_full_linear_model_of_a_curve_is_that_of_train() -> None:
    curve, train = ids(job_of("learning_curve", {"sizes": [50, 1], "models": ["bilstm"]})), ids(job_of("train"))
    assert curve["baseline.n1.s0"] == train["baseline"] != curve["baseline.n50.s0"]


def test_sharing_fits_a_linear_model_on_each_task() -> None:
    plan = plan_of(job_of("share_tickets", SHARE))
    assert [plan.node(f"baseline.{number}").inputs for number in (0, 1)] == [
        {"task": "validate"},
        {"task": "validate.1"},
    ]
    assert {"baseline.0", "baseline.1"} <= set(plan.final.inputs)


def test_tlm_queries_with_subset_unless_unlabelled_is_set() -> None:
    options: dict[str, Any] = {"sizes": [50, 200], "models": ["bilstm", "tlm"]}
    assert plan_of(job_of("learning_curve", options)).node("select.n50.s0").inputs == {"task": "subset.n50.s0"}
    plan = plan_of(job_of("learning_curve", options | {"unlabelled": True}))
    assert plan.node("select.n50.s0").inputs == {"task": "validate"}
    assert plan.node("prepare.tlm.n50.s0").inputs["task"] == "subset.n50.s0"


def test_models_without_corpus_have_no_selection() -> None:
    plan = plan_of(job_of("learning_curve", {"sizes": [50, 200], "models": ["bilstm", "encoder"]}))
    assert not [node for node in plan.nodes if node.place is Place.RETRIEVER or node.stage.name == "joint"]


def test_published_encoder_has_its_own_tokens_and_rate() -> None:
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
def test_encoders_and_tickets_try_every_rate(kind: str, seeds: tuple[int, ...]) -> None:
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


@pytest.mark.parametrize("kind", ["learning_curve", "prune"])
def test_every_model_tries_automatic_class_weights(kind: str) -> None:
    options = {"sizes": [50, 200], "models": ["bilstm", "encoder"]} if kind == "learning_curve" else {"levels": [0.5]}
    job = job_of(kind, options)
    recipe = resolve("fast", "tiny", {"finetune.class_weights": "auto"})
    plan = plan_of(job.model_copy(update={"resolved": job.resolved.model_copy(update={"recipe": recipe})}))
    tuned = [node for node in plan.nodes if hasattr(node.params, "finetune")]
    assert len(tuned) == 2 * len([node for node in plan.nodes if node.stage.name == "choose"]) > 2
    assert {node.params.finetune.class_weights for node in tuned} == {"none", "balanced"}


def test_published_encoder_tries_equal_capped_rates_once() -> None:
    options = {"sizes": [50, 200], "models": ["bilstm", "pretrained"], "pretrained": "hub:some/encoder"}
    plan = plan_of(with_rates(job_of("learning_curve", options), [5e-4, 1e-3]))
    node = plan.node("finetune.pretrained.n50.s0")
    assert (node.stage.name, node.params.optimizer.lr) == ("finetune", PUBLISHED_LR)


@pytest.mark.parametrize("tries", [{"finetune.rates": [1e-4, 1e-3]}, {"finetune.class_weights": "auto"}])
def test_sharing_rejects_several_finetunings(tries: dict[str, object]) -> None:
    with pytest.raises(InvalidRequest, match=r"Omit 'finetune\.rates'"):
        job_of("share_tickets", SHARE).spec.check(resolve("fast", "tiny", tries))


def test_default_sizes_and_lstm_are_those_of_the_paper() -> None:
    assert LearningCurveOptions().sizes == (0.01, 0.03, 0.1, 0.3, 1.0)
    assert (LearningCurveOptions().lstm.layers, LearningCurveOptions().lstm.hidden) == (4, 256)


def test_models_of_a_curve_share_finetuning_settings() -> None:
    options = {"sizes": [50, 200], "models": ["bilstm", "bilstm_tlm", "encoder", "tlm", "pretrained"],
               "pretrained": "hub:some/encoder"}  # fmt: skip
    job = job_of("learning_curve", options)
    changes = {"finetune.epochs": 7, "finetune.batch": 16, "finetune.max_steps": 90, "finetune.evaluations": 3}
    resolved = job.resolved.model_copy(update={"recipe": resolve("fast", "tiny", changes)})
    plan = plan_of(job.model_copy(update={"resolved": resolved}))
    for node in plan.nodes:
        if node.name.startswith("finetune."):
            finetune = node.params.finetune
            assert {f"finetune.{key}": getattr(finetune, key.removeprefix("finetune.")) for key in
                    ("epochs", "batch", "max_steps", "evaluations")} == changes, node.name  # fmt: skip


def test_limit_after_the_joint_stage_concerns_only_tlm() -> None:
    options = {"sizes": [50, 200], "models": ["bilstm", "bilstm_tlm", "encoder", "tlm", "pretrained"],
               "pretrained": "hub:some/encoder"}  # fmt: skip
    job, changed = job_of("learning_curve", options, seeds=(0,)), {}
    for limit in (700, 800):
        recipe = resolve("fast", "tiny", {"finetune.max_steps_after_joint": limit})
        plan = plan_of(job.model_copy(update={"resolved": job.resolved.model_copy(update={"recipe": recipe})}))
        changed[limit] = {n.name: n.params for n in plan.nodes if n.name.startswith("finetune.")}
    differing = {name for name, params in changed[700].items() if params != changed[800][name]}
    assert differing == {"finetune.tlm.n50.s0", "finetune.tlm.n200.s0"}
    assert changed[700]["finetune.tlm.n50.s0"].finetune.steps(11_333) == 700
    assert changed[700]["finetune.bilstm_tlm.n50.s0"].finetune.steps(11_333) == 3_542


@pytest.mark.parametrize(("kind", "options"), [("prune", {}), ("share_tickets", {"others": ["second"]})])
def test_importance_follows_the_option_as_published(kind: str, options: dict[str, Any]) -> None:
    for as_published in (True, False):
        plan = plan_of(job_of(kind, {**options, "as_published": as_published}))
        values = {node.params.as_published for node in plan.nodes if node.stage.name == "importance"}
        assert values == {as_published}


def test_group_of_a_seed_waits_only_for_its_selections() -> None:
    plan = plan_of(job_of("learning_curve", {"sizes": [50, 200], "models": ["bilstm", "tlm"]}))
    done = {node.name: None for node in plan.nodes if node.place is not Place.WORKERS}
    done.pop("select.n200.s1")
    assert plan.startable("seed.s0", done) and not plan.startable("seed.s1", done)


@pytest.mark.parametrize("kind", ["learning_curve", "prune", "share_tickets"])
def test_groups_of_seeds_run_in_parallel_without_deadlock(kind: str) -> None:
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
    assert {node.group for node in alone.nodes} <= {"main", "baseline"}


@pytest.mark.parametrize("kind", [*KINDS])
def test_stages_whose_evaluation_spans_workers_run_on_all_ranks(kind: str) -> None:
    stages = {node.stage for node in plan_of(job_of(kind, SHARE if kind == "share_tickets" else None)).nodes}
    shared = [stage for stage in stages if stage.function and "evaluate_models" in stage.load().__code__.co_names]
    assert shared or kind == "share_tickets"
    assert all(stage.parallel for stage in shared)


@pytest.mark.parametrize("kind", ["prune", "share_tickets"])
def test_tickets_of_published_encoder_are_checked_before_training(kind: str) -> None:
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
    first, second = (ids(job.model_copy(update={"resolved": data})) for data in (resolved, elsewhere))
    shared = {"validate.1", "baseline.1"} if kind == "share_tickets" else set()  # the second dataset is the same
    assert {name for name in first if first[name] == second[name]} == shared


@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
def test_published_encoder_of_a_curve_is_checked_before_training(seeds: tuple[int, ...]) -> None:
    options = {"sizes": [50, 200], "models": ["bilstm", "tlm", "pretrained"], "pretrained": "hub:some/encoder"}
    plan = plan_of(job_of("learning_curve", options, seeds=seeds))
    for group in {node.group for node in plan.nodes if node.stage.name in ("joint", "finetune", "bilstm")}:
        first = plan.group(group)[0]
        assert first.stage.name == "check_encoder" and first.params.init == "hub:some/encoder"
    alone = plan_of(job_of("learning_curve", {"sizes": [50, 200], "models": ["bilstm", "tlm"]}, seeds=seeds))
    assert "check_encoder" not in {node.stage.name for node in alone.nodes}


def test_pruning_shares_artifacts_with_train() -> None:
    dense, pruned = ids(job_of("train")), ids(job_of("prune"))
    shared = dense.keys() & pruned.keys() - {"evaluate"}  # a train job averages its seeds and trains them again
    assert {"joint.s1", "finetune.s1"} <= shared
    assert {name: dense[name] for name in shared} == {name: pruned[name] for name in shared}


def test_pruning_has_tickets_for_each_kind_level_and_seed() -> None:
    plan = plan_of(job_of("prune", {"levels": [0.2, 0.4], "tickets": ["winning", "losing"]}))
    tickets = [node for node in plan.nodes if node.stage.name == "ticket"]
    assert len(tickets) == 2 * 2 * 2
    node = plan.node("ticket.winning.l0.2.s1")
    assert node.inputs == {"prepared": "prepare", "importance": "importance.s1", "joint": "joint.s1"}
    assert node.params.level == 0.2 and node.params.seed == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sizes": [0.5]}, "at least 2"),
        ({"sizes": [0.5, -1]}, "above 0"),
        ({"sizes": [10.5, 20]}, "whole number"),
        ({"sizes": [0.5, 0.5]}, "The value 0.5 occurs twice in 'sizes'"),
        ({"sizes": [0.5, 100]}, "all sizes as shares or all as counts"),
        ({"models": ["encoder"]}, "must include 'bilstm'"),
        ({"models": ["bilstm", "pretrained"]}, "Give both or neither"),
        ({"pretrained": "hub:x"}, "Give both or neither"),
        ({"models": ["bilstm", "pretrained"], "pretrained": "/models/\0"}, "pretrained\n.*match pattern"),
    ],
)
def test_invalid_options_of_a_curve_are_rejected(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        LearningCurveOptions(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"levels": [0.0]}, "above 0 and below 1"),
        ({"levels": [0.5, 0.5]}, "Level 0.5 occurs twice in 'levels'"),
        ({"levels": [0.3, 0.30000001]}, "Level 0.3 occurs twice in 'levels', rounded to six digits"),
        ({"tickets": ["winning", "random", "random"]}, "Ticket 'random' occurs twice in 'tickets'"),
        ({"tickets": ["random"]}, "must include 'winning'"),
    ],
)
def test_invalid_options_of_pruning_are_rejected(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        PruneOptions(**options)


def test_options_of_another_kind_are_rejected() -> None:
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        make_spec(kind="train", options={"levels": [0.5]})


def test_full_train_split_is_the_largest_size() -> None:
    assert LearningCurveOptions(sizes=(1.0, 0.1)).largest == 1.0
    assert LearningCurveOptions(sizes=(100, 500)).largest == 500
    assert LearningCurveOptions(sizes=(100, 1)).largest == 1


def test_level_that_empties_a_layer_is_rejected() -> None:
    recipe = resolve("fast", "tiny")  # 3 layers x 3 heads
    make_spec(kind="prune").check(recipe)
    with pytest.raises(InvalidRequest, match="at most 6 heads"):
        make_spec(kind="prune", options={"levels": [0.3, 0.8]}).check(recipe)


@pytest.mark.parametrize("kind", ["learning_curve", "share_tickets"])
def test_kinds_without_traces_reject_profile(kind: str) -> None:
    recipe = resolve("fast", "tiny", {"profile": True})
    options = {"options": SHARE} if kind == "share_tickets" else {}
    with pytest.raises(InvalidRequest, match=f"Kind '{kind}' writes no traces"):
        make_spec(kind=kind, **options).check(recipe)
    for supported in ("train", "prune"):
        make_spec(kind=supported).check(recipe)


def test_curve_with_tlm_needs_a_corpus() -> None:
    make_spec(kind="learning_curve").check(resolve("fast", "tiny"))
    alone = resolve("fast", "tiny", {"selection.selector": "none"})
    with pytest.raises(InvalidRequest, match="need a corpus and a joint stage"):
        make_spec(kind="learning_curve").check(alone)
    make_spec(kind="learning_curve", options={"models": ["bilstm", "encoder"]}).check(alone)


def test_recipes_of_a_curve_include_published_encoder() -> None:
    options = {"models": ["bilstm", "pretrained"], "pretrained": "/srv/models/one"}
    spec = make_spec(kind="learning_curve", options=options)
    recipes = spec.definition.recipes(spec.options, resolve("fast", "tiny"))
    assert [recipe.model.init for recipe in recipes] == ["counts", "/srv/models/one"]


def test_sharing_trains_all_systems_from_the_same_joint_stage() -> None:
    plan = plan_of(job_of("share_tickets", SHARE))
    assert plan.node("validate.1").fixed == {"dataset": "2" * 64}
    assert plan.node("merge").inputs == {"task.0": "validate", "task.1": "validate.1"}
    for name in ("alone.0.s0", "alone.1.s0", "multi_task.s0", "tickets.s0"):
        assert plan.node(name).inputs["joint"] == "joint.s0"
        assert plan.node(name).params.finetune.reset_head is True
    assert plan.node("multi_task.s0").params.tickets == (None, None)
    assert plan.node("tickets.s0").params.tickets == (0.15, Mask.from_dict(SHARE["tickets"]["second"]))
    assert plan.node("tickets.s0").inputs["importance.0"] == "importance.0.s0"
    assert "importance.1" not in plan.node("tickets.s0").inputs, "a mask needs no importance"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (None, "options.others"),
        ({"others": []}, "at least 1"),
        ({"others": ["b"], "tickets": {"b": 1.5}}, "Invalid ticket of 'b': 1.5"),
        ({"others": ["b"], "tickets": {"b": "best"}}, "Invalid ticket of 'b': 'best'"),
        ({"others": ["b"], "tickets": {"b": {"heads": [[0]], "blocks": [1]}}}, "layer 0 has no heads"),
    ],
)
def test_invalid_options_of_sharing_are_rejected(options: dict[str, Any] | None, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        make_spec(kind="share_tickets", options=options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"others": ["b"], "level": 0.9}, "at most 6 heads"),
        ({"others": ["b"], "tickets": {"c": 0.2}}, "'c' in 'tickets'. The datasets are toy, b"),
        ({"others": ["b"], "tickets": {"b": Mask.full(2, 4).as_dict()}}, "2 layers x 4 heads, but the model has 3 x 3"),
    ],
)
def test_tickets_that_do_not_fit_the_model_are_rejected(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        make_spec(kind="share_tickets", options=options).check(resolve("fast", "tiny"))


@pytest.mark.parametrize("init", ["scratch", "hub:some/encoder"])
def test_ticket_of_unknown_dataset_is_rejected(init: str) -> None:
    recipe = resolve("fast", "tiny", {"model.init": init, "tokenizer.source": init if "hub" in init else "own"})
    with pytest.raises(InvalidRequest, match=r"'c' in 'tickets'\. The datasets are toy, b"):
        options = {"others": ["b"], "tickets": {"c": 0.2}}
        make_spec(kind="share_tickets", options=options).check(recipe)


def test_similar_sizes_have_different_nodes() -> None:
    options = {"sizes": [1_000_000, 1_000_001], "models": ["bilstm"]}
    names = [node.name for node in plan_of(job_of("learning_curve", options, seeds=(0,))).nodes]
    assert len(names) == len(set(names)) and "finetune.bilstm.n1000001.s0" in names
