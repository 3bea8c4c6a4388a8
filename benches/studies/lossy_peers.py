"""What people use to make activations small, for benches to compare with: each takes [..., H] and says what arrives.

Bits are counted without headers and as if every peer had an ideal layout, which favours them.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from orbitsplit.calibration import Transmitted

Peer = Callable[[Tensor], Transmitted]

# The 16 values of NF4: quantiles of a normal distribution (Dettmers et al. 2023, QLoRA, appendix E).
_NF4_ABOVE_0 = (
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
_NF4_BELOW_0 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495),
)
_NF4 = torch.tensor([*_NF4_BELOW_0, 0.0, *_NF4_ABOVE_0])


def _arrived(received: Tensor, bits: float) -> Transmitted:
    return Transmitted(received, math.ceil(bits / 8), 0.0, 0.0)


def _uniform(x: Tensor, largest: Tensor, levels: int) -> Tensor:
    step = (largest / levels).clamp_min(1e-30)
    return (x / step).round().clamp(-levels, levels) * step


def int8_per_token(x: Tensor) -> Transmitted:
    """8-bit codes with a float16-sized scale for each row."""
    return _arrived(_uniform(x, x.abs().amax(-1, keepdim=True), 127), 8 * x.numel() + 16 * x[..., 0].numel())


def int8_groups(x: Tensor) -> Transmitted:
    """8-bit codes with a 16-bit scale for each 32 elements, as ggml's Q8_0."""
    groups = x.unflatten(-1, (-1, 32))
    received = _uniform(groups, groups.abs().amax(-1, keepdim=True), 127).flatten(-2)
    return _arrived(received, 8.5 * x.numel())


def static_int8(sample: Tensor) -> Peer:
    """8-bit codes with a scale for each channel that reaches the largest value of a sample [R, H]; beyond it is cut."""
    largest = sample.abs().amax(0)
    return lambda x: _arrived(_uniform(x, largest, 127), 8 * x.numel())


def nf4(x: Tensor) -> Transmitted:
    """4-bit normal float with an 8-bit scale for each 64 elements (double quantisation counted, not done)."""
    groups = x.unflatten(-1, (-1, 64))
    largest = groups.abs().amax(-1, keepdim=True).clamp_min(1e-30)
    nearest = torch.bucketize(groups / largest, (_NF4[1:] + _NF4[:-1]) / 2)
    return _arrived((_NF4[nearest] * largest).flatten(-2), 4.125 * x.numel())


def top_k(keep: float) -> Peer:
    """The largest magnitudes of each row as 8-bit codes, and a bitmap or log2 of the choice, whichever is less."""

    def send(x: Tensor) -> Transmitted:
        width = x.shape[-1]
        kept = max(1, round(keep * width))
        places = x.abs().topk(kept, -1).indices
        values = _uniform(x.gather(-1, places), x.abs().amax(-1, keepdim=True), 127)
        choice = (math.lgamma(width + 1) - math.lgamma(kept + 1) - math.lgamma(width - kept + 1)) / math.log(2)
        rows = x[..., 0].numel()
        return _arrived(torch.zeros_like(x).scatter(-1, places, values), rows * (8 * kept + 16 + min(width, choice)))

    return send


def hadamard_int4(x: Tensor) -> Transmitted:
    """4-bit codes after a Hadamard rotation of the largest blocks that fit, a 16-bit scale for each block."""
    width = x.shape[-1]
    block = width & -width
    matrix = torch.ones(1, 1)
    while len(matrix) < block:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    matrix = matrix / math.sqrt(block)
    turned = x.unflatten(-1, (-1, block)) @ matrix
    received = _uniform(turned, turned.abs().amax(-1, keepdim=True), 7) @ matrix.T
    return _arrived(received.flatten(-2), (4 + 16 / block) * x.numel())


def language_model_peers(sample: Tensor) -> dict[str, Peer]:
    """Return the peers of the table for language models; `sample` [R, H] is what a static one may look at."""
    return {
        "int8 per token": int8_per_token,
        "int8, groups of 32 (Q8_0)": int8_groups,
        "static int8 per channel": static_int8(sample),
        "NF4, blocks of 64": nf4,
        "top 25 %, int8": top_k(0.25),
        "top 50 %, int8": top_k(0.5),
        "Hadamard int4": hadamard_int4,
    }
