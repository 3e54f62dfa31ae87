"""Composites against numpy, and what their rules promise."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import rasterio

from fixtures_eo import write_tif
from terralapse.engine.composites import Compositor, blocks, periods_of, write_composites
from terralapse.errors import BandError, SettingError
from terralapse.grid.indices import parse_index
from terralapse.grid.series import open_series

DATES = ("20200105", "20200120", "20200128", "20200302", "20210115")


@pytest.fixture
def stack(tmp_path: Path) -> tuple[Path, np.ndarray]:
    """Five dates of red and near-infrared [T, 2, 70, 80] with gaps."""
    rng = np.random.default_rng(0)
    data = rng.uniform(0.05, 0.6, (len(DATES), 2, 70, 80)).astype(np.float32)
    for i, share in enumerate((0.5, 0.1, 0.3, 0.0, 0.2)):
        data[i][:, rng.random((70, 80)) < share] = np.nan
    for name, one in zip(DATES, data, strict=True):
        path = tmp_path / "s" / f"a_{name}.tif"
        write_tif(path, one, descriptions=("red", "nir"), nodata=np.nan)
    return tmp_path / "s", data


def test_periods_hold_their_dates_and_empty_ones_are_left_out() -> None:
    times = [datetime.strptime(d, "%Y%m%d").replace(tzinfo=UTC) for d in DATES]
    assert [(p.name, p.dates) for p in periods_of(times, "monthly")] == [
        ("2020-01", (0, 1, 2)),
        ("2020-03", (3,)),
        ("2021-01", (4,)),
    ]
    assert [p.name for p in periods_of(times, "quarterly")] == ["2020-q1", "2021-q1"]
    assert [p.name for p in periods_of(times, "yearly")] == ["2020", "2021"]
    with pytest.raises(SettingError, match="weekly"):
        periods_of(times, "weekly")


@pytest.mark.parametrize("rule", ["median", "max-ndvi", "least-cloud"])
@pytest.mark.filterwarnings("ignore:All-NaN slice:RuntimeWarning")
def test_a_composite_is_what_its_rule_says(tmp_path: Path, stack, rule: str) -> None:
    folder, data = stack
    made = {}
    for block in (32, 256):
        with open_series([folder], parse_index("ndvi")) as series, ThreadPoolExecutor(2) as pool:
            out = tmp_path / f"c{block}"
            rows = write_composites(series, "monthly", rule, out, block=block, pool=pool)
            made[block] = (out / "2020-01.tif").read_bytes()
    assert made[32] == made[256]
    assert [r["period"] for r in rows] == ["2020-01", "2020-03", "2021-01"]
    with rasterio.open(tmp_path / "c32" / "2020-01.tif") as file:
        got, names = file.read(), file.descriptions
    assert names == ("red", "nir", "usable dates")
    month = data[:3]
    usable = np.isfinite(month).all(axis=1)
    assert np.array_equal(got[2], usable.sum(axis=0))
    if rule == "median":
        want = np.nanmedian(month, axis=0)
    else:
        if rule == "max-ndvi":
            ndvi = (month[:, 1] - month[:, 0]) / (month[:, 1] + month[:, 0])
            first = np.nan_to_num(ndvi, nan=-9).argmax(axis=0)
        else:  # the shares of cloud are 0.5, 0.1 and 0.3
            first = np.where(usable[1], 1, np.where(usable[2], 2, 0))
        want = np.take_along_axis(month, first[None, None], axis=0)[0]
    np.testing.assert_allclose(got[:2], want, rtol=1e-6)
    assert np.isnan(got[:2, usable.sum(axis=0) == 0]).all()
    assert (usable.sum(axis=0) == 0).any()


def test_finished_composites_are_kept(tmp_path: Path, stack) -> None:
    out = tmp_path / "c"
    out.mkdir()
    (out / "2020-01.tif").write_bytes(b"finished")
    with open_series([stack[0]], parse_index("ndvi")) as series, ThreadPoolExecutor(1) as pool:
        write_composites(series, "monthly", "median", out, block=64, pool=pool)
    assert (out / "2020-01.tif").read_bytes() == b"finished"
    assert (out / "2021-01.tif").stat().st_size > 1000


def test_even_numbers_of_dates_take_the_mean_of_the_middle_two() -> None:
    data = np.array([1.0, 4.0, 2.0, np.nan], np.float32).reshape(4, 1, 1, 1)
    got = Compositor("median", ("red",)).combine(data[:2], (0, 1))
    assert got[:, 0, 0].tolist() == [2.5, 2]
    got = Compositor("median", ("red",)).combine(data, (0, 1, 2, 3))
    assert got[:, 0, 0].tolist() == [2.0, 3]


def test_rules_that_cannot_be_followed_are_refused(tmp_path: Path) -> None:
    for name in DATES[:3]:
        data = np.full((2, 10, 10), 0.1, np.float32)
        write_tif(tmp_path / "s" / f"a_{name}.tif", data, descriptions=("red", "green"))
    with open_series([tmp_path / "s"], parse_index("red")) as series, ThreadPoolExecutor(1) as pool:
        with pytest.raises(BandError, match="nir"):
            write_composites(series, "monthly", "max-ndvi", tmp_path / "c", block=64, pool=pool)
        with pytest.raises(SettingError, match="newest"):
            write_composites(series, "monthly", "newest", tmp_path / "c", block=64, pool=pool)


@pytest.mark.parametrize("block", [32, 256, 512])
def test_blocks_cover_the_grid_once(block: int) -> None:
    seen = np.zeros((700, 1100), np.uint8)
    for window in blocks(seen.shape, block):
        seen[window.slices] += 1
    assert (seen == 1).all()
