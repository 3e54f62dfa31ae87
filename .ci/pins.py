"""Renews the pinned versions: resolves pyproject.toml afresh for every supported Python and platform and
writes the result to `[tool.uv] constraint-dependencies` (read by uv) and to constraints.txt (for pip).

    python .ci/pins.py
    python .ci/pins.py --keep   # pins stay as they are; only what is new in pyproject.toml is added

No lock file is kept: it would name the package index of the machine that wrote it.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NEEDED = ("pyproject.toml", "README.md", "LICENSE", "src/terralapse/_version.py")
BLOCK = re.compile(r"constraint-dependencies = \[\n.*?\n?\]", re.S)
HEAD = "# Written by .ci/pins.py from the same resolution as `[tool.uv] constraint-dependencies`.\n"


def block(pins: list[str]) -> str:
    """The TOML array of the pins."""
    return "constraint-dependencies = [\n" + "".join(f'  "{p}",\n' for p in pins) + "]"


def resolve(keep: bool) -> list[str]:
    """The pins of a resolution, afresh or within the present pins, with markers where Pythons or platforms
    differ."""
    with tempfile.TemporaryDirectory() as folder:
        for name in NEEDED:
            target = Path(folder, name)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target)
        project = Path(folder, "pyproject.toml")
        if not keep:
            project.write_text(BLOCK.sub(block([]), project.read_text()))
        subprocess.run(["uv", "lock", "-q"], cwd=folder, check=True)
        export = (
            "uv export -q --all-groups --all-extras --no-hashes --no-emit-project --no-annotate --no-header"
        )
        done = subprocess.run(export.split(), cwd=folder, check=True, capture_output=True, text=True)
    return sorted(line.replace('"', "'") for line in done.stdout.splitlines() if "==" in line)


def main() -> None:
    pins = resolve(keep="--keep" in sys.argv[1:])
    project = ROOT / "pyproject.toml"
    text, found = BLOCK.subn(lambda _: block(pins), project.read_text())
    if found != 1:
        raise SystemExit("pyproject.toml: no place for constraint-dependencies")
    project.write_text(text)
    (ROOT / "constraints.txt").write_text(HEAD + "\n".join(pins) + "\n")


if __name__ == "__main__":
    main()
