"""The work a recipe asks for, counted before it is done: steps, tokens and FLOPs of the stages that train. No torch.

The arithmetic of a step is that of tlm_core.training.flops; what has to be supposed beforehand is how long the texts
are in tokens, which an earlier job on the same data tells exactly.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

from tlm_core.training import flops
from tlm_core.training.architectures import architecture_of
from tlm_core.training.packing import first_fit
from tlm_core.training.recipe import OWN_STARTS, Recipe

# Subwords a word falls into, where no job has cut these texts yet: an own vocabulary of some 8,000 on English text.
TOKENS_PER_WORD = 1.5
# Masked positions are computed in multiples of 64, which adds half of that on average.
_MASKED_PADDING = 32
_SIMULATED = 512
_BYTES = 4


@dataclass(frozen=True)
class Sizes:
    """Shape of a model that is trained from scratch; vocab may be the recipe's where the true one is not known yet."""

    layers: int
    hidden: int
    heads: int
    intermediate: int
    max_length: int
    vocab: int
    labels: int
    architecture: str

    @property
    def parameters(self) -> int:
        """Weights of encoder and both heads, small vectors left out."""
        return self.exported + architecture_of(self).vocabulary_parameters(self)

    @property
    def exported(self) -> int:
        """Weights of what is finetuned and handed out: encoder and task head."""
        return architecture_of(self).exported_parameters(self)


@dataclass(frozen=True)
class Texts:
    """A task's texts. rows: of each split; words: mean, median and 95th percentile of all splits together.

    tokens: mean of a train text in tokens, if a job has cut these texts already.
    """

    rows: Mapping[str, int]
    mean: float
    median: float
    p95: float
    pair: bool = False
    tokens: float | None = None

    def lengths(self, count: int, limit: int) -> list[int]:
        """`count` made lengths in tokens, spread as a log-normal with these percentiles, cut at `limit`."""
        spread = max(math.log(max(self.p95, 1.0) / max(self.median, 1.0)) / NormalDist().inv_cdf(0.95), 1e-6)
        shape = [math.exp(spread * NormalDist().inv_cdf((i + 0.5) / count)) for i in range(count)]
        wanted = self.tokens if self.tokens is not None else self.mean * TOKENS_PER_WORD + self.specials
        scale = wanted * count / sum(shape)
        made = [min(limit, max(self.specials + 1, round(scale * value))) for value in shape]
        # What a job counted was cut already, so the mean has to hold after the cut.
        while self.tokens is not None and sum(made) < 0.99 * min(self.tokens, limit - 1) * count:
            scale *= 1.02
            made = [min(limit, max(self.specials + 1, round(scale * value))) for value in shape]
        return made

    @property
    def specials(self) -> int:
        return 3 if self.pair else 2


@dataclass(frozen=True)
class Work:
    """What a stage computes for one seed."""

    steps: float
    tokens: float
    flops: float

    def times(self, factor: float) -> Work:
        return Work(self.steps * factor, self.tokens * factor, self.flops * factor)


def sizes_of(recipe: Recipe, labels: int, vocab: int | None) -> Sizes | None:
    """The model's shape; None for a published encoder, whose shape is known only once it is loaded.

    vocab: as an earlier job found it; None: as the recipe asks for it.
    """
    model, tokenizer = recipe.model, recipe.tokenizer
    size = vocab or (tokenizer.vocab_size if tokenizer.source == "own" else None)
    if model.init not in OWN_STARTS or size is None:
        return None
    return Sizes(
        model.layers, model.hidden, model.heads, model.intermediate, model.max_length, size, labels,
        architecture=model.architecture,
    )  # fmt: skip


def task_step(sizes: Sizes, texts: Texts, batch: int, mask_rate: float, *, task_loss: bool, optimizer: str) -> Work:
    """One step on `batch` labelled texts, packed into rows as the loop packs them; mask_rate 0: nothing is masked."""
    drawn = min(batch, _SIMULATED)
    lengths = texts.lengths(drawn, sizes.max_length)
    factor = batch / drawn
    rows, tokens = len(first_fit(lengths, sizes.max_length)) * factor, sum(lengths) * factor
    masked = mask_rate * (tokens - texts.specials * batch) + _MASKED_PADDING if mask_rate else 0.0
    products = _products(sizes, rows, masked, batch if task_loss else 0)
    return Work(1, tokens, products + update_flops(sizes, optimizer))


