"""Compare the BiLSTM's speed with that of a plain padded loop in training, and with that of encoders in prediction.

Run it with `make bench-studies`. The texts are SciCite of TLM_SHARED_DATA with a vocabulary of 8,192 pieces. Both
rivals train LSTM-4-256 (four layers of 256 each way) on batches of 32 texts and count real tokens, not padding.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from benchmarks.report import alternate, figure, ratios, remark
from benchmarks.shared import shared_data
from tlm_core.quantization import quantize_graph
from tlm_core.stages import PREPARE
from tlm_core.studies.bilstm import BiLSTM, LSTMShape, initialize
from tlm_core.studies.bilstm_stages import BucketBatches, lstm_flops
from tlm_core.studies.lstm_export import lstm_onnx
from tlm_core.studies.measure import compare_graphs, token_batches
from tlm_core.tasks.options import DatasetOptions
from tlm_core.tasks.validate import write_task
from tlm_core.training.architectures import scratch_shape
from tlm_core.training.graph import write_onnx
from tlm_core.training.local import LocalCheckpoints, LocalReporter, run_stage
from tlm_core.training.loop import Trainer
from tlm_core.training.model import TaskModel
from tlm_core.training.model import initialize as initialize_encoder
from tlm_core.training.objective import Workers
from tlm_core.training.optim import FlatOptimizer
from tlm_core.training.params import PrepareParams, TuneParams
from tlm_core.training.passes import RowPasses
from tlm_core.training.prepared import Prepared
from tlm_core.training.recipe import Budget, Finetune, Optimizer, Precision, native_precision, resolve
from tlm_core.training.stage import StageContext
from tlm_core.training.state import arrays

BATCH = 32
REPEATS, STEPS, TEXTS, THREADS = 3, 20, 32, 2
LAYERS, WIDTH = 4, 256
LENGTH = 128
OPTIMIZER = Optimizer(name="adamw", lr=2e-3)
CPU = torch.device("cpu")


def prepared_texts(folder: Path) -> Prepared:
    """Return SciCite as the prepare stage writes it. Raises NotFound if the data does not exist."""
    write_task(shared_data() / "tasks" / "sci_cite", folder / "task", DatasetOptions())
    overrides = {"selection.selector": "none", "model.init": "scratch", "model.max_length": LENGTH, "model.windows": 1}
    params = PrepareParams.of(resolve("fast", "tiny", overrides))
    return Prepared(run_stage(PREPARE, {"task": folder / "task"}, params, folder / "prepared"))


def ours(prepared: Prepared, folder: Path, precision: Precision) -> float:
    """Return the real tokens per second of our training loop, without checkpoints."""
    shape = LSTMShape(prepared.vocabulary.size, len(prepared.labels), LAYERS, WIDTH, WIDTH, prepared.max_length)
    model = BiLSTM(shape)
    initialize(model, 0)
    params = TuneParams(seed=0, precision=precision, checkpoint_steps=STEPS + 1, finetune=Finetune(optimizer=OPTIMIZER))
    checkpoints = LocalCheckpoints(folder / "none")
    trainer = Trainer(
        ctx=StageContext({}, params, folder, LocalReporter(), checkpoints, scratch=folder),
        model=model,
        optimizer=FlatOptimizer(model, OPTIMIZER, ("encoder", "task")),
        batches=BucketBatches(prepared, BATCH, 0),
        budget=Budget(steps=STEPS),
        device=CPU,
        step_flops=partial(lstm_flops, shape),
        passes=RowPasses(model, Workers(), precision, CPU),
    )
    state, _ = trainer.run()
    return state.tokens / state.seconds


class Plain(nn.Module):
    """The plain model: embedding, nn.LSTM over padded texts, maximum over time, a linear layer."""

    def __init__(self, vocab: int, labels: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocab, WIDTH)
        self.lstm = nn.LSTM(WIDTH, WIDTH, LAYERS, batch_first=True, bidirectional=True)
        self.out = nn.Linear(2 * WIDTH, labels)

    def forward(self, tokens: torch.Tensor, pad: int) -> torch.Tensor:
        hidden, _ = self.lstm(self.tokens(tokens))
        hidden = hidden.masked_fill((tokens == pad)[..., None], -torch.inf)
        return self.out(hidden.amax(dim=1))


def plain(prepared: Prepared) -> float:
    """Return the real tokens per second of the plain loop: random batches, padded to the longest text, fp32."""
    split, pad = prepared.split("train"), prepared.vocabulary.pad
    texts = [torch.from_numpy(np.asarray(split.store[i], dtype=np.int64)) for i in range(len(split))]
    labels = torch.from_numpy(split.labels)
    torch.manual_seed(0)
    model = Plain(prepared.vocabulary.size, len(prepared.labels))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    order = torch.randperm(len(texts)).tolist()
    tokens, start = 0, time.perf_counter()
    for step in range(STEPS):
        members = order[step * BATCH : (step + 1) * BATCH]
        batch = nn.utils.rnn.pad_sequence([texts[i] for i in members], batch_first=True, padding_value=pad)
        loss = nn.functional.cross_entropy(model(batch, pad), labels[members])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        tokens += sum(len(texts[i]) for i in members)
    return tokens / (time.perf_counter() - start)


def training(prepared: Prepared, folder: Path) -> None:
    rivals: dict[str, Callable[[], float]] = {
        "plain": lambda: plain(prepared),
        "fp32": lambda: ours(prepared, folder, "fp32"),
    }
    native = native_precision()
    rivals.setdefault(native, lambda: ours(prepared, folder, native))
    rates = alternate(rivals, REPEATS)
    for name, runs in rates.items():
        figure(f"bilstm_{name}_tokens_per_second", runs, unit="real tokens/s")
    figure("bilstm_fp32_vs_plain_loop", ratios(rates["fp32"], rates["plain"]), unit="x")
    figure("bilstm_vs_plain_loop", ratios(rates[native], rates["plain"]), unit="x", goal=5.0)


def inference(prepared: Prepared, folder: Path) -> None:
    """Measure ONNX graphs of BiLSTMs and encoders on one core: random weights, and the first validation texts."""
    size, labels = prepared.vocabulary.size, len(prepared.labels)
    graphs = {"bilstm_4_256": folder / "4.onnx", "bilstm_1_128": folder / "1.onnx"}
    for name, layers, width in (("bilstm_4_256", 4, 256), ("bilstm_1_128", 1, 128)):
        model = BiLSTM(LSTMShape(size, labels, layers, width, width, prepared.max_length))
        initialize(model, 0)
        lstm_onnx(model, graphs[name])
    graphs["bilstm_4_256_int8"] = folder / "4.int8.onnx"
    quantize_graph(graphs["bilstm_4_256"], graphs["bilstm_4_256_int8"])
    shapes = {
        "encoder_tiny": resolve("fast", "tiny", {"model.max_length": LENGTH}).model,
        "encoder_bert_base": resolve("paper", "small").model,
    }
    for name, model_recipe in shapes.items():
        encoder = TaskModel(scratch_shape(model_recipe, size, labels))
        initialize_encoder(encoder, 0)
        graphs[name] = folder / f"{name}.onnx"
        write_onnx(encoder.shape, arrays(encoder), graphs[name])
    texts = dict.fromkeys(graphs, token_batches(prepared, TEXTS))
    runs = [compare_graphs(graphs, texts) for _ in range(REPEATS)]
    seconds = {name: [run[name]["seconds_per_text"] for run in runs] for name in graphs}
    for name in graphs:
        figure(f"{name}_ms_per_text", [1000 * s for s in seconds[name]], unit="ms", better="lower")
    for lstm in ("bilstm_4_256", "bilstm_4_256_int8", "bilstm_1_128"):
        for encoder_name in shapes:
            goal = 20.0 if encoder_name == "encoder_bert_base" else None  # the paper's figure, against RoBERTa
            name = f"{lstm}_speed_up_over_{encoder_name}"
            figure(name, ratios(seconds[encoder_name], seconds[lstm]), unit="x", goal=goal)


def main() -> None:
    torch.set_num_threads(THREADS)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepared = prepared_texts(folder)
        lengths = prepared.split("train").store.lengths
        remark(f"{len(lengths):,} texts, {lengths.mean():.1f} tokens each, {THREADS} threads")
        training(prepared, folder)
        inference(prepared, folder)


if __name__ == "__main__":
    main()
