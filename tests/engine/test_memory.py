"""What is measured of memory is true, and glibc is left as it was found."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from torch import nn

from stand_ins import Convolutions, FirstBand
from terralapse.engine import memory
from terralapse.engine.runner import SCRATCH, Backoff, TorchRunner, bytes_per_pixel

CPU = torch.device("cpu")


def test_a_large_array_shows_in_use_and_in_the_peak() -> None:
    before = memory.rss()
    large = np.ones(20 << 20)  # 160 MiB
    assert memory.rss() - before > 150 * memory.MIB
    assert memory.peak_rss() >= memory.rss() - memory.MIB
    del large
    assert memory.peak_rss() >= before + 150 * memory.MIB


def test_the_limit_of_a_container_counts(tmp_path: Path) -> None:
    free = memory.available(tmp_path)  # no such files: the machine's
    assert abs(free - psutil.virtual_memory().available) < 500 * memory.MIB
    (tmp_path / "memory.current").write_text("300000000\n")
    (tmp_path / "memory.max").write_text("500000000\n")
    assert memory.available(tmp_path) == 200_000_000
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.available(tmp_path) > 200_000_000
    (tmp_path / "memory.max").write_text("100000000\n")
    assert memory.available(tmp_path) == 0


def test_a_budget_is_its_ceiling_unless_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available", lambda: 10_000)
    assert memory.budget(1000) == 1000
    assert memory.budget(9000) == 4000


def test_freed_blocks_stay_inside_and_go_back_outside() -> None:
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallopt") or not hasattr(library, "malloc_trim"):
        pytest.skip("this C library has no mallopt")
    np.ones(8 << 20)
    library.malloc_trim(0)  # what earlier tests freed would be used again, and not be seen to grow
    low = memory.rss()
    with memory.big_blocks_stay():
        np.ones(16 << 20)  # 128 MiB, freed at once
        assert memory.rss() - low > 100 * memory.MIB
    assert memory.rss() - low < 60 * memory.MIB


def test_bytes_per_pixel_counts_what_is_alive_at_once() -> None:
    """One convolution to eight channels: input, its copy without NaN, and eight floats of output."""
    detector = Convolutions(halo=0, depth=1, width=8)
    run = TorchRunner(detector, {}, CPU, "fp32")
    found = [bytes_per_pixel(run, np.zeros((1, 2, 2, side, side), np.float32)) for side in (64, 128, 128)]
    assert found[1] == found[2]
    assert found[0] == pytest.approx(found[1], rel=0.05)
    assert SCRATCH * (8 + 8) * 4 <= found[1] <= SCRATCH * 40 * 4  # ReLU has a second copy of the eight


def test_convolutions_are_put_into_the_faster_layout_and_inference_mode() -> None:
    detector = Convolutions(halo=0)
    detector.network.train()
    run = TorchRunner(detector, {}, CPU, "fp32")
    assert not detector.network.training
    for layer in detector.network:
        if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3):
            assert layer.weight.is_contiguous(memory_format=torch.channels_last)
    images = np.random.default_rng(0).random((2, 2, 2, 32, 32), dtype=np.float32)
    with torch.inference_mode():
        tensor = torch.from_numpy(images)
        expected = detector.predict(tensor, torch.ones(2, 2, 32, 32, dtype=torch.bool), {})
    np.testing.assert_allclose(run(images), expected.numpy(), atol=1e-6)


def test_the_failure_of_torchs_own_allocator_is_a_memory_error() -> None:
    class Full(FirstBand):
        def predict(self, images: torch.Tensor, valid: torch.Tensor, state: dict) -> torch.Tensor:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 99 bytes")

    with pytest.raises(MemoryError, match="can't allocate"):
        TorchRunner(Full(), {}, CPU, "fp32")(np.zeros((1, 2, 1, 8, 8), np.float32))


@pytest.mark.parametrize(("side", "halo", "multiple"), [(97, 8, 1), (100, 8, 4), (202, 12, 7)])
def test_pieces_of_a_tile_begin_at_the_multiple_and_give_the_same(
    side: int, halo: int, multiple: int
) -> None:
    side = side // multiple * multiple
    halo = halo // multiple * multiple or halo
    detector = Convolutions(halo=5)
    run = TorchRunner(detector, {}, CPU, "fp32")
    starts: list[tuple[int, ...]] = []

    def watch(images: np.ndarray) -> np.ndarray:
        starts.append(images.shape[-2:])
        return run(images)

    tile = np.random.default_rng(0).random((2, 2, side, side), dtype=np.float32)
    whole = run(tile[None])[0]
    for pieces in (2, 4):
        backoff = Backoff(watch, 1, halo, multiple, divisible=True)
        backoff.pieces = pieces
        found = backoff([tile])[0]
        core = slice(halo, side - halo)
        np.testing.assert_allclose(found[core, core], whole[core, core], atol=1e-5)
        assert all((h - 2 * halo) % multiple == 0 and h < side for h, _ in starts)
