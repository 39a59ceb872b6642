"""The documents of a step as one stream of tokens, in parts of fixed sizes, and the losses of a part.

GPUs use this form. Only the end of a part is padding, and attention runs within documents. Parts have few different
sizes, so that all steps need few compiled graphs. In tests, a CPU computes the same losses with a dense mask.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from torch.nn.attention.varlen import varlen_attn

from tlm_core.training import flops
from tlm_core.training.architectures import Shape
from tlm_core.training.block_mask import SMALLEST_HEAD, block_mask
from tlm_core.training.kernels import Kernels, Rotation
from tlm_core.training.masking import NOT_MASKED
from tlm_core.training.model import TaskModel, layer_rules, rotations_of
from tlm_core.training.objective import LOSSES
from tlm_core.training.prepared import Batch

# Matrix kernels are fastest for sizes that are multiples of this number.
MULTIPLE = 128
IGNORED = -100  # the target that PyTorch's cross-entropy ignores


class Part(NamedTuple):
    """A micro-batch as a stream of T tokens in S sequences. At most K of the tokens are masked.

    The first sequences are the documents. Unlabeled sequences of padding then fill the T tokens. The remaining
    sequences are empty. tokens, types: [T]. sequence: [T], the number of each token's sequence. begins: [S + 1], the
    start of each sequence, then T. masked, targets: [K], index and original id of each masked token; unused targets are
    IGNORED. labels: [S] or [S, labels]. labeled: [S], whether a sequence has a label. shares: [2], see `Batch.shares`.
    words, factors: [T], original ids and `masking.bag_of_words` of all tokens; [0] without the bag-of-words loss.
    """

    tokens: Tensor
    types: Tensor
    sequence: Tensor
    begins: Tensor
    masked: Tensor
    targets: Tensor
    labels: Tensor
    labeled: Tensor
    shares: Tensor
    words: Tensor
    factors: Tensor


def up(count: float, multiple: int) -> int:
    """Return the smallest multiple of `multiple` that is at least `count`."""
    return -int(-count // multiple) * multiple


def rounded(count: int) -> int:
    """Return `count`, rounded up by at most a quarter, so that there are few different results."""
    return up(count, max(1, 2 ** ((count - 1).bit_length() - 3)))


@dataclass(frozen=True)
class Sizes:
    """The sizes of a part: T and K of `Part`, and the maximum number of tokens in a sequence (`longest`)."""

    tokens: int
    masked: int
    longest: int

    @classmethod
    def of(cls, rows: int, length: int, mask_rate: float) -> Sizes:
        """Return the sizes of a part with `rows` rows of `length` tokens. mask_rate: the highest of the run."""
        tokens = rows * length
        return cls(tokens, up(tokens * mask_rate, MULTIPLE), length)

    def sequences(self, documents: int, before: int = 0) -> int:
        """Return how many sequences a part with `documents` documents has: `before` if this number suffices, else more.

        before: the number of sequences in earlier parts. Each number needs its own compiled graph, so a new number has
        a reserve. The reserve is small, because attention also takes time for empty sequences.
        """
        unlabeled = -(-self.tokens // self.longest)
        if documents + unlabeled <= before:
            return before
        return rounded(documents + documents // 4) + unlabeled


def rows_of_part(rows: int, most: int) -> int:
    """Return how many rows each part has if `rows` rows are divided evenly into parts of at most `most` rows.

    The result is rounded up to one of few numbers, because each number needs its own compiled graph.
    """
    return min(most, rounded(-(-rows // -(-rows // most))))


@dataclass(frozen=True)
class Documents:
    """The documents of a batch, end to end. ends, masks: [D], tokens and masked tokens up to each document's end."""

    batch: Batch
    tokens: npt.NDArray[np.int64]
    types: npt.NDArray[np.int64]
    targets: npt.NDArray[np.int64]
    ends: npt.NDArray[np.int64]
    masks: npt.NDArray[np.int64]
    labels: npt.NDArray[np.generic]
    labeled: npt.NDArray[np.bool_]
    words: npt.NDArray[np.int64]
    factors: npt.NDArray[np.float32]

    @classmethod
    def of(cls, batch: Batch) -> Documents:
        rows = batch.rows
        real = rows.segments > 0
        targets = batch.targets[real]
        ends = np.cumsum(rows.lengths)
        counts = rows.segments.max(axis=1, initial=0)
        place = (np.cumsum(counts) - counts)[rows.doc_row] + rows.doc_segment - 1
        whole = batch.labels.dtype.kind == "i"
        labels = np.full(
            (len(ends), *batch.labels.shape[1:]), IGNORED if whole else 0, np.int64 if whole else np.float32
        )
        labels[place] = batch.labels
        masks = np.cumsum(targets != NOT_MASKED)[ends - 1]
        labeled = np.isin(np.arange(len(ends)), place)
        words, factors = np.zeros(0, np.int64), np.zeros(0, np.float32)
        if batch.bag_of_words is not None:
            words, factors = rows.tokens[real], batch.bag_of_words[real]
        return cls(batch, batch.tokens[real], rows.types[real], targets, ends, masks, labels, labeled, words, factors)

    def parts(self, sizes: Sizes, before: int = 0) -> list[Part]:
        """Return parts of whole documents, each as full as possible. before: number of sequences in earlier parts.

        Raises ValueError if a document is too large.
        """
        spans = list(self._spans(sizes))
        sequences = sizes.sequences(max(last - first for first, last in spans), before)
        return [self._part(first, last, sizes, sequences) for first, last in spans]

    def _spans(self, sizes: Sizes) -> Iterator[tuple[int, int]]:
        """Yield the documents [first, last) of each part."""
        first = 0
        while first < len(self.ends):
            tokens, masked = (int(sums[first - 1]) if first else 0 for sums in (self.ends, self.masks))
            last = min(
                int(np.searchsorted(self.ends, tokens + sizes.tokens, side="right")),
                int(np.searchsorted(self.masks, masked + sizes.masked, side="right")),
            )
            if last == first:
                raise ValueError(f"Document {first} does not fit in one part. The sizes of a part: {sizes}.")
            yield first, last
            first = last

    def _part(self, first: int, last: int, sizes: Sizes, sequences: int) -> Part:
        """Return documents [first, last) as a part of `sequences` sequences."""
        start = int(self.ends[first - 1]) if first else 0
        used = slice(start, int(self.ends[last - 1]))
        rest = np.append(np.arange(used.stop - start, sizes.tokens, sizes.longest)[1:], sizes.tokens)
        begins = np.concatenate(([0], self.ends[first:last] - start, rest))
        begins = filled(begins, sequences + 1, sizes.tokens)
        places = np.flatnonzero(self.targets[used] != NOT_MASKED)
        described = sizes.tokens if len(self.factors) else 0
        return Part(
            tokens=ints(filled(self.tokens[used], sizes.tokens, 0)),
            types=ints(filled(self.types[used], sizes.tokens, 0)),
            sequence=ints(np.repeat(np.arange(sequences), np.diff(begins))),
            begins=ints(begins),
            masked=ints(filled(places, sizes.masked, 0)),
            targets=ints(filled(self.targets[used][places], sizes.masked, IGNORED)),
            labels=torch.from_numpy(
                filled(self.labels[first:last], sequences, IGNORED if self.labels.dtype.kind == "i" else 0)
            ),
            labeled=torch.from_numpy(filled(self.labeled[first:last], sequences, False)),
            shares=torch.tensor(self.batch.shares),
            words=ints(filled(self.words[used], described, 0)),
            factors=torch.from_numpy(filled(self.factors[used], described, 0)),
        )


