"""The stages of a `learning_curve` job that training does not have."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from safetensors.torch import load_file
from torch import Tensor

from tlm_core.studies.bilstm import BiLSTM, LSTMShape, initialise, load_bilstm
from tlm_core.studies.params import BilstmParams
from tlm_core.training.device import pick_device
from tlm_core.training.evaluate import evaluate_models
from tlm_core.training.flops import FORWARD_AND_BACKWARD
from tlm_core.training.params import SeedsParams
from tlm_core.training.prepared import Batch, Prepared, task_batch
from tlm_core.training.randomness import Stream, permutation, random_at
from tlm_core.training.stage import StageContext
from tlm_core.training.stages import tune
from tlm_core.training.state import WEIGHTS, read_history

# Batches that are sorted by length together: enough for rows of like length, few enough to stay a random draw.
CHUNK = 32


class BucketBatches:
    """Step number → batch of texts of like length, since a recurrence takes as many steps as its longest text.

    Each epoch is a fresh permutation, cut into chunks of CHUNK batches; within a chunk texts are sorted by length
    and the batches shuffled. Follows from seed and step alone.
    """

    def __init__(self, prepared: Prepared, batch: int, seed: int) -> None:
        self._prepared = prepared
        self._train = prepared.training()
        self._batch = batch
        self._seed = seed
        self._epoch = -1
        self._batches: list[npt.NDArray[np.int64]] = []

    def __call__(self, step: int, progress: float) -> Batch:  # noqa: ARG002 - the signature the loop calls
        epoch, number = divmod(step, -(-len(self._train) // self._batch))
        if epoch != self._epoch:
            self._batches, self._epoch = self._arranged(epoch), epoch
        return task_batch(self._train, self._batches[number], self._prepared)

    def _arranged(self, epoch: int) -> list[npt.NDArray[np.int64]]:
        order = permutation(self._seed, Stream.FINETUNE, epoch, len(self._train))
        lengths, size = self._train.store.lengths, self._batch * CHUNK
        found: list[npt.NDArray[np.int64]] = []
        for begin in range(0, len(order), size):
            chunk = order[begin : begin + size]
            chunk = chunk[np.argsort(lengths[chunk], kind="stable")]
            found.extend(chunk[start : start + self._batch] for start in range(0, len(chunk), self._batch))
        shuffle = random_at(self._seed, Stream.TASK, epoch).permutation(len(found))
        return [found[index] for index in shuffle]


def lstm_flops(shape: LSTMShape, batch: Batch) -> float:
    """Return the FLOPs of a recurrence over texts side by side: each takes as many steps as the longest text."""
    head = 2.0 * batch.documents * 2 * shape.hidden * shape.labels
    steps = batch.documents * (int(batch.rows.positions.max()) + 1)
    return FORWARD_AND_BACKWARD * (steps * shape.token_flops() + head)


def bilstm(ctx: StageContext[BilstmParams]) -> dict[str, Any]:
    """Train a BiLSTM on the task, by the same rule of epochs and validation as finetuning an encoder.

    Inputs: `prepared`, and `joint` for one that begins with the token embeddings of a trained TLM model.
    """
    lstm, prepared = ctx.params.lstm, Prepared(ctx.inputs["prepared"])
    embeddings, before = _begun(ctx.inputs["joint"]) if "joint" in ctx.inputs else (None, {})
    shape = LSTMShape(
        vocab=prepared.vocabulary.size,
        labels=len(prepared.labels),
        layers=lstm.layers,
        hidden=lstm.hidden,
        embedding=lstm.embedding if embeddings is None else embeddings.shape[1],
        max_length=prepared.max_length,
        dropout=lstm.dropout,
    )
    model = BiLSTM(shape)
    initialise(model, ctx.params.seed, embeddings)
    return tune(ctx, cast(Any, model.to(pick_device())), before, BucketBatches, partial(lstm_flops, shape))


def _begun(joint: Path) -> tuple[Tensor, dict[str, Any]]:
    """The token embeddings that the joint stage left, and what they cost; the head that it trained is not taken."""
    return load_file(joint / WEIGHTS)["encoder.tokens.weight"], {"cost": read_history(joint)["cost"]}


def evaluate_bilstm(ctx: StageContext[SeedsParams]) -> dict[str, Any]:
    """Evaluate BiLSTMs. Inputs: `prepared`, `task`, and `finetune.s{seed}` for each seed."""
    if ctx.rank:
        return {}
    return evaluate_models(ctx, cast(Any, load_bilstm))
