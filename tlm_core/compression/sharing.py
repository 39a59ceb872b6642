"""Ticket sharing: one encoder for several tasks, each with its own ticket (arXiv 2105.12002, section 4).

A task uses only the heads and blocks of its ticket. A training step on its texts changes only weights of its ticket.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tlm_core.compression.importance import gated, mask_gates
from tlm_core.compression.masks import Importance, Mask, one_shot
from tlm_core.compression.params import PartParams, ShareParams
from tlm_core.compression.sliced import sliced
from tlm_core.json_files import read_json
from tlm_core.tasks.merge import MERGE, TARGETS
from tlm_core.tasks.metrics import summary
from tlm_core.tasks.types import task_type_of
from tlm_core.training.architectures import Shape, architecture_of
from tlm_core.training.device import model_fits_device, pick_device
from tlm_core.training.encoder_stages import build, evaluation_steps, validate, write_trained
from tlm_core.training.loop import Trainer
from tlm_core.training.memory import training_bytes
from tlm_core.training.model import TaskModel
from tlm_core.training.objective import Workers, step_flops
from tlm_core.training.optim import FlatOptimizer
from tlm_core.training.passes import RowPasses
from tlm_core.training.prepared import Batch, Prepared, TaskBatches, weighted
from tlm_core.training.randomness import Stream, random_at
from tlm_core.training.recipe import Budget, Finetune, Optimizer
from tlm_core.training.stage import StageContext
from tlm_core.training.state import WEIGHTS, load_weights, own_units, read_shape
from tlm_core.training.store import StoreWriter

MASKS = "masks.json"


def part(ctx: StageContext[PartParams]) -> dict[str, object]:
    """Write the `prepare` artifact of one task from the artifact of the merged task. All tasks share the tokenizer.

    Inputs: `prepared` and `task`, both of the merged task.
    """
    source, merged = Prepared(ctx.inputs["prepared"]), ctx.inputs["task"]
    facts = read_json(merged / MERGE)[ctx.params.number]
    shutil.copytree(source.folder / "tokenizer", ctx.out / "tokenizer")
    tokens, window_counts, counts = {}, {}, {}
    for name in facts["splits"]:
        split = source.split(name)
        labels = split.labels - facts["offset"]
        members = np.flatnonzero((labels >= 0) & (labels < len(facts["labels"])))
        windows = np.flatnonzero(np.isin(split.texts, members))
        np.save(ctx.out / f"{name}.texts.npy", np.searchsorted(members, split.texts[windows]))
        with StoreWriter(ctx.out, name, source.vocabulary.size) as store:
            store.add([split.store[int(number)].tolist() for number in windows])
            tokens[name] = store.total
        classes = task_type_of(facts["metric"]).has_classes
        targets = labels.astype(np.int32) if classes else np.load(merged / TARGETS.format(split=name))
        np.save(ctx.out / f"{name}.labels.npy", targets[members])
        np.save(ctx.out / f"{name}.rows.npy", split.rows[members])
        if split.second is not None:
            np.save(ctx.out / f"{name}.second.npy", split.second[members])
        counts[name], window_counts[name] = len(members), len(windows)
    no_cost = dict.fromkeys(("flops", "tokens", "seconds", "gpu_seconds"), 0.0)
    changes = {"labels": facts["labels"], "metric": facts["metric"], "task": facts["name"], "cost": no_cost}
    # The numbers of cut texts count the texts of all tasks, so they do not hold for one task.
    shared = {name: value for name, value in source.facts.items() if name not in ("cut_texts", "warnings")}
    data = {**shared, **changes, "tokens": tokens, "windows": window_counts, "counts": counts, "passages": 0}
    (ctx.out / "data.json").write_text(json.dumps(data, ensure_ascii=False, indent=1), encoding="utf-8")
    for statistics in ("log_frequency.npy", "vectors.npy"):
        if (source.folder / statistics).exists():
            shutil.copyfile(source.folder / statistics, ctx.out / statistics)
    return {"rows": counts}


class SharedModel(nn.Module):
    """One encoder with a task head for each task. In training, it acts as the `TaskModel` of the selected task.

    models: the model of each task; all tasks use the encoder of the first model. masks: the ticket of each task.
    """

    def __init__(self, models: Sequence[TaskModel], masks: Sequence[Mask]) -> None:
        super().__init__()
        self._shapes = [model.shape for model in models]
        self.encoder = models[0].encoder
        for number, model in enumerate(models):
            self.add_module(f"task{number}", model.task)
        self._gates = [mask_gates(mask, pick_device()) for mask in masks]
        heads, blocks = self._gates[0]
        self.head_gates, self.block_gates = [g.clone() for g in heads], [g.clone() for g in blocks]
        self.masks = list(masks)
        self.current = 0

    def select(self, number: int) -> None:
        """Switch to the ticket and the task head of task `number`."""
        self.current = number
        for gates, ticket_gates in zip((self.head_gates, self.block_gates), self._gates[number], strict=True):
            for gate, values in zip(gates, ticket_gates, strict=True):
                gate.copy_(values)

    @property
    def shape(self) -> Shape:
        return self._shapes[self.current]

    @property
    def task(self) -> nn.Module:
        return getattr(self, f"task{self.current}")

    def pool(self, hidden: Tensor, segments: Tensor, doc_row: Tensor, doc_segment: Tensor) -> Tensor:
        return TaskModel.pool(self, hidden, segments, doc_row, doc_segment)


def frozen(shape: Shape, mask: Mask) -> dict[str, Tensor]:
    """Return parameter name → flags in the parameter's shape: True for each encoder weight outside the ticket.

    Biases and norms that act on both removed and remaining parts belong to every ticket.
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
    """An optimizer that leaves weights outside the current task's ticket, and their optimizer state, unchanged.

    Zero gradients would not protect these weights, because weight decay and momentum also change weights.
    """

    def __init__(self, model: SharedModel, recipe: Optimizer, precision: str = "fp32") -> None:
        tasks = [f"task{number}" for number in range(len(model.masks))]
        super().__init__(model, recipe, ("encoder", *tasks), precision=precision)
        self._model = model
        parameters = dict(model.named_parameters())
        self._outside: list[Tensor] = []  # for each task, buffer indices of the weights outside its ticket
        for mask in model.masks:
            places = [torch.zeros(0, dtype=torch.int64, device=self.buffers.value.device)]
            for name, outside in frozen(model.shape, mask).items():
                parameter = parameters[name]
                indices = outside.reshape(-1).nonzero()[:, 0].to(parameter.device)
                places.append(parameter.storage_offset() + indices)
            self._outside.append(torch.cat(places).sort().values)

    @torch.no_grad()
    def update(self, rate: float, active: Iterable[str], skip: Tensor | None = None) -> None:
        number = self._model.current
        saved = [(values, values[places].clone(), places) for values, places in self._unchanged(number)]
        parts = [f"task{number}" if part == "task" else part for part in active]
        super().update(rate, parts, skip)
        for values, before, places in saved:
            values[places] = before

    def _unchanged(self, number: int) -> Iterable[tuple[Tensor, Tensor]]:
        """Yield the parameters, then each optimizer moment, with the indices of values that a step must not change."""
        outside = self._outside[number]
        yield self.buffers.value, outside
        for section in self._sections:
            places = outside[(outside >= section.start) & (outside < section.stop)] - section.start
            for name, values in self._moments[section.name].items():
                if name != "step" and len(places):
                    yield values, places


