"""The published TLM loop, rebuilt as a baseline from its description (arXiv 2111.04130 and its scripts).

Stock `BertModel`, every text padded to 128, vocabulary logits at every position, masking in the collator for each
example (15 %; 80/10/10), AdamW. Batches have 32 external texts. Every 1000th batch is of the task, with the loss
(rho2 * MLM + task) / (rho2 + 1) and rho2 = 20. The published loop uses fp32; `bf16` and `compiled` are our additions.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from transformers import BertConfig, BertModel
from transformers.models.bert.modeling_bert import BertOnlyMLMHead

from benchmarks.training.rival_process import serve
from benchmarks.training.training_data import BATCH, LENGTH, prepared
from tlm_core.training.device import pick_device
from tlm_core.training.masking import Vocabulary
from tlm_core.training.prepared import Prepared
from tlm_core.training.store import TokenStore

RHO1, RHO2, MASKED, IGNORED = 999, 20.0, 0.15, -100


class Texts(Dataset[dict[str, Any]]):
    """Texts as token ids, cut and padded to LENGTH. If `labels` is None, each label is -1."""

    def __init__(self, store: TokenStore, labels: np.ndarray | None, pad: int) -> None:
        self._store, self._labels, self._pad = store, labels, pad

    def __len__(self) -> int:
        return len(self._store)

    def __getitem__(self, index: int) -> dict[str, Any]:
        tokens = self._store[index][:LENGTH].astype(np.int64)
        ids = np.full(LENGTH, self._pad)
        ids[: len(tokens)] = tokens
        mask = np.zeros(LENGTH, dtype=np.int64)
        mask[: len(tokens)] = 1
        return {"ids": ids, "mask": mask, "label": -1 if self._labels is None else int(self._labels[index])}


class Collator:
    """Stack examples and mask each one."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._words = vocabulary
        self._specials = torch.tensor(self._words.specials)

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Tensor]:
        masked = [self._mask(torch.from_numpy(example["ids"])) for example in examples]
        return {
            "ids": torch.stack([ids for ids, _ in masked]),
            "targets": torch.stack([targets for _, targets in masked]),
            "mask": torch.from_numpy(np.stack([example["mask"] for example in examples])),
            "label": torch.tensor([example["label"] for example in examples]),
        }

    def _mask(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        drawn = (torch.rand(ids.shape) < MASKED) & ~torch.isin(ids, self._specials)
        targets = torch.where(drawn, ids, IGNORED)
        kind = torch.rand(ids.shape)
        seen = torch.where(drawn & (kind < 0.8), self._words.mask, ids)
        other = torch.randint(self._words.size, ids.shape)
        return torch.where(drawn & (kind >= 0.9), other, seen), targets


class PublishedModel(nn.Module):
    """BertModel with the stock vocabulary head at every position and the release's two-layer task head on [CLS]."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.bert = BertModel(config, add_pooling_layer=False)
        self.cls = BertOnlyMLMHead(config)
        self.cls.predictions.decoder.weight = self.bert.embeddings.word_embeddings.weight
        self.cls_layer = nn.Sequential(
            nn.Linear(config.hidden_size, config.hidden_size),
            nn.GELU(),
            nn.Linear(config.hidden_size, config.num_labels),
        )

    def forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return vocabulary logits [B, L, V] and label logits [B, labels]."""
        hidden = self.bert(input_ids=ids, attention_mask=mask).last_hidden_state
        return self.cls(hidden), self.cls_layer(hidden[:, 0])


def bert_config(shape: tuple[int, int, int, int], data: Prepared) -> BertConfig:
    """Return the model configuration of this loop and of `hf_trainer`. shape: layers, hidden, heads, intermediate."""
    layers, hidden, heads, intermediate = shape
    return BertConfig(
        vocab_size=data.vocabulary.size,
        num_hidden_layers=layers,
        hidden_size=hidden,
        num_attention_heads=heads,
        intermediate_size=intermediate,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        max_position_embeddings=512,
        num_labels=len(data.labels),
    )


class PublishedLoop:
    """The published training loop. shape: layers, hidden, heads, intermediate."""

    def __init__(
        self,
        *,
        bf16: bool,
        compiled: bool = False,
        shape: tuple[int, int, int, int] = (4, 256, 4, 1024),
        batch: int = BATCH,
    ) -> None:
        data = Prepared(prepared())
        config = bert_config(shape, data)
        self._device, self._bf16 = pick_device(), bf16
        model = PublishedModel(config).to(self._device).train()
        self._optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01, fused=True)
        self._model: Any = torch.compile(model, dynamic=False) if compiled else model
        train, passages = data.split("train"), data.passages()
        assert passages is not None
        collator, pad = Collator(data.vocabulary), data.vocabulary.pad
        self._external = _endless(Texts(passages, None, pad), collator, batch)
        self._task = _endless(Texts(train.store, train.labels, pad), collator, batch)
        self._step = itertools.count(1)

    def run(self, steps: int) -> float:
        """Return the real tokens per second of `steps` steps."""
        tokens, start = 0, time.perf_counter()
        for _ in range(steps):
            is_task = next(self._step) % (RHO1 + 1) == 0
            batch = next(self._task if is_task else self._external)
            tokens += int(batch["mask"].sum())
            self.loss(batch, is_task).backward()
            self._optimizer.step()
            self._optimizer.zero_grad()
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        return tokens / (time.perf_counter() - start)

    def loss(self, batch: dict[str, Tensor], is_task: bool) -> Tensor:
        """Return the loss of one batch: the MLM loss, or on task batches the weighted mean of MLM and task loss."""
        on = {name: tensor.to(self._device, non_blocking=True) for name, tensor in batch.items()}
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._bf16):
            words, labels = self._model(on["ids"], on["mask"])
            loss = F.cross_entropy(words.flatten(0, 1), on["targets"].flatten(), ignore_index=IGNORED)
            if is_task:
                loss = (RHO2 * loss + F.cross_entropy(labels, on["label"])) / (RHO2 + 1)
            return loss


def _endless(texts: Texts, collator: Collator, batch: int) -> Iterator[dict[str, Tensor]]:
    loader: DataLoader[dict[str, Any]] = DataLoader(
        texts, batch_size=batch, shuffle=True, collate_fn=collator, drop_last=True
    )
    while True:
        yield from loader


if __name__ == "__main__":
    form = sys.argv[1]  # fp32 or bf16, optionally with the suffix _compile
    serve(lambda: PublishedLoop(bf16=form.startswith("bf16"), compiled=form.endswith("_compile")).run)
