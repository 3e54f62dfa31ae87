"""`--before-map`: from a map of another grid to the map of change, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from rasterio.transform import from_origin
from safetensors.torch import save_file

import terralapse
from fixtures_eo import write_tif
from terralapse import registry
from terralapse.errors import ModelInputError, ResumeMismatchError
from terralapse.products.record import _FLAGS

SIZE = 64
ORIGIN = (500000.0, 5000000.0)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder, rng = tmp_path_factory.mktemp("mapped"), np.random.default_rng(0)
    here = from_origin(*ORIGIN, 2, 2)
    found = {}
    for name in ("before", "after"):
        data = rng.integers(30, 220, (3, SIZE, SIZE)).astype("uint8")
        found[name] = write_tif(folder / f"{name}.tif", data, transform=here)
    coarse = rng.integers(0, 5, (1, SIZE // 8, SIZE // 8)).astype("uint8")
    found["map"] = write_tif(folder / "map.tif", coarse, transform=from_origin(*ORIGIN, 16, 16))
    torch.manual_seed(0)
    network = registry.build("mapformer/nano", untrained=True).network
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
    network.head.conv_seg.weight.data *= 20  # so that what it says is more than one number
    network.head.map_encoder.layer1.weight.data *= 10
    found["weights"] = folder / "nano.safetensors"
    save_file({k: v.contiguous() for k, v in network.state_dict().items()}, found["weights"])
    return found


def run(inputs: dict[str, Path], out: Path, **settings: Any) -> terralapse.ChangeResult:
    fixed = {"model": "mapformer/nano", "weights": inputs["weights"], "coregister": False, "threads": 1}
    return terralapse.change(inputs["before"], inputs["after"], out, **{**fixed, **settings})


def probabilities(folder: Path) -> np.ndarray:
    with rasterio.open(folder / "prob.tif") as file:
        return file.read(1).astype(int)


def test_the_map_decides_and_is_recorded(inputs: dict[str, Path], tmp_path: Path) -> None:
    run(inputs, tmp_path / "coarse", before_map=inputs["map"])
    run(inputs, tmp_path / "rules", before_map="rules")
    assert not np.array_equal(*(probabilities(tmp_path / n) for n in ("coarse", "rules")))
    record = json.loads((tmp_path / "coarse" / "run.json").read_text())
    assert str(inputs["map"]) in json.dumps(record)
    assert [b["name"] for b in record["inputs"]["before"]["bands"]] == ["red", "green", "blue"]
    assert _FLAGS["before_map"] == "--before-map"
    runs = {json.loads((tmp_path / n / "run.json").read_text())["run_id"] for n in ("coarse", "rules")}
    assert len(runs) == 2


def test_a_run_is_not_resumed_with_another_map(
    inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("terralapse.products.write.write_products", broken)
        with pytest.raises(KeyboardInterrupt):
            run(inputs, tmp_path / "out", before_map=inputs["map"], resume=True)
    with pytest.raises(ResumeMismatchError):
        run(inputs, tmp_path / "out", before_map="rules", resume=True)


def test_the_model_and_the_map_must_go_together(inputs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ModelInputError, match=r"mapformer/nano: needs a map.*--before-map FILE"):
        run(inputs, tmp_path / "out")
    with pytest.raises(ModelInputError, match="takes no map"):
        run(inputs, tmp_path / "out", model="ir-mad", weights=None, before_map=inputs["map"])
    assert not (tmp_path / "out").exists()
