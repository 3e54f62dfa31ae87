"""Exported files: whole, checked, with their card, and of use without the library."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from small_network import MULTIPLE, SmallDetector
from stand_ins import FirstBand
from terralapse import registry
from terralapse.cards import Stretch
from terralapse.engine import exported
from terralapse.engine.export import DetectorGraph, export
from terralapse.errors import (
    FileMissingError,
    MissingExtraError,
    ModelInputError,
    OutputExistsError,
    SettingError,
    UnreadableFileError,
)
from terralapse.workflows.export import export_system, real_tiles

PACKAGES = {".onnx": ("onnxscript", "onnxruntime"), ".xml": ("onnxscript", "openvino"), ".pt2": ()}


def images_of(batch: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    images = 255 * np.random.default_rng(seed).random((batch, 2, 3, height, width), dtype=np.float32)
    images[0, 1, :, 3 : height // 3, 5 : width // 2] = np.nan
    return images


def wanted(detector: SmallDetector, images: np.ndarray, **state: Any) -> np.ndarray:
    tensor = torch.from_numpy(images)
    usable = ~tensor.isnan().any(dim=2)
    prob = detector.predict(tensor, usable, {"bands": [0, 1, 2], "temperature": 1.3, **state}).numpy()
    return np.where(usable.all(dim=1).numpy(), prob, np.nan)


@pytest.fixture(scope="module", params=list(PACKAGES))
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small detector in each format."""
    for package in PACKAGES[request.param]:
        pytest.importorskip(package)
    path = tmp_path_factory.mktemp("exported") / f"small{request.param}"
    _, check = export(SmallDetector(), path, [images_of(2, 64, 96)])
    assert check.pixels == 2 * 64 * 96 - 18 * 43
    assert check.max_difference < 1e-5
    return path


def test_the_file_gives_what_torch_gives_for_any_batch_and_size(written: Path) -> None:
    call = exported.load(written, threads=1)
    detector = SmallDetector()
    spread = []
    for shape in ((1, 32, 200), (3, 100, 44), (1, 8, 8)):
        images = images_of(*shape, seed=sum(shape))
        expected = wanted(detector, images)
        np.testing.assert_allclose(call({"images": images}), expected, atol=1e-5, rtol=0)
        spread.append(np.nanstd(expected))
    assert max(spread) > 0.1


def test_the_card_is_inside_and_nothing_else_is_beside(written: Path) -> None:
    card = exported.read_card(written)
    assert (card["slug"], card["bands"], card["inputs"]) == ("small", ["red", "green", "blue"], ["images"])
    assert (card["size_multiple"], card["halo"], card["threshold"]) == (MULTIPLE, 12, 0.4)
    assert card["units"] == ["rgb255"] or card["units"] == [str(u) for u in SmallDetector().card.inputs.units]
    assert len(card["weights_sha256"]) == 64
    left = {path.suffix for path in written.parent.iterdir()}
    assert left == ({".xml", ".bin"} if written.suffix == ".xml" else {written.suffix})


