"""METEOR 1.5 by its own program where it is installed; what is said where it is not."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from terralapse.errors import FileMissingError, MissingExtraError, UnreadableFileError
from terralapse.tasks import meteor as m

GOLDEN = Path(__file__).parents[1] / "golden/cases/metrics/captions.json"
needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="needs Java")


def jar() -> Path:
    """Of pycocoevalcap, or the one that `TERRALAPSE_TEST_METEOR` names."""
    if stated := os.environ.get("TERRALAPSE_TEST_METEOR"):
        return Path(stated)
    try:
        return m.find_jar()
    except MissingExtraError as missing:
        pytest.skip(str(missing))


@needs_java
def test_the_golden_corpus() -> None:
    case = json.loads(GOLDEN.read_text(encoding="utf-8"))
    items = case["items"]
    said, known = [i["hypothesis"] for i in items], [i["references"] for i in items]
    found = m.meteor(said, known, jar())
    assert found.corpus == pytest.approx(case["corpus"]["METEOR"], abs=1e-9)
    assert found.each == pytest.approx([i["scores"]["METEOR"] for i in items], abs=1e-9)
    words = sorted({w for s in [*said, *(r for rs in known for r in rs)] for w in s.split()})
    ids = {word: str(4 + rank) for rank, word in enumerate(words)}

    def number(sentence: str) -> str:
        return " ".join(ids[w] for w in sentence.split())

    on_ids = m.meteor([number(s) for s in said], [[number(r) for r in rs] for rs in known], jar())
    assert on_ids.corpus == pytest.approx(case["corpus_on_ids"]["scores"]["METEOR"], abs=1e-9)


def test_what_is_missing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(m.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match="pip install pycocoevalcap"):
        m.find_jar()
    with pytest.raises(ValueError, match="one hypothesis"):
        m.meteor(["a"], [[]])
    monkeypatch.setattr(m.shutil, "which", lambda _: None)
    with pytest.raises(MissingExtraError, match=r"needs Java.*meteor_exact"):
        m.meteor(["a"], [["a"]])


@needs_java
def test_another_file_is_no_meteor(tmp_path: Path) -> None:
    with pytest.raises(FileMissingError, match=r"meteor-1\.5\.jar"):
        m.meteor(["a"], [["a"]], tmp_path / "none.jar")
    (tmp_path / "other.jar").write_bytes(b"no program")
    with pytest.raises(UnreadableFileError, match="does not answer"):
        m.meteor(["a"], [["a"]], tmp_path / "other.jar")


def test_a_sentence_stays_one_field_of_one_line() -> None:
    assert m._line(" a ||| b\n c  d ") == "a b c d"
