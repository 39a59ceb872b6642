"""The stages of a `learning_curve` job that train and test BiLSTMs."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file
from torch import Tensor

from tlm_core.studies.bilstm import BiLSTM, LSTMShape, initialize, initialize_counted, load_bilstm
from tlm_core.studies.params import BilstmParams
from tlm_core.training.device import pick_device
from tlm_core.training.encoder_stages import tune
from tlm_core.training.evaluate import evaluate_models
from tlm_core.training.flops import FORWARD_AND_BACKWARD
from tlm_core.training.params import SeedsParams
from tlm_core.training.prepared import Batch, Prepared, task_batch
from tlm_core.training.randomness import Stream, permutation, random_at
from tlm_core.training.stage import StageContext
from tlm_core.training.state import WEIGHTS, read_history

CHUNK = 32  # number of batches whose texts are sorted by length together


class BucketBatches:
    """Number of a training step → batch of texts of similar length, which need little padding.

    Each epoch is a new permutation of the texts, in chunks of CHUNK batches. The texts of a chunk are sorted by length,
    and the batches of the epoch are shuffled. A batch depends only on the seed and the step number.
    """

    def __init__(self, prepared: Prepared, batch: int, seed: int) -> None:
        self._prepared = prepared
        self._train = prepared.training()
        self._batch = batch
        self._seed = seed
        self._epoch = -1
        self._batches: list[npt.NDArray[np.int64]] = []

    def __call__(self, step: int, progress: float) -> Batch:  # noqa: ARG002 - the loop passes both
        epoch, number = divmod(step, -(-len(self._train) // self._batch))
        if epoch != self._epoch:
            self._batches, self._epoch = self._epoch_batches(epoch), epoch
        return task_batch(self._train, self._batches[number], self._prepared)

    def _epoch_batches(self, epoch: int) -> list[npt.NDArray[np.int64]]:
        order = self._train.turns(permutation(self._seed, Stream.FINETUNE, epoch, len(self._train)), epoch)
        lengths, size = self._train.store.lengths, self._batch * CHUNK
        batches: list[npt.NDArray[np.int64]] = []
        for begin in range(0, len(order), size):
            chunk = order[begin : begin + size]
            chunk = chunk[np.argsort(lengths[chunk], kind="stable")]
            batches.extend(chunk[start : start + self._batch] for start in range(0, len(chunk), self._batch))
        shuffle = random_at(self._seed, Stream.TASK, epoch).permutation(len(batches))
        return [batches[index] for index in shuffle]


def lstm_flops(shape: LSTMShape, batch: Batch) -> float:
    """Return the FLOPs of a training step on a batch, in which each text is padded to the longest text."""
    head = 2.0 * batch.documents * 2 * shape.hidden * shape.labels
    steps = batch.documents * (int(batch.rows.positions.max()) + 1)
    return FORWARD_AND_BACKWARD * (steps * shape.token_flops() + head)


def bilstm(ctx: StageContext[BilstmParams]) -> dict[str, object]:
    """Train a BiLSTM on the task, with the epochs and the validation of an encoder's finetuning.

    Inputs: `prepared`, and optionally `joint`, a joint stage whose token embeddings are the start. Without `joint`,
    `lstm.init` selects the start of the token embeddings.
    """
    lstm, prepared, seed = ctx.params.lstm, Prepared(ctx.inputs["prepared"]), ctx.params.seed
    embeddings, before = _embeddings(ctx.inputs["joint"]) if "joint" in ctx.inputs else (None, {})
    counted = torch.from_numpy(prepared.counted()[1]) if lstm.init == "counts" and embeddings is None else None
    given = counted if embeddings is None else embeddings
    shape = LSTMShape(
        vocab=prepared.vocabulary.size,
        labels=len(prepared.labels),
        layers=lstm.layers,
        hidden=lstm.hidden,
        embedding=lstm.embedding if given is None else given.shape[1],
        max_length=prepared.max_length,
        dropout=lstm.dropout,
    )
    model = BiLSTM(shape)
    initialize(model, seed, embeddings)
    if counted is not None:
        initialize_counted(model, seed, counted)
    return tune(ctx, model.to(pick_device()), before, BucketBatches, partial(lstm_flops, shape))


def _embeddings(joint: Path) -> tuple[Tensor, dict[str, Any]]:
    """Return the token embeddings of a joint stage, [V, width], and `{"cost": …}` with the cost of this stage."""
    return load_file(joint / WEIGHTS)["encoder.tokens.weight"], {"cost": read_history(joint)["cost"]}


def evaluate_bilstm(ctx: StageContext[SeedsParams]) -> dict[str, object]:
    """Write the report of the BiLSTMs. Inputs: `prepared`, `task`, and `finetune.s{seed}` for each seed."""
    return evaluate_models(ctx, load_bilstm)
