"""The encoder, the vocabulary head and the task head, for packed rows (`packing.py`) or token streams (`stream.py`).

A token attends only to tokens of its own document. The vocabulary head runs only on masked positions. `export.py`
converts a trained model to the stock classes of `transformers`.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tlm_core.training.architectures import Shape, architecture_of
from tlm_core.training.kernels import Kernels, Rotation, RowKernels
from tlm_core.training.vocabulary_loss import VocabularyLoss

TOKEN_SPREAD = 0.02
ZERO_AT_START = ("attention.out.weight", "mlp_out.weight", "vocabulary.out.weight", "task.out.weight")


def product_dtype(device: torch.device) -> torch.dtype:
    """Return the type of matrix products on the device: the type of autocast if autocast is enabled, else float32."""
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else torch.float32


class Attention(nn.Module):
    """Multi-head self-attention with queries, keys, and values from one matrix product."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        bias = architecture_of(shape).biases
        self.heads = shape.heads
        self.dropout = shape.dropout
        self.qkv = nn.Linear(shape.hidden, 3 * shape.hidden, bias=bias)
        self.out = nn.Linear(shape.hidden, shape.hidden, bias=bias)

    def forward(self, x: Tensor, kernels: Kernels) -> Tensor:
        y = kernels.attend(self.qkv(x), self.heads, self.dropout if self.training else 0.0)
        return self.out(y)


class Norm(nn.Module):
    """Layer norm over the last dimension, with an optional bias."""

    def __init__(self, hidden: int, eps: float, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden))
        self.bias = nn.Parameter(torch.zeros(hidden)) if bias else None
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


class Layer(nn.Module):
    """An encoder layer: attention, then a feed-forward block that pruning may remove.

    Each subclass has the linear maps `attention.out` (the output of attention), and `mlp_in` and `mlp_out` (the block).
    """

    attention: Attention

    def forward(self, x: Tensor, kernels: Kernels) -> Tensor:
        """Return the output of the layer, in the shape of x: [R, L, hidden] for rows, [T, hidden] for a stream."""
        raise NotImplementedError

    def remove_feed_forward(self) -> None:
        """Remove the feed-forward block."""
        raise NotImplementedError


class PreNormLayer(Layer):
    """x + attention(norm(x)), then x + gated(norm(x)). The first layer has no norm before attention."""

    def __init__(self, shape: Shape, first: bool) -> None:
        super().__init__()
        self.attention_norm = None if first else Norm(shape.hidden, shape.eps, bias=False)
        self.attention = Attention(shape)
        self.mlp_norm: Norm | None = Norm(shape.hidden, shape.eps, bias=False)
        self.mlp_in: nn.Linear | None = nn.Linear(shape.hidden, 2 * shape.intermediate, bias=False)
        self.mlp_out: nn.Linear | None = nn.Linear(shape.intermediate, shape.hidden, bias=False)
        self.dropout = nn.Dropout(shape.dropout)

    def forward(self, x: Tensor, kernels: Kernels) -> Tensor:
        h = x if self.attention_norm is None else self.attention_norm(x)
        x = x + self.dropout(self.attention(h, kernels))
        if self.mlp_norm is None or self.mlp_in is None or self.mlp_out is None:
            return x
        gated = kernels.gated(self.mlp_norm(x), self.mlp_in.weight)
        return x + self.mlp_out(self.dropout(gated))

    def remove_feed_forward(self) -> None:
        self.mlp_norm = self.mlp_in = self.mlp_out = None


