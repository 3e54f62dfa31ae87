"""A network beside its ONNX program."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves


def largest_gap(network: Any, inputs: Sequence[Tensor], fresh: Sequence[Tensor], folder: Path) -> float:
    """The largest difference of any output between torch and onnxruntime on `fresh`, after an export with
    `inputs` of the same shapes. The optimiser of the exporter is left out: on an unrolled scan it takes many
    minutes. Skips where onnxscript or onnxruntime is missing."""
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    program = torch.onnx.export(network, tuple(inputs), dynamo=True, optimize=False, verbose=False)
    assert program is not None
    program.save(folder / "network.onnx")
    session = runtime.InferenceSession(folder / "network.onnx", providers=["CPUExecutionProvider"])
    named = {i.name: x.numpy() for i, x in zip(session.get_inputs(), fresh, strict=True)}
    found = session.run(None, named)
    with torch.no_grad():
        wanted = network(*fresh)
    leaves = zip(found, tree_leaves(wanted), strict=True)
    return max(float(np.abs(f - w.numpy()).max()) for f, w in leaves)
