"""A bidirectional LSTM classifier from scratch (arXiv 2006.08671: LSTM-layers-width).

The BiLSTM reads packed rows (`tlm_core/training/packing.py`). An encoder reads the same rows, so the training loop,
validation and prediction work for both. Inside the model, each document becomes one column of a padded batch. Batches
of texts of similar length contain little padding.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from tlm_core.json_files import read_json
from tlm_core.training.model import counted_start, product_dtype, seed_of
from tlm_core.training.state import SHAPE, WEIGHTS, load_weights

GATES = 4  # input, forget, candidate, output, in this order
TOKEN_SPREAD = 0.1  # standard deviation of random token vectors


@dataclass(frozen=True)
class LSTMShape:
    """The sizes of the model's tensors, and its settings."""

    vocab: int  # number of tokens in the vocabulary
    labels: int
    layers: int
    hidden: int  # width of each direction
    embedding: int  # width of the token vectors
    max_length: int  # of an input, in tokens
    dropout: float = 0.0
    architecture: str = "bilstm"

    def token_flops(self) -> float:
        """Return the FLOPs of the matrix products of a forward pass over one token."""
        inputs = self.embedding + 2 * self.hidden * (self.layers - 1)
        return 2.0 * 2 * GATES * self.hidden * (inputs + self.layers * self.hidden)


class Reverse(torch.autograd.Function):
    """Reverses the token order of each document. The backward pass reverses the gradients in the same way."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, places: Tensor) -> Tensor:
        """Return x [T, B, n] with its T * B vectors reordered. Vector i of the result is vector places[i] of x."""
        ctx.save_for_backward(places)
        return x.flatten(0, 1)[places].view(x.shape)

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        (places,) = ctx.saved_tensors
        return gradient.flatten(0, 1)[places].view(gradient.shape), None


class LSTMLayer(nn.Module):
    """A bidirectional layer: [T, B, inputs] → [T, B, 2 * hidden]. The weights have the layout of torch's kernels."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.weight = nn.Parameter(torch.zeros(2, GATES * hidden, inputs))
        self.state_weight = nn.Parameter(torch.zeros(2, GATES * hidden, hidden))
        self.bias = nn.Parameter(torch.zeros(2 * GATES * hidden))

    def forward(self, x: Tensor, reversal: Tensor) -> Tensor:
        """Return the states [T, B, 2 * hidden] of B texts with up to T tokens. x: token vectors [T, B, inputs].

        reversal: the `places` of `Reverse`. Each text starts at index 0. States after the end of a text are undefined.
        """
        forward = self._direction(0, x)
        backward = Reverse.apply(self._direction(1, Reverse.apply(x, reversal)), reversal)
        return torch.cat((forward, backward), dim=-1)

    def _direction(self, number: int, x: Tensor) -> Tensor:
        bias = self.bias.view(2, -1)[number]
        parameters = (self.weight[number], self.state_weight[number], bias, torch.zeros_like(bias))
        start = x.new_zeros((1, x.shape[1], self.hidden))
        return torch.lstm(x, (start, start), parameters, True, 1, 0.0, self.training, False, False)[0]


@dataclass(frozen=True)
class Documents:
    """The B documents of packed rows, in the order of the rows. T: tokens of the longest document, rounded up."""

    tokens: Tensor  # [T, B], index of each token in the flattened rows; undefined after a document's end
    inside: Tensor  # [T, B], False after a document's end
    reversal: Tensor  # [T * B], the `places` of `Reverse`

    @classmethod
    def of(cls, segments: Tensor, positions: Tensor) -> Documents:
        """Return the documents of R packed rows of L tokens. segments, positions: [R, L], those of `packing.Rows`."""
        real = segments.flatten().nonzero()[:, 0]
        position = positions.flatten()[real]
        number = (position == 0).cumsum(0) - 1
        lengths = number.bincount()
        # Torch compiles a kernel for each new size, so rounding up to a multiple of 8 saves compilations.
        steps, batch = -(-int(lengths.max()) // 8) * 8, len(lengths)
        step = torch.arange(steps, device=lengths.device)[:, None]
        inside = step < lengths
        tokens = real.new_zeros(steps * batch).index_copy(0, position * batch + number, real)
        back = torch.where(inside, lengths - 1 - step, step)
        reversal = back * batch + torch.arange(batch, device=lengths.device)
        return cls(tokens.view(steps, batch), inside, reversal.flatten())


class LSTMEncoder(nn.Module):
    """Token ids of packed rows → one vector for each document, [D, 2 * hidden], in the order of the rows.

    Each feature of the vector is the maximum of this feature over the document's tokens.
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
            x = layer(x, documents.reversal)
        return x.masked_fill(~documents.inside[..., None], -torch.inf).amax(dim=0).float()


class LSTMHead(nn.Module):
    """Document vectors [D, 2 * hidden] → label logits [D, labels]."""

    def __init__(self, shape: LSTMShape) -> None:
        super().__init__()
        self.dropout = nn.Dropout(shape.dropout)
        self.out = nn.Linear(2 * shape.hidden, shape.labels)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.dropout(x))


class BiLSTM(nn.Module):
    """Encoder and task head, with the interface that the training loop needs."""

    def __init__(self, shape: LSTMShape) -> None:
        super().__init__()
        self.shape = shape
        self.encoder = LSTMEncoder(shape)
        self.task = LSTMHead(shape)

    def pool(self, hidden: Tensor, segments: Tensor, doc_row: Tensor, doc_segment: Tensor) -> Tensor:
        """Return the D document vectors in `hidden`, [D, width], in the order of `doc_row` and `doc_segment`, [D]."""
        place = doc_row * (segments.max() + 1) + doc_segment
        return hidden[place.argsort().argsort()]


def initialize(model: BiLSTM, seed: int, embeddings: Tensor | None = None) -> None:
    """Set random weights from `seed` and each tensor's name. Biases become 0, but those of forget gates 1.

    embeddings: token vectors [V, embedding] to start from, such as those of a TLM model (arXiv 2006.08671, variant 3).
    """
    hidden = model.shape.hidden
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            draw = torch.Generator().manual_seed(seed_of(seed, name))
            values = torch.empty(parameter.shape)
            if name == "encoder.tokens.weight":
                values.normal_(0.0, TOKEN_SPREAD, generator=draw) if embeddings is None else values.copy_(embeddings)
            elif name.endswith("bias"):
                values.zero_()
                if name.startswith("encoder."):
                    values.view(2, GATES, hidden)[:, 1] = 1.0
            else:
                values.uniform_(-(hidden**-0.5), hidden**-0.5, generator=draw)
            parameter.copy_(values)


def initialize_counted(model: BiLSTM, seed: int, vectors: Tensor) -> None:
    """Set the token vectors to `vectors`, [V, embedding], which `counted_start` rotates and scales.

    An encoder with the same seed has the same rotation. The scaled vectors have about the length of random vectors.
    Tokens whose vector in `vectors` is zero retain their random vector.
    """
    known, scaled = counted_start(vectors, seed, TOKEN_SPREAD)
    with torch.no_grad():
        model.encoder.tokens.weight[known] = scaled


def load_bilstm(folder: Path) -> BiLSTM:
    """Return the model that the stage `bilstm` wrote. Raises CorruptArtifact if the weights do not fit the shape."""
    model = BiLSTM(LSTMShape(**read_json(folder / SHAPE)))
    load_weights(model, load_file(folder / WEIGHTS))
    return model.eval()
