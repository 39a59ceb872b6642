"""Predict one short text at a time. The models have the shapes of the scales, and random weights."""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from pathlib import Path

from benchmarks.gateway.server import TENANT, Gateway
from benchmarks.report import figure
from tests.contract.job_results import complete, publish
from tlm_core.jobs.spec import JobSpec
from tlm_core.training.recipe import Scale, resolve

SCALES: tuple[Scale, ...] = ("tiny", "small", "medium")
WORDS = 12
LENGTH = 128
COUNT = 100  # measured requests to each model


def measure_predictions(gateway: Gateway) -> None:
    """Measure COUNT requests to a model of each scale in `SCALES`. Each request has one text of 12 words."""
    for number, scale in enumerate(SCALES):
        job = _finish_job(gateway, scale, seed=1000 + number)
        first, *seconds = asyncio.run(_predict(gateway, job, resolve("fast", scale).tokenizer.vocab_size, COUNT + 1))
        seconds.sort()
        figure(f"predict_p50_{scale}", [1e3 * seconds[COUNT // 2]], unit="ms", goal=30, better="lower")
        figure(f"predict_p99_{scale}", [1e3 * seconds[int(0.99 * COUNT)]], unit="ms", better="lower")
        figure(f"predict_first_{scale}", [1e3 * first], unit="ms", better="lower")


async def _predict(gateway: Gateway, job: str, vocabulary: int, count: int) -> list[float]:
    """Return the seconds of each of `count` requests. vocabulary: the number of tokens of the model."""
    connection, seconds = gateway.connect(), []
    try:
        for number in range(count):
            text = " ".join(f"w{(number * 7919 + place * 131) % (vocabulary - 4)}" for place in range(WORDS))
            start = time.perf_counter()
            status = await connection.request("POST", f"/v1/models/{job}/predict", {"texts": [text]})
            seconds.append(time.perf_counter() - start)
            assert status == 200, status
    finally:
        connection.close()
    return seconds


def _finish_job(gateway: Gateway, scale: Scale, seed: int) -> str:
    """Store a finished job with a model of this scale's shape, and return its id."""
    spec = JobSpec(dataset="toy", corpus="docs", priority=10, seeds=(seed,))
    gateway.jobs.submit(TENANT, spec, gateway.resolved())
    job = gateway.jobs.claim("bench", 3600)
    assert job is not None and job.spec == spec
    with tempfile.TemporaryDirectory(prefix="tlm-bench-") as name:
        folder = Path(name)
        complete(gateway.jobs, gateway.artifacts, job, folder, up_to="evaluate")
        publish(gateway.jobs, gateway.artifacts, job, "export", _export(folder / "export", scale))
    return job.id


def _export(folder: Path, scale: Scale) -> Path:
    """Write an exported model of this scale's shape with random weights, and return `folder`."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing

    from tlm_core.training.architectures import scratch_shape
    from tlm_core.training.graph import write_onnx
    from tlm_core.training.model import TaskModel, initialize
    from tlm_core.training.state import arrays

    recipe = resolve("fast", scale, {"model.max_length": LENGTH})
    size, labels = recipe.tokenizer.vocab_size, ["l0", "l1", "l2", "l3", "l4"]
    words = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3} | {f"w{n}": n + 4 for n in range(size - 4)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    (folder / "model").mkdir(parents=True)
    tokenizer.save(str(folder / "model" / "tokenizer.json"))
    (folder / "model" / "config.json").write_text(json.dumps({"pad_token_id": 0}))
    metadata = {"labels": labels, "max_length": LENGTH, "pair": False}
    (folder / "labels.json").write_text(json.dumps(metadata))
    model = TaskModel(scratch_shape(recipe.model, size, len(labels)))
    initialize(model, 0)
    write_onnx(model.shape, arrays(model), folder / "model.onnx")
    return folder