def launched_flops(shape: Shape, part: Part, mlm: bool, task: bool) -> float:
    """Return the FLOPs of the matrix products in both passes over a part, including padding. part: in host memory."""
    pairs, sequences = int((part.begins.diff().long() ** 2).sum()), len(part.begins) - 1
    described = mlm * sequences * bool(len(part.factors))
    products = flops.products(shape, len(part.tokens), pairs, mlm * len(part.masked), task * sequences, described)
    return flops.FORWARD_AND_BACKWARD * products


def filled(values: npt.NDArray[np.generic], size: int, filler: int) -> npt.NDArray[np.generic]:
    """Return the values, extended to `size` entries by the filler."""
    result = np.full((size, *values.shape[1:]), filler, values.dtype)
    result[: len(values)] = values
    return result


def ints(values: npt.NDArray[np.generic]) -> Tensor:
    return torch.from_numpy(values.astype(np.int32))


@dataclass(frozen=True)
class StreamKernels:
    """Attention and gating over a stream of T tokens in S sequences, without attention dropout.

    sequence: [T], the number of each token's sequence. begins: [S + 1], the start of each sequence, then T. longest:
    tokens of the longest sequence. window: attention window on each side, or None. rotation: cosines and sines of each
    token, [T, 1, head]. blocks: the visible blocks for FlexAttention; None: use another kernel. FlexAttention is the
    fastest kernel for short documents, but needs compiled code.
    """

    sequence: Tensor
    begins: Tensor
    longest: int
    window: int | None
    rotation: Rotation | None
    blocks: BlockMask | None = None

    def attend(self, qkv: Tensor, heads: int, dropout: float) -> Tensor:  # noqa: ARG002 - no kernel of a GPU has it
        query, key, value = qkv.view(len(qkv), 3, heads, -1).unbind(1)
        if self.rotation is not None:
            query, key = rotated(query, *self.rotation), rotated(key, *self.rotation)
        if self.blocks is not None:
            batch = (part.transpose(0, 1)[None] for part in (query, key, value))
            y = flex_attention(*batch, block_mask=self.blocks)[0].transpose(0, 1)
        elif query.is_cuda:
            sides = (-1, -1) if self.window is None else (self.window, self.window)
            begins, longest = self.begins, self.longest
            y = varlen_attn(query, key, value, begins, begins, longest, longest, window_size=sides)
        else:
            y = self._dense(query, key, value)
        return y.flatten(-2)

    def _dense(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Return the result of the variable-length kernel. The method uses a mask [T, T], so it runs on any device."""
        visible = self.sequence[:, None] == self.sequence
        if self.window is not None:
            place = torch.arange(len(self.sequence), device=query.device)
            visible &= (place[:, None] - place).abs() <= self.window
        query, key, value = (part.transpose(0, 1) for part in (query, key, value))
        return F.scaled_dot_product_attention(query, key, value, attn_mask=visible).transpose(0, 1)

    def gated(self, x: Tensor, weight: Tensor) -> Tensor:
        # With one product, the backward pass would copy the gradients of both halves into one tensor.
        value, gate = (F.linear(x, half) for half in weight.chunk(2))
        return F.gelu(value) * gate


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return x [T, heads, head] with rotary positions, in the type of x. The products have the type of cos and sin."""
    left, right = x.chunk(2, dim=-1)
    return (x * cos + torch.cat((-right, left), dim=-1) * sin).to(x.dtype)


class StreamLayers(nn.Module):
    """Runs some layers of a model's encoder over a part. longest: maximum number of tokens in a sequence."""

    def __init__(self, model: TaskModel, longest: int) -> None:
        super().__init__()
        self.model = model
        self._longest = longest
        # Compiled kernels of `forward` would compute a cosine again for each rotated element.
        self._rotations = rotations_of(model.shape, model.encoder.tokens.weight.device, torch.float32, longest)

    def through(self, part: Part, x: Tensor | None, start: int, stop: int | None) -> Tensor:
        """Return the output of layers `start` to `stop` - 1. x: the input of layer `start`; None: embed the part."""
        encoder = self.model.encoder
        positions = torch.arange(len(part.tokens), device=part.tokens.device) - part.begins[part.sequence]
        if x is None:
            x = encoder.embed(part.tokens, positions, part.types, encoder.tokens.weight.dtype)
        return encoder.through(x, list(self._kernels(part, positions)), start, stop)

    def _kernels(self, part: Part, positions: Tensor) -> Iterator[Kernels]:
        rotations = {
            theta: (cos[positions][:, None], sin[positions][:, None]) for theta, (cos, sin) in self._rotations.items()
        }
        rules = layer_rules(self.model.shape)
        large = self.model.shape.head_size >= SMALLEST_HEAD
        flex = large and part.tokens.is_cuda and torch.compiler.is_compiling()
        windows = dict.fromkeys(window for window, _ in rules) if flex else ()
        blocks = {window: block_mask(part.sequence, part.begins, window) for window in windows}
        for window, theta in rules:
            own = rotations.get(theta)
            yield StreamKernels(part.sequence, part.begins, self._longest, window, own, blocks.get(window))


class StreamStart(StreamLayers):
    """Runs the embeddings and the first layers of a model as a separate graph, with a separate backward pass."""

    def __init__(self, model: TaskModel, longest: int, layers: int) -> None:
        super().__init__(model, longest)
        self._layers = layers

    def forward(self, part: Part) -> Tensor:
        return self.through(part, None, 0, self._layers)


class StreamLoss(StreamLayers):
    """Computes the losses of a part. loss: key of `objective.LOSSES`. start: number of layers in `StreamStart`."""

    def __init__(self, model: TaskModel, loss: str, longest: int, start: int = 0) -> None:
        super().__init__(model, longest)
        self._loss = LOSSES[loss]
        self._start = start

    def forward(
        self, part: Part, mlm: bool, task: bool, class_weights: Tensor | None, x: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the part's share of the step's loss, and the sums of the MLM and the task loss, [2].

        mlm, task: which losses to compute. x: the output of the first layers, if a `StreamStart` computes them.
        """
        hidden = self.through(part, x, self._start, None)
        zero = torch.zeros((), device=hidden.device)
        sums = torch.stack(
            (
                self._mlm_sum(hidden, part) if mlm else zero,
                self._task_sum(hidden, part, class_weights) if task else zero,
            )
        )
        loss = (sums * part.shares).sum()
        if mlm and len(part.factors):
            pooled = self._pooled(hidden, part).to(hidden.dtype)
            words = self.model.vocabulary.bag_of_words(pooled, part.sequence, part.words, part.factors)
            loss = loss + part.shares[0] * words  # padding has the factor 0
        return loss, sums.detach()

    def _mlm_sum(self, hidden: Tensor, part: Part) -> Tensor:
        head = self.model.vocabulary
        more = -head.out.out_features % MULTIPLE
        # The bias is in float32, because a rounded bias would shift all probabilities of a token.
        bias = F.pad(head.out.bias.float(), (0, more), value=-torch.inf)
        logits = F.linear(head.features(hidden[part.masked]), F.pad(head.out.weight, (0, 0, 0, more)))
        return F.cross_entropy(logits.float() + bias, part.targets.long(), ignore_index=IGNORED, reduction="sum")

    def _task_sum(self, hidden: Tensor, part: Part, class_weights: Tensor | None) -> Tensor:
        logits = self.model.task(self._pooled(hidden, part).to(hidden.dtype)).float()
        # The loss of an unlabeled sequence is zero, because its logits and its target are 0, or its label is IGNORED.
        return self._loss(logits * part.labeled[:, None], part.labels, class_weights)

    def _pooled(self, hidden: Tensor, part: Part) -> Tensor:
        """Return one vector for each sequence, [S, hidden], as `TaskModel.pool` does."""
        begins = part.begins[:-1]
        if self.model.shape.pooling == "cls":
            return hidden[begins.clamp(max=len(hidden) - 1)]
        sums = torch.zeros(len(begins), hidden.shape[1], device=hidden.device)
        sums = sums.index_add(0, part.sequence, hidden.float())
        return sums / part.begins.diff().clamp(min=1)[:, None]
