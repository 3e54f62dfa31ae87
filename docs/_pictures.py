"""Makes the pictures of the documentation from a folder that `terralapse demo` wrote.

    terralapse demo -o demo && python docs/_pictures.py demo

The report and the map page are photographed by a headless Chromium, which must be installed; the page needs
the extra `serve` and playwright as well.
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


def photograph_map(folder: Path, scratch: Path) -> tuple[Path, Path]:
    """The page of `terralapse serve` on a desktop and on a phone, with the largest object picked."""
    from playwright.sync_api import sync_playwright

    command = [sys.executable, "-m", "terralapse", "serve", str(folder), "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    address = server.stdout.readline().split()[1]
    flags = [
        "--no-sandbox",
        "--enable-unsafe-swiftshader",
        "--use-angle=swiftshader",
        "--ignore-gpu-blocklist",
    ]
    shots = scratch / "serve.png", scratch / "phone.png"
    try:
        with sync_playwright() as started:
            browser = started.chromium.launch(executable_path=shutil.which(BROWSERS[0]), args=flags)
            for target, width, height, dark in zip(
                shots, (1440, 390), (900, 844), ("light", "dark"), strict=True
            ):
                page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=dark)
                page.goto(f"{address}#p=1" if width > 1000 else address)
                page.wait_for_selector("html[data-ready=true]", state="attached", timeout=60_000)
                page.wait_for_timeout(3000)
                page.screenshot(path=str(target))
            browser.close()
    finally:
        server.terminate()
        server.wait(20)
    return shots


def store(source: Path, name: str, width: int = WIDTH) -> None:
    """A picture as WebP, `width` pixels wide."""
    with Image.open(source) as image:
        height = round(image.height * width / image.width)
        small = image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
        small.save(IMAGES / name, quality=82, method=6)


def main(folder: str) -> None:
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        shot = Path(scratch) / "report.png"
        photograph(Path(folder) / "report.html", shot)
        store(shot, "report-joplin.webp")
        desktop, phone = photograph_map(Path(folder), Path(scratch))
        store(desktop, "serve-joplin.webp")
        store(phone, "serve-joplin-phone.webp", 390)
    store(Path(folder) / "map.png", "map-joplin.webp")


if __name__ == "__main__":
    main(sys.argv[1])
