"""Parameters in one flat buffer, and the two optimisers that work on it.

All parameters and all gradients lie in one buffer each, equal shapes side by side. So a step has one
all-reduce, one norm, one fused AdamW call for each section, and Muon sees every group of equal matrices as
one stacked tensor without copying.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tlm_core.errors import CorruptArtifact
from tlm_core.training.architectures import architecture_of
from tlm_core.training.device import fast_dtype
from tlm_core.training.flops import newton_schulz
from tlm_core.training.model import TaskModel
from tlm_core.training.recipe import Optimizer as OptimizerRecipe

# Coefficients of the quintic iteration of Jordan et al. 2024 ("Muon"), made for the steepest slope at zero.
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
MOMENTUM = 0.95
EXTRAS = 4


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """Nearest semi-orthogonal matrices of a stack [n, r, c], roughly: singular values end within 0.7 to 1.2."""
    a, b, c = NEWTON_SCHULZ
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = (x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)).to(fast_dtype(x.device.type))
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
    return rows // architecture_of(model.shape).stacked_matrices(name), columns


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

    def __init__(self, model: TaskModel, recipe: OptimizerRecipe, parts: Iterable[str]) -> None:
        self.buffers = Buffers(model, muon=recipe.name == "muon")
        self._recipe = recipe
        self._sections = [section for section in self.buffers.sections if section.part in set(parts)]
        self._moments: dict[str, dict[str, Tensor]] = {}
        for section in self._sections:
            value = self.buffers.value[section.start : section.stop]
            names = ("momentum",) if section.block else ("mean", "square")
            self._moments[section.name] = {name: torch.zeros_like(value) for name in names}
            if not section.block:
                self._moments[section.name]["step"] = torch.zeros((), device=value.device)

    @property
    def flops(self) -> float:
        """Matrix products of one update."""
        blocks: dict[tuple[int, int], int] = {}
        for section in self._sections:
            if section.block:
                size = section.block[0] * section.block[1]
                blocks[section.block] = blocks.get(section.block, 0) + (section.stop - section.start) // size
        return newton_schulz(blocks)

    def zero_grad(self) -> None:
        self.buffers.gradient.zero_()

    def clip(self) -> float:
        """Scale the gradient to the recipe's limit; returns the norm it had."""
        gradient = self.buffers.gradient[:-EXTRAS]
        norm = float(gradient.norm())
        limit = self._recipe.clip
        if limit is not None and norm > limit:
            gradient.mul_(limit / norm)
        return norm

    @torch.no_grad()
    def step(self, rate: float, active: Iterable[str]) -> None:
        """One update at `rate` times the peak learning rates; parts that are not active rest untouched."""
        parts = set(active)
        for section in self._sections:
            if section.part in parts:
                update = self._muon_step if section.block else self._adamw_step
                update(section, rate)

    def _adamw_step(self, section: Section, rate: float) -> None:
        """AdamW (Loshchilov and Hutter 2019) on a whole section at once.

        The kernel is called without `torch.optim`, whose first use costs seconds of imports in each worker.
        """
        moments, recipe = self._moments[section.name], self._recipe
        moments["step"] += 1
        torch._fused_adamw_(
            [self.buffers.value[section.start : section.stop]],
            [self.buffers.gradient[section.start : section.stop]],
            [moments["mean"]],
            [moments["square"]],
            [],
            [moments["step"]],
            lr=rate * recipe.lr,
            beta1=recipe.betas[0],
            beta2=recipe.betas[1],
            weight_decay=recipe.weight_decay if section.decay else 0.0,
            eps=1e-8,
            amsgrad=False,
            maximize=False,
        )

    def _muon_step(self, section: Section, rate: float) -> None:
        """Muon: momentum, made orthogonal, with a step that allows for the matrix's shape."""
        assert section.block is not None
        gradient = self.buffers.gradient[section.start : section.stop]
        value = self.buffers.value[section.start : section.stop]
        momentum, lr = self._moments[section.name]["momentum"], rate * self._recipe.muon_lr
        momentum.lerp_(gradient, 1 - MOMENTUM)
        update = orthogonalise(gradient.lerp(momentum, MOMENTUM).view(-1, *section.block))
        rows, columns = section.block
        value.mul_(1 - lr * self._recipe.weight_decay)
        value.add_(update.reshape(-1), alpha=-lr * max(1.0, rows / columns) ** 0.5)

    def state(self) -> dict[str, Tensor]:
        """All that the optimiser carries from step to step, by name."""
        return {f"{part}.{name}": t for part, found in self._moments.items() for name, t in found.items()}

    def load_state(self, saved: Mapping[str, Tensor]) -> None:
        """Take over what `state` gave. Raises CorruptArtifact if names or sizes differ from this model's."""
        own = self.state()
        if own.keys() != saved.keys() or any(own[name].shape != saved[name].shape for name in own):
            raise CorruptArtifact("the checkpoint holds the optimiser state of another model; start the stage anew")
        for name, tensor in own.items():
            tensor.copy_(saved[name])


def learning_rate(progress: float, warmup: float) -> float:
    """Share of the peak rate at `progress` (0 to 1) of the budget: a linear rise, then linear to zero."""
    if progress < warmup:
        return progress / warmup
    return max(0.0, (1.0 - progress) / (1.0 - warmup))
