"""Checks that pages load nothing from another host: scripts, styles, fonts, images and frames.

python .ci/offline.py FOLDER
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

REMOTE = re.compile(
    r"""<(?:script|img|iframe|source|link(?=[^>]*rel=["']?(?:stylesheet|preload|preconnect|icon)))[^>]*"""
    r"""(?:src|href)=["']?(?:https?:)?//[^"'\s>]+|@import\s+(?:url\()?["']?(?:https?:)?//[^"')]+"""
    r"""|url\(\s*["']?(?:https?:)?//[^"')]+""",
    re.I,
)


def remote(folder: Path) -> list[str]:
    """`file: what it loads`, for everything that leaves the folder."""
    files = [p for p in sorted(folder.rglob("*")) if p.suffix in (".html", ".css")]
    return [
        f"{p.relative_to(folder)}: {hit.group()[:160]}"
        for p in files
        for hit in REMOTE.finditer(p.read_text(encoding="utf-8"))
    ]


def main(folder: str) -> None:
    found = remote(Path(folder))
    pages = len(list(Path(folder).rglob("*.html")))
    if found or not pages:
        raise SystemExit("\n".join([f"{folder}: {pages} pages", *found]))
    sys.stdout.write(f"{pages} pages, none loads anything from another host\n")


if __name__ == "__main__":
    main(sys.argv[1])
