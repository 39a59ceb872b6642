"""Parameters in one flat buffer, and the two optimisers that work on it.

All parameters and all gradients lie in one buffer each, equal shapes side by side. So a step has one
all-reduce, one norm, one fused AdamW call for each section, and Muon sees every group of equal matrices as
one stacked tensor without copying.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tlm_core.errors import CorruptArtifact
from tlm_core.training.flops import newton_schulz
from tlm_core.training.model import TaskModel

# Coefficients of the quintic iteration of Jordan et al. 2024 ("Muon"), made for the steepest slope at zero.
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
MOMENTUM = 0.95
EXTRAS = 4


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """Nearest semi-orthogonal matrices of a stack [n, r, c], roughly: singular values end within 0.7 to 1.2."""
    a, b, c = NEWTON_SCHULZ
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = (x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)).bfloat16()
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype)


@dataclass(frozen=True)
class Section:
    """A stretch of the buffers under one rule. part: which parameters rest together on a step without them.

    block: shape of one matrix for Muon, else None for AdamW.
    """

    name: str
    part: str
    start: int
    stop: int
    block: tuple[int, int] | None
    decay: bool


def _part(name: str) -> str:
    return name.split(".", 1)[0]


def _block(model: TaskModel, name: str, parameter: Tensor, muon: bool) -> tuple[int, int] | None:
    """The matrix shape that Muon should treat as one: each of q, k, v and each half of a gate on its own."""
    if not muon or not name.startswith("encoder.layers.") or parameter.ndim != 2:
        return None
    rows, columns = parameter.shape
    if ".qkv." in name:
        return rows // 3, columns
    if ".mlp_in." in name and model.shape.rotary:
        return rows // 2, columns
    return rows, columns


class Buffers:
    """The model's parameters moved into one flat buffer, with their gradients in another.

    `gradient` ends in EXTRAS spare numbers that travel with the all-reduce (losses, stop requests).
    """

    def __init__(self, model: TaskModel, muon: bool) -> None:
        keyed = []
        for name, parameter in model.named_parameters():
            block = _block(model, name, parameter, muon)
            decay = parameter.ndim > 1
            rule = f"muon.{block[0]}x{block[1]}" if block else f"adamw.{'decay' if decay else 'plain'}"
            keyed.append((f"{_part(name)}.{rule}", block, decay, name, parameter))
        keyed.sort(key=lambda entry: entry[0])  # stable: within a section the model's own order stays
        total = sum(parameter.numel() for *_, parameter in keyed)
        device = keyed[0][-1].device
        self.value = torch.zeros(total, device=device)
        self.gradient = torch.zeros(total + EXTRAS, device=device)
        self.extras = self.gradient[total:]
        self.sections: list[Section] = []
        start = 0
        for key, block, decay, name, parameter in keyed:
            stop = start + parameter.numel()
            self.value[start:stop].copy_(parameter.data.reshape(-1))
            parameter.data = self.value[start:stop].view(parameter.shape)
            parameter.grad = self.gradient[start:stop].view(parameter.shape)
            if self.sections and self.sections[-1].name == key:
                start_of, last = self.sections[-1].start, self.sections.pop()
                self.sections.append(Section(key, last.part, start_of, stop, block, decay))
            else:
                self.sections.append(Section(key, _part(name), start, stop, block, decay))
            start = stop


class Optimizer:
    """Muon on the encoder's matrices (if the recipe says so), AdamW on all else, over flat sections.

    recipe: the recipe's optimizer part. parts: which of encoder, vocabulary, task are ever trained.
    """

    def __init__(self, model: TaskModel, recipe: Mapping[str, Any], parts: Iterable[str]) -> None:
        self.buffers = Buffers(model, muon=recipe["name"] == "muon")
        self._recipe = recipe
        wanted = set(parts)
        self._muon: dict[str, Tensor] = {}
        self._adamw: dict[str, nn.Parameter] = {}
        for section in self.buffers.sections:
            if section.part not in wanted:
                continue
            value = self.buffers.value[section.start : section.stop]
            if section.block:
                self._muon[section.name] = torch.zeros_like(value)
            else:
                self._adamw[section.name] = nn.Parameter(value)
        self._sections = {s.name: s for s in self.buffers.sections if s.part in wanted}
        groups = [
            {"params": [p], "weight_decay": recipe["weight_decay"] if self._sections[name].decay else 0.0}
            for name, p in self._adamw.items()
        ]
        self._torch = torch.optim.AdamW(groups, lr=recipe["lr"], betas=tuple(recipe["betas"]), eps=1e-8, fused=True)

    @property
    def flops(self) -> float:
        """Matrix products of one update."""
        blocks: dict[tuple[int, int], int] = {}
        for name in self._muon:
            section = self._sections[name]
            assert section.block is not None
            size = section.block[0] * section.block[1]
            blocks[section.block] = blocks.get(section.block, 0) + (section.stop - section.start) // size
        return newton_schulz(blocks)

    def zero_grad(self) -> None:
        self.buffers.gradient.zero_()

    def clip(self) -> float:
        """Scale the gradient to the recipe's limit; returns the norm it had."""
        gradient = self.buffers.gradient[: -EXTRAS]
        norm = float(gradient.norm())
        limit = self._recipe["clip"]
        if limit is not None and norm > limit:
            gradient.mul_(limit / norm)
        return norm

    @torch.no_grad()
    def step(self, rate: float, active: Iterable[str]) -> None:
        """One update at `rate` times the peak learning rates; parts that are not active rest untouched."""
        parts = set(active)
        for name, parameter in self._adamw.items():
            section = self._sections[name]
            parameter.grad = self.buffers.gradient[section.start : section.stop] if section.part in parts else None
        for group in self._torch.param_groups:
            group["lr"] = rate * self._recipe["lr"]
        self._torch.step()
        for name, momentum in self._muon.items():
            if self._sections[name].part in parts:
                self._muon_step(self._sections[name], momentum, rate * self._recipe["muon_lr"])

    def _muon_step(self, section: Section, momentum: Tensor, lr: float) -> None:
        assert section.block is not None
        gradient = self.buffers.gradient[section.start : section.stop]
        value = self.buffers.value[section.start : section.stop]
        momentum.lerp_(gradient, 1 - MOMENTUM)
        update = orthogonalise(gradient.lerp(momentum, MOMENTUM).view(-1, *section.block))
        rows, columns = section.block
        value.mul_(1 - lr * self._recipe["weight_decay"])
        value.add_(update.reshape(-1), alpha=-lr * max(1.0, rows / columns) ** 0.5)

    def state(self) -> dict[str, Tensor]:
        """All that the optimiser carries from step to step, by name."""
        found = {f"{name}.momentum": tensor for name, tensor in self._muon.items()}
        for name, parameter in self._adamw.items():
            for key, value in self._torch.state[parameter].items():
                found[f"{name}.{key}"] = value
        return found

    def load_state(self, saved: Mapping[str, Tensor]) -> None:
        """Take over what `state` gave. Raises CorruptArtifact if names or sizes differ from this model's."""
        left = dict(saved)
        for name, momentum in self._muon.items():
            momentum.copy_(_take(left, f"{name}.momentum", momentum.shape))
        for name, parameter in self._adamw.items():
            if f"{name}.step" not in left:
                continue  # a head that had no step yet
            self._torch.state[parameter] = {
                "step": _take(left, f"{name}.step", torch.Size()).clone(),
                "exp_avg": _take(left, f"{name}.exp_avg", parameter.shape).to(parameter.device, copy=True),
                "exp_avg_sq": _take(left, f"{name}.exp_avg_sq", parameter.shape).to(parameter.device, copy=True),
            }
        if left:
            raise CorruptArtifact(f"the checkpoint holds optimiser state of another model: {sorted(left)[:3]}")


def _take(left: dict[str, Tensor], name: str, shape: torch.Size) -> Tensor:
    tensor = left.pop(name, None)
    if tensor is None or tensor.shape != shape:
        raise CorruptArtifact(f"the checkpoint's optimiser state '{name}' is missing or of another size")
    return tensor


def learning_rate(progress: float, warmup: float) -> float:
    """Share of the peak rate at `progress` (0 to 1) of the budget: a linear rise, then linear to zero."""
    if progress < warmup:
        return progress / warmup
    return max(0.0, (1.0 - progress) / (1.0 - warmup))


