"""The encoder and its two heads, for packed rows: our own modules, exported to stock classes by `names.py`.

`modernbert` is pre-norm without biases, with a gated feed-forward block and rotary positions (Warner et al.
2024); `bert` is post-norm with biases and learned positions (Devlin et al. 2019). Documents of one row do
not see each other, and the vocabulary head runs on masked positions only.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tlm_core.training.kernels import GatedLinear, Heads
from tlm_core.training.vocabulary_loss import VocabularyLoss


@dataclass(frozen=True)
class Shape:
    """What fixes the model's tensors and arithmetic. window, theta: per layer (rotary models only).

    skipped: position numbers that a published model leaves unused at the start; only RoBERTa's kind does.
    """

    architecture: str
    vocab: int
    labels: int
    layers: int
    hidden: int
    heads: int
    intermediate: int
    max_length: int
    dropout: float = 0.0
    eps: float = 1e-5
    pooling: str = "mean"
    windows: tuple[int | None, ...] = ()
    thetas: tuple[float, ...] = ()
    positions: int = 0
    skipped: int = 0

    @property
    def rotary(self) -> bool:
        return self.architecture == "modernbert"

    @property
    def types(self) -> int:
        """Kinds of text that the model tells apart: RoBERTa's does not."""
        return 1 if self.skipped else 2

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Shape:
        return cls(**{**data, "windows": tuple(data["windows"]), "thetas": tuple(data["thetas"])})


def scratch_shape(model: dict[str, Any], vocab: int, labels: int) -> Shape:
    """The shape that a recipe's model part asks for, for training from scratch."""
    sizes = {key: model[key] for key in ("layers", "hidden", "heads", "intermediate", "max_length", "dropout")}
    if model["architecture"] == "bert":
        return Shape("bert", vocab, labels, **sizes, eps=1e-12, pooling="cls", positions=model["max_length"])
    count = sizes["layers"]
    return Shape("modernbert", vocab, labels, **sizes, windows=(None,) * count, thetas=(10_000.0,) * count)


def product_dtype(device: torch.device) -> torch.dtype:
    """Type in which matrix products are computed here: autocast's, else float32."""
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else torch.float32


class Attention(nn.Module):
    """Multi-head self-attention with queries, keys and values from one matrix product."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        bias = not shape.rotary
        self.heads = shape.heads
        self.dropout = shape.dropout
        self.qkv = nn.Linear(shape.hidden, 3 * shape.hidden, bias=bias)
        self.out = nn.Linear(shape.hidden, shape.hidden, bias=bias)

    def forward(self, x: Tensor, mask: Tensor, rotation: tuple[Tensor, Tensor] | None) -> Tensor:
        y = attend(self.qkv(x), self.heads, mask, rotation, self.dropout if self.training else 0.0)
        out: Tensor = self.out(y)
        return out


def attend(qkv: Tensor, heads: int, mask: Tensor, rotation: tuple[Tensor, Tensor] | None, dropout: float) -> Tensor:
    """Scaled dot-product attention of [R, L, 3 * heads * head], the queries, keys and values; [R, L, heads * head].

    mask: of `attention_mask`. On a CPU attention is written out: the fused kernel's backward pass takes four times as
    long at these lengths.
    """
    query, key, value = Heads.apply(qkv.unflatten(-1, (3, heads, -1)), rotation)
    if query.is_cuda:
        y = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
    else:
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
        with torch.no_grad():  # a score that is put out has no gradient: softmax gives it none
            scores.masked_fill_(mask, -math.inf)
        y = F.dropout(scores.softmax(dim=-1, dtype=scores.dtype), dropout) @ value
    return y.transpose(1, 2).flatten(-2)


def attention_mask(together: Tensor, dtype: torch.dtype) -> Tensor:
    """What `attend` takes for `together` [R, 1, L, L], true where one token sees another.

    Where it does not, on a CPU; on a GPU, in `dtype`, what is added to the scores.
    """
    if not together.is_cuda:
        return ~together
    return torch.zeros(together.shape, dtype=dtype, device=together.device).masked_fill_(~together, -math.inf)


class Norm(nn.Module):
    """Layer norm over the last dimension, with a bias only if asked for."""

    def __init__(self, hidden: int, eps: float, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden))
        self.bias = nn.Parameter(torch.zeros(hidden)) if bias else None
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


class PreNormLayer(nn.Module):
    """x + attention(norm x), then x + gated feed-forward(norm x). The first layer has no norm before attention."""

    def __init__(self, shape: Shape, first: bool) -> None:
        super().__init__()
        self.attention_norm = None if first else Norm(shape.hidden, shape.eps, bias=False)
        self.attention = Attention(shape)
        self.mlp_norm = Norm(shape.hidden, shape.eps, bias=False)
        self.mlp_in = nn.Linear(shape.hidden, 2 * shape.intermediate, bias=False)
        self.mlp_out = nn.Linear(shape.intermediate, shape.hidden, bias=False)
        self.dropout = nn.Dropout(shape.dropout)

    def forward(self, x: Tensor, mask: Tensor, rotation: tuple[Tensor, Tensor] | None) -> Tensor:
        h = x if self.attention_norm is None else self.attention_norm(x)
        x = x + self.dropout(self.attention(h, mask, rotation))
        gated = GatedLinear.apply(self.mlp_norm(x), self.mlp_in.weight, product_dtype(x.device))
        return x + self.mlp_out(self.dropout(gated))


class PostNormLayer(nn.Module):
    """norm(x + attention x), then norm(x + feed-forward x)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.attention = Attention(shape)
        self.attention_norm = Norm(shape.hidden, shape.eps, bias=True)
        self.mlp_in = nn.Linear(shape.hidden, shape.intermediate)
        self.mlp_out = nn.Linear(shape.intermediate, shape.hidden)
        self.mlp_norm = Norm(shape.hidden, shape.eps, bias=True)
        self.dropout = nn.Dropout(shape.dropout)

    def forward(self, x: Tensor, mask: Tensor, rotation: tuple[Tensor, Tensor] | None) -> Tensor:
        x = self.attention_norm(x + self.dropout(self.attention(x, mask, rotation)))
        out: Tensor = self.mlp_norm(x + self.dropout(self.mlp_out(F.gelu(self.mlp_in(x)))))
        return out