class PostNormLayer(Layer):
    """norm(x + attention(x)), then norm(x + feed_forward(x))."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.attention = Attention(shape)
        self.attention_norm = Norm(shape.hidden, shape.eps, bias=True)
        self.mlp_in = nn.Linear(shape.hidden, shape.intermediate)
        self.mlp_out = nn.Linear(shape.intermediate, shape.hidden)
        self.mlp_norm = Norm(shape.hidden, shape.eps, bias=True)
        self.dropout = nn.Dropout(shape.dropout)

    def forward(self, x: Tensor, kernels: Kernels) -> Tensor:
        x = self.attention_norm(x + self.dropout(self.attention(x, kernels)))
        if self.mlp_out is not None:
            x = x + self.dropout(self.mlp_out(F.gelu(self.mlp_in(x))))
        return self.mlp_norm(x)

    def remove_feed_forward(self) -> None:
        self.mlp_in = self.mlp_out = None


class Encoder(nn.Module):
    """Computes hidden states [R, L, hidden] from token ids [R, L], or [T, hidden] from a stream [T]."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        architecture = architecture_of(shape)
        self.shape = shape
        self.tokens = nn.Embedding(shape.vocab, shape.hidden)
        self.last_type = architecture.token_types - 1
        if architecture.token_types:
            self.positions = nn.Embedding(shape.positions, shape.hidden)
            self.types = nn.Embedding(architecture.token_types, shape.hidden)
        self.norm = Norm(shape.hidden, shape.eps, bias=architecture.biases)
        self.dropout = nn.Dropout(shape.dropout)
        self.layers = nn.ModuleList(architecture.layer(shape, number) for number in range(shape.layers))
        self.final_norm = Norm(shape.hidden, shape.eps, bias=architecture.biases) if architecture.final_norm else None

    def forward(self, tokens: Tensor, segments: Tensor, positions: Tensor, types: Tensor) -> Tensor:
        """Return the hidden states [R, L, hidden] of packed rows. All arguments are [R, L]; see `packing.Rows`."""
        dtype = product_dtype(tokens.device)
        return self.through(self.embed(tokens, positions, types, dtype), self._row_kernels(segments, dtype))

    def embed(self, tokens: Tensor, positions: Tensor, types: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the input of the first layer: normalized embeddings of type `dtype`, [R, L, hidden] or [T, hidden]."""
        x = self.tokens(tokens)
        if self.last_type >= 0:
            x = x + self.positions(positions) + self.types(types.clamp(max=self.last_type))
        # Between products, memory traffic dominates the time, so tensors have the type of the products from here on.
        return self.dropout(self.norm(x)).to(dtype)

    def through(self, x: Tensor, kernels: Iterable[Kernels], start: int = 0, stop: int | None = None) -> Tensor:
        """Return the output of layer `stop` - 1. x: the input of layer `start`. kernels: the kernels of all layers.

        If `stop` is None, return the output of the last layer, after the final norm if the model has one.
        """
        for layer, used in list(zip(self.layers, kernels, strict=True))[start:stop]:
            x = layer(x, used)
        return x if self.final_norm is None or stop is not None else self.final_norm(x)

    def _row_kernels(self, segments: Tensor, dtype: torch.dtype) -> Iterator[Kernels]:
        """Yield the kernels of each layer. Padding attends to padding, because a softmax over nothing is NaN."""
        same = segments[:, None, :, None] == segments[:, None, None, :]
        place = torch.arange(segments.shape[1], device=segments.device)
        rotations, masks = rotations_of(self.shape, segments.device, dtype, len(place)), dict[int | None, Tensor]()
        for window, theta in layer_rules(self.shape):
            if window not in masks:
                visible = same if window is None else same & ((place[:, None] - place).abs() <= window)
                masks[window] = ~visible
            yield RowKernels(masks[window], rotations.get(theta), dtype)


def layer_rules(shape: Shape) -> list[tuple[int | None, float | None]]:
    """Return (window, rotary base) of each layer; a base of None: no rotary positions. window: see `Shape.windows`."""
    none = (None,) * shape.layers
    return list(zip(shape.windows or none, shape.thetas or none, strict=True))


def rotations_of(shape: Shape, device: torch.device, dtype: torch.dtype, length: int) -> dict[float | None, Rotation]:
    """Return, by rotary base, the cosines and sines of positions 0 to `length` - 1; see `rotation`.

    Attention depends only on differences of rotary positions, so a document can start anywhere in a row.
    """
    return {theta: rotation(length, shape.head_size, theta, device, dtype) for theta in set(shape.thetas)}


def rotation(length: int, size: int, theta: float, device: torch.device, dtype: torch.dtype) -> Rotation:
    """Return cosines and sines of rotary positions, each [length, size]. size: width of a head. theta: rotary base."""
    frequency = 1.0 / theta ** (torch.arange(0, size, 2, device=device, dtype=torch.float32) / size)
    angle = torch.arange(length, device=device, dtype=torch.float32)[:, None] * frequency
    angle = torch.cat((angle, angle), dim=-1)
    return angle.cos().to(dtype), angle.sin().to(dtype)


class VocabularyHead(nn.Module):
    """Computes logits of the vocabulary [M, V], or their loss, from the hidden states of masked tokens [M, hidden]."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        bias = architecture_of(shape).biases
        self.dense = nn.Linear(shape.hidden, shape.hidden, bias=bias)
        self.norm = Norm(shape.hidden, shape.eps, bias=bias)
        self.out = nn.Linear(shape.hidden, shape.vocab)

    def features(self, x: Tensor) -> Tensor:
        """Return the input of the output layer `out`, [M, hidden]."""
        return self.norm(F.gelu(self.dense(x)))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.features(x))

    def loss(self, x: Tensor, targets: Tensor, count: int) -> Tensor:
        """Return the cross-entropy in nats, summed over the first `count` rows of x [M, hidden] and targets [M]."""
        return VocabularyLoss.apply(
            self.features(x), self.out.weight, self.out.bias, targets, count, product_dtype(x.device)
        )

    def bag_of_words(self, pooled: Tensor, text: Tensor, tokens: Tensor, factors: Tensor) -> Tensor:
        """Return a weighted sum of cross-entropies in nats: the vector of each text predicts the tokens of the text.

        pooled: [D, hidden], one vector for each text. text, tokens, factors: [T], for each token the index of its text,
        its id, and its weight in the sum.
        """
        # The bias is in float32, because a rounded bias would shift all probabilities of a token.
        logits = F.linear(self.norm(pooled), self.out.weight).float() + self.out.bias.float()
        totals = torch.zeros(len(logits), device=logits.device).index_add(0, text, factors)
        return (totals * logits.logsumexp(dim=1)).sum() - (factors * logits[text, tokens]).sum()


