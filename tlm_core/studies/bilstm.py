"""A bidirectional LSTM classifier from scratch (arXiv 2006.08671: LSTM-layers-width), trained without padding.

It takes the same packed rows as the encoder, so the loop, validation and prediction are the encoder's. Inside, the
documents are taken apart and sorted by length; each step of the recurrence computes the documents that are still
going on, both directions in one matrix product.
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

GATES = 4  # input, forget, output, candidate, in this order


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
    rotary: bool = False

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> LSTMShape:
        return cls(**data)

    def token_flops(self) -> float:
        """Matrix products of one forward pass over one token."""
        inputs = self.embedding + 2 * self.hidden * (self.layers - 1)
        return 2.0 * 2 * GATES * self.hidden * (inputs + self.layers * self.hidden)


class Recurrence(torch.autograd.Function):
    """The sequential half of an LSTM layer, both directions side by side.

    Written out with its own gradient: a step then costs one product each way and a few passes over tensors that stay
    in a core's cache, instead of some twenty recorded operations. Only the products are in the type of `drive`; all
    else is float32, since operations on mixed types copy their operands first.
    """

    @staticmethod
    def forward(ctx: Any, drive: Tensor, weight: Tensor, active: list[int]) -> Tensor:
        """drive: [2, T, B, 4H], the inputs' share of the gates; weight: [2, H, 4H]; active: documents at each step.

        Documents are sorted by length, longest first. Returns [2, T, B, H]; of no meaning where a document has ended.
        """
        _, steps, batch, gates = drive.shape
        width = gates // GATES
        weight = weight.to(drive.dtype)
        opened = drive.new_empty(drive.shape, dtype=torch.float32)
        cells, bent = (drive.new_empty((2, steps, batch, width), dtype=torch.float32) for _ in range(2))
        states = drive.new_zeros((2, steps, batch, width))
        for step, count in enumerate(active):
            a, cell = opened[:, step, :count], cells[:, step, :count]
            if step:
                a.copy_(torch.baddbmm(drive[:, step, :count], states[:, step - 1, :count], weight))
            else:
                a.copy_(drive[:, step])
            a[..., : 3 * width].sigmoid_()
            a[..., 3 * width :].tanh_()
            into, keep, out, candidate = a.split(width, dim=-1)
            torch.mul(into, candidate, out=cell)
            if step:
                cell.addcmul_(keep, cells[:, step - 1, :count])
            states[:, step, :count] = out * torch.tanh(cell, out=bent[:, step, :count])
        ctx.save_for_backward(opened, cells, bent, states, weight)
        ctx.active = active
        return states

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        opened, cells, bent, states, weight = ctx.saved_tensors
        _, _, batch, gates = opened.shape
        width = gates // GATES
        to_drive = states.new_zeros(opened.shape)
        back = weight.transpose(1, 2).contiguous()
        to_cell, carry = cells.new_zeros((2, batch, width)), cells.new_zeros((2, batch, width))
        for step in range(len(ctx.active) - 1, -1, -1):
            count = ctx.active[step]
            into, keep, out, candidate = (a := opened[:, step, :count]).split(width, dim=-1)
            tip = bent[:, step, :count]
            to_state = carry[:, :count].add_(gradients[0][:, step, :count])
            by_out = to_state * out
            here = to_cell[:, :count].add_(by_out).addcmul_(by_out * tip, tip, value=-1.0)
            d = torch.empty_like(a)
            torch.mul(here, candidate, out=d[..., :width])
            if step:
                torch.mul(here, cells[:, step - 1, :count], out=d[..., width : 2 * width])
            else:
                d[..., width : 2 * width] = 0.0
            torch.mul(to_state, tip, out=d[..., 2 * width : 3 * width])
            # The slope of a sigmoid s is s * (1 - s), that of a hyperbolic tangent t is 1 - t * t.
            opening = a[..., : 3 * width]
            d[..., : 3 * width] *= opening.addcmul(opening, opening, value=-1.0)
            by_into = here * into
            torch.addcmul(by_into, by_into * candidate, candidate, value=-1.0, out=d[..., 3 * width :])
            here *= keep
            narrow = to_drive[:, step, :count]
            narrow.copy_(d)
            carry[:, :count].copy_(torch.bmm(narrow, back))
        before = states[:, :-1].reshape(2, -1, width).transpose(1, 2)
        to_weight = torch.bmm(before, to_drive[:, 1:].reshape(2, -1, gates))
        return to_drive, to_weight.float(), None


class LSTMLayer(nn.Module):
    """[T, B, inputs] to [T, B, 2 * hidden]."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2, inputs, GATES * hidden))
        self.state_weight = nn.Parameter(torch.zeros(2, hidden, GATES * hidden))
        self.bias = nn.Parameter(torch.zeros(2 * GATES * hidden))

    def forward(self, x: Tensor, reverse: Tensor, active: list[int]) -> Tensor:
        """reverse: [T, B], where each place of a document lies when it is read backwards."""
        steps, batch, _ = x.shape
        dtype = product_dtype(x.device)
        both = torch.stack((x, _turned(x, reverse))).to(dtype).flatten(1, 2)
        bias = self.bias.view(2, 1, -1).to(dtype)
        drive = torch.baddbmm(bias, both, self.weight.to(dtype)).view(2, steps, batch, -1)
        states = Recurrence.apply(drive, self.state_weight, active)
        out: Tensor = torch.cat((states[0], _turned(states[1], reverse)), dim=-1)
        return out