class Encoder(nn.Module):
    """Token ids to hidden states, [R, L] → [R, L, hidden]."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.tokens = nn.Embedding(shape.vocab, shape.hidden)
        if not shape.rotary:
            self.positions = nn.Embedding(shape.positions, shape.hidden)
            self.types = nn.Embedding(shape.types, shape.hidden)
        self.norm = Norm(shape.hidden, shape.eps, bias=not shape.rotary)
        self.dropout = nn.Dropout(shape.dropout)
        layers = (PreNormLayer(shape, i == 0) if shape.rotary else PostNormLayer(shape) for i in range(shape.layers))
        self.layers = nn.ModuleList(layers)
        self.final_norm = Norm(shape.hidden, shape.eps, bias=False) if shape.rotary else None

    def forward(self, tokens: Tensor, segments: Tensor, positions: Tensor, types: Tensor) -> Tensor:
        x = self.tokens(tokens)
        if not self.shape.rotary:
            x = x + self.positions(positions) + self.types(types.clamp(max=self.shape.types - 1))
        dtype = product_dtype(x.device)
        x = self.dropout(self.norm(x)).to(dtype)  # as are all sums from here on: what costs between products is memory
        masks, rotations = self._masks(segments, dtype), self._rotations(tokens.shape[1], x.device, dtype)
        for layer, mask, rotation in zip(self.layers, masks, rotations, strict=True):
            x = layer(x, mask, rotation)
        return x if self.final_norm is None else self.final_norm(x)

    def _masks(self, segments: Tensor, dtype: torch.dtype) -> Iterator[Tensor]:
        """One `attention_mask` per layer; padding sees padding only, so no row of it is empty."""
        together = segments[:, None, :, None] == segments[:, None, None, :]
        place = torch.arange(segments.shape[1], device=segments.device)
        made: dict[int | None, Tensor] = {}
        for window in self.shape.windows or (None,) * self.shape.layers:
            if window not in made:
                near = together if window is None else together & ((place[:, None] - place).abs() <= window)
                made[window] = attention_mask(near, dtype)
            yield made[window]

    def _rotations(
        self, length: int, device: torch.device, dtype: torch.dtype
    ) -> Iterator[tuple[Tensor, Tensor] | None]:
        """(cos, sin), each [L, head], per layer. Only differences of positions count, so rows share them."""
        made: dict[float, tuple[Tensor, Tensor]] = {}
        for theta in self.shape.thetas or (None,) * self.shape.layers:
            if theta is None:
                yield None
                continue
            if theta not in made:
                made[theta] = rotation(length, self.shape.hidden // self.shape.heads, theta, device, dtype)
            yield made[theta]


def rotation(length: int, size: int, theta: float, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines of rotary positions, each [length, size]."""
    frequency = 1.0 / theta ** (torch.arange(0, size, 2, device=device, dtype=torch.float32) / size)
    angle = torch.arange(length, device=device, dtype=torch.float32)[:, None] * frequency
    angle = torch.cat((angle, angle), dim=-1)
    return angle.cos().to(dtype), angle.sin().to(dtype)


