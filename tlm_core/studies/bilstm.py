"""A bidirectional LSTM classifier from scratch (arXiv 2006.08671: LSTM-layers-width), trained without padding.

It takes the same packed rows as the encoder, so the loop, validation and prediction are the encoder's. Inside, the
documents are taken apart and stand side by side; batches of like length keep what is computed beyond a text's end
small, and torch's LSTM kernels (oneDNN on a CPU, in bfloat16 where asked for) do one direction at a time.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tlm_core.training.model import product_dtype, seed_of
from tlm_core.training.state import SHAPE, WEIGHTS, load_weights

GATES = 4  # input, forget, candidate, output, in this order


@dataclass(frozen=True)
class LSTMShape:
    """What fixes the model's tensors. hidden: width of each direction; embedding: of the token vectors."""

    vocab: int
    labels: int
    layers: int
    hidden: int
    embedding: int
    max_length: int
    dropout: float = 0.0
    architecture: str = "bilstm"

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> LSTMShape:
        return cls(**data)

    def token_flops(self) -> float:
        """Matrix products of one forward pass over one token."""
        inputs = self.embedding + 2 * self.hidden * (self.layers - 1)
        return 2.0 * 2 * GATES * self.hidden * (inputs + self.layers * self.hidden)


class Turn(torch.autograd.Function):
    """Rows in the order in which documents are read backwards. Its own inverse, so the gradient needs no sum."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, places: Tensor) -> Tensor:
        """x: [T, B, n]; places: [T * B], where each row of the flattened x lies when its document is turned round."""
        ctx.save_for_backward(places)
        return x.flatten(0, 1)[places].view(x.shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        (places,) = ctx.saved_tensors
        return gradient.flatten(0, 1)[places].view(gradient.shape), None


class LSTMLayer(nn.Module):
    """[T, B, inputs] to [T, B, 2 * hidden]. Weights lie as torch's own kernels want them."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.weight = nn.Parameter(torch.zeros(2, GATES * hidden, inputs))
        self.state_weight = nn.Parameter(torch.zeros(2, GATES * hidden, hidden))
        self.bias = nn.Parameter(torch.zeros(2 * GATES * hidden))

    def forward(self, x: Tensor, turned: Tensor) -> Tensor:
        """turned: see `Turn`. Texts begin at step 0; what is computed beyond a text's end is of no meaning."""
        onward = self._read(0, x)
        backward = Turn.apply(self._read(1, Turn.apply(x, turned)), turned)
        return torch.cat((onward, backward), dim=-1)

    def _read(self, way: int, x: Tensor) -> Tensor:
        bias = self.bias.view(2, -1)[way]
        parameters = (self.weight[way], self.state_weight[way], bias, torch.zeros_like(bias))
        start = x.new_zeros((1, x.shape[1], self.hidden))
        out: Tensor = torch.lstm(x, (start, start), parameters, True, 1, 0.0, self.training, False, False)[0]
        return out


def _round_up(count: int) -> int:
    return -(-count // 8) * 8


@dataclass(frozen=True)
class Documents:
    """The documents of packed rows, in their order there; N tokens, B documents, T steps (the longest, rounded up).

    tokens: [T, B], where each step's token lies in the flattened rows (anywhere beyond a document's end);
    inside: [T, B], whether the document goes on; turned: see `Turn`.
    """

    tokens: Tensor
    inside: Tensor
    turned: Tensor

    @classmethod
    def of(cls, segments: Tensor, positions: Tensor) -> Documents:
        real = segments.flatten().nonzero()[:, 0]
        position = positions.flatten()[real]
        number = (position == 0).cumsum(0) - 1
        lengths = number.bincount()
        # Kernels are built for each size they meet, so lengths are few.
        steps, batch = _round_up(int(lengths.max())), len(lengths)
        step = torch.arange(steps, device=lengths.device)[:, None]
        inside = step < lengths
        tokens = real.new_zeros(steps * batch).index_copy(0, position * batch + number, real)
        back = torch.where(inside, lengths - 1 - step, step)
        turned = back * batch + torch.arange(batch, device=lengths.device)
        return cls(tokens.view(steps, batch), inside, turned.flatten())


class LSTMEncoder(nn.Module):
    """Token ids of packed rows to one vector for each document, [D, 2 * hidden], in the documents' order in the rows.

    A document's vector is the largest value of each feature over its tokens.
    """

    def __init__(self, shape: LSTMShape) -> None:
        super().__init__()
        self.tokens = nn.Embedding(shape.vocab, shape.embedding)
        widths = [shape.embedding, *[2 * shape.hidden] * (shape.layers - 1)]
        self.layers = nn.ModuleList(LSTMLayer(width, shape.hidden) for width in widths)
        self.dropout = nn.Dropout(shape.dropout)

    def forward(self, tokens: Tensor, segments: Tensor, positions: Tensor, types: Tensor) -> Tensor:  # noqa: ARG002
        documents = Documents.of(segments, positions)
        x = self.dropout(self.tokens(tokens.flatten()[documents.tokens]))
        x = x.to(product_dtype(x.device))
        for layer in self.layers:
            x = layer(x, documents.turned)
        return x.masked_fill(~documents.inside[..., None], -torch.inf).amax(dim=0).float()


class LSTMHead(nn.Module):
    """Pooled documents [D, 2 * hidden] to label logits [D, labels]."""

    def __init__(self, shape: LSTMShape) -> None:
        super().__init__()
        self.dropout = nn.Dropout(shape.dropout)
        self.out = nn.Linear(2 * shape.hidden, shape.labels)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.out(self.dropout(x))
        return out


class BiLSTM(nn.Module):
    """Encoder and task head; what the training loop asks of a model, it has."""

    def __init__(self, shape: LSTMShape) -> None:
        super().__init__()
        self.shape = shape
        self.encoder = LSTMEncoder(shape)
        self.task = LSTMHead(shape)

    def pool(self, hidden: Tensor, segments: Tensor, doc_row: Tensor, doc_segment: Tensor) -> Tensor:
        """The encoder's vectors in the order of the documents asked for, [D, 2 * hidden]."""
        place = doc_row * (segments.max() + 1) + doc_segment
        return hidden[place.argsort().argsort()]


def initialise(model: BiLSTM, seed: int, embeddings: Tensor | None = None) -> None:
    """Fill all weights from the seed and each tensor's name; forget gates start open.

    embeddings: [V, embedding] to begin with, such as those of a trained TLM model (the paper's third variant).
    """
    hidden = model.shape.hidden
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            draw = torch.Generator().manual_seed(seed_of(seed, name))
            values = torch.empty(parameter.shape)
            if name == "encoder.tokens.weight":
                values.normal_(0.0, 0.1, generator=draw) if embeddings is None else values.copy_(embeddings)
            elif name.endswith("bias"):
                values.zero_()
                if name.startswith("encoder."):
                    values.view(2, GATES, hidden)[:, 1] = 1.0
            else:
                values.uniform_(-(hidden**-0.5), hidden**-0.5, generator=draw)
            parameter.copy_(values)


def load_bilstm(folder: Path) -> BiLSTM:
    """The model that the `bilstm` stage wrote, ready to predict. Raises CorruptArtifact."""
    model = BiLSTM(LSTMShape.from_dict(json.loads((folder / SHAPE).read_text(encoding="utf-8"))))
    load_weights(cast(Any, model), load_file(folder / WEIGHTS))
    return model.eval()