def _turned(x: Tensor, reverse: Tensor) -> Tensor:
    return x.gather(0, reverse[..., None].expand(-1, -1, x.shape[-1]))


def _round_up(count: int) -> int:
    return -(-count // 8) * 8


@dataclass(frozen=True)
class Documents:
    """The documents of packed rows, longest first; N tokens, B documents, T steps (the longest, rounded up).

    real: [N], where the tokens lie in the flattened rows; place: [N], where in a flattened [T, B].
    """

    real: Tensor
    place: Tensor
    reverse: Tensor
    active: list[int]

    @classmethod
    def of(cls, segments: Tensor, positions: Tensor) -> Documents:
        real = segments.flatten().nonzero()[:, 0]
        position = positions.flatten()[real]
        number = (position == 0).cumsum(0) - 1
        lengths, ranked = number.bincount().sort(descending=True, stable=True)
        rank = torch.empty_like(ranked).scatter_(0, ranked, torch.arange(len(ranked), device=ranked.device))
        # Matrix kernels are built for each size they meet, so lengths and numbers of documents are few.
        step = torch.arange(_round_up(int(lengths[0])), device=lengths.device)[:, None]
        going_on = step < lengths
        reverse = torch.where(going_on, lengths - 1 - step, step)
        active = [min(len(lengths), _round_up(count)) for count in going_on.sum(dim=1).tolist() if count]
        return cls(real, position * len(lengths) + rank[number], reverse, active)


class LSTMEncoder(nn.Module):
    """Token ids of packed rows to hidden states, [R, L] → [R, L, 2 * hidden]; zero at padding."""

    def __init__(self, shape: LSTMShape) -> None:
        super().__init__()
        self.tokens = nn.Embedding(shape.vocab, shape.embedding)
        widths = [shape.embedding, *[2 * shape.hidden] * (shape.layers - 1)]
        self.layers = nn.ModuleList(LSTMLayer(width, shape.hidden) for width in widths)
        self.dropout = nn.Dropout(shape.dropout)

    def forward(self, tokens: Tensor, segments: Tensor, positions: Tensor, types: Tensor) -> Tensor:  # noqa: ARG002
        documents = Documents.of(segments, positions)
        steps, batch = documents.reverse.shape
        vectors = self.tokens(tokens.flatten()[documents.real])
        x = vectors.new_zeros((steps * batch, vectors.shape[-1])).index_copy(0, documents.place, vectors)
        x = self.dropout(x).view(steps, batch, -1)
        for layer in self.layers:
            x = layer(x, documents.reverse, documents.active)
        hidden = x.flatten(0, 1)[documents.place]
        rows = hidden.new_zeros((segments.numel(), hidden.shape[-1])).index_copy(0, documents.real, hidden)
        return rows.view(*segments.shape, -1)


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
    """Encoder and task head; what the training loop asks of a model, it has. A document's vector is its maximum."""

    def __init__(self, shape: LSTMShape) -> None:
        super().__init__()
        self.shape = shape
        self.encoder = LSTMEncoder(shape)
        self.task = LSTMHead(shape)

    def pool(self, hidden: Tensor, segments: Tensor, doc_row: Tensor, doc_segment: Tensor) -> Tensor:
        """The largest value of each feature over a document's tokens, [D, 2 * hidden]."""
        member = segments[doc_row] == doc_segment[:, None]
        return hidden[doc_row].masked_fill(~member[..., None], -torch.inf).amax(dim=1).float()


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