def test_a_file_that_is_cut_short_is_one_clear_error(written: Path, tmp_path: Path) -> None:
    for path in written.parent.iterdir():
        content = path.read_bytes()
        (tmp_path / path.name).write_bytes(content[: len(content) // 2])
    with pytest.raises(UnreadableFileError, match="is not a whole"):
        exported.load(tmp_path / written.name)
    (tmp_path / written.name).write_bytes(b"")
    with pytest.raises(UnreadableFileError):
        exported.read_card(tmp_path / written.name)


def test_onnx_runs_without_the_library(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    path = tmp_path / "small.onnx"
    export(SmallDetector(), path, [images_of(1, 32, 32)])
    images = images_of(2, 40, 24, seed=9)
    np.save(tmp_path / "images.npy", images)
    script = (
        "import sys, json, numpy as np, onnxruntime as rt\n"
        "s = rt.InferenceSession('small.onnx', providers=['CPUExecutionProvider'])\n"
        "card = json.loads(s.get_modelmeta().custom_metadata_map['terralapse'])\n"
        "np.save('found.npy', s.run([card['output']], {'images': np.load('images.npy')})[0])\n"
        "assert not any(m in sys.modules for m in ('terralapse', 'torch'))\n"
        "print(json.dumps(card['slug']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == "small"
    found = np.load(tmp_path / "found.npy")
    np.testing.assert_allclose(found, wanted(SmallDetector(), images), atol=1e-5, rtol=0)


def test_a_stretch_is_two_more_inputs(tmp_path: Path) -> None:
    detector = SmallDetector(Stretch.SCENE_PERCENTILE)
    card, _ = export(detector, tmp_path / "small.pt2", [images_of(1, 32, 32)])
    assert card["inputs"] == ["images", "low", "high"]
    images = images_of(1, 32, 48, seed=4)
    low, high = [20.0, 30.0, 0.0], [200.0, 190.0, 255.0]
    call = exported.load(tmp_path / "small.pt2")
    ends = {"low": np.array(low, np.float32), "high": np.array(high, np.float32)}
    expected = wanted(detector, images, stretch={"low": low, "high": high})
    np.testing.assert_allclose(call({"images": images, **ends}), expected, atol=1e-5, rtol=0)
    ends["high"] += 50
    assert np.nanmax(np.abs(call({"images": images, **ends}) - expected)) > 1e-3


def test_a_file_that_differs_is_not_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = DetectorGraph.forward
    monkeypatch.setattr(DetectorGraph, "forward", lambda self, images: 0.999 * honest(self, images))
    with pytest.raises(SettingError, match=r"would differ from float32 in torch by 0\.00.*was not written"):
        export(SmallDetector(), tmp_path / "small.pt2", [images_of(1, 64, 64)])
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_there_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "small.pt2"
    path.write_bytes(b"mine")
    with pytest.raises(OutputExistsError, match="--overwrite"):
        export(SmallDetector(), path, [])
    assert path.read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("small.tflite", "auto", "does not say which format"),
        ("small", "onnx", "does not say which format"),
        ("small.onnx", "openvino", "is not that of small.onnx"),
        ("small.onnx", "coreml", "format coreml: is not known"),
    ],
)
def test_suffix_and_format_must_fit(tmp_path: Path, name: str, kind: str, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        export(SmallDetector(), tmp_path / name, [], kind=kind)
    assert list(tmp_path.iterdir()) == []


def test_what_has_no_network_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelInputError, match="has no network to export"):
        export(FirstBand(), tmp_path / "first.onnx", [])
    with pytest.raises(ModelInputError, match="has no network to export"):
        export_system("ir-mad", tmp_path / "mad.onnx")
    led = SmallDetector()
    led.extras = ("elevation",)
    with pytest.raises(ModelInputError, match="takes elevation beside the images"):
        export(led, tmp_path / "led.onnx", [])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("suffix", "extra"), [(".onnx", "export"), (".xml", "openvino")])
def test_a_missing_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, extra: str
) -> None:
    real = importlib.import_module

    def without(name: str, package: str | None = None) -> Any:
        if name in ("onnx", "openvino"):
            raise ModuleNotFoundError(name=name)
        return real(name, package)

    monkeypatch.setattr(importlib, "import_module", without)
    with pytest.raises(MissingExtraError, match=rf"terralapse\[{extra}\]"):
        export(SmallDetector(), tmp_path / f"small{suffix}", [images_of(1, 32, 32)])
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileMissingError):
        exported.read_card(tmp_path / "none.onnx")


@pytest.mark.parametrize(
    "suffix", [pytest.param(s, marks=pytest.mark.slow if s == ".xml" else ()) for s in PACKAGES]
)
def test_the_default_model_on_real_tiles(tmp_path: Path, suffix: str) -> None:
    for package in PACKAGES[suffix]:
        pytest.importorskip(package)
    path = tmp_path / f"lapsenet{suffix}"
    card, check = export_system("lapsenet/rgb", path)
    assert check.pixels > 300_000
    assert check.max_difference < 1e-4
    assert check.share_flipped < 1e-4
    assert exported.read_card(path) == card
    assert card["threshold"] == registry.card("lapsenet/rgb").threshold


def test_the_tiles_are_images(joplin: tuple[Path, Path]) -> None:
    first, second = real_tiles(("blue", "green", "red", "nir"), 8)
    assert first.shape == (2, 2, 4, 256, 512)
    assert second.shape == (1, 2, 4, 264, 256)
    np.testing.assert_array_equal(first[0, 0], first[1, 1])
    assert np.isnan(second).any()
    assert float(np.nanstd(first)) > 10
    np.testing.assert_array_equal(first[:, :, 2], first[:, :, 3])