class SharedBatches:
    """Returns, for the number of a step, a batch of one task. Each call also selects this task in the model.

    steps: number of steps of each task. The steps of all tasks are shuffled. The batches of a task are the same as in
    finetuning on this task alone.
    """

    def __init__(
        self, model: SharedModel, tasks: Sequence[Prepared], steps: Sequence[int], part: Finetune, seed: int
    ) -> None:
        self._model = model
        self._batches = [weighted(TaskBatches(task, part.batch, seed), task, part) for task in tasks]
        self._turns = random_at(seed, Stream.TASK, 0).permutation(np.repeat(np.arange(len(tasks)), steps))

    def __call__(self, step: int, progress: float) -> Batch:
        number = int(self._turns[step])
        self._model.select(number)
        return self._batches[number](int(np.count_nonzero(self._turns[:step] == number)), progress)


@model_fits_device()
def share(ctx: StageContext[ShareParams]) -> dict[str, object]:
    """Train one encoder on all tasks and select the step with the best mean validation score over tasks.

    Without tickets, the stage is plain multi-task training. Inputs: `prepared.{number}`, `importance.{number}` for each
    ticket that is a level, and `joint` if the recipe has a joint stage.
    """
    params, finetune, device = ctx.params, ctx.params.finetune, pick_device()
    tasks = [Prepared(ctx.inputs[f"prepared.{number}"]) for number in range(len(params.tickets))]
    models = [_start(ctx, prepared).to(device) for prepared in tasks]
    masks = [ticket_of(ctx, number, models[0].shape) for number in range(len(tasks))]
    model = SharedModel(models, masks)
    # A limit of steps applies to each task, so that a large task does not reduce the steps of a small one.
    steps = [finetune.steps(len(prepared.split("train"))) for prepared in tasks]
    optimizer = TicketOptimizer(model, finetune.optimizer, params.precision)
    memory = partial(training_bytes, model.shape, optimizer.size)
    trainer = Trainer(
        ctx=ctx,
        model=model,
        optimizer=optimizer,
        batches=SharedBatches(model, tasks, steps, finetune, params.seed),
        budget=Budget(steps=sum(steps)),
        device=device,
        step_flops=lambda batch: step_flops(model.shape, batch),
        passes=RowPasses(model, Workers(ctx.rank, ctx.world_size), params.precision, device, memory),
        validate=partial(_validate, model=model, tasks=tasks),
        evaluate_at=evaluation_steps(sum(steps), finetune.evaluations, False),
    )
    with gated(model, model.head_gates, model.block_gates):
        _, best = trainer.run()
    assert best is not None
    for number, prepared in enumerate(tasks):
        best = own_units(best, prepared, f"task{number}")
    if not ctx.rank:
        (ctx.out / MASKS).write_text(json.dumps([mask.as_dict() for mask in masks]), encoding="utf-8")
    return write_trained(trainer, models[0].shape, best, {"joint": None})


