"""The kernels for CUDA, in Triton's interpreter: their numbers, not their speed."""

from __future__ import annotations

import importlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_kernels_equal_the_reference_in_the_interpreter() -> None:
    script = Path(__file__).with_name("triton_interpreted.py")
    done = subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    errors = [float(word) for word in done.stdout.split()]
    assert len(errors) == 4
    assert max(errors) < 2e-5


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="triton compiles on Linux")
@pytest.mark.parametrize(
    "options",
    [
        {"K": 1, "N": 16, "NP": 16, "R": 0, "RP": 1, "SOFT": True, "GATED": True, "BLOCK": 64},
        {"K": 4, "N": 1, "NP": 1, "R": 6, "RP": 8, "SOFT": True, "GATED": False, "BLOCK": 128},
    ],
)
def test_kernels_compile_for_a_gpu_that_is_not_here(options: dict[str, int]) -> None:
    triton = pytest.importorskip("triton")
    compiler = importlib.import_module("triton.compiler")
    target = importlib.import_module("triton.backends.compiler").GPUTarget("cuda", 80, 32)
    kernels = importlib.import_module("terralapse.layers.scan._triton")
    for kernel, extra in ((kernels.forward_kernel, {"KEEP": True}), (kernels.backward_kernel, {})):
        constants = {"STEPS": 64, **options, **extra}
        whole = {"batch", "length", "channels", "groups", "pieces"}
        signature = {
            name: "constexpr"
            if name in constants
            else "i32"
            if name in whole
            else "*i64"
            if name == "order"
            else "*fp32"
            for name in kernel.arg_names
        }
        places = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
        source = compiler.ASTSource(fn=kernel, signature=signature, constexprs=places)
        assert triton.compile(source, target=target).asm["cubin"]
