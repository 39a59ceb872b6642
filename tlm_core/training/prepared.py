"""The artifact of the stage `prepare`, and training batches of its texts."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tlm_core.errors import InvalidRecipe
from tlm_core.tasks.types import Scaling, TaskType, task_type_of
from tlm_core.training.masking import NOT_MASKED, Vocabulary, bag_of_words, drawn_of, mask_rows
from tlm_core.training.packing import PassageStream, Rows, first_fit, pack
from tlm_core.training.randomness import Stream, permutation
from tlm_core.training.recipe import Finetune, Joint
from tlm_core.training.store import TokenStore

Ints = npt.NDArray[np.int64]
Labels = npt.NDArray[Any]  # an array of the type `TaskType.trained`, or float32 probabilities

COMMON = 1e-3  # a token with this frequency has half the weight of a rare token in the bag-of-words loss
COUNTED_TOKENS = 5_000_000  # maximum number of train tokens, and of passage tokens, that weights of tokens depend on
HIGHEST_WEIGHT = 10.0  # maximum weight of a class in the loss, so that a rare class does not dominate the gradient


@dataclass(frozen=True)
class Split:
    """The n task texts of one or more splits. A text has one window or several overlapping windows; a pair has one.

    store: the tokens of all windows, in the order of their texts. labels: [n], label indices or regression targets; or
    probabilities [n, labels]. names: [n], split of each text. rows: [n], record number in the user's file. second: [n],
    tokens before the second text of each pair; None for single texts. texts: [windows], index of each window's text.
    """

    store: TokenStore
    labels: Labels
    names: npt.NDArray[np.str_]
    rows: Ints
    second: Ints | None
    texts: Ints

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def begins(self) -> Ints:
        """The index of each text's first window, then the number of windows. Shape [n + 1]."""
        return np.searchsorted(self.texts, np.arange(len(self) + 1))

    def first(self, count: int) -> Split:
        """Return a split with the first `count` texts."""
        windows = int(self.begins[: count + 1][-1])
        second = None if self.second is None else self.second[:count]
        texts = self.labels[:count], self.names[:count], self.rows[:count], second
        return Split(self.store.first(windows), *texts, self.texts[:windows])

    def turns(self, texts: Ints, epochs: Ints | int) -> Ints:
        """Return, for each of `texts`, the index of the window to train on. The next epoch uses the next window.

        So a long text counts only once in an epoch. epochs: the epoch of all texts, or an epoch for each text.
        """
        begins = self.begins[texts]
        return begins + (texts + epochs) % (self.begins[texts + 1] - begins)

    def means(self, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Return the mean of `values` [windows, k] over the windows of each text, [n, k]."""
        counts = np.diff(self.begins)[:, None].astype(np.float32)
        sums: npt.NDArray[np.float32] = np.add.reduceat(values, self.begins[:-1])
        return sums / counts

    def padded(self, texts: Sequence[int], pad: int) -> dict[str, Ints]:
        """Return the inputs of an ONNX graph for some texts: input name → array [texts, windows, tokens]."""
        windows = [range(self.begins[text], self.begins[text + 1]) for text in texts]
        longest = max(len(self.store[number]) for numbers in windows for number in numbers)
        shape = (len(texts), max(map(len, windows)), longest)
        inputs = {name: np.zeros(shape, dtype=np.int64) for name in ("input_ids", "attention_mask", "token_type_ids")}
        inputs["input_ids"][:] = pad
        for text, numbers in enumerate(windows):
            for place, number in enumerate(numbers):
                tokens = self.store[number]
                inputs["input_ids"][text, place, : len(tokens)] = tokens
                inputs["attention_mask"][text, place, : len(tokens)] = 1
                if self.second is not None:
                    inputs["token_type_ids"][text, place, int(self.second[number]) : len(tokens)] = 1
        return inputs


def joined(splits: Sequence[Split]) -> Split:
    """Return one split with the texts of all `splits`, in order."""
    second = [split.second for split in splits if split.second is not None]
    before = np.cumsum([0, *map(len, splits)])
    return Split(
        store=TokenStore.joined([split.store for split in splits]),
        labels=np.concatenate([split.labels for split in splits]),
        names=np.concatenate([split.names for split in splits]),
        rows=np.concatenate([split.rows for split in splits]),
        second=np.concatenate(second) if second else None,
        texts=np.concatenate([split.texts + first for split, first in zip(splits, before, strict=False)]),
    )


class Prepared:
    """Reads the artifact of the stage `prepare`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.facts: dict[str, Any] = json.loads((folder / "data.json").read_text(encoding="utf-8"))
        self.labels: list[str] = self.facts["labels"]
        self.metric: str = self.facts["metric"]
        self.type: TaskType = task_type_of(self.metric)
        self.max_length: int = self.facts["max_length"]
        self.max_windows: int = self.facts.get("max_windows", 1)  # maximum number of windows of a text
        ids = self.facts["special_ids"]
        self.vocabulary = Vocabulary(
            size=self.facts["vocab_size"], pad=ids["pad"], mask=ids["mask"], specials=tuple(sorted(set(ids.values())))
        )

    def split(self, name: str) -> Split:
        second, texts = self.folder / f"{name}.second.npy", self.folder / f"{name}.texts.npy"
        store, labels = TokenStore(self.folder, name), np.load(self.folder / f"{name}.labels.npy")
        return Split(
            store=store,
            labels=labels.astype(np.float32 if labels.ndim > 1 else self.type.trained),
            names=np.full(len(labels), name),
            rows=np.load(self.folder / f"{name}.rows.npy"),
            second=np.load(second).astype(np.int64) if second.exists() else None,
            texts=np.load(texts) if texts.exists() else np.arange(len(store)),
        )

    @cached_property
    def scaling(self) -> Scaling | None:
        """How training standardizes regression targets; None for classes."""
        return self.type.scaling(np.load(self.folder / "train.labels.npy"))

    def standard(self, labels: Labels) -> Labels:
        """Return labels as training needs them: regression targets standardized, class labels unchanged.

        Without standardization, the bias of the head would have to learn the mean of the targets.
        """
        return labels if self.scaling is None else self.scaling.standardize(labels)

    def training(self, names: Sequence[str] = ("train",)) -> Split:
        """Return the texts of the splits `names`, with `standard` labels. `state.own_units` reverses `standard`."""
        split = joined([self.split(name) for name in names])
        return replace(split, labels=self.standard(split.labels))

    def passages(self) -> TokenStore | None:
        """Return the tokens of the selected passages; None if there are no passages."""
        return TokenStore(self.folder, "passages") if self.facts["passages"] else None

    def pieces(self) -> Split | None:
        """Return the pieces of passages, with label probabilities from the linear model; None without pieces."""
        if not (self.folder / "pieces.labels.npy").exists():
            return None
        pieces = self.split("pieces")
        return pieces if len(pieces) else None

    def counted(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Return log frequencies [V] and vectors [V, hidden] of the tokens, for `model.init: counts`."""
        return np.load(self.folder / "log_frequency.npy"), np.load(self.folder / "vectors.npy")

    @cached_property
    def token_weights(self) -> npt.NDArray[np.float32]:
        """The weight of each token in the bag-of-words loss, [V]: near 1 for a rare token, 0 for a special token."""
        counts = np.zeros(self.vocabulary.size)
        for store in (self.split("train").store, self.passages()):
            if store is not None:
                counts += np.bincount(store.tokens[:COUNTED_TOKENS], minlength=len(counts))
        weights = COMMON / (COMMON + counts / counts.sum())
        weights[list(self.vocabulary.specials)] = 0.0
        return weights.astype(np.float32)

    def passage_ids(self, numbers: list[int]) -> list[str]:
        ids = np.load(self.folder / "passages.ids.npy", mmap_mode="r")
        return [bytes(ids[number]).decode() for number in numbers]


Share = Callable[[int], tuple[int, int]]  # number of rows → this worker's rows [start, stop)


@dataclass(frozen=True)
class StepRows:
    """Counts of a step over all workers. tokens: [rows], number of tokens without padding. pairs: see `Batch`."""

    tokens: Ints
    pairs: int
    texts: int  # only the bag-of-words loss needs this number; without this loss, 0 in batches of passages

    def drawn(self, rate: float) -> int:
        """Return an upper bound of the number of masked tokens. Rows that are mostly special tokens have fewer."""
        return int(drawn_of(self.tokens, rate).sum())


@dataclass(frozen=True)
class Batch:
    """The rows of a step: those of all workers, or of this worker alone.

    step: counts over all workers, if the batch has only the rows of this worker; else None. tokens: [R, L], the input
    of the model. targets: [R, L], the original id of each masked token, else NOT_MASKED. labels: [D], or probabilities
    [D, labels]. masked, documents: the numbers of masked tokens and of labels in the whole step. They divide the
    losses, so the gradient does not depend on the number of workers. If `step` is given, `masked` is the upper bound
    `StepRows.drawn`. sources: returns the names of the step's texts, such as `train:17`, or the ids of its passages.
    """

    rows: Rows
    tokens: Ints
    targets: Ints
    labels: Labels
    masked: int
    documents: int
    mlm_weight: float
    task_weight: float
    sources: Callable[[], list[str]]
    loss: str  # the task's loss: a key of `objective.LOSSES`
    class_weights: npt.NDArray[np.float32] | None = None  # [classes], factors of the texts' losses
    bag_of_words: npt.NDArray[np.float32] | None = None  # [R, L], see `masking.bag_of_words`
    step: StepRows | None = None

    @property
    def size(self) -> int:
        """The number of rows, over all workers if `step` is given."""
        return len(self.rows) if self.step is None else len(self.step.tokens)

    @property
    def real_tokens(self) -> int:
        """The number of tokens without padding, over all workers if `step` is given."""
        return self.rows.real_tokens if self.step is None else int(self.step.tokens.sum())

    @property
    def described(self) -> int:
        """The number of texts with the bag-of-words loss, over all workers if `step` is given."""
        if self.bag_of_words is None or not self.mlm_weight:
            return 0
        return len(self.rows.lengths) if self.step is None else self.step.texts

    @property
    def pairs(self) -> int:
        """The number of token pairs that attention compares, over all workers if `step` is given."""
        return int((self.rows.lengths**2).sum()) if self.step is None else self.step.pairs

    def part(self, start: int, stop: int) -> Batch:
        """Return rows [start, stop) with their labels. `masked` and `documents` still count the whole step."""
        inside = (self.rows.doc_row >= start) & (self.rows.doc_row < stop)
        return replace(
            self,
            rows=self.rows.part(start, stop),
            tokens=self.tokens[start:stop],
            targets=self.targets[start:stop],
            labels=self.labels[inside],
            bag_of_words=None if self.bag_of_words is None else self.bag_of_words[start:stop],
        )

    @property
    def shares(self) -> tuple[float, float]:
        """The factors (mlm, task) of the summed losses in the loss of the step (paper section 3.2)."""
        return self.mlm_weight / max(1, self.masked), self.task_weight / max(1, self.documents)

    @property
    def active(self) -> tuple[str, ...]:
        """The parts of the model that this step trains, such as ("encoder", "vocabulary")."""
        heads = (("vocabulary", self.mlm_weight), ("task", self.task_weight))
        return ("encoder", *(name for name, weight in heads if weight))


def task_steps(step: int, rho1: float) -> int:
    """Return the number of steps on task texts before `step`. Of each rho1 + 1 steps, the last is on task texts."""
    return int(step / (rho1 + 1))


class JointBatches:
    """The batches of the joint stage, as a function of the step's number (paper section 3.2).

    share: returns the rows of this worker. If `share` is given, a batch has only these rows. Raises InvalidRecipe if
    there is nothing to train on: no passages, no task loss, and no MLM on task texts.
    """

    def __init__(self, prepared: Prepared, joint: Joint, seed: int, share: Share | None = None) -> None:
        self._prepared = prepared
        self._joint = joint
        self._share = share
        self._mask = partial(mask_rows, vocabulary=prepared.vocabulary, seed=seed)
        self._weights = prepared.token_weights if joint.predicts_words(prepared.facts) else None
        self._task_batches = TaskBatches(
            prepared, joint.task_batch, seed, share=share, stream=Stream.TASK, with_pieces=joint.task_loss
        )
        passages = prepared.passages()
        self._stream = None
        if passages is not None:
            order = partial(permutation, seed, Stream.PASSAGES, n=len(passages))
            self._stream = PassageStream(passages, prepared.max_length, order)
        # Without passages, every step is a task step. Without a loss on task texts, no step is.
        self._rho1 = joint.rho1 if passages is not None else 0.0
        if not (joint.task_loss or joint.mlm_on_task):
            if passages is None:
                raise InvalidRecipe(
                    "The joint stage has nothing to train on: there are no passages, and joint.task_loss and "
                    "joint.mlm_on_task are false. Set one of them to true, or joint.enabled to false."
                )
            self._rho1 = math.inf

    def __call__(self, step: int, progress: float) -> Batch:
        """Return the batch of `step`. progress: used share of the budget, 0 to 1, for a mask rate that changes."""
        start, end = self._joint.mask_rate, self._joint.mask_rate_end
        rate = start if end is None else start + (end - start) * progress
        task = task_steps(step, self._rho1)
        if task_steps(step + 1, self._rho1) > task:
            return self._task_batch(step, task, rate)
        stream = self._stream
        assert stream is not None
        first, count = (step - task) * self._joint.batch_rows, self._joint.batch_rows
        start, stop = (0, count) if self._share is None else self._share(count)
        rows = stream.rows(first + start, stop - start)
        tokens, targets = self._mask(rows, rate=rate, step=step, first=start)
        step_rows = None
        if self._share is not None:
            pairs = int((rows.lengths**2).sum()) * count // max(1, len(rows))  # estimated for other workers
            texts = 0 if self._weights is None else stream.texts(first, count)
            step_rows = StepRows(np.full(count, tokens.shape[1]), pairs, texts)
        return Batch(
            rows=rows,
            tokens=tokens,
            targets=targets,
            labels=np.zeros(0, dtype=np.int64),
            masked=_masked(targets, step_rows, rate),
            documents=0,
            mlm_weight=1.0,
            task_weight=0.0,
            sources=lambda: self._prepared.passage_ids(stream.documents(first, count)),
            loss=self._prepared.type.loss,
            bag_of_words=self._bag_of_words(rows, targets),
            step=step_rows,
        )

    def _bag_of_words(self, rows: Rows, targets: Ints) -> npt.NDArray[np.float32] | None:
        return None if self._weights is None else bag_of_words(rows, targets, self._weights)

    def _task_batch(self, step: int, number: int, rate: float) -> Batch:
        joint, batch = self._joint, self._task_batches(number)
        if not joint.mlm_on_task:
            return batch
        first = 0 if self._share is None else self._share(batch.size)[0]
        tokens, targets = self._mask(batch.rows, rate=rate, step=step, first=first)
        task_weight = 1 / (joint.rho2 + 1) if joint.task_loss else 0.0
        return replace(
            batch,
            tokens=tokens,
            targets=targets,
            masked=_masked(targets, batch.step, rate),
            mlm_weight=1 - task_weight,
            task_weight=task_weight,
            bag_of_words=self._bag_of_words(batch.rows, targets),
        )


def _masked(targets: Ints, step: StepRows | None, rate: float) -> int:
    """Return the divisor of the MLM loss: the number of masked tokens, or `StepRows.drawn` if `step` is given."""
    return int(np.count_nonzero(targets != NOT_MASKED)) if step is None else step.drawn(rate)


class TaskBatches:
    """The batches of labeled texts, as a function of the batch's number. share: see `JointBatches`.

    stream: purpose of the random order. with_pieces: if there are pieces of passages, every other batch has pieces.
    """

    def __init__(
        self,
        prepared: Prepared,
        size: int,
        seed: int,
        splits: Sequence[str] = ("train",),
        share: Share | None = None,
        *,
        stream: Stream = Stream.FINETUNE,
        with_pieces: bool = True,
    ) -> None:
        self._prepared, self._share = prepared, share
        self._train = prepared.training(splits)
        self._pieces = prepared.pieces() if with_pieces else None
        self._draw = partial(draw, seed, stream, size=size)

    def __call__(self, number: int, progress: float = 0.0) -> Batch:  # noqa: ARG002 - the loop passes the progress
        split = self._train
        if self._pieces is not None:
            number, of_pieces = divmod(number, 2)
            split = self._pieces if of_pieces else self._train
        texts, epochs = self._draw(n=len(split), number=number)
        return task_batch(split, split.turns(texts, epochs), self._prepared, self._share)


def balanced_weights(labels: Labels) -> npt.NDArray[np.float32]:
    """Return the `balanced` weight of each class, [classes]: n / (k n_c) for class c, at most HIGHEST_WEIGHT.

    labels: the n labels of train. k different classes occur, and class c occurs n_c times. Without the limit, the mean
    weight of a text would be 1, so the learning rate need not change.
    """
    counts = np.bincount(labels)
    weights = len(labels) / (np.count_nonzero(counts) * counts.clip(min=1))
    return weights.clip(max=HIGHEST_WEIGHT).astype(np.float32)


def weighted(draw: Callable[[int, float], Batch], prepared: Prepared, part: Finetune) -> Callable[[int, float], Batch]:
    """Return `draw`, whose batches have class weights if `part` sets them. Raises the error of `part.check_weights`."""
    part.check_weights(prepared.facts["task"], prepared.type.has_classes)
    if part.class_weights == "none":
        return draw
    weights = balanced_weights(prepared.split("train").labels)
    return lambda step, progress: replace(draw(step, progress), class_weights=weights)


def task_batch(split: Split, windows: Ints, prepared: Prepared, share: Share | None = None) -> Batch:
    """Return a batch of windows of a split, without masking. Each window has the label of its text.

    windows: indices into `split.store`. share: see `JointBatches`.
    """
    step, bins = None, None
    if share is not None:
        lengths = split.store.lengths[windows].astype(np.int64)
        all_bins = first_fit(lengths.tolist(), prepared.max_length)
        tokens = np.array([lengths[members].sum() for members in all_bins])
        step = StepRows(tokens, int((lengths**2).sum()), len(lengths))
        bins = all_bins[slice(*share(len(all_bins)))]
    rows = pack(split.store, windows, prepared.max_length, split.second, prepared.vocabulary.pad, bins)
    return Batch(
        rows=rows,
        tokens=rows.tokens,
        targets=np.full_like(rows.tokens, NOT_MASKED),
        labels=split.labels[split.texts[rows.documents]],
        masked=0,
        documents=len(windows),
        mlm_weight=0.0,
        task_weight=1.0,
        sources=lambda: [f"{split.names[text]}:{split.rows[text]}" for text in split.texts[windows]],
        loss=prepared.type.loss,
        step=step,
    )


def draw(seed: int, stream: Stream, n: int, number: int, size: int) -> tuple[Ints, Ints]:
    """Return the items of batch `number` and the epoch of each item, both [size].

    Each epoch has the items 0 to n - 1 in another order. The endless sequence of epochs is divided into batches.
    """
    places = np.arange(number * size, (number + 1) * size)
    epochs = places // n
    items = np.empty(size, dtype=np.int64)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        items[here] = permutation(seed, stream, int(epoch), n)[places[here] % n]
    return items, epochs
