"""The stages joint, finetune, choose, and refit. Each is a function of a `StageContext`."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tlm_core.artifacts import MANIFEST
from tlm_core.evaluation.report import LinearResult
from tlm_core.evaluation.summary import BEHIND, behind_in_words
from tlm_core.tasks.metrics import rank
from tlm_core.tasks.task import LABELED
from tlm_core.training import published
from tlm_core.training.architectures import Shape, scratch_shape
from tlm_core.training.device import model_fits_device, pick_device
from tlm_core.training.evaluate import predict, scores_of
from tlm_core.training.loop import Trainer
from tlm_core.training.memory import MICRO_ROWS, training_bytes
from tlm_core.training.model import TaskModel, initialize, initialize_counted
from tlm_core.training.objective import LOSSES, Workers, needed_flops, step_flops
from tlm_core.training.optim import FlatOptimizer
from tlm_core.training.params import SHRUNK, ChooseParams, FinetuneParams, JointParams, TrainParams, TuneParams
from tlm_core.training.passes import RowPasses, gpu_passes
from tlm_core.training.prepared import Batch, JointBatches, Prepared, Share, Split, TaskBatches, weighted
from tlm_core.training.profiling import copy_traces, traced
from tlm_core.training.recipe import OWN_STARTS, Budget, Finetune, Model
from tlm_core.training.stage import StageContext
from tlm_core.training.state import (
    HISTORY,
    SHAPE,
    WEIGHTS,
    load_weights,
    own_units,
    read_history,
    trains_again,
    weights,
)

Batches = Callable[[int, float], Batch]  # (step, progress) → batch
Draw = Callable[[Prepared, int, int], Batches]  # (prepared data, batch size, seed) → batches

# Number of validations in the joint stage, and of texts in each. The stage only reports their scores.
_CURVE_POINTS, _CURVE_TEXTS = 5, 500


@model_fits_device()
def joint(ctx: StageContext[JointParams]) -> dict[str, Any]:
    """Train on masked language modeling of passages and task texts, and on the task's loss (paper section 3.2).

    Inputs: `prepared`, and `baseline` if the recipe sets `joint.stop_if_behind`.
    """
    trainer, behind = joint_trainer(ctx), dict[str, float]()
    if ctx.params.joint.stop_if_behind is not None:
        trainer.is_behind = partial(_is_behind, ctx, behind)
    if ctx.params.joint.task_loss:
        prepared = Prepared(ctx.inputs["prepared"])
        texts = prepared.split("validation").first(_CURVE_TEXTS)
        trainer.validate = partial(validate, split=texts, prepared=prepared)
        trainer.curve = _CURVE_POINTS
    with traced(trainer, "joint"):
        trainer.run()
    extra = {"head_trained": ctx.params.joint.task_loss} | ({BEHIND: behind} if behind else {})
    return write_trained(trainer, trainer.model.shape, weights(trainer.model), extra)


def validate(trainer: Trainer, split: Split, prepared: Prepared) -> dict[str, float | None]:
    """Return `score` (the task's metric), `accuracy`, and the mean `loss` of the model in training.

    An undefined score is None. The model predicts standardized regression targets, so the unit of a regression loss is
    the variance of the train targets. All workers call this function, and divide the texts.
    """
    precision, workers = trainer.ctx.params.precision, trainer.workers
    logits = predict(trainer.model, split, prepared, device=trainer.device, precision=precision, workers=workers)
    scores, labels = scores_of(logits, split, prepared), torch.from_numpy(prepared.standard(split.labels))
    loss = float(LOSSES[prepared.type.loss](torch.from_numpy(logits), labels)) / len(split)
    return {"score": scores["value"], "accuracy": scores["accuracy"], "loss": loss}


def _is_behind(ctx: StageContext[JointParams], behind: dict[str, float], trainer: Trainer) -> bool:
    """Return whether the encoder is behind the linear model on validation. If so, write both scores to `behind`."""
    prepared = Prepared(ctx.inputs["prepared"])
    split, limit = prepared.split("validation"), ctx.params.joint.stop_if_behind
    encoder = validate(trainer, split, prepared)["score"]
    linear = scores_of(LinearResult.read(ctx.inputs["baseline"]).outputs["validation"], split, prepared)["value"]
    if limit is None or encoder is None or linear is None or linear - encoder <= limit:
        return False
    behind |= {"encoder": encoder, "linear": linear}
    if not ctx.rank:
        ctx.report.event("stage.warning", message=behind_in_words(behind))
    return True


def joint_trainer(ctx: StageContext[JointParams]) -> Trainer:
    """Return the training run of the joint stage. Raises the errors of `published.load` for `model.init`."""
    params, prepared = ctx.params, Prepared(ctx.inputs["prepared"])
    joint = params.joint.at_length(prepared.max_length, params.model)
    model = build(params.model, prepared, params.seed).to(pick_device())
    return _trainer(
        ctx,
        model,
        prepared,
        parts=("encoder", "vocabulary", "task"),
        batches=partial(JointBatches, prepared, joint, params.seed),
        budget=joint.budget,
        mask_rate=joint.highest_mask_rate,
        logits=joint.logits_per_token,
        compiled=True,
    )


def _trainer(
    ctx: StageContext[TrainParams],
    model: TaskModel,
    prepared: Prepared,
    *,
    parts: Sequence[str],
    batches: Callable[[Share | None], Batches],
    budget: Budget,
    mask_rate: float = 0.0,
    logits: float = 0.0,
    compiled: bool = False,
    flops: Callable[[Batch], float] | None = None,
) -> Trainer:
    """Return a training run without validation. parts: the parts of the model to train.

    batches: a function from a `share`, as in `JointBatches`, to the batches. mask_rate: the highest mask rate of the
    run. logits: see `Joint.logits_per_token`. compiled: whether a GPU compiles the passes. flops: see `tune`.
    """
    device, precision, workers = pick_device(), ctx.params.precision, Workers(ctx.rank, ctx.world_size)
    optimizer = FlatOptimizer(model, ctx.params.optimizer, parts, workers, precision)
    loss, passes, memory, needed = prepared.type.loss, None, None, None
    if isinstance(model.shape, Shape):  # not for an LSTM
        passes = gpu_passes(
            model, optimizer, workers, device, precision, loss=loss, mask_rate=mask_rate, compiled=compiled
        )
        memory = partial(training_bytes, model.shape, optimizer.size, masked=logits)
        needed = partial(needed_flops, model.shape)
    return Trainer(
        ctx=ctx,
        model=model,
        optimizer=optimizer,
        batches=batches(None if passes is None else workers.share),
        budget=budget,
        device=device,
        step_flops=flops or partial(step_flops, model.shape),
        passes=passes or RowPasses(model, workers, precision, device, memory),
        needed_flops=needed,
    )


def finetune(ctx: StageContext[FinetuneParams]) -> dict[str, Any]:
    """Train on the task's loss alone, from the model that `start` returns. Write the best weights on validation."""
    return tune(ctx, *start(ctx))


@model_fits_device()
def start(ctx: StageContext[FinetuneParams]) -> tuple[TaskModel, dict[str, Any]]:
    """Return the initial model of finetuning on this worker's device, and the joint stage's history ({} without it).

    Inputs: `prepared`, and `joint` unless the recipe disables it.
    """
    model = build(ctx.params.model, Prepared(ctx.inputs["prepared"]), ctx.params.seed).to(pick_device())
    if "joint" not in ctx.inputs:
        return model, {}
    skip = ("task.",) if ctx.params.finetune.reset_head else ()
    load_weights(model, load_file(ctx.inputs["joint"] / WEIGHTS), skip=skip)
    return model, read_history(ctx.inputs["joint"])


@model_fits_device()
def tune(
    ctx: StageContext[TuneParams],
    model: TaskModel,
    before: Mapping[str, Any],
    draw: Draw | None = None,
    flops: Callable[[Batch], float] | None = None,
) -> dict[str, Any]:
    """Finetune a model, and write the weights that are best on validation by `rank`. Return the artifact's metadata.

    before: the history of the joint stage, or {}. draw: returns the batches; by default `TaskBatches`. flops: returns
    the FLOPs of both passes over a batch; by default those of the encoder.
    """
    finetune, prepared = ctx.params.finetune, Prepared(ctx.inputs["prepared"])
    head_trained = bool(before.get("head_trained")) and not finetune.reset_head
    steps = 1 if BEHIND in before else _steps(finetune, prepared, ("train",))
    trainer = _tuner(ctx, model, prepared, steps, draw=draw, flops=flops)
    trainer.validate = partial(validate, split=prepared.split("validation"), prepared=prepared)
    trainer.evaluate_at = evaluation_steps(steps, finetune.evaluations, head_trained)
    with traced(trainer, "finetune"):
        _, best = trainer.run()
    assert best is not None
    if "joint" in ctx.inputs and not ctx.rank:
        copy_traces(ctx.inputs["joint"], ctx.out)
    extra = {"joint": before.get("cost")} | ({BEHIND: before[BEHIND]} if BEHIND in before else {})
    return write_trained(trainer, model.shape, _classifier(best, prepared), extra)


def _steps(finetune: Finetune, prepared: Prepared, splits: Sequence[str]) -> int:
    """Return the number of finetuning steps on some splits: twice as many with pieces, which fill half the batches."""
    rows = sum(len(prepared.split(name)) for name in splits)
    return finetune.steps(rows) * (1 if prepared.pieces() is None else 2)


def _classifier(tensors: Mapping[str, Tensor], prepared: Prepared) -> dict[str, Tensor]:
    """Return the weights of a finetuned model without the vocabulary head, in the units of the task's targets."""
    return own_units({name: of for name, of in tensors.items() if not name.startswith("vocabulary.")}, prepared)


def _tuner(
    ctx: StageContext[TuneParams],
    model: TaskModel,
    prepared: Prepared,
    steps: int,
    splits: Sequence[str] = ("train",),
    draw: Draw | None = None,
    flops: Callable[[Batch], float] | None = None,
) -> Trainer:
    """Return the training run of finetuning on the texts of some splits, without validation. See `tune`."""
    finetune = ctx.params.finetune

    def batches(share: Share | None) -> Batches:
        place = (prepared, finetune.batch, ctx.params.seed)
        texts = draw(*place) if draw else TaskBatches(*place, splits, share)
        return weighted(texts, prepared, finetune)

    budget = Budget(steps=steps)
    return _trainer(ctx, model, prepared, parts=("encoder", "task"), batches=batches, budget=budget, flops=flops)


@model_fits_device()
def refit(ctx: StageContext[FinetuneParams]) -> dict[str, Any]:
    """Finetune again on train and validation (`refit: true` of the recipe).

    If the best weights of `finetune` are those of step k of n, the refit has k / n of the steps of a finetuning on both
    splits. Over these steps, the rate falls to zero. If `trains_again` returns False, the refit copies the weights.
    Inputs: those of `finetune`, and the artifact `finetune`, whose history sets the rate and the class weights.
    """
    prepared, finetuned = Prepared(ctx.inputs["prepared"]), ctx.inputs["finetune"]
    history = read_history(finetuned)
    if not trains_again(history):
        if not ctx.rank:
            _copy_trained(finetuned, ctx.out, {**history, "cost": dict.fromkeys(history["cost"], 0.0)})
        return {"steps": 0, "flops": 0.0}
    best = history["best"]
    finetune = ctx.params.finetune.with_values(best)
    ctx = replace(ctx, params=ctx.params.model_copy(update={"finetune": finetune}))
    model, _ = start(ctx)
    share = best["step"] / _steps(finetune, prepared, ("train",))
    trainer = _tuner(ctx, model, prepared, max(1, round(share * _steps(finetune, prepared, LABELED))), LABELED)
    trainer.run()
    if not ctx.rank:
        copy_traces(finetuned, ctx.out)
    return write_trained(trainer, model.shape, _classifier(weights(model), prepared), {})


def _copy_trained(source: Path, out: Path, history: Mapping[str, Any]) -> None:
    """Copy the artifact of a training stage, and replace its history."""
    shutil.copytree(source, out, dirs_exist_ok=True, ignore=shutil.ignore_patterns(MANIFEST))
    (out / HISTORY).write_text(json.dumps(history), encoding="utf-8")


def choose(ctx: StageContext[ChooseParams]) -> dict[str, Any]:
    """Copy the finetuned model that is best on validation by `rank`. Of equal models, copy the first.

    The new history has the cost of all tries, the values of the best try, and the result of each try under `tries`.
    Inputs: `try.0`, `try.1`, …
    """
    values = ctx.params.tries
    folders = [ctx.inputs[f"try.{number}"] for number in range(len(values))]
    histories = [read_history(folder) for folder in folders]
    tries = [{**history["best"], **tried} for tried, history in zip(values, histories, strict=True)]
    best = max(range(len(tries)), key=lambda number: rank(tries[number]))
    cost = {name: sum(history["cost"][name] for history in histories) for name in histories[best]["cost"]}
    _copy_trained(folders[best], ctx.out, {**histories[best], "cost": cost, "best": tries[best], "tries": tries})
    return dict(values[best])


def evaluation_steps(steps: int, evaluations: int, initial: bool) -> frozenset[int]:
    """Return the steps after which to validate, evenly spread up to the last. initial: whether to include step 0."""
    spread = {max(1, round(steps * k / evaluations)) for k in range(1, evaluations + 1)}
    return frozenset(spread | ({0} if initial else set()))


def build(recipe: Model, prepared: Prepared, seed: int) -> TaskModel:
    """Return the recipe's model with its initial weights, on the CPU. Raises the errors of `published.load`."""
    pretrained: dict[str, Tensor] = {}
    recipe = recipe.model_copy(update={"max_length": prepared.max_length})  # the recipe's value may be auto
    size, labels = prepared.vocabulary.size, len(prepared.labels)
    if recipe.init in OWN_STARTS:
        shape = scratch_shape(recipe, size, labels)
    else:
        shape, pretrained = published.load(
            recipe.init, labels=labels, vocab=size, max_length=prepared.max_length, dropout=recipe.dropout
        )
    model = TaskModel(shape)
    initialize(model, seed)
    if recipe.init == "counts":
        initialize_counted(model, seed, *map(torch.from_numpy, prepared.counted()))
    with torch.no_grad():
        for name, tensor in pretrained.items():
            model.get_parameter(name).copy_(tensor)
    return model


def write_trained(
    trainer: Trainer, shape: Shape, tensors: Mapping[str, Tensor], extra: Mapping[str, Any]
) -> dict[str, Any]:
    """Write weights, shape, and history of a run on rank 0. Return the artifact's metadata.

    extra: further keys of the history.
    """
    ctx, state, device = trainer.ctx, trainer.state, trainer.device
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(tensors[name].numpy().tobytes())
    meta: dict[str, Any] = {
        "steps": state.step,
        "tokens": state.tokens,
        "flops": state.flops,
        "weights_sha256": digest.hexdigest(),
        "precision": ctx.params.precision,
    }
    if state.skipped:
        meta["skipped_steps"] = state.skipped
    if state.micro_rows < MICRO_ROWS and device.type == "cpu":  # A GPU has no fixed order of sums in any case.
        meta[SHRUNK] = state.micro_rows
    if ctx.rank:
        return meta
    cost = {
        "flops": state.flops,
        "tokens": state.tokens,
        "seconds": state.seconds,
        "gpu_seconds": state.worker_seconds if device.type == "cuda" else 0.0,
    }
    best = None if state.best is None else state.evaluations[state.best]
    record = asdict(state)
    history = {"cost": cost, "points": record["points"], "evaluations": record["evaluations"], "best": best, **extra}
    save_file(dict(tensors), ctx.out / WEIGHTS)
    (ctx.out / SHAPE).write_text(json.dumps(asdict(shape)), encoding="utf-8")
    (ctx.out / HISTORY).write_text(json.dumps(history), encoding="utf-8")
    return meta
