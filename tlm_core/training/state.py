"""All that a stage's loop carries from step to step, and its form on disk.

What is drawn at random and which rows come next follow from the step number, so they need no place here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from tlm_core.artifacts import storage_errors
from tlm_core.errors import CorruptArtifact
from tlm_core.training.architectures import Shape
from tlm_core.training.memory import MICRO_ROWS
from tlm_core.training.model import TaskModel
from tlm_core.training.optim import Optimizer
from tlm_core.training.prepared import Prepared

# What a training stage's artifact holds.
HISTORY, SHAPE = "history.json", "model.json"
# What a checkpoint holds; the weights have the same name in both.
WEIGHTS, OPTIMIZER, BEST, STATE = "model.safetensors", "optimizer.safetensors", "best.safetensors", "state.json"


@dataclass
class TrainState:
    """Counts of the stage so far (over all workers), its history, and the best evaluation.

    sums: loss sums and counts since the last point of the history. micro_rows: rows held in memory at once.
    skipped: steps left out because their loss was not a number.
    """

    step: int = 0
    tokens: int = 0
    flops: float = 0.0
    seconds: float = 0.0
    points: list[dict[str, float | None]] = field(default_factory=list)
    sums: dict[str, float] = field(default_factory=dict)
    evaluations: list[dict[str, float | int | None]] = field(default_factory=list)
    best: int | None = None
    micro_rows: int = MICRO_ROWS
    skipped: int = 0


def weights(model: TaskModel) -> dict[str, Tensor]:
    """Copies of all parameters by name, on the CPU; tied ones once."""
    return {name: p.detach().cpu().clone() for name, p in model.named_parameters()}


def load_weights(model: TaskModel, saved: Mapping[str, Tensor], *, skip: tuple[str, ...] = ()) -> None:
    """Copy saved parameters into the model. Raises CorruptArtifact unless names and shapes agree exactly.

    skip: parts of the model that the file need not have and that stay as they are.
    """
    own = {name: p for name, p in model.named_parameters() if not name.startswith(skip)}
    given = {name: tensor for name, tensor in saved.items() if not name.startswith(skip)}
    if own.keys() != given.keys():
        differing = sorted(own.keys() ^ given.keys())[:3]
        raise CorruptArtifact(f"saved weights are of another model; they differ in {differing}")
    with torch.no_grad():
        for name, parameter in own.items():
            found, wanted = tuple(given[name].shape), tuple(parameter.shape)
            if found != wanted:
                raise CorruptArtifact(f"saved weight '{name}' is {found}, not {wanted}")
            parameter.copy_(given[name])


def own_units(saved: Mapping[str, Tensor], prepared: Prepared, head: str = "task") -> dict[str, Tensor]:
    """Weights that predict raw instead of standardized regression targets; unchanged for classes.

    The head's last layer is linear, so that mean and deviation go into its weights, [1, hidden], and bias, [1].
    """
    if prepared.scaling is None:
        return dict(saved)
    mean, deviation = prepared.scaling.mean, prepared.scaling.deviation
    weight, bias = f"{head}.out.weight", f"{head}.out.bias"
    return {**saved, weight: saved[weight] * deviation, bias: saved[bias] * deviation + mean}


def checkpoint_writer(
    state: TrainState, model: TaskModel, optimizer: Optimizer, best: Mapping[str, Tensor] | None
) -> Callable[[Path], None]:
    """What writes a checkpoint of this very moment into a folder, then or later; training may go on meanwhile.

    Writing raises StorageFull or StorageUnavailable.
    """
    files = {
        WEIGHTS: weights(model),
        OPTIMIZER: {name: t.detach().cpu().clone() for name, t in optimizer.state().items()},
        **({} if best is None else {BEST: dict(best)}),  # replaced by better ones, never changed
    }
    told = json.dumps(asdict(state))

    def write(folder: Path) -> None:
        with storage_errors("writing a checkpoint"):
            for name, tensors in files.items():
                _save(tensors, folder / name)
            (folder / STATE).write_text(told, encoding="utf-8")

    return write


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    """`save_file` with the file system's own error, which it otherwise hands on as text alone."""
    try:
        save_file(tensors, path)
    except SafetensorError as error:
        if not (found := re.search(r"os error (\d+)", str(error))):
            raise
        raise OSError(int(found[1]), str(error)) from error


def load_checkpoint(
    folder: Path, model: TaskModel, optimizer: Optimizer
) -> tuple[TrainState, dict[str, Tensor] | None]:
    """Restore model and optimiser in place; returns the state and the best weights so far.

    Raises CorruptArtifact for a checkpoint that is not of this model.
    """
    load_weights(model, load_file(folder / WEIGHTS))
    optimizer.load_state(load_file(folder / OPTIMIZER))
    data: dict[str, Any] = json.loads((folder / STATE).read_text(encoding="utf-8"))
    if data.keys() != TrainState.__dataclass_fields__.keys():
        raise CorruptArtifact(f"{folder / STATE} is not a training state of this version; start the stage anew")
    best = load_file(folder / BEST) if (folder / BEST).exists() else None
    return TrainState(**data), best


def read_history(folder: Path) -> dict[str, Any]:
    """What a stage that trained tells of its course: points, evaluations, the best of them, its cost."""
    found: dict[str, Any] = json.loads((folder / HISTORY).read_text(encoding="utf-8"))
    return found


def load_model(folder: Path) -> TaskModel:
    """The encoder and task head that the finetune stage wrote, ready to predict. Raises CorruptArtifact."""
    model = TaskModel(Shape.from_dict(json.loads((folder / SHAPE).read_text(encoding="utf-8"))))
    load_weights(model, load_file(folder / WEIGHTS), skip=("vocabulary.",))
    return model.eval()
