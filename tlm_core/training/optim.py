"""All parameters of a model in one flat buffer, and the optimizers that update the buffer.

Another buffer holds all gradients. So a step needs one sum over the workers, one norm, and one fused AdamW call per
section. Matrices of equal size are adjacent, so that Muon reads them as a stack without a copy.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from tlm_core.errors import CorruptArtifact
from tlm_core.training.architectures import architecture_of
from tlm_core.training.device import product_type
from tlm_core.training.flops import MUON_STEPS, newton_schulz
from tlm_core.training.model import TaskModel
from tlm_core.training.recipe import Optimizer

if TYPE_CHECKING:
    from tlm_core.training.objective import Workers

# Coefficients of the quintic iteration of Jordan et al. 2024 ("Muon"), chosen for the steepest slope at zero.
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
MOMENTUM = 0.95
# Number of parameters. GPUs read whole vectors, so each section begins at a multiple of 256 bytes, also in bf16.
ALIGNED = 128


@dataclass(frozen=True)
class Totals:
    """Numbers that the workers sum together with the gradient.

    mlm, task: summed losses. stop, shrunk: number of workers that request a stop, and that halved their micro-batch.
    """

    mlm: float
    task: float
    stop: float
    shrunk: float


EXTRAS = len(fields(Totals))


def orthogonalize(matrices: Tensor, dtype: torch.dtype, steps: int = MUON_STEPS) -> Tensor:
    """Return, for each matrix in a stack [n, r, c], approximately the nearest semi-orthogonal matrix.

    The singular values of the results are 0.7 to 1.2. dtype: type of the matrix products.
    """
    a, b, c = NEWTON_SCHULZ
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = (x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)).to(dtype)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype)


def orthogonalize_shares(matrices: Tensor, dtype: torch.dtype, workers: Workers) -> Tensor:
    """Return, on each worker, the result of `orthogonalize` for all matrices. The workers divide the computation."""
    start, stop = workers.share(len(matrices))
    update = torch.zeros(matrices.shape, dtype=dtype, device=matrices.device)
    if start < stop:
        update[start:stop] = orthogonalize(matrices[start:stop], dtype)
    return workers.sum(update).to(matrices.dtype)


@dataclass(frozen=True)
class Section:
    """A range [start, stop) of the buffers with one update rule.

    part: encoder, vocabulary or task. A step updates only the sections of the parts that it trains. block: size (rows,
    columns) of each matrix that Muon updates; None for AdamW. decay: whether weight decay applies.
    """

    name: str
    part: str
    start: int
    stop: int
    block: tuple[int, int] | None
    decay: bool


def _block(model: TaskModel, name: str, parameter: Tensor) -> tuple[int, int] | None:
    """Return the size (rows, columns) of the matrices in a parameter that Muon updates; None if AdamW updates it."""
    if not name.startswith("encoder.layers.") or parameter.ndim != 2:
        return None
    rows, columns = parameter.shape
    return rows // architecture_of(model.shape).stacked_matrices(name), columns


class Buffers:
    """Moves the parameters of a model into the flat buffer `value`, and their gradients into `gradient`.

    `gradient` ends in `totals`, the values of `Totals`, so that the workers sum both at once. multiple: each section
    begins at a multiple of this number, and zeros fill the gaps.
    """

    def __init__(self, model: TaskModel, muon: bool, multiple: int = 1) -> None:
        groups: dict[tuple[str, str, tuple[int, int] | None, bool], list[nn.Parameter]] = {}
        for name, parameter in model.named_parameters():
            part, decay = name.split(".", 1)[0], parameter.ndim > 1
            block = _block(model, name, parameter) if muon else None
            rule = f"muon.{block[0]}x{block[1]}" if block else f"adamw.{'decay' if decay else 'plain'}"
            groups.setdefault((f"{part}.{rule}", part, block, decay), []).append(parameter)
        self.sections: list[Section] = []
        total = 0
        grouped = sorted(groups.items(), key=lambda group: group[0][0])
        for (key, part, block, decay), parameters in grouped:
            start = total + -total % multiple
            total = start + sum(map(Tensor.numel, parameters))
            self.sections.append(Section(key, part, start, total, block, decay))
        device = next(model.parameters()).device
        self.value = torch.zeros(total, device=device)
        self.gradient = torch.zeros(total + EXTRAS, device=device)
        self.totals = self.gradient[total:]
        for section, (_, parameters) in zip(self.sections, grouped, strict=True):
            start = section.start
            for parameter in parameters:
                stop = start + parameter.numel()
                self.value[start:stop].copy_(parameter.data.reshape(-1))
                parameter.data = self.value[start:stop].view(parameter.shape)
                parameter.grad = self.gradient[start:stop].view(parameter.shape)
                start = stop

    def set_totals(self, losses: Tensor, flags: Tensor) -> None:
        """Set this worker's values of `totals`. losses: sums, [mlm, task]. flags: [stop, shrunk], 0 or 1."""
        self.totals[:2] = losses
        self.totals[2:] = flags


