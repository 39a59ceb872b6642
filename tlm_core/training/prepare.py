"""The prepare stage: a tokenizer, and all texts as token ids in flat stores."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from tokenizers import Encoding, Tokenizer

from tlm_core.errors import NotFound, Unavailable
from tlm_core.linear.pieces import read_pieces
from tlm_core.linear.spans import learn_marks
from tlm_core.parquet import open_parquet
from tlm_core.pulse import PULSE
from tlm_core.tasks.task import Task
from tlm_core.training.architectures import ARCHITECTURES
from tlm_core.training.counts import count
from tlm_core.training.params import OWN_TOKENIZER, PrepareParams
from tlm_core.training.recipe import AUTO_COVERED, auto_length
from tlm_core.training.stage import StageContext, StopRequested
from tlm_core.training.store import ArrayWriter, StoreWriter, TokenStore
from tlm_core.training.tokenizer import (
    cut_into_windows,
    load_published,
    special_ids,
    train_wordpiece,
    windows_of,
    write_folder,
    write_max_length,
)

# Larger batches are not faster, and the tokenizer's result for a text is many times the size of the text.
BATCH = 250
REPORT_SECONDS = 0.5


def prepare(ctx: StageContext[PrepareParams]) -> dict[str, Any]:
    """Write the tokenizer, token stores, labels, and `data.json`.

    A task text that is longer than `max_length` becomes at most `model.windows` windows. A pair that is too long is
    truncated. Passages stay whole.

    Inputs: `task`, `selection` unless the recipe selects nothing, and `self_train` if the linear model labels passages.
    """
    began = time.monotonic()
    task = Task.read(ctx.inputs["task"])
    selection = ctx.inputs.get("selection")
    windows = 1 if task.pair else ctx.params.windows
    tokenizer, ids, replaced = _tokenizer(ctx, task, selection)
    size = tokenizer.get_vocab_size(with_added_tokens=True)
    measured = task.counts["train"] if ctx.params.max_length == "auto" else 0
    passages = pq.read_metadata(selection / "passages.parquet").num_rows if selection else 0
    progress = _Counter(ctx, measured + sum(task.counts.values()) + passages)
    max_length = _max_length(ctx.params, tokenizer, task, progress)
    write_max_length(ctx.out / "tokenizer", max_length)
    facts: dict[str, Any] = {
        "labels": list(task.labels),
        "metric": task.metric,
        "pair": task.pair,
        "marked_spans": not task.pair and bool(learn_marks(task.texts("train"))),
        "language": task.language,
        "task": task.name,
        "counts": task.counts,
        "max_length": max_length,
        "max_windows": windows,
        "vocab_size": size,
        "special_ids": ids,
        "tokens": {},
        "windows": {},
        "cut_texts": {},
        "passages": passages,
    }
    if selection:
        facts["tokens"]["passages"] = _passages(ctx.out, tokenizer, size, selection, progress)
        if (selection / "selection.json").exists():
            facts["selection"] = json.loads((selection / "selection.json").read_text(encoding="utf-8"))
    cut_into_windows(tokenizer, max_length, windows)
    for split in task.counts:
        counts = _split(ctx.out, tokenizer, size, task, split, windows, progress)
        facts["tokens"][split], facts["windows"][split], facts["cut_texts"][split] = counts
    if "self_train" in ctx.inputs:
        _pieces(ctx.out, tokenizer, size, ctx.inputs["self_train"])
    facts["warnings"] = [*replaced, *_cut_warnings(facts)]
    for message in facts["warnings"]:
        ctx.report.event("stage.warning", message=message)
    facts["cost"] = {"flops": 0.0, "tokens": sum(facts["tokens"].values())}
    if ctx.params.vector_width is not None:
        facts["cost"] |= _count(ctx.out, facts, ctx.params.vector_width)
    facts["cost"] |= {"seconds": time.monotonic() - began, "gpu_seconds": 0.0}
    (ctx.out / "data.json").write_text(json.dumps(facts, ensure_ascii=False, indent=1), encoding="utf-8")
    meta = {name: facts[name] for name in ("vocab_size", "max_length", "tokens", "windows", "passages")}
    return meta | ({OWN_TOKENIZER: True} if replaced else {})


def _tokenizer(
    ctx: StageContext[PrepareParams], task: Task, selection: Path | None
) -> tuple[Tokenizer, dict[str, int], list[str]]:
    """Write the recipe's tokenizer to the folder `tokenizer`. Return the tokenizer, its special ids, and warnings.

    If an own tokenizer replaces the published tokenizer, a warning states the reason.
    """
    part, folder, replaced = ctx.params.tokenizer, ctx.out / "tokenizer", list[str]()
    if part.published:
        try:
            return *load_published(part.published, folder), []
        except (NotFound, Unavailable) as error:
            if not part.may_be_own:
                raise
            replaced = [f"An own tokenizer of {part.vocab_size:,} tokens replaces a published one. {error.message}"]

    def texts() -> Iterator[str]:
        yield from task.texts("train")
        yield from task.text_pairs("train") or ()
        if selection:
            for batch in _passage_batches(selection, ["text"]):
                yield from batch["text"]

    ctx.report.event("tokenizer", vocab_size=part.vocab_size)
    tokenizer = train_wordpiece(texts, part.vocab_size, part.lowercase)
    write_folder(tokenizer, folder, types=ARCHITECTURES[ctx.params.architecture].token_types > 1)
    return tokenizer, special_ids(tokenizer), replaced


@PULSE.pace(steady=True)
def _max_length(params: PrepareParams, tokenizer: Tokenizer, task: Task, progress: _Counter) -> int:
    """Return `model.max_length`. If this key is `auto`, the lengths of the train texts determine the result."""
    if params.max_length != "auto":
        return params.max_length
    lengths: list[int] = []
    for encodings in _encodings(tokenizer, task, "train"):
        lengths += map(len, encodings)
        progress.add(len(encodings))
    return auto_length(float(np.quantile(lengths, AUTO_COVERED, method="inverted_cdf")))


def _count(out: Path, facts: dict[str, Any], dim: int) -> dict[str, float]:
    """Write frequencies and vectors of tokens for `model.init: counts`. Return the cost, `{"flops": …}`."""
    names = ["train", *(["passages"] if facts["passages"] else [])]
    stores = [TokenStore(out, name) for name in names]
    counted = count(stores, facts["vocab_size"], sorted(facts["special_ids"].values()), dim)
    np.save(out / "log_frequency.npy", counted.log_frequency)
    np.save(out / "vectors.npy", counted.vectors)
    return {"flops": counted.flops}


def _passage_batches(selection: Path, columns: list[str]) -> Iterator[dict[str, list[str]]]:
    with open_parquet(selection / "passages.parquet") as file:
        for batch in file.iter_batches(batch_size=BATCH, columns=columns):
            PULSE.advance()
            yield batch.to_pydict()


@PULSE.pace(steady=True)
def _passages(out: Path, tokenizer: Tokenizer, size: int, selection: Path, progress: _Counter) -> int:
    """Write the tokens and the ids of the passages. Return the number of tokens."""
    # Ids of a fixed width can be written in batches. A selection may be a whole corpus.
    width = max(
        (len(name.encode()) for batch in _passage_batches(selection, ["id"]) for name in batch["id"]), default=1
    )
    ids = ArrayWriter(out / "passages.ids.npy", f"S{width}")
    with StoreWriter(out, "passages", size) as store:
        for batch in _passage_batches(selection, ["id", "text"]):
            store.add([encoding.ids for encoding in tokenizer.encode_batch_fast(batch["text"])])
            ids.append(np.array([name.encode() for name in batch["id"]]))
            progress.add(len(batch["id"]))
    ids.close()
    return store.total


def _pieces(out: Path, tokenizer: Tokenizer, size: int, self_train: Path) -> None:
    """Write the labeled pieces of passages as the split `pieces`, with one window each and probabilities as labels."""
    texts, probabilities = read_pieces(self_train)
    with StoreWriter(out, "pieces", size) as store:
        for begin in range(0, len(texts), BATCH):
            store.add([encoding.ids for encoding in tokenizer.encode_batch_fast(texts[begin : begin + BATCH])])
    np.save(out / "pieces.labels.npy", probabilities)
    np.save(out / "pieces.rows.npy", np.arange(len(texts)))


def _cut_warnings(facts: Mapping[str, Any]) -> list[str]:
    """Return a warning for each split with texts whose ends the model does not read."""
    length, windows = f"{facts['max_length']} tokens", facts["max_windows"]
    limit = f"{windows} windows of {length}" if windows > 1 else length
    remedy = "model.max_length" if facts["pair"] else "model.max_length or model.windows"
    return [
        f"{cut:,} of {facts['counts'][split]:,} {split} texts are longer than {limit}; the model does not read their "
        f"ends. Raise {remedy}."
        for split, cut in facts["cut_texts"].items()
        if cut
    ]


@PULSE.pace(steady=True)
def _split(
    out: Path, tokenizer: Tokenizer, size: int, task: Task, split: str, limit: int, progress: _Counter
) -> tuple[int, int, int]:
    """Write the texts of a split with at most `limit` windows each.

    Return the numbers of tokens, of windows, and of texts with more than `limit` windows.
    """
    counts, second = list[int](), list[int]()
    cut = 0
    with StoreWriter(out, split, size) as store:
        for encodings in _encodings(tokenizer, task, split):
            windows = [windows_of(encoding, limit) for encoding in encodings]
            store.add([window.ids for of_text, _ in windows for window in of_text])
            counts += [len(of_text) for of_text, _ in windows]
            cut += sum(longer for _, longer in windows)
            if task.pair:
                second += [_second_begins(encoding.sequence_ids) for encoding in encodings]
            progress.add(len(encodings))
    if task.pair:
        np.save(out / f"{split}.second.npy", np.array(second, dtype=np.int64))
    np.save(out / f"{split}.texts.npy", np.repeat(np.arange(len(counts)), counts))
    np.save(out / f"{split}.labels.npy", task.targets(split))
    np.save(out / f"{split}.rows.npy", task.rows(split))
    return store.total, sum(counts), cut


def _encodings(tokenizer: Tokenizer, task: Task, split: str) -> Iterator[list[Encoding]]:
    """Yield the encodings of a split's texts in batches."""
    texts: list[str] = task.texts(split)
    pairs = task.text_pairs(split)
    for begin in range(0, len(texts), BATCH):
        block: Iterable[Any] = texts[begin : begin + BATCH]
        if pairs:
            # A merged task may contain pairs and single texts. The second text of a single text is empty.
            both = zip(block, pairs[begin : begin + BATCH], strict=True)
            block = [(text, second) if second else text for text, second in both]
        yield tokenizer.encode_batch_fast(list(block))


def _second_begins(sequences: list[int | None]) -> int:
    return sequences.index(1) if 1 in sequences else len(sequences)


class _Counter:
    """Reports the number of finished texts at most twice a second."""

    def __init__(self, ctx: StageContext[PrepareParams], total: int) -> None:
        self._ctx = ctx
        self._total = total
        self._done = 0
        self._began = self._last = time.monotonic()

    def add(self, count: int) -> None:
        """Count texts. Raises StopRequested if the reporter requests a stop. A resumed job repeats the whole stage."""
        PULSE.advance()
        PULSE.warm_up()
        self._done += count
        now = time.monotonic()
        if now - self._last < REPORT_SECONDS:
            return
        self._last = now
        rate = self._done / (now - self._began)
        eta = (self._total - self._done) / rate
        if not self._ctx.report.progress(step=self._done, total=self._total, rate=rate, unit="texts", eta_seconds=eta):
            raise StopRequested("The prepare stage stopped on request. Resume the job to repeat the stage.")
