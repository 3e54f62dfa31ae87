"""Bad input gets one clear error: file, fault, next step; exit code 2; nothing left."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from bad_inputs import CASES, BadInput, run
from terralapse import cli


@pytest.mark.parametrize("case", CASES, ids=[c.name for c in CASES])
def test_bad_input_is_named_and_leaves_nothing(
    case: BadInput, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    error, left = run(case, tmp_path)
    assert isinstance(error, case.error), f"{type(error).__name__}: {error}"
    for fragment in case.says:
        assert fragment in str(error)
    assert error.hint
    assert error.hint[-1] in ".?", "the next step is a sentence"
    assert left == []
    assert not (tmp_path / "terralapse-was-owned").exists()


def test_the_command_exits_with_two_and_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [str(tmp_path / "a.tif"), str(tmp_path / "b.tif"), "-o", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["terralapse", "change", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    out, err = capsys.readouterr()
    assert stop.value.code == 2
    assert out == ""
    assert err.count("\n") == 1
    assert "a.tif" in err
