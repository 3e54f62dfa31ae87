"""What importing the package and its rooms may load, measured in fresh processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("torch", "rasterio", "geopandas", "matplotlib", "xarray", "pandas", "scipy", "shapely", "pyproj")


def loaded_after(statement: str) -> set[str]:
    """Names of the top-level modules that a fresh interpreter holds after `statement`."""
    code = f"import sys\n{statement}\nprint(*sorted({{m.partition('.')[0] for m in sys.modules}}))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT, timeout=120
    )
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "statement",
    [
        "import terralapse",
        "import terralapse; terralapse.systems()",
        "import terralapse.cli.app",
        "import terralapse.ask, terralapse.ask.agent, terralapse.ask.tools",
        "from terralapse import registry; registry.card('changemamba')",
        "import terralapse.errors, terralapse.sensors, terralapse.labels, terralapse.cards",
    ],
)
def test_light_doors_load_nothing_heavy(statement: str) -> None:
    assert loaded_after(statement) & set(HEAVY) == set()


def room(name: str) -> list[str]:
    """The modules of a room, by dotted name."""
    folder = ROOT / "src/terralapse" / name
    files = sorted(p.relative_to(ROOT / "src") for p in folder.rglob("*.py") if p.name != "__init__.py")
    return [".".join(p.with_suffix("").parts) for p in files]


@pytest.mark.parametrize(
    ("rooms", "never"),
    [
        (["grid"], {"torch"}),
        (["tasks", "layers", "models"], {"rasterio", "geopandas", "pyogrio"}),
    ],
    ids=["grid-without-torch", "networks-without-rasterio"],
)
def test_rooms_keep_out_what_is_not_theirs(rooms: list[str], never: set[str]) -> None:
    modules = [m for r in rooms for m in room(r)]
    assert modules, "the rooms are there"
    assert loaded_after("import " + ", ".join(modules)) & never == set()
