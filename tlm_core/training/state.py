"""The state of a training run, its checkpoints, and the files of a trained model.

Random numbers and the order of rows depend only on the seed and the number of the step, so the state omits them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from tlm_core.artifacts import storage_errors
from tlm_core.errors import CorruptArtifact
from tlm_core.evaluation.summary import BEHIND
from tlm_core.json_files import read_json
from tlm_core.training.architectures import Shape
from tlm_core.training.compact import EMBEDDINGS, OUTPUT, eight_bits
from tlm_core.training.memory import MICRO_ROWS
from tlm_core.training.model import TaskModel
from tlm_core.training.optim import FlatOptimizer
from tlm_core.training.prepared import Prepared
from tlm_core.training.recipe import Budget

# Files of a training stage's artifact.
HISTORY, SHAPE = "history.json", "model.json"
# Files of a checkpoint. The weights have the same file name in a checkpoint and in an artifact.
WEIGHTS, OPTIMIZER, BEST, STATE = "model.safetensors", "optimizer.safetensors", "best.safetensors", "state.json"


Losses = Mapping[str, float | None]  # mean losses of a step: `mlm` and `task`; None: the step does not train this loss


@dataclass
class RunningMean:
    """The mean of the added values that are not None. Without values, `value` is None."""

    total: float = 0.0
    count: int = 0

    def add(self, value: float | None) -> None:
        if value is not None:
            self.total += value
            self.count += 1

    @property
    def value(self) -> float | None:
        return self.total / self.count if self.count else None


@dataclass
class LossMeans:
    """The mean losses of the added steps."""

    mlm: RunningMean = field(default_factory=RunningMean)
    task: RunningMean = field(default_factory=RunningMean)

    def add(self, losses: Losses) -> None:
        self.mlm.add(losses["mlm"])
        self.task.add(losses["task"])

    def as_dict(self) -> dict[str, float | None]:
        return {"mlm": self.mlm.value, "task": self.task.value}


@dataclass
class TrainState:
    """Counts of a training stage over all workers, its history, and its best evaluation.

    worker_seconds: elapsed seconds x number of workers. means: losses since the last of the `points`. last_point:
    number of the last point; -1 before the first. best: index of the best evaluation. micro_rows: rows that a worker
    processes at once. skipped: number of steps without an update, because their loss or gradient was not finite.
    """

    step: int = 0
    tokens: int = 0
    flops: float = 0.0
    seconds: float = 0.0
    worker_seconds: float = 0.0
    points: list[dict[str, float | None]] = field(default_factory=list)
    means: LossMeans = field(default_factory=LossMeans)
    last_point: int = -1
    evaluations: list[dict[str, float | int | None]] = field(default_factory=list)
    best: int | None = None
    micro_rows: int = MICRO_ROWS
    skipped: int = 0

    def count(self, tokens: int, flops: float) -> None:
        """Count a step with its tokens and FLOPs."""
        self.step += 1
        self.tokens += tokens
        self.flops += flops

    def progress(self, budget: Budget) -> float:
        """Return the used share of the budget. After the last step, the share may exceed 1."""
        used = {"steps": self.step, "tokens": self.tokens, "flops": self.flops, "seconds": self.seconds}
        return float(used[budget.unit] / budget.amount)


def weights(model: TaskModel) -> dict[str, Tensor]:
    """Return copies of all parameters by name, on the CPU. A tied parameter occurs once."""
    return {name: p.detach().cpu().clone() for name, p in model.named_parameters()}


def arrays(model: TaskModel) -> dict[str, npt.NDArray[np.float32]]:
    """Return `weights` as arrays, as ONNX graphs need them."""
    return {name: tensor.numpy() for name, tensor in weights(model).items()}


def load_weights(model: TaskModel, saved: Mapping[str, Tensor], *, skip: tuple[str, ...] = ()) -> None:
    """Copy saved parameters into the model. Raises CorruptArtifact if a name or a shape differs.

    skip: prefixes of names. The parameters with these names stay unchanged, and `saved` may lack them.
    """
    own = {name: p for name, p in model.named_parameters() if not name.startswith(skip)}
    tensors = {name: tensor for name, tensor in saved.items() if not name.startswith(skip)}
    if own.keys() != tensors.keys():
        differing = sorted(own.keys() ^ tensors.keys())[:3]
        raise CorruptArtifact(
            "The saved weights belong to another model. The parameter names of the file and of the model differ, for "
            f"example in {', '.join(differing)}. Delete the job, then submit it again."
        )
    with torch.no_grad():
        for name, parameter in own.items():
            size, expected = tuple(tensors[name].shape), tuple(parameter.shape)
            if size != expected:
                raise CorruptArtifact(
                    f"The saved weight '{name}' has shape {size} instead of {expected}. "
                    "Delete the job, then submit it again."
                )
            parameter.copy_(tensors[name])


def own_units(saved: Mapping[str, Tensor], prepared: Prepared, head: str = "task") -> dict[str, Tensor]:
    """Return weights that predict regression targets in the user's units. Weights that predict classes do not change.

    In training, a model predicts standardized targets. The last layer of the head is linear, so its weights [1, hidden]
    and its bias [1] absorb mean and deviation.
    """
    if prepared.scaling is None:
        return dict(saved)
    mean, deviation = prepared.scaling.mean, prepared.scaling.deviation
    weight, bias = f"{head}.out.weight", f"{head}.out.bias"
    return {**saved, weight: saved[weight] * deviation, bias: saved[bias] * deviation + mean}


def checkpoint_writer(
    state: TrainState, model: TaskModel, optimizer: FlatOptimizer, best: Mapping[str, Tensor] | None
) -> Callable[[Path], None]:
    """Copy the current state. Return a function that writes the copy into a folder while training continues.

    The function raises StorageFull or StorageUnavailable.
    """
    files = {
        WEIGHTS: weights(model),
        OPTIMIZER: {name: t.detach().cpu().clone() for name, t in optimizer.state().items()},
    }
    if best is not None:
        files[BEST] = dict(best)  # Later evaluations replace the tensors and never change them.
    text = json.dumps(asdict(state))

    def write(folder: Path) -> None:
        with storage_errors("writing a checkpoint"):
            for name, tensors in files.items():
                _save(tensors, folder / name)
            (folder / STATE).write_text(text, encoding="utf-8")

    return write


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    """Write a safetensors file. Raises OSError if the file system fails; `save_file` reports this only as text."""
    try:
        save_file(tensors, path)
    except SafetensorError as error:
        if not (match := re.search(r"os error (\d+)", str(error))):
            raise
        raise OSError(int(match[1]), str(error)) from error


def load_checkpoint(
    folder: Path, model: TaskModel, optimizer: FlatOptimizer
) -> tuple[TrainState, dict[str, Tensor] | None]:
    """Restore model and optimizer in place. Return the state, and the best weights so far or None.

    Raises CorruptArtifact if another model or another release wrote the checkpoint.
    """
    load_weights(model, load_file(folder / WEIGHTS))
    optimizer.load_state(load_file(folder / OPTIMIZER))
    data = read_json(folder / STATE)
    if data.keys() != TrainState.__dataclass_fields__.keys():
        raise CorruptArtifact(
            f"Another release of the service wrote the checkpoint in {folder}. Delete the job, then submit it again."
        )
    data["means"] = LossMeans(**{name: RunningMean(**mean) for name, mean in data["means"].items()})
    best = load_file(folder / BEST) if (folder / BEST).exists() else None
    return TrainState(**data), best


def read_history(folder: Path) -> dict[str, Any]:
    """Return the history that a training stage wrote: points, evaluations, best evaluation, and cost."""
    return read_json(folder / HISTORY)


def trains_again(history: Mapping[str, Any]) -> bool:
    """Return whether the refit trains an encoder again. history: that of the encoder's finetuning.

    If finetuning did not improve the encoder, or the encoder is behind the linear model, the refit copies the encoder.
    """
    return BEHIND not in history and bool(history["best"]["step"])


def read_shape(folder: Path) -> Shape:
    """Return the shape of the encoder that a training stage wrote."""
    return Shape.from_dict(read_json(folder / SHAPE))


def load_model(folder: Path, *, compact: bool = False) -> TaskModel:
    """Return the encoder and task head that a finetune stage wrote, ready to predict. Raises CorruptArtifact.

    compact: round the weights as the file of an ensemble stores them.
    """
    model = TaskModel(read_shape(folder))
    tensors = load_file(folder / WEIGHTS)
    load_weights(model, compact_weights(tensors) if compact else tensors, skip=("vocabulary.",))
    return model.eval()


def compact_weights(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights, rounded as in the file of an ensemble: token embeddings to 8 bits, most others to 16 bits.

    The output layer stays exact; see `compact.py`.
    """
    numbers, scales = eight_bits(tensors[EMBEDDINGS].float().numpy())
    rounded = {name: tensor if name.startswith(f"{OUTPUT}.") else tensor.half() for name, tensor in tensors.items()}
    return rounded | {EMBEDDINGS: torch.from_numpy(numbers * scales)}