def retrieved_step(sizes: Sizes, rows: int, mask_rate: float, specials_share: float, optimizer: str) -> Work:
    """One step on retrieved text, which fills its rows."""
    tokens = rows * sizes.max_length
    masked = mask_rate * tokens * (1 - specials_share) + _MASKED_PADDING
    return Work(1, tokens, _products(sizes, rows, masked, 0) + update_flops(sizes, optimizer))


def joint_work(recipe: Recipe, sizes: Sizes, texts: Texts, passage_tokens: float | None, *, retrieves: bool) -> Work:
    """The joint stage of one seed. passage_tokens: mean of a passage, if known. Budgets in seconds: work of a step.

    A cycle of rho1 retrieved steps and one task step (paper section 3.2) is taken as often as fits the budget.
    """
    joint = recipe.joint
    end = joint.mask_rate if joint.mask_rate_end is None else joint.mask_rate_end
    rate = (joint.mask_rate + end) / 2
    on_task = joint.task_loss or joint.mlm_on_task
    share = 1 / (joint.rho1 + 1) if retrieves else 1.0
    share = share if on_task or not retrieves else 0.0
    task = task_step(
        sizes, texts, joint.task_batch, rate if joint.mlm_on_task else 0.0, task_loss=joint.task_loss,
        optimizer=joint.optimizer.name,
    )  # fmt: skip
    specials = 2 / passage_tokens if passage_tokens else 0.0
    found = retrieved_step(sizes, joint.batch_rows, rate, specials, joint.optimizer.name)
    mean = Work(
        1, share * task.tokens + (1 - share) * found.tokens, share * task.flops + (1 - share) * found.flops
    )  # fmt: skip
    ((unit, amount),) = ((unit, value) for unit, value in joint.budget if value is not None)
    steps = {"steps": float(amount), "tokens": amount / mean.tokens, "flops": amount / mean.flops, "seconds": 1.0}[unit]
    return mean.times(math.ceil(steps))


def finetune_work(recipe: Recipe, sizes: Sizes, texts: Texts) -> Work:
    """The finetune stage of one seed, validations not counted."""
    part = recipe.finetune
    step = task_step(sizes, texts, part.batch, 0.0, task_loss=True, optimizer=part.optimizer.name)
    return step.times(part.steps(texts.rows["train"]))


def update_flops(sizes: Sizes, optimizer: str) -> float:
    """Matrix products of one update: Muon's, on the encoder's matrices; AdamW has none."""
    if optimizer != "muon":
        return 0.0
    return flops.newton_schulz(architecture_of(sizes).matrices(sizes))


def disk_bytes(sizes: Sizes, recipe: Recipe, seeds: int, tokens: float, select_bytes: float) -> int:
    """What the job's artifacts take: selection, token stores, weights of every seed, the export twice (ONNX)."""
    stores = tokens * (2 if sizes.vocab < 2**16 else 4)
    counted = _BYTES * sizes.vocab * sizes.hidden if recipe.model.init == "counts" else 0
    joint = _BYTES * sizes.parameters if recipe.joint.enabled else 0
    finetuned = 1 + len(recipe.finetune.rates)  # each try, and the chosen one under the seed's name
    return round(select_bytes + stores + counted + seeds * joint + (seeds * finetuned + 2) * _BYTES * sizes.exported)


def facts_of(report: Mapping[str, Any]) -> Texts | None:
    """The texts that a data set's validation report tells of; None if it has no lengths."""
    lengths, counts = report.get("lengths"), report.get("counts") or {}
    if not lengths or "train" not in counts:
        return None
    pair = any("text_pair" in row for row in report.get("preview", ()))
    return Texts(counts, lengths["mean_words"], lengths["p50"], lengths["p95"], pair)


def _products(sizes: Sizes, rows: float, masked: float, documents: float) -> float:
    # The count is linear in each of them, so that means may be put in.
    one = flops.forward(sizes, 1, sizes.max_length, 0, 0)
    head = flops.forward(sizes, 0, sizes.max_length, 1, 0)
    task = flops.forward(sizes, 0, sizes.max_length, 0, 1)
    return flops.FORWARD_AND_BACKWARD * (rows * one + masked * head + documents * task)
