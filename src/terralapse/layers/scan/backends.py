"""Which implementation of the scan runs.

`auto` takes `portable` while a program is exported (`torch.export`, ONNX) and for float64; otherwise `cpu` on
a CPU, and on CUDA `triton`, or `mamba-ssm` where that is installed, can do the case and was measured to be
faster; and `portable` again where none of these can run. `available` gives the reasons.
"""

from __future__ import annotations

import importlib.util
from functools import lru_cache

import torch
from torch import Tensor

NAMES = ("auto", "reference", "portable", "cpu", "triton", "mamba-ssm")
MAMBA_STATES = 256
"""The most states of a channel that the kernel of mamba-ssm knows."""


@torch.compiler.assume_constant_result
def _numba_fault() -> str:
    """Why the CPU kernels cannot run; empty if they can. A compiled graph takes the answer as it is."""
    return _try_numba()


@lru_cache(maxsize=1)
def _try_numba() -> str:
    if importlib.util.find_spec("numba") is None:
        return "numba is not installed"
    from terralapse.layers.scan import cpu

    try:
        cpu.kernels()
    except Exception as fault:  # a numba that does not fit its numpy fails with whatever comes first
        return f"numba does not load: {type(fault).__name__}: {fault}"
    return ""


def _cuda_fault(package: str) -> str:
    """Why a package with CUDA kernels cannot run; empty if it can."""
    if importlib.util.find_spec(package) is None:
        return f"{package} is not installed"
    return "" if torch.cuda.is_available() else "no CUDA device"


def available() -> dict[str, str]:
    """Every backend and what stands in its way here; an empty string if nothing does.

    A numba that is missing or does not load is why `auto` may take `portable` on a CPU.
    """
    return {
        "reference": "",
        "portable": "",
        "cpu": _numba_fault(),
        "triton": _cuda_fault("triton"),
        "mamba-ssm": _cuda_fault("mamba_ssm"),
    }


def exporting() -> bool:
    """Whether the call is being traced for export, where only operations that others know may appear."""
    return torch.compiler.is_exporting() or torch.onnx.is_in_onnx_export()


def choose(backend: str, u: Tensor, *named: Tensor | None, states: int | None = None) -> str:
    """The backend that runs for these tensors; `states` is N where mamba-ssm may run.

    Raises ValueError for one that cannot.
    """
    double = any(x is not None and x.dtype == torch.float64 for x in (u, *named))
    if backend == "auto":
        return "portable" if exporting() or double else _fastest(u, states)
    if backend not in NAMES:
        raise ValueError(f"backend is {backend!r}; expected one of {', '.join(NAMES)}")
    fault = available()[backend]
    if fault:
        raise ValueError(f"backend {backend!r} cannot run here: {fault}")
    if backend in ("reference", "portable"):
        return backend
    if u.device.type != ("cpu" if backend == "cpu" else "cuda"):
        raise ValueError(f"backend {backend!r} cannot run on {u.device}")
    if double:
        raise ValueError(f"backend {backend!r} computes in float32; float64 needs 'portable' or 'reference'")
    if backend == "mamba-ssm" and (states is None or states > MAMBA_STATES):
        raise ValueError(f"backend 'mamba-ssm' knows no paths and at most {MAMBA_STATES} states")
    return backend


def _fastest(u: Tensor, states: int | None) -> str:
    if u.device.type == "cpu":
        return "portable" if _numba_fault() else "cpu"
    if u.device.type != "cuda" or _cuda_fault("triton"):
        return "portable"
    if states is None or states > MAMBA_STATES or _cuda_fault("mamba_ssm") or torch.compiler.is_compiling():
        return "triton"
    return _measured(u.device.index or 0, states)


@lru_cache(maxsize=16)
def _measured(device: int, states: int) -> str:
    """Times both CUDA kernels once a process, at 4096 steps of 256 channels."""
    from terralapse.layers.scan.selective import selective_scan

    where = torch.device("cuda", device)
    u = torch.randn(1, 256, 4096, device=where)
    narrow = torch.randn(1, 1, states, 4096, device=where)
    A = -torch.rand(256, states, device=where)

    def seconds(backend: str) -> float:
        best = float("inf")
        for _ in range(4):
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            selective_scan(u, u, A, narrow, narrow, delta_softplus=True, backend=backend)
            end.record()
            torch.cuda.synchronize(where)
            best = min(best, begin.elapsed_time(end))
        return best

    with torch.no_grad():
        return min(("triton", "mamba-ssm"), key=seconds)
