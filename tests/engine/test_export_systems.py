"""Every network for change that comes with weights, in every format: the same map as in torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from terralapse import registry
from terralapse.cards import Task
from terralapse.engine import exported
from terralapse.engine.export import compare, export, exportable, least_side, trace, write_graph
from terralapse.engine.runner import TorchRunner
from terralapse.engine.runtimes import GraphRunner
from terralapse.errors import ModelInputError
from terralapse.models.change import lenet
from terralapse.tasks.mapped import MAP, MapDetector
from terralapse.tasks.network import NetworkDetector
from terralapse.workflows.export import check_tiles

FORMATS = {".onnx": "onnx", ".xml": "openvino", ".pt2": "torch"}
PACKAGES = {".onnx": ("onnxscript", "onnxruntime"), ".xml": ("onnxscript", "openvino"), ".pt2": ()}
SLOW = (  # a minute and more, all formats together
    "cdmaskformer/nano",
    "cfnet/nano",
    "changemamba/bcd-nano",
    "changemamba/bda-nano",
    "fsg-net/nano",
    "fusu/change-nano",
    "lapsenet/s2",
    "lenet/nano",
    "mapformer/nano",
    "semicd-vl/nano",
)
SYSTEMS = ("lapsenet/rgb", *SLOW)
MOST = 1e-4  # difference in probability, of which the worst of them has a tenth


def weights_of(slug: str, root: Path) -> dict[str, Any]:
    """Where the weights of a system are, if its card does not say so yet."""
    path = root / "weights" / f"{slug.replace('/', '-')}.safetensors"
    return {} if registry.card(slug).weights or not path.is_file() else {"weights": path}


def built(slug: str, root: Path) -> NetworkDetector:
    return exportable(registry.build(slug, **weights_of(slug, root)))


def test_no_network_with_weights_is_left_out(root: Path) -> None:
    named = {path.stem for path in (root / "weights").glob("*.safetensors")}
    cards = [c for c in registry.cards() if c.weights or c.slug.replace("/", "-") in named]
    wanted = {c.slug for c in cards if c.task in (Task.CHANGE, Task.SEMANTIC_CHANGE, Task.DAMAGE)}
    assert wanted == set(SYSTEMS)


@pytest.mark.parametrize(
    "slug", [pytest.param(s, marks=pytest.mark.slow if s in SLOW else ()) for s in SYSTEMS]
)
def test_a_file_says_what_torch_says(slug: str, root: Path, tmp_path: Path) -> None:
    detector = built(slug, root)
    tiles = check_tiles(detector)
    program = trace(detector, detector.always_stretches)
    for suffix, packages in PACKAGES.items():
        for package in packages:
            pytest.importorskip(package)
        path = tmp_path / f"system{suffix}"
        write_graph(detector, path, FORMATS[suffix], detector.always_stretches, program)
        fewest = least_side(program) if suffix == ".pt2" else 1
        sides = [n * detector.multiple for n in (fewest, fewest + 1)]
        least = np.concatenate([tiles[0][:, :, :, : sides[0], : sides[1]]] * 2)
        found = compare(detector, path, [*tiles, least], detector.always_stretches)
        assert found.pixels > 300_000
        assert found.holds, (suffix, found)
        assert found.max_difference < MOST or slug == "cdmaskformer/nano", (suffix, found)
        assert found.mean_difference < 1e-6, (suffix, found)
        assert tuple(exported.read_card(path)["inputs"][:1]) == ("images",)


@pytest.mark.slow
def test_a_map_of_the_earlier_date_is_an_input_with_that_name(tmp_path: Path, root: Path) -> None:
    detector = built("mapformer/nano", root)
    assert isinstance(detector, MapDetector)
    (wide, tall), count = check_tiles(detector), len(detector.bands)
    path = tmp_path / "mapped.pt2"
    card, _ = export(detector, path, [tall])
    assert card["inputs"] == ["images", MAP]
    assert card["map_scheme"] == detector.map_scheme.slug
    call = exported.load(path)
    state = {"bands": [0, 1, 2], MAP: count, "temperature": detector.card.temperature}
    by_file = GraphRunner(detector, state, call)(wide)
    np.testing.assert_allclose(
        by_file, TorchRunner(detector, state, torch.device("cpu"), "fp32")(wide), atol=1e-5
    )
    other = wide.copy()
    other[:, :, count] = 255
    assert np.abs(GraphRunner(detector, state, call)(other) - by_file).max() > 1e-3


def test_a_network_of_one_size_is_refused(tmp_path: Path) -> None:
    detector = registry.build("lenet/nano", untrained=True)
    detector.network.side = 256
    with pytest.raises(ModelInputError, match="cuts an image into overlapping windows of 256 pixels"):
        export(detector, tmp_path / "lenet.onnx", [])
    assert list(tmp_path.iterdir()) == []
    assert lenet.BASE.side == 256
