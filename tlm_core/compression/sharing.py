"""Ticket sharing: one encoder for several tasks, each with its own ticket (arXiv 2105.12002, section 4).

A task computes with its ticket alone, and a step on its texts moves the ticket's weights alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tlm_core.compression.gates import gated
from tlm_core.compression.masks import Importance, Mask, one_shot
from tlm_core.compression.params import ShareParams
from tlm_core.compression.sliced import sliced
from tlm_core.tasks.metrics import summary
from tlm_core.training.architectures import Shape, architecture_of
from tlm_core.training.device import model_fits_device, pick_device
from tlm_core.training.evaluate import predict, validation_scores
from tlm_core.training.loop import Trainer
from tlm_core.training.memory import training_bytes
from tlm_core.training.model import TaskModel
from tlm_core.training.objective import Workers, step_flops
from tlm_core.training.optim import FlatOptimizer
from tlm_core.training.prepared import Batch, FinetuneBatches, Prepared
from tlm_core.training.randomness import Stream, random_at
from tlm_core.training.recipe import Budget, Optimizer
from tlm_core.training.stage import StageContext
from tlm_core.training.stages import build, evaluation_steps, write_trained
from tlm_core.training.state import SHAPE, WEIGHTS, load_weights, own_units

MASKS = "masks.json"


class SharedModel(nn.Module):
    """One encoder and a head for each task. To the training loop it is the model of the task that `select` chose."""

    def __init__(self, models: Sequence[TaskModel], masks: Sequence[Mask]) -> None:
        """models: one for each task, of which the first gives the encoder."""
        super().__init__()
        self._shapes = [model.shape for model in models]
        self.encoder = models[0].encoder
        for number, model in enumerate(models):
            self.add_module(f"task{number}", model.task)
        self._gates = [_gates(mask) for mask in masks]
        heads, blocks = self._gates[0]
        self.head_gates, self.block_gates = [g.clone() for g in heads], [g.clone() for g in blocks]
        self.masks = list(masks)
        self.current = 0

    def select(self, number: int) -> None:
        """Be the model of that task from now on."""
        self.current = number
        for own, wanted in zip((self.head_gates, self.block_gates), self._gates[number], strict=True):
            for gate, values in zip(own, wanted, strict=True):
                gate.copy_(values)

    @property
    def shape(self) -> Shape:
        return self._shapes[self.current]

    @property
    def task(self) -> nn.Module:
        return cast(nn.Module, getattr(self, f"task{self.current}"))

    def pool(self, hidden: Tensor, segments: Tensor, doc_row: Tensor, doc_segment: Tensor) -> Tensor:
        return TaskModel.pool(cast(Any, self), hidden, segments, doc_row, doc_segment)


def _gates(mask: Mask) -> tuple[list[Tensor], list[Tensor]]:
    device = pick_device()
    heads = [torch.tensor(row, dtype=torch.float32, device=device) for row in mask.heads]
    return heads, [torch.tensor([kept], dtype=torch.float32, device=device) for kept in mask.blocks]


def frozen(shape: Shape, mask: Mask) -> dict[str, Tensor]:
    """Which weights of the encoder a ticket does not hold: parameter name → True there, in the parameter's shape.

    Biases and norms that act on kept and dropped parts alike belong to every ticket.
    """
    architecture = architecture_of(shape)
    outside: dict[str, Tensor] = {}
    for number, (heads, block) in enumerate(zip(mask.heads, mask.blocks, strict=True)):
        name = f"encoder.layers.{number}"
        dropped = ~torch.tensor(heads).repeat_interleave(shape.head_size)
        outside[f"{name}.attention.qkv.weight"] = dropped.repeat(3)[:, None].expand(-1, shape.hidden)
        outside[f"{name}.attention.out.weight"] = dropped.expand(shape.hidden, -1)
        if architecture.biases:
            outside[f"{name}.attention.qkv.bias"] = dropped.repeat(3)
        if not block:
            for part, (size, _) in architecture.feed_forward(shape).items():
                outside[f"{name}.{part}"] = torch.ones(size, dtype=torch.bool)
    return outside


class TicketOptimizer(FlatOptimizer):
    """Leaves what the current task's ticket does not hold as it is: the weights and all that is remembered of them.

    A gradient of zero would not do: weight decay and momentum move weights without one.
    """

    def __init__(self, model: SharedModel, recipe: Optimizer) -> None:
        tasks = [f"task{number}" for number in range(len(model.masks))]
        super().__init__(cast(Any, model), recipe, ("encoder", *tasks))
        self._model = model
        parameters = dict(model.named_parameters())
        self._held: list[Tensor] = []
        for mask in model.masks:
            places = [torch.zeros(0, dtype=torch.int64, device=self.buffers.value.device)]
            for name, gone in frozen(model.shape, mask).items():
                parameter = parameters[name]
                inside = gone.reshape(-1).nonzero()[:, 0].to(parameter.device)
                places.append(parameter.storage_offset() + inside)
            self._held.append(torch.cat(places).sort().values)

    @torch.no_grad()
    def step(self, rate: float, active: Iterable[str]) -> None:
        number = self._model.current
        kept = [(values, values[places].clone(), places) for values, places in self._untouched(number)]
        parts = [f"task{number}" if part == "task" else part for part in active]
        super().step(rate, parts)
        for values, before, places in kept:
            values[places] = before

    def _untouched(self, number: int) -> Iterable[tuple[Tensor, Tensor]]:
        """Tensors with the places in them that must stay: the parameters', then each moment's."""
        held = self._held[number]
        yield self.buffers.value, held
        for section in self._sections:
            places = held[(held >= section.start) & (held < section.stop)] - section.start
            for name, values in self._moments[section.name].items():
                if name != "step" and len(places):
                    yield values, places


class SharedBatches:
    """Step number → batch of one task, which it selects in the model.

    steps: of each task, all of which come, shuffled; each task's batches are those that it would have alone.
    """

    def __init__(
        self, model: SharedModel, tasks: Sequence[Prepared], steps: Sequence[int], batch: int, seed: int
    ) -> None:
        self._model = model
        self._batches = [FinetuneBatches(prepared, batch, seed) for prepared in tasks]
        self._turns = random_at(seed, Stream.TASK, 0).permutation(np.repeat(np.arange(len(tasks)), steps))

    def __call__(self, step: int, progress: float) -> Batch:
        number = int(self._turns[step])
        self._model.select(number)
        return self._batches[number](int(np.count_nonzero(self._turns[:step] == number)), progress)


@model_fits_device()
def share(ctx: StageContext[ShareParams]) -> dict[str, Any]:
    """Train one encoder on all tasks. With None for every ticket this is plain multi-task training.

    Inputs: `prepared.{number}`,
    `importance.{number}` where a level is given, and `joint` unless the recipe leaves it out.
    The mean of the tasks' validation scores decides.
    """
    params, finetune, device = ctx.params, ctx.params.finetune, pick_device()
    tasks = [Prepared(ctx.inputs[f"prepared.{number}"]) for number in range(len(params.tickets))]
    models = [_start(ctx, prepared).to(device) for prepared in tasks]
    masks = [ticket_of(ctx, number, models[0].shape) for number in range(len(tasks))]
    model = SharedModel(models, masks)
    # A cap on steps is each task's, so that no task has fewer here than alone because another is large.
    steps = [finetune.steps(len(prepared.split("train"))) for prepared in tasks]
    optimizer = TicketOptimizer(model, finetune.optimizer)
    trainer = Trainer(
        ctx=ctx,
        model=cast(Any, model),
        optimizer=optimizer,
        batches=SharedBatches(model, tasks, steps, finetune.batch, params.seed),
        budget=Budget(steps=sum(steps)),
        device=device,
        step_flops=lambda batch: step_flops(model.shape, batch),  # of the current task's shape
        memory=partial(training_bytes, model.shape, optimizer.size),
        validate=partial(_validate, model, tasks, params.precision, Workers(ctx.rank, ctx.world_size), device),
        evaluate_at=evaluation_steps(sum(steps), finetune.evaluations, False),
    )
    with gated(cast(Any, model), model.head_gates, model.block_gates):
        state, best = trainer.run()
    assert best is not None
    for number, prepared in enumerate(tasks):
        best = own_units(best, prepared, f"task{number}")
    if not ctx.rank:
        (ctx.out / MASKS).write_text(json.dumps([mask.as_dict() for mask in masks]), encoding="utf-8")
    return write_trained(ctx, models[0].shape, best, state, device, {"joint": None})


def _start(ctx: StageContext[ShareParams], prepared: Prepared) -> TaskModel:
    """The model with which finetuning on one task alone would begin, too."""
    model = build(ctx.params.model, prepared, ctx.params.seed)
    if "joint" in ctx.inputs:
        load_weights(model, load_file(ctx.inputs["joint"] / WEIGHTS), skip=("task.",))
    return model


def ticket_of(ctx: StageContext[ShareParams], number: int, shape: Shape) -> Mask:
    """The mask of one task. Raises InvalidRequest for a mask of another model and for a level that is too high."""
    ticket = ctx.params.tickets[number]
    if ticket is None:
        return Mask.full(shape.layers, shape.heads)
    if isinstance(ticket, Mask):
        ticket.check(shape.layers, shape.heads)
        return ticket
    text = (ctx.inputs[f"importance.{number}"] / "importance.json").read_text(encoding="utf-8")
    return one_shot(Importance.from_dict(json.loads(text)), ticket, "winning")


def _validate(
    model: SharedModel, tasks: Sequence[Prepared], precision: str, workers: Workers, device: torch.device
) -> dict[str, float | None]:
    """Mean over tasks of what `validation_scores` gives, and each task's score; null where one of them is."""
    found, chosen = [], model.current
    for number, prepared in enumerate(tasks):
        model.select(number)
        split = prepared.split("validation")
        logits = predict(cast(Any, model), split, prepared, device=device, precision=precision, workers=workers)
        found.append(validation_scores(logits, split, prepared))
    model.select(chosen)
    means = {name: summary([scores[name] for scores in found])["mean"] for name in found[0]}
    return means | {f"score.{number}": scores["score"] for number, scores in enumerate(found)}


def load_shared(folder: Path, number: int, labels: int) -> TaskModel:
    """One task's model out of what `share` wrote, cut to its ticket, ready to predict. Raises CorruptArtifact."""
    shape = Shape.from_dict(json.loads((folder / SHAPE).read_text(encoding="utf-8")))
    mask = Mask.from_dict(json.loads((folder / MASKS).read_text(encoding="utf-8"))[number])
    model = TaskModel(replace(shape, labels=labels))
    own = {n.replace(f"task{number}.", "task."): tensor for n, tensor in load_file(folder / WEIGHTS).items()}
    kept = {name: tensor for name, tensor in own.items() if name.startswith(("encoder.", "task."))}
    load_weights(model, kept, skip=("vocabulary.",))
    return sliced(model.eval(), mask)