class FlatOptimizer:
    """AdamW over the flat buffers. If the recipe's optimizer is `muon`, Muon updates the encoder's matrices.

    parts: which of encoder, vocabulary, and task to train. workers: on GPUs, they divide Muon's matrices. precision:
    "bf16" or "fp32", for the matrix products of Muon.
    """

    def __init__(
        self,
        model: TaskModel,
        recipe: Optimizer,
        parts: Iterable[str],
        workers: Workers | None = None,
        precision: str = "fp32",
    ) -> None:
        self._named = list(model.named_parameters())
        multiple = ALIGNED if next(model.parameters()).is_cuda else 1
        self.buffers = Buffers(model, muon=recipe.name == "muon", multiple=multiple)
        self.recipe = recipe
        self._products = product_type(precision)
        self._workers = workers if workers is not None and self.buffers.value.is_cuda else None
        self._sections = [section for section in self.buffers.sections if section.part in set(parts)]
        self._moments: dict[str, dict[str, Tensor]] = {}
        self._copy: Tensor | None = None
        for section in self._sections:
            value = self.buffers.value[section.start : section.stop]
            names = ("momentum",) if section.block else ("mean", "square")
            self._moments[section.name] = {name: torch.zeros_like(value) for name in names}
            if not section.block:
                self._moments[section.name]["step"] = torch.zeros((), device=value.device)

    @property
    def size(self) -> int:
        """The number of parameters of the model, trained or not."""
        return self.buffers.value.numel()

    @property
    def flops(self) -> float:
        """The FLOPs of Muon's matrix products in one update."""
        counts: dict[tuple[int, int], int] = {}
        for section in self._sections:
            if section.block:
                size = section.block[0] * section.block[1]
                counts[section.block] = counts.get(section.block, 0) + (section.stop - section.start) // size
        return newton_schulz(counts)

    def leaves(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """Return the weights that the passes read, by name: the parameters or, if `dtype` differs, copies of that type.

        Each step updates the copies. The vocabulary head's bias holds log frequencies, so it stays in float32.
        """
        value = self.buffers.value
        if dtype != value.dtype:
            self._copy = value.to(dtype)
        result = {}
        for name, parameter in self._named:
            source = value if self._copy is None or name == "vocabulary.out.bias" else self._copy
            start = parameter.storage_offset()
            leaf = source[start : start + parameter.numel()].view(parameter.shape)
            result[name] = leaf.detach().requires_grad_()
        return result

    @torch.no_grad()
    def refresh(self) -> None:
        """Update the copies of the weights. Call this method after other code has changed the parameters."""
        if self._copy is not None:
            self._copy.copy_(self.buffers.value)

    def zero_grad(self) -> None:
        self.buffers.gradient.zero_()

    def clip(self) -> Tensor:
        """Scale the gradient down to the recipe's maximum norm. Return the norm before the scaling, on the device."""
        gradient, limit = self.buffers.gradient[:-EXTRAS], self.recipe.clip
        norm = gradient.norm()
        if limit is None:
            return norm
        if norm.is_cuda:  # A comparison would make the host wait. A factor of another type would slow the product.
            gradient.mul_((limit / norm).clamp(max=1.0))
        elif norm > limit:
            gradient.mul_(limit / norm.double())
        return norm

    def step(self, rate: float | Tensor, active: Iterable[str], finite: Tensor | None = None) -> None:
        """Update the parts in `active` at `rate` times the peak learning rates. If `finite` is False, change nothing.

        On a GPU, `rate` and `finite` stay on the device, so that the host does not wait for them.
        """
        if finite is not None and finite.is_cuda:
            self.update(rate, active, skip=(~finite).float())
        elif finite is None or finite:
            self.update(float(rate), active)

    @torch.no_grad()
    def update(self, rate: float | Tensor, active: Iterable[str], skip: Tensor | None = None) -> None:
        """Update the parts in `active`, and the copies of their weights. skip: 1 to change nothing, else 0 or None."""
        parts = set(active)
        for section in self._sections:
            if section.part in parts:
                update = self._muon_step if section.block else self._adamw_step
                update(section, rate, skip)
                if self._copy is not None:
                    here = slice(section.start, section.stop)
                    self._copy[here].copy_(self.buffers.value[here])

    def _adamw_step(self, section: Section, rate: float | Tensor, skip: Tensor | None) -> None:
        """Update a section by AdamW (Loshchilov and Hutter 2019).

        The method does not use `torch.optim`, because its import takes seconds.
        """
        moments, recipe = self._moments[section.name], self.recipe
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
            eps=recipe.eps,
            amsgrad=False,
            maximize=False,
            found_inf=skip,
        )
        if skip is not None:
            moments["step"] -= skip

    def _muon_step(self, section: Section, rate: float | Tensor, skip: Tensor | None) -> None:
        """Update a section by Muon: orthogonalized momentum, times a factor that depends on the size of the matrix."""
        assert section.block is not None
        gradient = self.buffers.gradient[section.start : section.stop]
        value = self.buffers.value[section.start : section.stop]
        momentum, lr = self._moments[section.name]["momentum"], rate * self.recipe.muon_lr
        if skip is not None:  # leaves momentum and weights unchanged
            gradient, lr = torch.where(skip.bool(), momentum, gradient), lr * (1.0 - skip)
        momentum.lerp_(gradient, 1 - MOMENTUM)
        matrices = gradient.lerp(momentum, MOMENTUM).view(-1, *section.block)
        if self._workers is None:
            update = orthogonalize(matrices, self._products)
        else:
            update = orthogonalize_shares(matrices, self._products, self._workers)
        rows, columns = section.block
        value.mul_(1 - lr * self.recipe.weight_decay)
        scale = lr * max(1.0, rows / columns) ** 0.5
        if isinstance(scale, Tensor):
            value.addcmul_(update.reshape(-1), scale, value=-1)
        else:
            value.add_(update.reshape(-1), alpha=-scale)

    def state(self) -> dict[str, Tensor]:
        """Return the optimizer's state by name: moments, momentum, and step counts."""
        return {f"{section}.{name}": t for section, moments in self._moments.items() for name, t in moments.items()}

    def load_state(self, saved: Mapping[str, Tensor]) -> None:
        """Restore the result of `state`. Raises CorruptArtifact if names or sizes do not match this model."""
        own = self.state()
        if own.keys() != saved.keys() or any(own[name].shape != saved[name].shape for name in own):
            raise CorruptArtifact(
                "The checkpoint holds the optimizer state of another model. Delete the job, then submit it again."
            )
        for name, tensor in own.items():
            tensor.copy_(saved[name])


def learning_rate(progress: float, warmup: float) -> float:
    """Return the share of the peak rate at `progress`. The share rises linearly to 1 at `warmup`, then falls to 0."""
    if progress < warmup:
        return progress / warmup
    return max(0.0, (1.0 - progress) / (1.0 - warmup))
