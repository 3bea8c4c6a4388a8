"""Devices of torch: the one with a name, its memory, and its clock.

What enters and leaves a stage is on the processor's side, where codecs and links are.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from orbitsplit._io.device_names import CPU


def open_device(name: str) -> torch.device:
    """Return a device of this machine. Raises ValueError if torch finds none of that name."""
    device = torch.device(name)
    if device.type == "cuda" and not _has_cuda(device):
        raise ValueError(f"there is no device {name} here: torch finds {torch.cuda.device_count()} CUDA devices")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError("there is no device mps here: torch finds none")
    return device


def _has_cuda(device: torch.device) -> bool:
    return torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count()


@contextmanager
def single_thread() -> Iterator[None]:
    """Let torch compute in this thread alone: the process may be forked afterwards, and others are not slowed."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def to_host(x: Tensor) -> Tensor:
    """Return a tensor in the processor's memory; from a CUDA device through memory that is pinned."""
    if x.device.type != "cuda":
        return x.to(CPU)
    landed = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
    landed.copy_(x, non_blocking=True)
    torch.cuda.current_stream(x.device).synchronize()
    return landed


def device_peak_bytes(name: str) -> int:
    """Return the peak of what torch has taken of a device's own memory in this process; 0 of the processor."""
    device = torch.device(name)
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    return torch.mps.driver_allocated_memory() if device.type == "mps" else 0


def device_clock(name: str) -> Callable[[], float]:
    """Return a clock of what a device has finished, in seconds: its work goes on after the call that asked for it."""
    device = torch.device(name)

    def now_s() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        elif device.type == "mps":
            torch.mps.synchronize()
        return time.perf_counter()

    return now_s


def device_title(name: str) -> str | None:
    """Return the model of a device, None of the processor."""
    device = torch.device(name)
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return "MPS" if device.type == "mps" else None
