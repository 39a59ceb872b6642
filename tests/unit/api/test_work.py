"""The work counted before a job runs matches what the training loop counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from services.api.measurements import _elapsed
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
from tlm_core.training.prepared import FinetuneBatches, JointBatches, Prepared
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
    finetune = FinetuneBatches(prepared, recipe.finetune.batch, 0)
    steps = [finetune(step, 0.0) for step in range(round(expected.steps))]
    assert sum(batch.rows.real_tokens for batch in steps) == pytest.approx(expected.tokens, rel=0.05)
    tune = FlatOptimizer(model, recipe.finetune.optimizer, ("encoder", "vocabulary", "task"))
    flops = sum(step_flops(model.shape, batch) + tune.flops for batch in steps)
    assert flops == pytest.approx(expected.flops, rel=0.2)


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
    assert (units["baseline.n0.25.s0"], units["baseline.n1.s0"]) == (160, 640)


def test_stage_whose_start_is_reported_late_began_after_the_one_before_it() -> None:
    job = JobRecord(
        id="job_1", tenant="default", state=State.SUCCEEDED, spec=make_spec(corpus=None, scale="instant"),
        resolved=make_resolved(corpus_name=None), created_at=0.0, updated_at=0.0,
    )  # fmt: skip
    plan = plan_of(job)
    nodes = [node.name for node in plan.nodes if node.place is Place.WORKERS]
    happened = [
        ("workers.submitted", 1.0, {"group": "main"}),
        ("stage.started", 5.0, {"node": nodes[0], "device": "a CPU"}),
        ("artifact.published", 7.0, {"node": nodes[0]}),
        ("artifact.published", 8.5, {"node": nodes[1]}),
        ("stage.started", 8.6, {"node": nodes[1], "device": "a CPU"}),
    ]
    events = [Event(seq=n, type=kind, at=at, attempt=1, data=data) for n, (kind, at, data) in enumerate(happened, 1)]
    measured = [(node and node.name, seconds, device) for node, seconds, device in _elapsed(events, job, plan)]
    assert measured == [(None, 4.0, ""), (nodes[0], 2.0, "a CPU"), (nodes[1], 1.5, "a CPU")]