class TaskHead(nn.Module):
    """Computes label logits [D, labels] from pooled documents [D, hidden], as the architecture's stock class does."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        architecture = architecture_of(shape)
        self.dense = nn.Linear(shape.hidden, shape.hidden, bias=architecture.biases)
        self.activation = {"gelu": F.gelu, "tanh": torch.tanh}[architecture.head_activation]
        self.norm = Norm(shape.hidden, shape.eps, bias=architecture.biases) if architecture.head_norm else None
        self.dropout = nn.Dropout(shape.dropout if architecture.head_dropout else 0.0)
        self.out = nn.Linear(shape.hidden, shape.labels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.dense(x))
        x = x if self.norm is None else self.norm(x)
        return self.out(self.dropout(x))


class TaskModel(nn.Module):
    """Encoder, vocabulary head, and task head."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.encoder = Encoder(shape)
        self.vocabulary = VocabularyHead(shape)
        self.task = TaskHead(shape)
        if architecture_of(shape).tied:
            self.vocabulary.out.weight = self.encoder.tokens.weight

    def pool(self, hidden: Tensor, segments: Tensor, doc_row: Tensor, doc_segment: Tensor) -> Tensor:
        """Return a vector for each whole document, [D, hidden]: the mean of its hidden states, or ("cls") the first.

        hidden: [R, L, hidden]. segments: [R, L]. doc_row, doc_segment: [D]; see `packing.Rows`.
        """
        member = segments[doc_row] == doc_segment[:, None]
        if self.shape.pooling == "cls":
            return hidden[doc_row, member.int().argmax(dim=1)]
        weight = member.to(hidden.dtype)
        total = torch.bmm(weight[:, None, :], hidden[doc_row])[:, 0].float()
        return total / member.sum(dim=1, keepdim=True)


def classifier_size(model: TaskModel) -> int:
    """Return the number of parameters of encoder and task head. Prediction needs only these parameters."""
    return sum(p.numel() for part in (model.encoder, model.task) for p in part.parameters())


def seed_of(seed: int, name: str) -> int:
    """Return a seed for PyTorch that depends only on `seed` and `name`, which may be the name of a parameter."""
    return int(np.random.SeedSequence([seed, zlib.crc32(name.encode())]).generate_state(1, np.uint64)[0] >> 1)


def initialize(model: TaskModel, seed: int) -> None:
    """Initialize the parameters. Each value depends only on `seed` and the parameter's name, not on other parameters.

    With the architecture's `residual_start`, each layer starts as the identity: matrices that write to the residual
    stream are zero. The last matrix of each head is zero too. So the model tolerates a high learning rate. Other
    architectures start like BERT, with normal weights of standard deviation 0.02.
    """
    architecture = architecture_of(model.shape)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim < 2:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)
                continue
            generator = torch.Generator().manual_seed(seed_of(seed, name))
            values = torch.empty(parameter.shape)
            if architecture.residual_start and name.endswith(ZERO_AT_START):
                values.zero_()
            elif architecture.residual_start and "encoder.tokens" not in name:
                values.normal_(0.0, 0.5 * parameter.shape[1] ** -0.5, generator=generator)
            else:
                values.normal_(0.0, TOKEN_SPREAD, generator=generator)
            parameter.copy_(values)


def initialize_counted(model: TaskModel, seed: int, log_frequency: Tensor, vectors: Tensor) -> None:
    """Start token embeddings and vocabulary head from counts: log_frequency [V], vectors [V, hidden]; see `counts.py`.

    A token with a zero vector retains its random embedding. `log_frequency` becomes the bias of the vocabulary head.
    """
    known, scaled = counted_start(vectors, seed, TOKEN_SPREAD)
    with torch.no_grad():
        model.encoder.tokens.weight[known] = scaled
        model.vocabulary.out.weight[known] = scaled
        model.vocabulary.out.bias.copy_(log_frequency)


def counted_start(vectors: Tensor, seed: int, spread: float) -> tuple[Tensor, Tensor]:
    """Return a mask [V] of the tokens whose vector is not zero, and initial embeddings of these tokens, [n, width].

    vectors: [V, width], from `counts.py`. Each embedding has the length spread * sqrt(width). Random embeddings with
    the standard deviation `spread` have about this length. The first axes of `vectors` have most of the variance. A
    random rotation distributes the variance over all axes, because optimizers scale each axis separately.
    """
    width = vectors.shape[1]
    generator = torch.Generator().manual_seed(seed_of(seed, "counted vectors"))
    turn = torch.linalg.qr(torch.randn(width, width, generator=generator))[0]
    length = vectors.norm(dim=1, keepdim=True)
    known = length[:, 0] > 1e-6
    return known, (vectors @ turn)[known] / length[known] * (spread * width**0.5)
