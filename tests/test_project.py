"""What is written twice in the project's own files says the same."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name

import terralapse

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def tracked() -> list[Path]:
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("needs a git checkout")
    return [ROOT / name for name in done.stdout.splitlines()]


def test_pip_and_uv_are_given_the_same_pins() -> None:
    stored = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in stored if not line.startswith("#")]
    assert pins == PROJECT["tool"]["uv"]["constraint-dependencies"], "run `python .ci/pins.py`"


def test_every_direct_dependency_is_pinned() -> None:
    groups = [PROJECT["project"]["dependencies"], *PROJECT["project"]["optional-dependencies"].values()]
    named = [re.match(r"[\w.-]+", d) for g in [*groups, PROJECT["dependency-groups"]["dev"]] for d in g]
    names = {canonicalize_name(m.group()) for m in named if m} - {"terralapse"}
    pinned = {canonicalize_name(p.split("==")[0]) for p in PROJECT["tool"]["uv"]["constraint-dependencies"]}
    assert names - pinned == set()


def test_no_lock_file_and_no_registry_host_is_committed() -> None:
    files = tracked()
    assert ROOT / "uv.lock" not in files
    hosts = re.compile(rb"pypi\.o" rb"rg|pythonhosted\.o" rb"rg|registry\.npmjs|deb\.debian")
    text = [f for f in files if f.suffix in (".py", ".md", ".toml", ".txt", ".yml", ".yaml", ".json", "")]
    assert [f.name for f in text if f.is_file() and hosts.search(f.read_bytes())] == []


def test_the_version_is_one() -> None:
    changes = (ROOT / "CHANGELOG.md").read_text()
    assert re.search(r"^## (\S+)", changes, re.M).group(1) == terralapse.__version__  # type: ignore[union-attr]


def test_the_files_of_a_package_are_small_enough_to_read() -> None:
    long = {
        str(p.relative_to(ROOT)): n
        for p in (ROOT / "src").rglob("*.py")
        if (n := len(p.read_text(encoding="utf-8").splitlines())) > 600
    }
    assert long == {}
