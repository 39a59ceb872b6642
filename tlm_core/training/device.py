"""The device that a process trains on, and its number formats."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from tlm_core.errors import OutOfMemory

# Peak FLOP/s in dense bfloat16 from the data sheets, by a part of the device's name. The first match applies.
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


def pick_device() -> torch.device:
    """Return this process's GPU, or the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def peak_flops(device: torch.device) -> float | None:
    """Return the peak FLOP/s of the device in bfloat16, or None if the peak is not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in _PEAKS.items() if part in name), None)


def out_of_memory(error: RuntimeError) -> bool:
    """Return whether the error means that the device ran out of memory. A CPU raises a plain RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


@contextmanager
def model_fits_device() -> Iterator[None]:
    """Raise OutOfMemory if the training stage in the block needs more memory than the device or the host has."""
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


def native_bf16(device: torch.device) -> bool:
    """Return whether a GPU has instructions for bfloat16. Emulated bfloat16 is slow."""
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def product_type(precision: str) -> torch.dtype:
    """Return the type of matrix products: bfloat16 for "bf16", else float32."""
    return torch.bfloat16 if precision == "bf16" else torch.float32


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """Return a context that computes matrix products in the recipe's precision. Weights and gradients stay float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
