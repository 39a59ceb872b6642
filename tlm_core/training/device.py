"""The device a process trains on, and the numbers it computes in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch

from tlm_core.errors import OutOfMemory

# Dense bfloat16 peaks of one device in FLOP/s without sparsity, by what its name holds; from the makers' data sheets.
_PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40": 181e12, "L4": 121e12, "B200": 2250e12}
# Instructions of x86 and ARM processors that multiply bfloat16, as PyTorch names them.
_BF16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16")


def pick_device() -> torch.device:
    """This process's GPU if it has one, else the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def peak_flops(device: torch.device) -> float | None:
    """What the device could compute in a second at most; None where it is not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in _PEAKS.items() if part in name), None)


def out_of_memory(error: RuntimeError) -> bool:
    """Whether the device's memory did not hold what was asked for. A CPU's allocator has no class of error for it."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


@contextmanager
def holding_the_model() -> Iterator[None]:
    """Around a whole stage that trains: raises OutOfMemory where the device has too little whatever the batch is."""
    try:
        yield
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        raise OutOfMemory(
            "the model, its gradient and its optimiser do not fit the device; use a smaller model or scale, or workers "
            "with more memory"
        ) from error


@cache
def fast_dtype(kind: str) -> torch.dtype:
    """bfloat16 where devices of this kind ("cpu", "cuda") have instructions for it here, else float32.

    Without them its products are emulated: on a processor with AVX2 alone, some eighty times as slow as float32.
    """
    if kind == "cuda":
        has = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        capabilities = torch.cpu.get_capabilities()
        has = any(capabilities.get(name) for name in _BF16_INSTRUCTIONS)
    return torch.bfloat16 if has else torch.float32


def resolved_precision(precision: str, device: torch.device) -> str:
    """The recipe's precision ("auto", "bf16" or "fp32") as "bf16" or "fp32": with "auto" the fast one of the device."""
    if precision != "auto":
        return precision
    return "bf16" if fast_dtype(device.type) == torch.bfloat16 else "fp32"


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """Compute matrix products in the recipe's precision, while weights and sums stay float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=resolved_precision(precision, device) == "bf16")
