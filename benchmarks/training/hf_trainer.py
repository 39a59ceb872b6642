"""`transformers.Trainer` on masked language modelling over packed rows (`group_texts`), as a rival.

It runs in a process of its own, eager or compiled, and in turns with our loop: a callback at the end of every few of
its steps lets ours run as many, so both feel the same machine. `python -m benchmarks.training.hf_trainer` prints
`{"trainer": [tokens/s, …], "ours": […], "fast": […]}`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import (
    AutoTokenizer,
    BertForMaskedLM,
    DataCollatorForLanguageModeling,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from benchmarks.training.apart import Apart
from benchmarks.training.data import BATCH, LENGTH, environment, precision, prepared, threads
from benchmarks.training.published_loop import bert_config
from tlm_core.training.prepared import Prepared


class Grouped(Dataset[dict[str, Any]]):
    """All passages end to end, cut into rows of LENGTH: no padding, and documents that see each other."""

    def __init__(self, data: Prepared) -> None:
        passages = data.passages()
        assert passages is not None
        count = len(passages.tokens) // LENGTH
        self._rows = np.asarray(passages.tokens[: count * LENGTH]).astype(np.int64).reshape(count, LENGTH)
        self._special = np.isin(self._rows, np.array(data.vocabulary.specials)).astype(np.int64)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"input_ids": self._rows[index], "special_tokens_mask": self._special[index]}


class Turns(TrainerCallback):
    """Lets the others run after every `steps` steps of the trainer; the first turn is thrown away."""

    def __init__(self, others: Mapping[str, Callable[[int], float]], steps: int, tokens: int) -> None:
        self._others, self._steps, self._tokens = others, steps, tokens
        self.found: dict[str, list[float]] = {"trainer": [], **{name: [] for name in others}}
        self._began: float | None = None

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:  # noqa: ARG002
        if state.global_step % self._steps:
            return
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        if self._began is not None:
            self.found["trainer"].append(self._steps * self._tokens / (time.perf_counter() - self._began))
        for name, run in self._others.items():
            rate = run(self._steps)
            if self._began is not None:
                self.found[name].append(rate)
        self._began = time.perf_counter()


def take_turns(
    shape: tuple[int, int, int, int],
    others: Mapping[str, Callable[[int], float]],
    *,
    compiled: bool,
    batch: int,
    steps: int,
    repeats: int,
) -> dict[str, list[float]]:
    """Tokens a second of the trainer and of the others, `repeats` times. shape: layers, hidden, heads, intermediate."""
    data = Prepared(prepared())
    config = bert_config(shape, data)
    folder = tempfile.TemporaryDirectory(prefix="tlm-bench-")
    arguments = TrainingArguments(
        output_dir=folder.name,
        max_steps=steps * (repeats + 1),
        per_device_train_batch_size=batch,
        dataloader_drop_last=True,
        learning_rate=1e-4,
        bf16=precision() == "bf16",
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
        torch_compile=compiled,
        optim="adamw_torch_fused",
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    tokenizer = AutoTokenizer.from_pretrained(str(data.folder / "tokenizer"))
    turns = Turns(others, steps, batch * LENGTH)
    Trainer(
        model=BertForMaskedLM(config),
        args=arguments,
        train_dataset=Grouped(data),
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15),
        callbacks=[turns],
    ).train()
    return turns.found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8)
    options = parser.parse_args()
    torch.set_num_threads(threads())
    with ExitStack() as ended:
        started = {name: Apart("benchmarks.training.ours", name, env=environment()) for name in ("ours", "fast")}
        others = {name: ended.enter_context(rival).run for name, rival in started.items()}
        found = take_turns(
            (4, 256, 4, 1024),
            others,
            compiled=options.compiled,
            batch=BATCH,
            steps=options.steps,
            repeats=options.repeats,
        )
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
