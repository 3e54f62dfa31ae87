"""The documentation builds, says what the code says, and loads nothing from other hosts."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from terralapse import registry

ROOT = Path(__file__).resolve().parents[1]


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


generate = load(ROOT / "docs/_generate.py")
offline = load(ROOT / ".ci/offline.py")


def test_the_table_in_the_readme_is_fresh() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text == generate.readme(text), "run `python docs/_generate.py`"


def test_the_table_has_every_system_with_its_status() -> None:
    rows = re.findall(r"^\| `([^`]+)` \| (\S+) \|", generate.systems_table(), re.M)
    assert dict(rows) == {c.slug: str(c.status) for c in registry.cards()}
    assert len(rows) == len(dict(rows))


def test_a_readme_without_its_marks_is_an_error() -> None:
    with pytest.raises(ValueError, match="marks"):
        generate.readme("# terralapse\n")


def test_relative_links_of_the_readme_and_its_kin_lead_somewhere() -> None:
    files = [ROOT / n for n in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "examples/README.md")]
    lost = [
        f"{file.name}: {target}"
        for file in files
        for target in re.findall(r"\]\(([^)#]+)", file.read_text(encoding="utf-8"))
        if "://" not in target and not (file.parent / target).exists()
    ]
    assert lost == []


def test_no_page_waits_for_something_to_be_filled_in() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "examples/README.md"]
    blank = re.compile(r"@[A-Z_]+@|\b(TODO|FIXME|TBD|XXX)\b")
    waiting = [f"{p.name}: {m.group()}" for p in pages for m in blank.finditer(p.read_text(encoding="utf-8"))]
    assert waiting == []


def test_options_are_those_of_the_command() -> None:
    table = generate.options("change")
    for option in ("BEFORE", "--model", "--threshold", "--resume", "--no-coregister"):
        assert option in table


@pytest.mark.slow  # .ci/run builds the site before the tests
def test_the_site_builds_without_a_warning_and_is_whole_offline(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert offline.remote(tmp_path) == []
    systems = (tmp_path / "systems/index.html").read_text(encoding="utf-8")
    assert all(f'id="{s.slug}"' in systems for s in registry.systems())
    assert "generated:" not in (tmp_path / "cli/index.html").read_text(encoding="utf-8")


@pytest.mark.slow  # LapseNet over the pair that ships
def test_the_talk_of_the_page_about_questions_is_as_it_runs(tmp_path: Path) -> None:
    from terralapse.workflows.demo import demo

    demo(tmp_path / "result")
    talk = load(ROOT / "docs/_ask_talk.py")
    text = (ROOT / "docs/ask.md").read_text(encoding="utf-8")
    assert talk.talk(tmp_path / "result") in text, "run `python docs/_ask_talk.py`"


@pytest.mark.parametrize(
    "page",
    [
        '<script src="https://cdn.example/x.js"></script>',
        "<link rel='stylesheet' href='//fonts.example/css'>",
        '<img alt="" src="http://example.org/a.png">',
        "<style>@import url(https://example.org/a.css)</style>",
        "<style>a{background:url( 'https://example.org/a.png')}</style>",
    ],
)
def test_what_loads_from_another_host_is_found(tmp_path: Path, page: str) -> None:
    (tmp_path / "a.html").write_text(page)
    assert len(offline.remote(tmp_path)) == 1


def test_a_link_to_read_is_not_a_load(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text('<a href="https://arxiv.org/abs/1">paper</a><img src="img/a.png">')
    assert offline.remote(tmp_path) == []
