"""The device that a process trains on, and its number formats."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch

from tlm_core.errors import OutOfMemory

# Peak FLOP/s in dense bfloat16 from the data sheets, by a part of the device's name. The first match counts.
_PEAKS = {
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H200": 989e12,
    "H20": 148e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "B200": 2250e12,
}
# Instructions of x86 and ARM processors that multiply bfloat16, by PyTorch's names.
_BF16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16")


def pick_device() -> torch.device:
    """Return this process's GPU, or the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def peak_flops(device: torch.device) -> float | None:
    """Return the peak FLOP/s of the device, or None if it is unknown."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in _PEAKS.items() if part in name), None)


def out_of_memory(error: RuntimeError) -> bool:
    """Return whether the error says that the device ran out of memory. On a CPU it is a plain RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


@contextmanager
def model_fits_device() -> Iterator[None]:
    """Raise OutOfMemory if a training stage needs more memory than the device or the host has."""
    try:
        yield
    except MemoryError as error:
        raise OutOfMemory(
            "The stage exceeds the worker's main memory. Use workers with more memory, or a smaller model or dataset.",
            details=str(error),
        ) from error
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        raise OutOfMemory(
            "The model, its gradient and its optimizer state exceed the device's memory. Use a smaller model or scale, "
            "or workers with more memory."
        ) from error


@cache
def fast_dtype(kind: str) -> torch.dtype:
    """Return bfloat16 if devices of this kind ("cpu", "cuda") have instructions for it, else float32.

    Emulated bfloat16 is slow: on a processor with only AVX2, eighty times as slow as float32.
    """
    if kind == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        capabilities = torch.cpu.get_capabilities()
        native = any(capabilities.get(name) for name in _BF16_INSTRUCTIONS)
    return torch.bfloat16 if native else torch.float32


def resolved_precision(precision: str, device: torch.device) -> str:
    """Return "bf16" or "fp32" for the recipe's precision; "auto" selects the device's fast type."""
    if precision != "auto":
        return precision
    return "bf16" if fast_dtype(device.type) == torch.bfloat16 else "fp32"


def product_type(precision: str, device: torch.device) -> torch.dtype:
    """Return the type of matrix products at the recipe's precision."""
    return torch.bfloat16 if resolved_precision(precision, device) == "bf16" else torch.float32


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """Return a context that computes matrix products in the recipe's precision. Weights and gradients stay float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=product_type(precision, device) == torch.bfloat16)
