"""Checks that a wheel holds what the package needs at run time besides its modules.

python .ci/wheel.py terralapse-*.whl
"""

from __future__ import annotations

import sys
import zipfile
from fnmatch import fnmatchcase

NEEDED = (
    "terralapse/_index.json",
    "terralapse/py.typed",
    "terralapse/products/templates/*.html*",
    "terralapse/serve/static/index.html",
    "terralapse/serve/static/js/main.js",
    "terralapse/serve/static/vendor/maplibre-gl-*/maplibre-gl.mjs",
    "terralapse/serve/static/vendor/maplibre-gl-*/maplibre-gl-worker.mjs",
    "terralapse/serve/static/vendor/maplibre-gl-*/LICENSE.txt",
    "terralapse/weights/*.safetensors",
    "terralapse/_examples/joplin/before/*.tif",
    "terralapse/_examples/joplin/after/*.tif",
    "terralapse-*.dist-info/licenses/LICENSE",
)
LARGEST = 40e6  # bytes


def main(path: str) -> None:
    with zipfile.ZipFile(path) as wheel:
        names = wheel.namelist()
        size = sum(i.compress_size for i in wheel.infolist())
    missing = [pattern for pattern in NEEDED if not any(fnmatchcase(n, pattern) for n in names)]
    stray = [n for n in names if n.startswith(("tests/", "docs/", "benchmarks/")) or "__pycache__" in n]
    if missing or stray or size > LARGEST:
        raise SystemExit(f"{path}: missing {missing}, stray {stray[:5]}, {size / 1e6:.1f} MB")
    sys.stdout.write(f"{len(names)} files, {size / 1e6:.1f} MB\n")


if __name__ == "__main__":
    main(sys.argv[1])
