"""Which implementation of the scan runs.

`auto` takes `portable` while a program is exported (`torch.export`, ONNX) and for float64; otherwise `cpu` on
a CPU and `triton` on CUDA; and `portable` again where that one cannot run. `available` gives the reasons.
"""

from __future__ import annotations

import importlib.util
from functools import lru_cache

import torch
from torch import Tensor

NAMES = ("auto", "reference", "portable", "cpu", "triton", "mamba-ssm")


@lru_cache(maxsize=1)
def _numba_fault() -> str:
    """Why the CPU kernels cannot run; empty if they can."""
    if importlib.util.find_spec("numba") is None:
        return "numba is not installed"
    from terralapse.layers.scan import cpu

    try:
        cpu.kernels()
    except Exception as fault:  # a numba that does not fit its numpy fails with whatever comes first
        return f"numba does not load: {type(fault).__name__}: {fault}"
    return ""


def available() -> dict[str, str]:
    """Every backend and what stands in its way here; an empty string if nothing does.

    A numba that is missing or does not load is why `auto` may take `portable` on a CPU.
    """
    return {"reference": "", "portable": "", "cpu": _numba_fault()}


def exporting() -> bool:
    """Whether the call is being traced for export, where only operations that others know may appear."""
    return torch.compiler.is_exporting() or torch.onnx.is_in_onnx_export()


def choose(backend: str, u: Tensor, *named: Tensor | None) -> str:
    """The backend that runs for these tensors. Raises ValueError for one that cannot."""
    double = any(x is not None and x.dtype == torch.float64 for x in (u, *named))
    if backend == "auto":
        if exporting() or double or u.device.type != "cpu":
            return "portable"
        return "portable" if _numba_fault() else "cpu"
    if backend not in NAMES:
        raise ValueError(f"backend is {backend!r}; expected one of {', '.join(NAMES)}")
    fault = available()[backend]
    if fault:
        raise ValueError(f"backend {backend!r} cannot run here: {fault}")
    if backend == "cpu" and u.device.type != "cpu":
        raise ValueError(f"backend 'cpu' cannot run on {u.device}")
    if backend == "cpu" and double:
        raise ValueError("backend 'cpu' computes in float32; float64 needs 'portable' or 'reference'")
    return backend
