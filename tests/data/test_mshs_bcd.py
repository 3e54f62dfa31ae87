import csv

import numpy as np
import pytest

from terralapse.data.mshs_bcd import S2_10M, S2_20M, MshsBcd
from terralapse.errors import BandError, FileMissingError, SettingError


@pytest.fixture(scope="module")
def root(shared_data):
    return shared_data / "cd_mshs_bcd"


def test_tiles_agree_with_their_table(root):
    with (root / "val_tiles.csv").open(newline="") as file:
        stated = {row["tile"]: float(row["change_fraction"]) for row in csv.DictReader(file)}
    tiles = MshsBcd(root, "val")
    assert len(tiles) == len(stated) == 30
    for tile in tiles:
        assert tile.images.shape == (2, 3, 256, 256)
        assert tile.images.dtype == np.uint8
        assert tile.label.mean() == pytest.approx(stated[tile.name], abs=1e-5)
        assert np.array_equal(tile.share, tile.label)


def test_sentinel2_bands_come_in_the_order_asked(root):
    stored = np.load(root / "test_s2.npz")
    wanted = ("nir", "swir16", "blue")
    tiles = MshsBcd(root, "test", "s2", wanted)
    rows = [str(n) for n in stored["names"]]
    for tile in tiles:
        row = rows.index(tile.name)
        assert np.array_equal(tile.images[:, 0], stored["s2_10m"][row, ..., S2_10M.index("nir")])
        assert np.array_equal(tile.images[:, 2], stored["s2_10m"][row, ..., S2_10M.index("blue")])
        coarse = stored["s2_20m"][row, ..., S2_20M.index("swir16")]
        assert np.array_equal(tile.images[:, 1, ::2, ::2], coarse)
        assert np.array_equal(tile.images[:, 1, 1::2, 1::2], coarse)


def test_a_coarse_pixel_changed_when_half_of_it_did(root):
    fine, coarse = MshsBcd(root, "test"), MshsBcd(root, "test", "s2")
    assert [t.name for t in fine] == [t.name for t in coarse]
    for one, other in zip(fine, coarse, strict=True):
        assert other.gsd == 4 * one.gsd
        assert other.share.mean() == pytest.approx(one.label.mean(), abs=1e-6)
        assert np.array_equal(other.label == 1, other.share >= 0.5)
    assert any(((t.share > 0) & (t.share < 0.5)).any() for t in coarse)


def test_percentiles_are_of_both_dates_and_all_tiles(root):
    tiles = MshsBcd(root, "test", "s2", ("red", "nir"))
    low, high = tiles.percentiles()
    for band in range(2):
        values = np.concatenate([t.images[:, band].ravel() for t in tiles])
        assert low[band] == np.percentile(values, 2)
        assert high[band] == np.percentile(values, 98)


def test_splits_do_not_share_a_tile(root):
    names = [set(MshsBcd(root, split, "s2").names) for split in ("train", "val", "test")]
    assert [len(n) for n in names] == [453, 30, 10]
    assert sum(len(n) for n in names) == len(set.union(*names))


def test_wrong_settings_are_named(root, tmp_path):
    with pytest.raises(SettingError, match="split=dev"):
        MshsBcd(root, "dev")
    with pytest.raises(SettingError, match="sensor=s1"):
        MshsBcd(root, "val", "s1")
    with pytest.raises(BandError, match="thermal"):
        MshsBcd(root, "val", "s2", ("red", "thermal"))
    with pytest.raises(FileMissingError, match=r"val_tiles\.csv"):
        MshsBcd(tmp_path, "val")
