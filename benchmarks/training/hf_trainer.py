"""`transformers.Trainer` on masked language modeling over packed rows (`group_texts`), a rival of our joint stage.

After every few steps, a callback runs as many steps of our joint stage: first with the published model ("ours"), then
with recipe `fast` at the same size ("fast"). All three alternate, because the speed of a machine varies.
`python -m benchmarks.training.hf_trainer` prints `{"trainer": [tokens/s, …], "ours": […], "fast": […]}`.
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

from benchmarks.training.published_loop import bert_config
from benchmarks.training.rival_process import RivalProcess
from benchmarks.training.training_data import BATCH, LENGTH, environment, precision, prepared, threads
from tlm_core.training.prepared import Prepared


class Grouped(Dataset[dict[str, Any]]):
    """All passages concatenated and cut into rows of LENGTH, without padding and without document borders."""

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
    """After every `steps` steps of the Trainer, run each of `others` for `steps` steps. The first turn is a warm-up.

    rates: name → tokens per second of each turn, without the warm-up. tokens: number of tokens in a step.
    """

    def __init__(self, others: Mapping[str, Callable[[int], float]], steps: int, tokens: int) -> None:
        self._others, self._steps, self._tokens = others, steps, tokens
        self.rates: dict[str, list[float]] = {"trainer": [], **{name: [] for name in others}}
        self._start: float | None = None

    def on_step_end(self, args: Any, state: Any, control: Any, **unused: Any) -> None:  # noqa: ARG002
        if state.global_step % self._steps:
            return
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        if self._start is not None:
            self.rates["trainer"].append(self._steps * self._tokens / (time.perf_counter() - self._start))
        for name, run in self._others.items():
            rate = run(self._steps)
            if self._start is not None:
                self.rates[name].append(rate)
        self._start = time.perf_counter()


def alternate_with(
    others: Mapping[str, Callable[[int], float]], *, compiled: bool, steps: int, repeats: int
) -> dict[str, list[float]]:
    """Return the tokens per second of each turn, for the key `trainer` and each name in `others`.

    others: functions that train for a number of steps and return tokens per second. steps: the number of steps of a
    turn. repeats: the number of turns.
    """
    data = Prepared(prepared())
    config = bert_config((4, 256, 4, 1024), data)
    folder = tempfile.TemporaryDirectory(prefix="tlm-bench-")
    arguments = TrainingArguments(
        output_dir=folder.name,
        max_steps=steps * (repeats + 1),
        per_device_train_batch_size=BATCH,
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
    turns = Turns(others, steps, BATCH * LENGTH)
    Trainer(
        model=BertForMaskedLM(config),
        args=arguments,
        train_dataset=Grouped(data),
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15),
        callbacks=[turns],
    ).train()
    return turns.rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8)
    options = parser.parse_args()
    torch.set_num_threads(threads())
    with ExitStack() as stack:
        started = {name: RivalProcess("ours", name, env=environment()) for name in ("ours", "fast")}
        others = {name: stack.enter_context(rival).run for name, rival in started.items()}
        rates = alternate_with(others, compiled=options.compiled, steps=options.steps, repeats=options.repeats)
    print(json.dumps(rates), flush=True)


if __name__ == "__main__":
    main()
