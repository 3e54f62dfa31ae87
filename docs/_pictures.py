"""Makes the pictures of the documentation from a folder that `terralapse demo` wrote.

    terralapse demo -o demo && python docs/_pictures.py demo

The report is photographed by a headless Chromium, which must be installed.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

IMAGES = Path(__file__).parent / "img"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WINDOW = (1440, 1900)
WIDTH = 1200  # pixels of a picture


def photograph(report: Path, target: Path) -> None:
    """A screenshot of a report from its title to the end of its map."""
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        raise SystemExit("no Chromium was found; install the package `chromium`")
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command += ["--virtual-time-budget=8000", f"--window-size={WINDOW[0]},{WINDOW[1]}"]
    command += [f"--screenshot={target}", report.resolve().as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=180)


def store(source: Path, name: str) -> None:
    """A picture as WebP, `WIDTH` pixels wide."""
    with Image.open(source) as image:
        height = round(image.height * WIDTH / image.width)
        small = image.convert("RGB").resize((WIDTH, height), Image.Resampling.LANCZOS)
        small.save(IMAGES / name, quality=82, method=6)


def main(folder: str) -> None:
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        shot = Path(scratch) / "report.png"
        photograph(Path(folder) / "report.html", shot)
        store(shot, "report-joplin.webp")
    store(Path(folder) / "map.png", "map-joplin.webp")


if __name__ == "__main__":
    main(sys.argv[1])