def _start(ctx: StageContext[ShareParams], prepared: Prepared) -> TaskModel:
    """Return the initial model of one task. Finetuning on this task alone starts from the same model."""
    model = build(ctx.params.model, prepared, ctx.params.seed)
    if "joint" in ctx.inputs:
        load_weights(model, load_file(ctx.inputs["joint"] / WEIGHTS), skip=("task.",))
    return model


def ticket_of(ctx: StageContext[ShareParams], number: int, shape: Shape) -> Mask:
    """Return the mask of task `number`. Raises InvalidRequest if the mask or the level does not fit the model."""
    ticket = ctx.params.tickets[number]
    if ticket is None:
        return Mask.full(shape.layers, shape.heads)
    if isinstance(ticket, Mask):
        ticket.check(shape.layers, shape.heads)
        return ticket
    scores = read_json(ctx.inputs[f"importance.{number}"] / "importance.json")
    return one_shot(Importance.from_dict(scores), ticket, "winning")


def _validate(trainer: Trainer, model: SharedModel, tasks: Sequence[Prepared]) -> dict[str, float | None]:
    """Return each result of `validate` as mean over tasks (None if a task has None), and each task's score."""
    by_task, current = [], model.current
    for number, prepared in enumerate(tasks):
        model.select(number)
        by_task.append(validate(trainer, prepared.split("validation"), prepared))
    model.select(current)
    means = {name: summary([scores[name] for scores in by_task])["mean"] for name in by_task[0]}
    return means | {f"score.{number}": scores["score"] for number, scores in enumerate(by_task)}


def load_shared(folder: Path, number: int, labels: int) -> TaskModel:
    """Return the model of task `number`, sliced to the task's ticket. Raises CorruptArtifact.

    folder: the artifact of `share`. labels: number of labels of the task.
    """
    shape = read_shape(folder)
    mask = Mask.from_dict(read_json(folder / MASKS)[number])
    model = TaskModel(replace(shape, labels=labels))
    tensors = {n.replace(f"task{number}.", "task."): tensor for n, tensor in load_file(folder / WEIGHTS).items()}
    tensors = {name: tensor for name, tensor in tensors.items() if name.startswith(("encoder.", "task."))}
    load_weights(model, tensors, skip=("vocabulary.",))
    return sliced(model.eval(), mask)
