"""The work counted before a job runs matches what the training loop counts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from services.api.measurements import BUILT_IN_SECONDS, _at_once, _elapsed
from services.api.work import Texts, shape_of, texts_of, work_of
from tests.factories import make_resolved, make_spec
from tests.unit.training.made import made_prepared, tiny
from tlm_core.artifacts import ManifestRef
from tlm_core.jobs.nodes import finetune_nodes, joint_node
from tlm_core.jobs.plan import plan_of
from tlm_core.jobs.spec import DatasetInput, Event, JobRecord, PlanInputs
from tlm_core.jobs.states import State
from tlm_core.kinds import learning_curve
from tlm_core.kinds.learning_curve import LearningCurveOptions
from tlm_core.training import encoder_stages
from tlm_core.training.architectures import architecture_of
from tlm_core.training.objective import step_flops
from tlm_core.training.optim import FlatOptimizer
from tlm_core.training.prepared import JointBatches, Prepared, TaskBatches
from tlm_core.training.recipe import resolve
from tlm_core.training.stage import Place

RECIPES: list[dict[str, Any]] = [
    {"joint__rho1": 3, "joint__budget__steps": 24},
    {"joint__rho1": 0, "joint__budget__steps": 20},
    {"joint__budget__steps": 24, "model__architecture": "bert", "joint__optimizer__name": "adamw"},
    {"joint__budget__tokens": 12_000, "joint__mlm_on_task": False},
    {"joint__budget__flops": 2e9, "joint__task_loss": False, "joint__mask_rate": 0.4, "joint__mask_rate_end": 0.1},
    {"joint__budget__steps": 8, "model__max_length": 96, "joint__batch_rows": 16, "finetune__max_steps": 5},
]


@pytest.mark.parametrize("over", RECIPES)
def test_counted_work_matches_the_training_loop(over: dict[str, Any], tmp_path: Path) -> None:
    recipe = tiny(**over)
    prepared = Prepared(made_prepared(tmp_path, recipe))
    counts, passages = prepared.facts["tokens"], prepared.facts["passages"]
    rows, vocab = {"train": 60, "validation": 24, "test": 30}, prepared.vocabulary.size
    texts = Texts(rows, counts["train"] / 60, 3, vocab, passages)
    shape = shape_of(recipe.model, texts)
    assert shape is not None
    model = encoder_stages.build(recipe.model, prepared, 0)
    assert architecture_of(shape).parameters(shape) == pytest.approx(
        sum(p.numel() for p in model.parameters()), rel=0.05
    )

    optimizer = FlatOptimizer(model, recipe.joint.optimizer, ("encoder", "vocabulary", "task"))
    expected = work_of(joint_node(recipe, 0, "joint.s0"), texts)
    assert expected is not None and expected.tokens is not None and expected.flops is not None
    batches = JointBatches(prepared, recipe.joint, 0)
    steps = [batches(step, step / expected.steps) for step in range(round(expected.steps))]
    assert sum(batch.rows.real_tokens for batch in steps) == pytest.approx(expected.tokens, rel=0.05)
    flops = sum(step_flops(model.shape, batch) + optimizer.flops for batch in steps)
    assert flops == pytest.approx(expected.flops, rel=0.2)

    (node,) = finetune_nodes(recipe, 0, "finetune.s0", {})
    expected = work_of(node, texts)
    assert expected is not None and expected.tokens is not None and expected.flops is not None
    assert expected.steps == recipe.finetune.steps(60)
    finetune = TaskBatches(prepared, recipe.finetune.batch, 0)
    steps = [finetune(step, 0.0) for step in range(round(expected.steps))]
    assert sum(batch.rows.real_tokens for batch in steps) == pytest.approx(expected.tokens, rel=0.05)
    tune = FlatOptimizer(model, recipe.finetune.optimizer, ("encoder", "vocabulary", "task"))
    flops = sum(step_flops(model.shape, batch) + tune.flops for batch in steps)
    assert flops == pytest.approx(expected.flops, rel=0.2)


def test_joint_stage_without_passages_has_only_steps_on_the_task() -> None:
    recipe = tiny(joint__budget__steps=12)
    alone = Texts({"train": 60}, 20.0, 3, 900, passages=0)
    work = work_of(joint_node(recipe, 0, "joint.s0"), alone)
    assert recipe.joint.bag_of_words and work is not None
    assert work.tokens == pytest.approx(12 * recipe.joint.task_batch * 20.0)


def test_shape_of_a_published_encoder_is_unknown() -> None:
    model = tiny(model__init="hub:some/encoder", tokenizer__source="hub:some/encoder").model
    assert shape_of(model, Texts({"train": 60}, 20.0, 3, 900)) is None


def test_curve_counts_the_rows_of_each_size() -> None:
    options = LearningCurveOptions(sizes=(0.25, 1), models=("bilstm",))
    recipe = tiny(selection__selector="none", finetune__min_steps=None)
    dataset = DatasetInput(id="ds_1", ref=ManifestRef(folder="x", digest="0" * 64))
    plan = learning_curve.KIND.plan(PlanInputs(options, recipe, (0,), (dataset,), (), None))
    texts = [Texts({"train": 640, "validation": 64, "test": 64}, 10.0, 3, 900)]
    nodes = [node for node in plan.nodes if node.stage.name in ("bilstm", "baseline")]
    work = {node.name: work_of(node, texts_of(plan, node, texts)) for node in nodes}
    units = {name: counted.units for name, counted in work.items() if counted}
    assert units["finetune.bilstm.n1.s0"] == 4 * units["finetune.bilstm.n0.25.s0"]
    for name, rows in (("baseline.n0.25.s0", 160), ("baseline.n1.s0", 640)):
        alone = work_of(plan.node(name), replace(texts[0], rows={**texts[0].rows, "train": rows}))
        assert alone is not None and units[name] == alone.units


# Rows of train, words of a text, labels, CPU seconds of `baseline` with the imports, and of `refit_linear`. An AMD EPYC
# with AVX2 measured them on the tasks of the folder `tasks` and on docs/questions.csv, beside other work.
LINEAR = {
    "questions": (320, 11.8, 5, 8.2, 0.17), "acl_arc": (200, 42.3, 6, 8.9, 0.46),
    "acl_arc, 800": (800, 41.9, 6, 26.9, 2.2), "acl_arc, all": (1688, 42.0, 6, 69.3, 2.8),
    "sci_cite": (200, 34.0, 3, 8.2, 0.42),
    "sci_cite, 800": (800, 33.1, 3, 17.7, 1.3),
    "sci_cite, 2500": (2500, 33.3, 3, 33.3, 2.4), "csabstruct, 800": (800, 22.0, 5, 9.6, 0.39),
    "csabstruct, 2500": (2500, 21.9, 5, 23.0, 1.9),
}  # fmt: skip


@pytest.mark.parametrize("name", LINEAR)
def test_estimate_of_the_linear_model_fits_its_measured_cpu_time(name: str) -> None:
    """On two cores, a stage takes between half of its CPU time and all of it. The estimate may miss this by half."""
    train, words, labels, *cpu_seconds = LINEAR[name]
    texts = Texts({"train": train, "validation": train // 8, "test": train // 8}, 1.5 * words + 2, labels, 8192)
    nodes = plan_of(instant_job()).nodes
    for stage, cpu in zip(("baseline", "refit_linear"), cpu_seconds, strict=True):
        work = work_of(next(node for node in nodes if node.stage.name == stage), texts)
        assert work is not None
        least, most = cpu / 2 / 1.5, 1.5 * cpu + 0.5  # 0.5 s between two stages
        assert least < work.units * BUILT_IN_SECONDS[stage] < most


def test_refit_of_a_self_trained_model_counts_as_a_student() -> None:
    job = instant_job().model_copy(update={"spec": make_spec(), "resolved": make_resolved()})
    texts = Texts({"train": 1688, "validation": 114, "test": 139}, 65.0, 6, 8192, passages=2509)
    refit, self_train = (work_of(plan_of(job).node(name), texts) for name in ("refit_linear", "self_train"))
    alone = work_of(plan_of(instant_job()).node("refit_linear"), texts)
    assert refit is not None and self_train is not None and alone is not None
    # On ACL-ARC, `refit_linear` took 15 s for the linear model and 208 s for the other; `self_train` took 139 s.
    assert alone.units < self_train.units / 4 < refit.units < self_train.units + alone.units


def instant_job() -> JobRecord:
    return JobRecord(
        id="job_1", tenant="default", state=State.SUCCEEDED, spec=make_spec(corpus=None, scale="instant"),
        resolved=make_resolved(corpus_name=None, recipe=resolve("fast", "instant")), created_at=0.0, updated_at=0.0,
    )  # fmt: skip


def measured_stages(happened: list[tuple[str, float, dict[str, str]]]) -> list[tuple[str | None, float, str]]:
    """Return what `_elapsed` measures on a job with these events."""
    events = [Event(seq=n, type=kind, at=at, attempt=1, data=data) for n, (kind, at, data) in enumerate(happened, 1)]
    job = instant_job()
    ran = _elapsed(events, job, plan_of(job))
    return [(node and node.name, end - start, device) for node, start, end, device in ran]


def test_stage_whose_start_is_reported_late_began_after_the_one_before_it() -> None:
    nodes = [node.name for node in plan_of(instant_job()).nodes if node.place is Place.WORKERS]
    happened: list[tuple[str, float, dict[str, str]]] = [
        ("workers.submitted", 1.0, {"group": "main"}),
        ("stage.started", 5.0, {"node": nodes[0], "device": "a CPU"}),
        ("artifact.published", 7.0, {"node": nodes[0]}),
        ("artifact.published", 8.5, {"node": nodes[1]}),
        ("stage.started", 8.6, {"node": nodes[1], "device": "a CPU"}),
    ]
    assert measured_stages(happened) == [(None, 4.0, ""), (nodes[0], 2.0, "a CPU"), (nodes[1], 1.5, "a CPU")]


def test_late_report_of_a_start_does_not_shorten_the_stage() -> None:
    """A stage that starts in a new attempt does not count the time before this attempt."""
    first, second, third, _ = (node.name for node in plan_of(instant_job()).nodes if node.place is Place.WORKERS)
    measured = measured_stages([
        ("workers.submitted", 1.0, {"group": "main"}),
        ("stage.started", 5.0, {"node": first}),
        ("artifact.published", 7.0, {"node": first}),
        ("stage.started", 8.49, {"node": second}),
        ("artifact.published", 8.5, {"node": second}),
        ("job.claimed", 59.0, {}),
        ("workers.submitted", 60.0, {"group": "main"}),
        ("stage.started", 69.0, {"node": third}),
        ("artifact.published", 70.0, {"node": third}),
    ])  # fmt: skip
    assert measured == [(None, 4.0, ""), (first, 2.0, ""), (second, 1.5, ""), (None, 9.0, ""), (third, 1.0, "")]


def test_submission_reported_after_its_workers_started_measures_no_start() -> None:
    first, second, *_ = (node.name for node in plan_of(instant_job()).nodes if node.place is Place.WORKERS)
    measured = measured_stages([
        ("job.claimed", 1.0, {}),
        ("stage.started", 5.0, {"node": first}),
        ("workers.submitted", 6.0, {"group": "main"}),
        ("artifact.published", 7.0, {"node": first}),
        ("stage.started", 8.0, {"node": second}),
        ("artifact.published", 8.5, {"node": second}),
    ])  # fmt: skip
    assert measured == [(first, 2.0, ""), (second, 1.5, "")]


@pytest.mark.parametrize(("spans", "at_once"), [
    ([("joint.s0", 5, 15), ("joint.s1", 5, 15), ("joint.s2", 5, 15)], 3),
    ([("joint.s0", 5, 15), ("joint.s1", 20, 30), ("joint.s2", 30, 40)], 1),
    ([("joint.s0", 5, 15), ("joint.s1", 5, 15), ("joint.s2", 20, 30)], 1.5),
    ([("joint.s0", 5, 15), ("finetune.s0", 15, 20), ("joint.s1", 10, 20), ("finetune.s1", 20, 25),
      ("joint.s2", 10, 20), ("finetune.s2", 20, 25)], 45 / 20),
    ([("joint.s0", 5, 15), ("joint.s1", 5, 15)], 3),  # the third seed is cached
    ([("joint.s1", 20, 30), ("joint.s2", 30, 40)], 1),
    ([("joint.s1", 20, 30), ("joint.s2", 25, 35)], 1 + 2 * 5 / 15),
    ([("joint.s2", 30, 40)], None),  # a single seed ran
    ([("evaluate", 5, 15), ("joint.s0", 5, 5), ("joint.s1", 5, 5)], None),
])  # fmt: skip
def test_seeds_that_overlap_count_as_running_at_once(
    spans: list[tuple[str, float, float]], at_once: float | None
) -> None:
    job = instant_job().model_copy(update={"spec": make_spec(seeds=(0, 1, 2)), "resolved": make_resolved()})
    plan = plan_of(job)
    assert _at_once([(plan.node(name), start, end, "") for name, start, end in spans], plan) == at_once
