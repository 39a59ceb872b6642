"""The stages of training, by name. Each is a function of a `StageContext`; none knows who runs it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tlm_core.training import published
from tlm_core.training.architectures import Shape, scratch_shape
from tlm_core.training.device import holding_the_model, pick_device, resolved_precision
from tlm_core.training.evaluate import predict, validation_scores
from tlm_core.training.loop import Budget, Trainer
from tlm_core.training.memory import MICRO_ROWS
from tlm_core.training.model import TaskModel, initialize, initialize_counted
from tlm_core.training.objective import Workers
from tlm_core.training.optim import Optimizer
from tlm_core.training.params import SHRUNK
from tlm_core.training.prepared import Batch, FinetuneBatches, JointBatches, Prepared
from tlm_core.training.profiling import copy_traces, trace_path, traced
from tlm_core.training.recipe import OWN_STARTS, Finetune, Joint, Model
from tlm_core.training.stage import StageContext
from tlm_core.training.state import HISTORY, SHAPE, WEIGHTS, TrainState, load_weights, own_units, read_history, weights


@holding_the_model()
def joint(ctx: StageContext) -> dict[str, Any]:
    """Masked language modelling on retrieved and task text and the task's own loss (paper section 3.2)."""
    trainer = joint_trainer(ctx)
    with traced(trainer, trace_path(ctx, "joint")):
        state, _ = trainer.run()
    head_trained = ctx.params["recipe"]["joint"]["task_loss"]
    model = trainer.model
    return write_trained(ctx, model.shape, weights(model), state, trainer.device, {"head_trained": head_trained})


def joint_trainer(ctx: StageContext) -> Trainer:
    """The joint stage's run, ready to begin. Raises InvalidRecipe or NotFound for `init`."""
    recipe, seed, device = ctx.params["recipe"], int(ctx.params["seed"]), pick_device()
    prepared = Prepared(ctx.inputs["prepared"])
    model = build(recipe["model"], prepared, seed).to(device)
    part = recipe["joint"]
    return Trainer(
        ctx=ctx,
        model=model,
        optimizer=Optimizer(model, part["optimizer"], ("encoder", "vocabulary", "task")),
        optimizer_recipe=part["optimizer"],
        batches=JointBatches(prepared, part, seed),
        budget=Budget.of(part["budget"]),
        seed=seed,
        precision=recipe["precision"],
        checkpoint_steps=recipe["checkpoint_steps"],
        device=device,
        masked=Joint(**part).highest_mask_rate,
    )


def finetune(ctx: StageContext) -> dict[str, Any]:
    """The task's loss alone, from the joint stage's weights or from scratch; the best validation score decides."""
    return tune(ctx, *start(ctx))


@holding_the_model()
def start(ctx: StageContext) -> tuple[TaskModel, dict[str, Any]]:
    """The model with which finetuning begins, on this worker's device, and the joint stage's history if there was one.

    Inputs: `prepared`, and `joint` unless the recipe leaves it out.
    """
    recipe = ctx.params["recipe"]
    model = build(recipe["model"], Prepared(ctx.inputs["prepared"]), int(ctx.params["seed"])).to(pick_device())
    if "joint" not in ctx.inputs:
        return model, {}
    skip = ("task.",) if recipe["finetune"]["reset_head"] else ()
    load_weights(model, load_file(ctx.inputs["joint"] / WEIGHTS), skip=skip)
    return model, read_history(ctx.inputs["joint"])


