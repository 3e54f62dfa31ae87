"""The cut of a series into blocks, and what is stored of a block."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import rasterio

from fixtures_eo import write_tif
from terralapse.engine.breaks import BreakSettings, choose_model
from terralapse.engine.series import BUDGET, RASTERS, choose_block, detect_breaks, yyyymmdd
from terralapse.errors import SettingError
from terralapse.grid.indices import parse_index
from terralapse.grid.scene import Window
from terralapse.grid.series import Series, open_series


def test_blocks_shrink_with_the_number_of_dates() -> None:
    assert choose_block(3, 1, None) == 256
    assert choose_block(400, 2, None) == 256
    assert choose_block(3000, 2, None) == 64
    assert choose_block(10**6, 13, None) == 32
    for dates in (10, 1000, 5000):
        side = choose_block(dates, 4, None)
        assert side == 32 or side**2 * dates * 4 * 8 <= BUDGET
    assert choose_block(5000, 10, 512) == 512
    with pytest.raises(SettingError, match="block 200"):
        choose_block(10, 1, 200)


def test_days_are_written_as_dates() -> None:
    days = np.array([0, 18628, -1, 19782])  # the last is a 29 February
    assert yyyymmdd(days).tolist() == [19700101, 20210101, 19691231, 20240229]


def test_no_more_than_a_block_is_read_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    for i in range(12):
        data = rng.uniform(0.4, 0.5, (1, 90, 150)).astype(np.float32)
        write_tif(tmp_path / "s" / f"a_{2000 + i}0615.tif", data, descriptions=("red",))
    seen: list[Window] = []
    whole = Series.read

    def spy(self, window, *given, **named):
        seen.append(window)
        return whole(self, window, *given, **named)

    monkeypatch.setattr(Series, "read", spy)
    settings = BreakSettings(floor=0.002)
    (tmp_path / "out").mkdir()
    with open_series([tmp_path / "s"], parse_index("red")) as series, ThreadPoolExecutor(2) as pool:
        model = choose_model(series.days, settings)
        found = detect_breaks(series, tmp_path / "out", model, settings, block=32, pool=pool)
    assert max(w.height for w in seen) == max(w.width for w in seen) == 32
    assert sum(w.height * w.width for w in seen) == 90 * 150  # and each pixel once
    assert found.blocks == len(seen) == 15
    assert sum(found.quality.values()) == 90 * 150
    for name, raster in RASTERS.items():
        with rasterio.open(tmp_path / "out" / f"{name}.tif") as file:
            assert file.dtypes[0] == raster.dtype
            assert file.shape == (90, 150)
