"""A system begun by the command is found, built and green before anything is filled in."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from terralapse import registry
from terralapse.cards import Status
from terralapse.errors import OutputExistsError, SettingError
from terralapse.models import new

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def empty_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_CARDS", dict(registry._CARDS))
    monkeypatch.setattr(registry, "_BUILDERS", dict(registry._BUILDERS))


@pytest.mark.usefixtures("empty_registry")
@pytest.mark.parametrize("slug", ["my-detector", "changen2"], ids=["new", "planned"])
def test_what_it_writes_runs(tmp_path: Path, slug: str) -> None:
    model, test = new.write(tmp_path, "change", slug)
    spec = importlib.util.spec_from_file_location("begun", model)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    card = registry.card(slug)
    assert card.status is Status.RUNS
    assert card.seed is (slug == "changen2")
    if slug == "changen2":
        assert card.title == "Changen2: Multi-Temporal Remote Sensing Generative Change Foundation Model"
        assert card.paper == "arXiv:2406.17998"

    begun: dict[str, object] = {}
    exec(compile(test.read_text(), str(test), "exec"), begun)
    begun["test_a_changed_square_stands_out"]()  # type: ignore[operator]


def test_what_it_writes_is_formatted_and_linted(tmp_path: Path) -> None:
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "src/terralapse").mkdir(parents=True)
    slugs = ["my-detector", *(c.slug for c in registry.cards() if c.status is Status.PLANNED)]
    written = [path for slug in slugs for path in new.write(tmp_path, "change", slug)]
    for check in (["format", "--check"], ["check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *check, *map(str, written)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("task", "slug", "error", "message"),
    [
        ("segmentation", "x", SettingError, "has no contract yet"),
        ("change", "../evil", SettingError, "not lower case words"),
        ("change", "My", SettingError, "not lower case words"),
        ("change", "ir-mad", OutputExistsError, "is a system already"),
    ],
)
def test_what_cannot_be_begun(
    tmp_path: Path, task: str, slug: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        new.write(tmp_path, task, slug)
    assert list(tmp_path.iterdir()) == []


def test_no_file_is_overwritten(tmp_path: Path) -> None:
    new.write(tmp_path, "change", "my-detector")
    with pytest.raises(OutputExistsError, match=r"my_detector\.py"):
        new.write(tmp_path, "change", "my-detector")


def test_the_command_says_what_comes_next(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert new.main(["change", "changen2", "--root", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "wrote src/terralapse/models/change/changen2.py" in said
    assert "take its card out of src/terralapse/models/planned/" in said
    assert new.main(["change", "changen2", "--root", str(tmp_path)]) == 2
    assert "is there already" in capsys.readouterr().err
