"""Predictions of one short text, on models of the recipe's shapes whose weights are drawn at random."""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from pathlib import Path

from benchmarks.gateway.server import Served, T
from benchmarks.gateway.wire import Wire
from benchmarks.report import figure
from tests.contract.made_results import complete, publish
from tlm_core.jobs.spec import JobSpec
from tlm_core.training.recipe import Scale, resolve

SCALES: tuple[Scale, ...] = ("tiny", "small", "medium")
WORDS = 12


def predictions(served: Served, *, count: int = 100) -> None:
    """Each scale's model, asked for one text of a dozen words again and again."""
    for number, scale in enumerate(SCALES):
        job, vocab = _finished(served, scale, number), resolve("fast", scale, {}).tokenizer.vocab_size
        seconds = asyncio.run(_ask(served, job, vocab, count))
        first, rest = seconds[0], sorted(seconds[1:])
        figure(f"predict_p50_{scale}", [1e3 * rest[len(rest) // 2]], unit="ms", goal=30, better="lower")
        figure(f"predict_p99_{scale}", [1e3 * rest[int(0.99 * len(rest))]], unit="ms", better="lower")
        figure(f"predict_first_{scale}", [1e3 * first], unit="ms", better="lower")


async def _ask(served: Served, job: str, vocab: int, count: int) -> list[float]:
    wire, seconds = Wire(served.port, served.token), []
    try:
        for number in range(count + 1):
            text = " ".join(f"w{(number * 7919 + place * 131) % (vocab - 4)}" for place in range(WORDS))
            began = time.perf_counter()
            status, _ = await wire.request("POST", f"/v1/jobs/{job}/predict", {"texts": [text]})
            seconds.append(time.perf_counter() - began)
            assert status == 200, status
    finally:
        wire.close()
    return seconds


def _finished(served: Served, scale: Scale, number: int) -> str:
    """A job that has left a model of this scale's shape; its id."""
    resolved = served.jobs.list_jobs(T, limit=1)[0][0].resolved
    spec = JobSpec(dataset="toy", corpus="docs", priority=10, seeds=(1000 + number,))
    job, _ = served.jobs.submit(T, spec, resolved)
    claimed = served.jobs.claim("bench", 3600)
    assert claimed is not None and claimed.id == job.id
    with tempfile.TemporaryDirectory(prefix="tlm-bench-") as name:
        folder = Path(name)
        complete(served.jobs, served.artifacts, claimed, folder, up_to="evaluate")
        publish(served.jobs, served.artifacts, claimed, "export", _export(folder / "export", scale))
    return job.id


def _export(folder: Path, scale: Scale) -> Path:
    """The files from which the gateway predicts."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing

    from tlm_core.training.architectures import scratch_shape
    from tlm_core.training.graph import write_onnx
    from tlm_core.training.model import TaskModel, initialize

    recipe = resolve("fast", scale, {})
    size, labels = recipe.tokenizer.vocab_size, ["l0", "l1", "l2", "l3", "l4"]
    words = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3} | {f"w{n}": n + 4 for n in range(size - 4)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    (folder / "model").mkdir(parents=True)
    tokenizer.save(str(folder / "model" / "tokenizer.json"))
    (folder / "model" / "config.json").write_text(json.dumps({"pad_token_id": 0}))
    facts = {"labels": labels, "max_length": recipe.model.max_length, "pair": False}
    (folder / "labels.json").write_text(json.dumps(facts))
    model = TaskModel(scratch_shape(recipe.model, size, len(labels)))
    initialize(model, 0)
    weights = {name: value.detach().numpy() for name, value in model.state_dict().items()}
    write_onnx(model.shape, weights, folder / "model.onnx")
    return folder
