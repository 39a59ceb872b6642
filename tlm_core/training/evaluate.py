"""Predictions of encoders for a split, their scores, and the stage `evaluate`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tlm_core.errors import OutOfMemory
from tlm_core.evaluation.combine import Outputs
from tlm_core.evaluation.report import (
    EncoderResult,
    LinearResult,
    Report,
    job_report,
    read_linears,
    report_meta,
    write_report,
)
from tlm_core.evaluation.summary import BEHIND, LINEAR_NODES, REFIT, learned_again
from tlm_core.pulse import PULSE
from tlm_core.tasks.metrics import score
from tlm_core.tasks.task import SPLITS, Task
from tlm_core.training.architectures import Shape
from tlm_core.training.device import autocast, out_of_memory, pick_device
from tlm_core.training.memory import predicting_bytes, rows_at_once
from tlm_core.training.model import TaskModel, classifier_size
from tlm_core.training.objective import Workers, encode, micro_batches, pooled_logits
from tlm_core.training.params import SeedsParams
from tlm_core.training.prepared import Batch, Prepared, Split, task_batch
from tlm_core.training.stage import StageContext
from tlm_core.training.state import load_model, read_history, trains_again

DOCUMENTS = 128

Load = Callable[[Path], TaskModel]  # returns the model in a folder that finetuning wrote


def predict(
    model: TaskModel,
    split: Split,
    prepared: Prepared,
    *,
    device: torch.device,
    precision: str = "fp32",
    workers: Workers | None = None,
) -> npt.NDArray[np.float32]:
    """Return the logits [n, labels] of a split's n texts: for each text, the mean over its windows.

    Workers divide the windows, and each worker returns all logits. Raises OutOfMemory if one row exceeds the device's
    memory.
    """
    workers = workers or Workers()
    rows = DOCUMENTS
    if isinstance(model.shape, Shape):  # an LSTM needs little memory
        count = partial(predicting_bytes, model.shape, classifier_size(model))
        rows = rows_at_once(device.type, workers.size, DOCUMENTS, count)
    order = np.argsort(split.store.lengths, kind="stable")
    logits = torch.zeros(len(order), model.shape.labels)
    training = model.training
    model.eval()
    with torch.inference_mode(), autocast(precision, device), PULSE.pace(steady=True):
        for number, begin in enumerate(range(0, len(order), DOCUMENTS)):
            if number % workers.size == workers.rank:
                batch = task_batch(split, order[begin : begin + DOCUMENTS], prepared)
                _predict_batch(model, batch, rows, device, logits)
                PULSE.warm_up()
    model.train(training)
    if workers.size > 1:
        logits = workers.sum(logits.to(device)).cpu()
    return split.means(logits.numpy())


def _predict_batch(model: TaskModel, batch: Batch, rows: int, device: torch.device, logits: Tensor) -> None:
    """Write the logits of the batch's windows into `logits`, [windows, labels].

    rows: number of rows to process at once. If memory runs out, halve this number. A smaller number changes only the
    rounding of sums, because the packed rows stay the same.
    """
    for part in micro_batches(batch, Workers(), rows):
        try:
            hidden, segments = encode(model, part, device)
            values = pooled_logits(model, part, hidden, segments).cpu()
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            if len(part.rows) == 1:
                raise OutOfMemory(
                    "One row of up to model.max_length tokens exceeds the memory of the device. "
                    "Lower model.max_length, or use a smaller scale."
                ) from error
        else:
            logits[torch.from_numpy(part.rows.documents)] = values
            continue
        # This call is outside the handler, because the error refers to the tensors of the failed computation.
        _predict_batch(model, part, -(-len(part.rows) // 2), device, logits)


def scores_of(logits: npt.NDArray[np.float32], split: Split, prepared: Prepared) -> dict[str, Any]:
    """Return the scores of the labels or regression targets that the logits predict; see `metrics.score`."""
    return score(split.labels, prepared.type.predict(logits), len(prepared.labels), prepared.metric)


def evaluate(ctx: StageContext[SeedsParams]) -> dict[str, Any]:
    """Test the model of each seed once, in fp32 like the exported model, and write report.json.

    With `ensemble`, round the weights of all encoders as the file of an ensemble stores them.

    Inputs: `prepared`, `task`, and `finetune.s{seed}` for each seed. To combine models: `baseline` and `self_train`.
    With a refit: `refit.s{seed}` and `refit_linear`, the models to test and export.
    """
    return evaluate_models(ctx, partial(load_model, compact=ctx.params.ensemble))


def evaluate_models(ctx: StageContext[SeedsParams], load: Load) -> dict[str, Any]:
    """Write the report on all seeds' models. Return the artifact's metadata. load: returns the model in a folder."""
    prepared, task = Prepared(ctx.inputs["prepared"]), Task.read(ctx.inputs["task"])
    folders = {seed: ctx.inputs[f"finetune.s{seed}"] for seed in ctx.params.seeds}
    final = {seed: encoder_folder(ctx.inputs, seed) for seed in ctx.params.seeds}
    encoders = encoder_results(folders, prepared, load, final, Workers(ctx.rank, ctx.world_size))
    if ctx.rank:
        return {}
    linears = read_linears(ctx.inputs)
    shared = shared_cost(prepared, linears)
    learned = {name: linear for name, linear in linears.items() if not linear.is_copy}
    report, predictions = job_report(task, encoders, learned, shared, ensemble=ctx.params.ensemble)
    report |= {REFIT: final != folders and learned_again(report), **cut_texts(prepared)}
    write_report(ctx.out, report, predictions)
    return report_meta(report)


def encoder_folder(inputs: Mapping[str, Path], seed: int) -> Path:
    """Return the folder of a seed's refitted encoder or, without a refit, of its finetuned encoder."""
    return inputs.get(f"refit.s{seed}", inputs[f"finetune.s{seed}"])


