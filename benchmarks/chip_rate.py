"""What a chip can do at most, measured in the run whose share of it is asked for: products of large square matrices."""

from __future__ import annotations

import time

import torch

#: Side of the matrices: large enough that nothing but the products counts.
_SIDE = {"cuda": 8192, "cpu": 1024}
_ROUNDS = 5


def peak(device: torch.device, precision: str) -> float:
    """Floating-point operations a second of matrix products in fp32 or bf16: the best of a few rounds."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    side = _SIDE.get(device.type, 1024)
    one, other = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    rates = []
    for _ in range(1 + _ROUNDS):  # the first one is slow
        started = now(device)
        _ = one @ other
        rates.append(2 * side**3 / (now(device) - started))
    return max(rates[1:])


def now(device: torch.device) -> float:
    """Seconds, once the device has finished its queue."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()