@holding_the_model()
def tune(
    ctx: StageContext,
    model: TaskModel,
    before: Mapping[str, Any],
    make: Callable[..., Trainer] = Trainer,
    draw: Callable[[Prepared, int, int], Callable[[int, float], Batch]] = FinetuneBatches,
) -> dict[str, Any]:
    """Finetune what `start` gave (or what was made of it) and write the weights that validation chose.

    make: the trainer; draw: (prepared, batch size, seed) → batches by step.
    """
    recipe, seed, device = ctx.params["recipe"], int(ctx.params["seed"]), pick_device()
    prepared, part = Prepared(ctx.inputs["prepared"]), recipe["finetune"]
    head_trained = bool(before.get("head_trained")) and not part["reset_head"]
    steps = Finetune(**part).steps(len(prepared.split("train")))
    validation, workers = prepared.split("validation"), Workers(ctx.rank, ctx.world_size)

    def validate() -> dict[str, float | None]:
        logits = predict(model, validation, prepared, device=device, precision=recipe["precision"], workers=workers)
        return validation_scores(logits, validation, prepared)

    trainer = make(
        ctx=ctx,
        model=model,
        optimizer=Optimizer(model, part["optimizer"], ("encoder", "task")),
        optimizer_recipe=part["optimizer"],
        batches=draw(prepared, part["batch"], seed),
        budget=Budget("steps", steps),
        seed=seed,
        precision=recipe["precision"],
        checkpoint_steps=recipe["checkpoint_steps"],
        device=device,
        validate=validate,
        evaluate_at=evaluation_steps(steps, part["evaluations"], head_trained),
    )
    with traced(trainer, trace_path(ctx, "finetune")):
        state, best = trainer.run()
    assert best is not None
    if "joint" in ctx.inputs and not ctx.rank:
        copy_traces(ctx.inputs["joint"], ctx.out)
    chosen = {name: tensor for name, tensor in best.items() if not name.startswith("vocabulary.")}
    return write_trained(ctx, model.shape, own_units(chosen, prepared), state, device, {"joint": before.get("cost")})


def evaluation_steps(steps: int, evaluations: int, untouched: bool) -> frozenset[int]:
    """Steps after which to validate, evenly spread and ending with the last; 0 is the model as it came."""
    spread = {max(1, round(steps * k / evaluations)) for k in range(1, evaluations + 1)}
    return frozenset(spread | ({0} if untouched else set()))


def build(recipe: Mapping[str, Any], prepared: Prepared, seed: int) -> TaskModel:
    """The recipe's model with its starting weights, on the CPU. Raises InvalidRecipe or NotFound for `init`."""
    given: dict[str, Tensor] = {}
    size, labels = prepared.vocabulary.size, len(prepared.labels)
    if recipe["init"] in OWN_STARTS:
        shape = scratch_shape(Model(**recipe), size, labels)
    else:
        shape, given = published.load(
            recipe["init"], labels=labels, vocab=size, max_length=recipe["max_length"], dropout=recipe["dropout"]
        )
    model = TaskModel(shape)
    initialize(model, seed)
    if recipe["init"] == "counts":
        initialize_counted(model, seed, *map(torch.from_numpy, prepared.counted()))
    own = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in given.items():
            own[name].copy_(tensor)
    return model


def write_trained(
    ctx: StageContext,
    shape: Shape,
    tensors: Mapping[str, Tensor],
    state: TrainState,
    device: torch.device,
    more: Mapping[str, Any],
) -> dict[str, Any]:
    """Write weights, shape and history (rank 0); returns the manifest's meta."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(tensors[name].numpy().tobytes())
    meta = {"steps": state.step, "tokens": state.tokens, "flops": state.flops, "weights_sha256": digest.hexdigest()}
    meta["precision"] = resolved_precision(ctx.params["recipe"]["precision"], device)
    if state.skipped:
        meta["skipped_steps"] = state.skipped
    if state.micro_rows < MICRO_ROWS:
        meta[SHRUNK] = state.micro_rows
    if ctx.rank:
        return meta
    cost = {
        "flops": state.flops,
        "tokens": state.tokens,
        "seconds": state.seconds,
        "gpu_seconds": state.seconds * ctx.world_size if device.type == "cuda" else 0.0,
    }
    best = None if state.best is None else state.evaluations[state.best]
    record = asdict(state)
    history = {"cost": cost, "points": record["points"], "evaluations": record["evaluations"], "best": best, **more}
    save_file(dict(tensors), ctx.out / WEIGHTS)
    (ctx.out / SHAPE).write_text(json.dumps(shape.as_dict()), encoding="utf-8")
    (ctx.out / HISTORY).write_text(json.dumps(history), encoding="utf-8")
    return meta