def encoder_results(
    folders: Mapping[int, Path],
    prepared: Prepared,
    load: Load,
    final: Mapping[int, Path] | None = None,
    workers: Workers | None = None,
) -> list[EncoderResult]:
    """Return the result of each seed's encoder: outputs on validation and test, the best evaluation, and the cost.

    folders: the finetuned models, by seed. final: the models to test; by default `folders`. Call this function once,
    after all training, because it reads test texts.
    """
    device = pick_device()

    def outputs_of(folder: Path, split: str) -> Outputs:
        return predict(load(folder).to(device), prepared.split(split), prepared, device=device, workers=workers)

    results = []
    for seed in sorted(folders):
        history, tested = read_history(folders[seed]), (final or folders)[seed]
        outputs = {"validation": outputs_of(folders[seed], "validation")}
        outputs |= {name: outputs_of(tested, name) for name in tests_of(prepared)}
        cost = {name: history[name] for name in ("joint",) if history[name]} | {"finetune": history["cost"]}
        refit = None if tested == folders[seed] else trains_again(history)
        cost |= {} if refit is None else {"refit": read_history(tested)["cost"]}
        tries, behind = history.get("tries", ()), history.get(BEHIND)
        results.append(EncoderResult(seed, outputs, history["best"], cost, tries, behind, refit))
    return results


def shared_cost(prepared: Prepared, linears: Mapping[str, LinearResult]) -> dict[str, Any]:
    """Return the cost of the stages that all seeds share, by stage."""
    costs = {LINEAR_NODES[name]: linear.facts["cost"] for name, linear in linears.items()}
    return costs | {"prepare": prepared.facts["cost"]}


def report_of(
    folders: Mapping[int, Path], prepared: Prepared, task: Task, load: Load
) -> tuple[Report, dict[str, Outputs]]:
    """Return the report on encoders alone, and their outputs; see `job_report`. folders: finetuned models by seed."""
    encoders = encoder_results(folders, prepared, load)
    report, outputs = job_report(task, encoders, {}, shared_cost(prepared, {}))
    return report | cut_texts(prepared), outputs


def cut_texts(prepared: Prepared) -> dict[str, object]:
    """Return two entries of a report: `cut_texts` (split → number of cut texts), and the `warnings` of `prepare`."""
    return {name: prepared.facts.get(name, default) for name, default in (("cut_texts", {}), ("warnings", []))}


def tests_of(prepared: Prepared) -> list[str]:
    """Return the names of the test split and of any further test splits."""
    return ["test", *sorted(set(prepared.facts["counts"]) - set(SPLITS))]
