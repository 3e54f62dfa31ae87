"""Engines: the same map from each, whatever the tiles; and an honest choice."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from small_network import SmallDetector
from stand_ins import FirstBand
from terralapse.engine import runtimes
from terralapse.engine.scene import predict_scene
from terralapse.errors import ModelInputError, ResumeMismatchError, SettingError
from terralapse.grid.pair import ArrayPair
from terralapse.sensors import Unit

GRAPHS = ("onnx", "openvino")


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERRALAPSE_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def available(engine: str) -> None:
    for package in runtimes.PACKAGES[engine]:
        pytest.importorskip(package)


def pair_of(height: int, width: int, unit: Unit = Unit.RGB255, top: float = 255.0) -> ArrayPair:
    images = top * np.random.default_rng(1).random((2, 3, height, width), dtype=np.float32)
    images[0, :, height // 4 : height // 2, width // 3 : width // 2] = np.nan
    images[1, 1, -height // 5 :, -width // 4 :] = np.nan
    return ArrayPair(images, bands=("red", "green", "blue"), unit=unit)


def probability(pair: ArrayPair, folder: Path, **options: Any) -> np.ndarray:
    prob = np.zeros(pair.shape, np.float32)

    def keep(piece: Any) -> None:
        prob[piece.window.slices] = piece.prob

    predict_scene(SmallDetector(), pair, folder, sink=keep, **options)
    return prob


@pytest.mark.parametrize("engine", GRAPHS)
def test_the_result_depends_neither_on_the_engine_nor_on_tile_batch_or_threads(
    tmp_path: Path, engine: str
) -> None:
    available(engine)
    pair = pair_of(220, 180)
    torch = probability(pair, tmp_path, tile=220, engine="torch", precision="fp32")
    assert np.nanstd(torch) > 0.1
    assert np.isnan(torch).any()
    for options in (
        {"tile": 220},
        {"tile": 40, "batch": 1},
        {"tile": 40, "batch": 7},
        {"tile": 64, "threads": 2},
    ):
        found = probability(pair, tmp_path, engine=engine, **options)
        np.testing.assert_allclose(found, torch, atol=1e-4, rtol=0)


@pytest.mark.parametrize("engine", GRAPHS)
def test_a_stretched_scene_is_the_same_too(tmp_path: Path, engine: str) -> None:
    available(engine)
    pair = pair_of(120, 100, Unit.REFLECTANCE, top=0.4)
    torch = probability(pair, tmp_path, engine="torch", precision="fp32")
    np.testing.assert_allclose(probability(pair, tmp_path, engine=engine), torch, atol=1e-4, rtol=0)
    assert np.nanstd(torch) > 0.1


def test_the_graph_is_written_once_and_again_when_it_is_damaged() -> None:
    available("onnx")
    path = runtimes.graph_file(SmallDetector(), False)
    whole = path.read_bytes()
    first = path.stat().st_mtime_ns
    assert runtimes.graph_file(SmallDetector(), False) == path
    assert path.stat().st_mtime_ns == first
    path.write_bytes(whole[: len(whole) // 2])
    assert runtimes.graph_file(SmallDetector(), False) == path
    assert len(path.read_bytes()) == len(whole)
    assert [p.name for p in path.parent.iterdir() if p.name.startswith(".")] == []


def test_other_weights_are_another_graph() -> None:
    available("onnx")
    other = SmallDetector()
    other.network.head.bias.data += 1  # pyright: ignore
    assert runtimes.graph_file(other, False) != runtimes.graph_file(SmallDetector(), False)


def test_a_runtime_without_memory_says_so_as_torch_does() -> None:
    def call(_: Any) -> np.ndarray:
        raise RuntimeError("[ONNXRuntimeError] : 6 : Failed to allocate memory for requested buffer")

    def broken(_: Any) -> np.ndarray:
        raise RuntimeError("Non-zero status code")

    images = np.ones((1, 2, 3, 8, 8), np.float32)
    state = {"bands": [0, 1, 2]}
    with pytest.raises(MemoryError):
        runtimes.GraphRunner(SmallDetector(), state, call)(images)
    with pytest.raises(RuntimeError, match="Non-zero"):
        runtimes.GraphRunner(SmallDetector(), state, broken)(images)


def test_a_void_scene_is_not_computed() -> None:
    def call(_: Any) -> np.ndarray:
        raise AssertionError("nothing is valid")

    images = np.full((1, 2, 3, 8, 8), np.nan, np.float32)
    assert (runtimes.GraphRunner(SmallDetector(), {"bands": [0, 1, 2]}, call)(images) == 0).all()


def test_a_network_that_sees_a_whole_tile_is_not_shown_the_void() -> None:
    seen: list[tuple[int, ...]] = []

    def call(given: Any) -> np.ndarray:
        seen.append(given["images"].shape)
        return given["images"][:, 0, 0]

    detector = SmallDetector()
    detector.exact = False
    images = np.full((1, 2, 3, 40, 40), np.nan, np.float32)
    images[..., 10:21, 16:31] = 0.5
    found = runtimes.GraphRunner(detector, {"bands": [0, 1, 2]}, call)(images)
    assert seen == [(1, 2, 3, 12, 16)]  # 11 x 15, up to multiples of four
    assert (found[0, 10:21, 16:31] == 0.5).all()
    assert found.sum() == pytest.approx(0.5 * 11 * 15)


def test_auto_takes_what_is_faster_and_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    available("onnx")
    monkeypatch.setattr(runtimes, "SMALL", 0)
    monkeypatch.setattr(runtimes, "WORTH", {"onnx": 0.0, "openvino": 1e9, "compile": 1e9})
    monkeypatch.setattr(runtimes._Trial, "seconds", lambda _, name: {"torch": 0.3, "onnx": 0.1}[name])
    result = predict_scene(
        SmallDetector(), pair_of(120, 100), tmp_path, precision="fp32"
    )  # bf16 is torch's alone
    assert result.engine["name"] == "onnx"
    assert result.engine["why"] == "it is 3.0 times as fast as torch on a window of the scene"
    assert result.engine["tried"]["onnx"]["agrees"]
    assert result.engine["tried"]["onnx"]["max_difference"] < 1e-4


def test_auto_never_takes_what_differs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    available("onnx")
    monkeypatch.setattr(runtimes, "SMALL", 0)
    monkeypatch.setattr(runtimes, "WORTH", {"onnx": 0.0, "openvino": 1e9, "compile": 1e9})
    monkeypatch.setattr(runtimes._Trial, "seconds", lambda _, name: {"torch": 0.3, "onnx": 0.1}[name])
    honest = runtimes.GraphRunner.__call__
    monkeypatch.setattr(runtimes.GraphRunner, "__call__", lambda self, images: np.sqrt(honest(self, images)))
    result = predict_scene(
        SmallDetector(), pair_of(120, 100), tmp_path, precision="fp32"
    )  # bf16 is torch's alone
    assert result.engine["name"] == "torch"
    assert not result.engine["tried"]["onnx"]["agrees"]


def test_a_small_scene_is_not_probed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any) -> float:
        raise AssertionError("a small scene was timed")

    monkeypatch.setattr(runtimes._Trial, "seconds", never)
    monkeypatch.setattr(runtimes, "_installed", lambda _: True)
    result = predict_scene(SmallDetector(), pair_of(120, 100), tmp_path)
    assert result.engine == {"name": "torch", "why": "the scene is small", "tried": {}}


def test_auto_traces_no_network_that_sees_a_whole_tile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any) -> Path:
        raise AssertionError("a graph was made")

    monkeypatch.setattr(runtimes, "SMALL", 0)
    monkeypatch.setattr(runtimes, "WORTH", {"onnx": 0.0, "openvino": 0.0, "compile": 1e9})
    monkeypatch.setattr(runtimes, "_installed", lambda _: True)
    monkeypatch.setattr(runtimes, "graph_file", never)
    detector = SmallDetector()
    detector.exact = False
    result = predict_scene(detector, pair_of(60, 60), tmp_path)
    assert result.engine["name"] == "torch"
    assert list(result.engine["tried"]) == ["torch"]


def test_a_run_is_not_resumed_by_another_engine(tmp_path: Path) -> None:
    pair = pair_of(60, 60)
    predict_scene(SmallDetector(), pair, tmp_path, engine="torch")
    with pytest.raises(ResumeMismatchError, match="settings"):
        predict_scene(SmallDetector(), pair, tmp_path, engine="auto", resume=True)


def test_engines_that_cannot_run_a_detector_are_refused(tmp_path: Path) -> None:
    pair = ArrayPair(np.random.default_rng(0).random((2, 2, 60, 60), dtype=np.float32))
    for engine in ("onnx", "openvino", "compile"):
        with pytest.raises(SettingError, match=f"engine {engine}: cannot run stand-in, which has no network"):
            predict_scene(FirstBand(), pair, tmp_path, engine=engine)
    with pytest.raises(SettingError, match="engine tensorrt: is not known"):
        predict_scene(FirstBand(), pair, tmp_path, engine="tensorrt")
    with pytest.raises(SettingError, match="computes in fp32, and not in bf16"):
        predict_scene(SmallDetector(), pair_of(60, 60), tmp_path, engine="onnx", precision="bf16")


@pytest.mark.skipif(sys.platform != "linux", reason="the name of the compiler is that of Linux")
def test_without_a_compiler_nothing_is_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("asked", "auto"):
        (tmp_path / name).mkdir()
    pair = pair_of(60, 60)
    with pytest.raises(
        SettingError, match=r"engine compile: needs a C\+\+ compiler, and there is no g\+\+ here"
    ):
        predict_scene(SmallDetector(), pair, tmp_path / "asked", engine="compile")
    monkeypatch.setattr(runtimes, "SMALL", 0)
    monkeypatch.setattr(runtimes, "WORTH", dict.fromkeys(runtimes.NAMES[1:], 0.0))
    monkeypatch.setattr(
        runtimes, "PACKAGES", {"onnx": ("no_such_package",), "openvino": ("no_such_package",)}
    )
    result = predict_scene(SmallDetector(), pair, tmp_path / "auto")
    assert result.engine["name"] == "torch"
    assert "compile" not in result.engine["tried"]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("true") is None, reason="needs a program that does nothing")
def test_a_compiler_that_does_not_compile_is_one_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", (None, "true"))
    (tmp_path / "scene").mkdir()
    with pytest.raises(ModelInputError, match="small: does not run in the engine compile"):
        predict_scene(SmallDetector(), pair_of(60, 60), tmp_path / "scene", engine="compile")


@pytest.mark.slow
def test_compiled_torch_gives_the_same(tmp_path: Path) -> None:
    pair = pair_of(220, 180)
    torch = probability(pair, tmp_path, engine="torch", precision="fp32")
    for tile in (220, 64):
        found = probability(pair, tmp_path, engine="compile", tile=tile, precision="fp32")
        np.testing.assert_allclose(found, torch, atol=1e-4, rtol=0)
