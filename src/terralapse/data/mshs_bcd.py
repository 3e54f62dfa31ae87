"""MS-HS-BCD: building change in one Chinese city, Gaofen-1 RGB at 2.5 m and Sentinel-2 at 10 m.

The layout is the one that the samples are kept in: `<split>_gf1_rgb.zip` (A/, B/ JPEG, label/ PNG of
256 x 256), `<split>_s2.npz` (uint8 [N, 2, 64, 64, 4] and [N, 2, 32, 32, 6]) and `<split>_tiles.csv`.
The two dates are in different seasons; only buildings are labelled; about 2.3 % of the pixels change.

Source: arcgislearner/MS-HS-BCD-dataset (no licence file in the origin: research use).
"""

from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from terralapse.data.pairs import LabelledPair
from terralapse.errors import BandError, FileMissingError, SettingError
from terralapse.labels import BINARY_CHANGE
from terralapse.sensors import Unit

SPLITS = ("train", "val", "test")
RGB_BANDS = ("red", "green", "blue")
S2_10M = ("blue", "green", "red", "nir")
S2_20M = ("rededge1", "rededge2", "rededge3", "nir08", "swir16", "swir22")


@dataclass(frozen=True)
class ChangeTile:
    """One labelled pair: `images` uint8 [2, C, H, W] (before, after); `label` uint8 [H, W] of 0 and 1;
    `share` float32 [H, W], the share of each pixel that changed (equal to `label` at 2.5 m)."""

    name: str
    images: np.ndarray
    label: np.ndarray
    share: np.ndarray
    gsd: float


class MshsBcd:
    """The tiles of one split, read once and kept in memory (train: 180 MB of RGB, 15 MB of Sentinel-2).

    Args:
        root: the folder of the data set.
        split: `train`, `val` or `test`.
        sensor: `gf1` (red, green, blue at 2.5 m) or `s2` (10 m).
        bands: Sentinel-2 bands in the order wanted, from `S2_10M` and `S2_20M`; the 20 m bands are repeated
            to 10 m. The stored values are uint8 that the authors stretched band by band: not reflectance.

    At 10 m a pixel counts as changed when at least half of the sixteen 2.5 m label pixels in it did.

    Raises:
        FileMissingError, SettingError, BandError.
    """

    def __init__(
        self, root: Path | str, split: str = "train", sensor: str = "gf1", bands: Sequence[str] = S2_10M
    ) -> None:
        if split not in SPLITS:
            raise SettingError(f"split={split}", "no such split", f"Choose one of {', '.join(SPLITS)}.")
        if sensor not in ("gf1", "s2"):
            raise SettingError(f"sensor={sensor}", "no such sensor", "Choose gf1 or s2.")
        self.root, self.split, self.sensor = Path(root), split, sensor
        self.bands = RGB_BANDS if sensor == "gf1" else tuple(bands)
        self.gsd = 2.5 if sensor == "gf1" else 10.0
        unknown = [b for b in self.bands if b not in (*S2_10M, *S2_20M)]
        if unknown:
            raise BandError("mshs_bcd", f"has no band {', '.join(unknown)}", "See S2_10M and S2_20M.")
        with self._need(f"{split}_tiles.csv").open(newline="", encoding="utf-8") as file:
            self.names = sorted(row["tile"] for row in csv.DictReader(file))
        self._tiles = list(self._read())

    def _need(self, name: str) -> Path:
        path = self.root / name
        if not path.exists():
            raise FileMissingError(path, "is not there", "Give the folder that holds the MS-HS-BCD files.")
        return path

    def _read(self) -> Iterator[ChangeTile]:
        with zipfile.ZipFile(self._need(f"{self.split}_gf1_rgb.zip")) as archive:
            labels = {n: _image(archive, f"label/{n}.png") > 0 for n in self.names}
            if self.sensor == "gf1":
                for name in self.names:
                    dates = [_image(archive, f"{d}/{name}.jpg").transpose(2, 0, 1) for d in "AB"]
                    label = labels[name].astype(np.uint8)
                    yield ChangeTile(name, np.stack(dates), label, label.astype(np.float32), self.gsd)
                return
        stored = np.load(self._need(f"{self.split}_s2.npz"), allow_pickle=False)
        rows = {str(n): i for i, n in enumerate(stored["names"])}
        every = (*S2_10M, *S2_20M)
        ten, twenty = stored["s2_10m"], stored["s2_20m"]
        for name in self.names:
            row = rows[name]
            fine = ten[row].swapaxes(1, 3).swapaxes(2, 3)  # [2, C, 64, 64]
            coarse = twenty[row].swapaxes(1, 3).swapaxes(2, 3).repeat(2, axis=2).repeat(2, axis=3)
            planes = np.concatenate([fine, coarse], axis=1)
            share = labels[name].reshape(64, 4, 64, 4).mean(axis=(1, 3)).astype(np.float32)
            images = planes[:, [every.index(b) for b in self.bands]]
            yield ChangeTile(name, images, (share >= 0.5).astype(np.uint8), share, self.gsd)

    def __len__(self) -> int:
        return len(self._tiles)

    def __getitem__(self, index: int) -> ChangeTile:
        return self._tiles[index]

    def __iter__(self) -> Iterator[ChangeTile]:
        return iter(self._tiles)

    def percentiles(self, low: float = 2.0, high: float = 98.0) -> tuple[np.ndarray, np.ndarray]:
        """Per-band percentiles over both dates of all tiles: float64 [C] and [C]. All splits are cut from
        one scene, so those of `train` serve as the scene-level stretch of all three."""
        pixels = np.stack([t.images for t in self._tiles]).swapaxes(1, 2).swapaxes(0, 1)
        flat = pixels.reshape(len(self.bands), -1)
        return np.percentile(flat, low, axis=1), np.percentile(flat, high, axis=1)


class MshsPairs:
    """The tiles of `MshsBcd` as labelled pairs: float32, RGB of 0..255 or the stored numbers of Sentinel-2.

    Args and errors: as `MshsBcd`.
    """

    scheme = BINARY_CHANGE

    def __init__(
        self, root: Path | str, split: str = "train", sensor: str = "gf1", bands: Sequence[str] = S2_10M
    ) -> None:
        self._tiles = MshsBcd(root, split, sensor, bands)
        self.bands, self.gsd, self.names = self._tiles.bands, self._tiles.gsd, self._tiles.names
        self.unit = Unit.RGB255 if sensor == "gf1" else Unit.RAW
        images = "Gaofen-1 RGB 2.5 m" if sensor == "gf1" else "Sentinel-2 10 m"
        self.title = f"MS-HS-BCD {split}, {images}"

    def __len__(self) -> int:
        return len(self._tiles)

    def __getitem__(self, index: int) -> LabelledPair:
        tile = self._tiles[index]
        images = tile.images.astype(np.float32)
        return LabelledPair(tile.name, images, tile.label, tile.gsd, self.bands, self.unit)

    def __iter__(self) -> Iterator[LabelledPair]:
        return (self[i] for i in range(len(self)))


def _image(archive: zipfile.ZipFile, member: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(archive.read(member))))
