"""Draws the picture of the page about series: breaks of a river, from the files of a finished run.

    terralapse series STACK -o result --index nd:2,3 --consecutive 2 --grid first
    python docs/_series_picture.py STACK result

STACK holds the Landsat composites 1985.tif to 2020.tif that the page names.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import rasterio
from matplotlib.colors import ListedColormap

TARGET = Path(__file__).parent / "img" / "series-ucayali.png"


def picture(path: Path) -> np.ndarray:
    with rasterio.open(path) as file:
        return np.moveaxis(file.read((1, 2, 3)), 0, -1)


def main(stack: Path, result: Path) -> None:
    layers = {}
    for name in ("break_date", "magnitude", "valid"):
        with rasterio.open(result / f"{name}.tif") as file:
            layers[name] = file.read(1)
    figure, axes = plt.subplots(1, 3, figsize=(10, 3.2), layout="constrained")
    for axis, year in zip(axes, (2010, 2020), strict=False):
        axis.imshow(picture(stack / f"{year}.tif"))
        axis.set_title(f"{year}", fontsize=10)
    unknown = layers["valid"] >= 10
    axes[2].imshow(np.where(unknown, 0.0, np.nan), cmap=ListedColormap(["#b8b8b8"]), interpolation="nearest")
    image = axes[2].imshow(layers["magnitude"], cmap="PuOr", vmin=-1, vmax=1, interpolation="nearest")
    axes[2].set_title("Magnitude (grey: not known)", fontsize=10)
    axes[2].set_facecolor("#f2f0eb")
    bar = figure.colorbar(image, ax=axes[2], shrink=0.9)
    bar.ax.tick_params(labelsize=7)
    for axis in axes:
        axis.set_xticks([])
        axis.set_yticks([])
    figure.savefig(TARGET, dpi=90, metadata={"Software": "terralapse"}, pil_kwargs={"optimize": True})
    from PIL import Image

    with Image.open(TARGET) as drawn:
        small = drawn.convert("RGB").quantize(256, method=Image.Quantize.FASTOCTREE)
    small.save(TARGET, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
