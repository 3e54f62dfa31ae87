"""The two answerers of zeroshot-ms that see indices alone, on real tiles of Sentinel-2.

    python benchmarks/zeroshot_ms.py --data ../shared/data

writes benchmarks/results/zeroshot_ms.json. Two sets of tiles, each with a split by place that was fixed
before anything was scored (band means of all of Slovenia had been seen, and its cloudy dates left out): the
western half trains the prototypes, the eastern half, without a strip of
one tile beside it, is the test. Nothing is chosen on either; the rules see neither.

- `flood`: the chip of Spain of Sen1Floods11 (L1C), tiles of 16 x 16 pixels of which 90 % or more have one
  label: water or land.
- `slovenia`: the scenes of eo-learn without cloud (the last three of five), tiles of 5 x 5 pixels whose
  classes are pure to 80 %: forest, grassland, shrubland, artificial surface. Several dates are one place.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import rasterio

from terralapse.models.language.zeroshot_ms import Prototypes, by_rules, features
from terralapse.sensors import SENTINEL2
from terralapse.tasks.confusion import ClassificationMetric

ROOT = Path(__file__).resolve().parents[1]
BANDS = [b.name for b in SENTINEL2.bands]
FLOOD_ORDER = [*BANDS]  # B1 .. B8, B8A, B9, B10, B11, B12: the order of the sensor
Tiles = list[tuple[int, np.ndarray, str]]  # column, features, class


def tiles_of(cube: np.ndarray, label: np.ndarray, names: dict[int, str], side: int, pure: float) -> Tiles:
    """Tiles of a cube [13, H, W] in reflectance whose pixels have one class."""
    found: Tiles = []
    for row in range(0, label.shape[0] - side + 1, side):
        for col in range(0, label.shape[1] - side + 1, side):
            area = (slice(row, row + side), slice(col, col + side))
            values, counts = np.unique(label[area], return_counts=True)
            value = int(values[counts.argmax()])
            if counts.max() < pure * side * side or value not in names:
                continue
            bands = {b: cube[i][area] for i, b in enumerate(FLOOD_ORDER)}
            found.append((col, features(bands), names[value]))
    return found


def score(found: Tiles, width: int, side: int) -> dict[str, Any]:
    """Both answerers on the eastern half, with the counts that their scores follow from."""
    half = width // 2
    train = [t for t in found if t[0] + side <= half]
    test = [t for t in found if t[0] >= half + side]
    options = sorted({label for *_, label in train})
    fitted = Prototypes.fit(np.stack([x for _, x, _ in train]), [label for *_, label in train])
    test = [t for t in test if t[2] in options]
    out: dict[str, Any] = {"train": len(train), "test": len(test), "options": options}
    majority = max(options, key=lambda o: sum(label == o for *_, label in train))
    out["always the commonest of training"] = float(np.mean([label == majority for *_, label in test]))
    for name, answer in (("rules", by_rules), ("prototypes", fitted.answer)):
        matrix = np.zeros((len(options), len(options)), np.int64)
        for _, x, label in test:
            matrix[options.index(label), answer(x, options).numbers[0] - 1] += 1
        metric = ClassificationMetric(len(options))
        pairs = [
            (i, j) for i in range(len(options)) for j in range(len(options)) for _ in range(matrix[i, j])
        ]
        import torch

        metric.update(torch.tensor([j for _, j in pairs]), torch.tensor([i for i, _ in pairs]))
        out[name] = {
            "accuracy": float(np.trace(matrix) / matrix.sum()),
            "macro_f1": float(metric.compute()["f1"]),
            "matrix": matrix.tolist(),
        }
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared/data")
    data: Path = parser.parse_args().data
    folder = data / "flood_sen1floods11"
    with rasterio.open(folder / "S2/Spain_7370579_S2.tif") as file:
        cube = file.read().astype(np.float32) / 10_000
    with rasterio.open(folder / "label/Spain_7370579_label.tif") as file:
        label = file.read(1)
    flood = tiles_of(cube, label, {0: "bare land", 1: "water"}, 16, 0.9)
    place = data / "timeseries_s2_ndvi"
    with np.load(place / "s2_reference_scenes_13band.npz") as arrays:
        scenes = arrays["scenes_x10000"].astype(np.float32) / 10_000
    with np.load(place / "s2_ndvi_cube.npz") as arrays:
        lulc = arrays["lulc"]
    names = {2: "forest", 3: "grassland", 4: "shrubland", 8: "artificial surface"}
    slovenia = [t for s in scenes[2:] for t in tiles_of(np.moveaxis(s, -1, 0), lulc, names, 5, 0.8)]
    result = {
        "flood": score(flood, label.shape[1], 16),
        "slovenia": score(slovenia, lulc.shape[1], 5),
    }
    path = ROOT / "benchmarks/results/zeroshot_ms.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