class VocabularyHead(nn.Module):
    """Hidden states of masked positions [M, hidden] to vocabulary logits [M, V], or straight to their loss."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.dense = nn.Linear(shape.hidden, shape.hidden, bias=not shape.rotary)
        self.norm = Norm(shape.hidden, shape.eps, bias=not shape.rotary)
        self.out = nn.Linear(shape.hidden, shape.vocab)

    def features(self, x: Tensor) -> Tensor:
        """What the last matrix is applied to, [M, hidden]."""
        out: Tensor = self.norm(F.gelu(self.dense(x)))
        return out

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.out(self.features(x))
        return out

    def loss(self, x: Tensor, targets: Tensor, count: int) -> Tensor:
        """Summed cross-entropy against the first `count` of targets [M], in nats."""
        loss: Tensor = VocabularyLoss.apply(
            self.features(x), self.out.weight, self.out.bias, targets, count, product_dtype(x.device)
        )
        return loss


class TaskHead(nn.Module):
    """Pooled documents [D, hidden] to label logits [D, labels], as the stock class of the architecture does."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.bert = not shape.rotary
        self.dense = nn.Linear(shape.hidden, shape.hidden, bias=self.bert)
        self.norm = None if self.bert else Norm(shape.hidden, shape.eps, bias=False)
        self.dropout = nn.Dropout(shape.dropout)
        self.out = nn.Linear(shape.hidden, shape.labels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.dense(x)
        x = torch.tanh(x) if self.norm is None else self.norm(F.gelu(x))
        out: Tensor = self.out(self.dropout(x))
        return out


class TaskModel(nn.Module):
    """Encoder, vocabulary head and task head."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.encoder = Encoder(shape)
        self.vocabulary = VocabularyHead(shape)
        self.task = TaskHead(shape)
        if not shape.rotary:
            self.vocabulary.out.weight = self.encoder.tokens.weight  # BERT ties them

    def pool(self, hidden: Tensor, segments: Tensor, doc_row: Tensor, doc_segment: Tensor) -> Tensor:
        """One vector for each whole document, [D, hidden]: the mean of its tokens or its first."""
        member = segments[doc_row] == doc_segment[:, None]
        if self.shape.pooling == "cls":
            return hidden[doc_row, member.int().argmax(dim=1)]
        weight = member.to(hidden.dtype)
        total = torch.bmm(weight[:, None, :], hidden[doc_row])[:, 0].float()
        return total / member.sum(dim=1, keepdim=True)


def classifier_size(model: TaskModel) -> int:
    """Parameters of the encoder and the task's head: what finetuning trains and prediction takes."""
    return sum(p.numel() for part in (model.encoder, model.task) for p in part.parameters())


TOKEN_SPREAD = 0.02
ZERO_AT_START = ("attention.out.weight", "mlp_out.weight", "vocabulary.out.weight", "task.out.weight")


def seed_of(seed: int, name: str) -> int:
    """A seed for PyTorch from a seed and a name."""
    return int(np.random.SeedSequence([seed, zlib.crc32(name.encode())]).generate_state(1, np.uint64)[0] >> 1)


def initialise(model: TaskModel, seed: int) -> None:
    """Fill all weights as a function of the seed and each tensor's name, so parts do not shift each other.

    Matrices that write to the residual stream and the last layer of each head start at zero in the pre-norm
    model: it begins as the identity, which bears a high learning rate. BERT starts as published (0.02).
    """
    rotary = model.shape.rotary
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim < 2:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)
                continue
            draw = torch.Generator().manual_seed(seed_of(seed, name))
            values = torch.empty(parameter.shape)
            if rotary and name.endswith(ZERO_AT_START):
                values.zero_()
            elif rotary and "encoder.tokens" not in name:
                values.normal_(0.0, 0.5 * parameter.shape[1] ** -0.5, generator=draw)
            else:
                values.normal_(0.0, TOKEN_SPREAD, generator=draw)
            parameter.copy_(values)


def initialise_counted(model: TaskModel, seed: int, log_frequency: Tensor, vectors: Tensor) -> None:
    """Token embeddings and vocabulary head from counts: log_frequency [V], vectors [V, hidden].

    All vectors get the length that random ones have, and are turned at random: their first axes carry most,
    which optimisers that work axis by axis would feel. Tokens without a vector keep their random start.
    """
    hidden = model.shape.hidden
    draw = torch.Generator().manual_seed(seed_of(seed, "counted vectors"))
    turn = torch.linalg.qr(torch.randn(hidden, hidden, generator=draw))[0]
    length = vectors.norm(dim=1, keepdim=True)
    known = length[:, 0] > 1e-6
    scaled = (vectors @ turn)[known] / length[known] * (TOKEN_SPREAD * hidden**0.5)
    with torch.no_grad():
        model.encoder.tokens.weight[known] = scaled
        model.vocabulary.out.weight[known] = scaled
        model.vocabulary.out.bias.copy_(log_frequency)
