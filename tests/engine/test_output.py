"""The folder of a run appears whole or not at all, and nobody else's files are ever touched."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from terralapse.engine.output import OutputFolder, require_space
from terralapse.errors import (
    OutputExistsError,
    OutputLockedError,
    OutputNotWritableError,
    ResumeMismatchError,
)


def fail(folder: OutputFolder, error: BaseException) -> None:
    """A run that fails after having written something."""
    with folder:
        (folder.staging / "half.tif").write_text("half")
        raise error


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def publish(path: Path, text: str, **options: bool) -> None:
    with OutputFolder(path, **options) as folder:
        (folder.staging / "run.json").write_text(text)
        there = path / "run.json"
        assert not there.exists() or there.read_text() != text  # nothing under the name yet
        folder.publish()


def test_the_folder_appears_at_publication_and_only_then(tmp_path: Path) -> None:
    publish(tmp_path / "new" / "out", "{}")
    assert names(tmp_path / "new") == ["out"]
    assert names(tmp_path / "new" / "out") == ["run.json"]


def test_what_the_engine_kept_for_resuming_is_not_published(tmp_path: Path) -> None:
    with OutputFolder(tmp_path / "out") as folder:
        (folder.staging / ".work" / "parts").mkdir(parents=True)
        (folder.staging / ".work" / "parts" / "part-000000").write_text("x")
        (folder.staging / "run.json").write_text("{}")
        folder.publish()
    assert names(tmp_path / "out") == ["run.json"]


@pytest.mark.parametrize("error", [ValueError("fault"), KeyboardInterrupt(), SystemExit(3)])
@pytest.mark.parametrize("old", [False, True])
def test_an_error_leaves_everything_as_it_was(tmp_path: Path, error: BaseException, old: bool) -> None:
    if old:
        publish(tmp_path / "out", "old")
    with pytest.raises(type(error)):
        fail(OutputFolder(tmp_path / "out", overwrite=True), error)
    assert names(tmp_path) == (["out"] if old else [])
    if old:
        assert (tmp_path / "out" / "run.json").read_text() == "old"


def test_a_run_that_forgets_to_publish_leaves_nothing(tmp_path: Path) -> None:
    with OutputFolder(tmp_path / "out"):
        pass
    assert names(tmp_path) == []


def test_a_result_is_replaced_only_when_asked(tmp_path: Path) -> None:
    publish(tmp_path / "out", "old")
    with (
        pytest.raises(OutputExistsError, match=r"already holds a result\. Add --overwrite"),
        OutputFolder(tmp_path / "out"),
    ):
        pass
    assert (tmp_path / "out" / "run.json").read_text() == "old"
    publish(tmp_path / "out", "new", overwrite=True)
    assert (tmp_path / "out" / "run.json").read_text() == "new"
    assert names(tmp_path) == ["out"]


def test_a_folder_of_other_files_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "holiday.jpg").write_text("precious")
    with (
        pytest.raises(OutputExistsError, match="not a result of terralapse"),
        OutputFolder(tmp_path / "photos", overwrite=True),
    ):
        pass
    assert names(tmp_path) == ["photos"]
    assert names(tmp_path / "photos") == ["holiday.jpg"]


def test_an_empty_folder_may_be_filled_and_a_file_may_not(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    publish(tmp_path / "empty", "{}")
    assert names(tmp_path / "empty") == ["run.json"]
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputExistsError, match="is a file"), OutputFolder(tmp_path / "file", overwrite=True):
        pass


def test_two_runs_cannot_write_to_one_folder(tmp_path: Path) -> None:
    with OutputFolder(tmp_path / "out") as first:
        (first.staging / "mine").write_text("x")
        with (
            pytest.raises(OutputLockedError, match=rf"out: another run .*process {os.getpid()} on"),
            OutputFolder(tmp_path / "out"),
        ):
            pass
        code = (
            "import sys; from pathlib import Path; from terralapse.engine.output import OutputFolder\n"
            "with OutputFolder(Path(sys.argv[1]), overwrite=True): pass"
        )
        other = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "out")], capture_output=True, text=True, check=False
        )
        assert "OutputLockedError" in other.stderr
        assert names(first.staging) == ["mine"]
        with OutputFolder(tmp_path / "other"):  # another folder is free
            pass
    publish(tmp_path / "out", "{}")  # and so is this one now
    assert names(tmp_path) == ["out"]


def test_the_lock_of_a_dead_process_is_taken_over(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from terralapse.engine.output import OutputFolder\n"
        "f = OutputFolder(Path(sys.argv[1])).__enter__(); (f.staging / 'half').write_text('x'); os._exit(9)"
    )
    died = subprocess.run([sys.executable, "-c", code, str(tmp_path / "out")], check=False)
    assert died.returncode == 9
    assert names(tmp_path) == ["out.lock", "out.part"]
    publish(tmp_path / "out", "{}")
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["run.json"]  # the dead run's half is gone


def test_resuming_keeps_what_the_engine_can_use_and_sweeps_the_rest(tmp_path: Path) -> None:
    staging = tmp_path / "out.part"
    (staging / ".work").mkdir(parents=True)
    (staging / ".work" / "plan.json").write_text("{}")
    (staging / "assets").mkdir()
    for name in ("prob.tif", ".prob.tif.1234.cog.tif", "report.html"):
        (staging / name).write_text("x")
    folder = OutputFolder(tmp_path / "out", resume=True)
    with pytest.raises(KeyboardInterrupt):
        fail(folder, KeyboardInterrupt())
    assert names(tmp_path) == ["out.part"]  # an interrupt keeps it
    assert names(staging) == [".work", "half.tif", "prob.tif"]
    with pytest.raises(ResumeMismatchError):
        fail(folder, ResumeMismatchError("out", "is another run", "Look again"))
    assert names(tmp_path) == ["out.part"]  # and so does a mistake in the settings
    with pytest.raises(ValueError, match="fault"):
        fail(folder, ValueError("fault"))
    assert names(tmp_path) == []


def test_a_replacement_that_was_killed_halfway_is_put_back(tmp_path: Path) -> None:
    publish(tmp_path / "out", "old")
    (tmp_path / "out").rename(tmp_path / "out.replaced")  # killed between the two renames
    with pytest.raises(OutputExistsError, match="already holds"), OutputFolder(tmp_path / "out"):
        pass
    assert (tmp_path / "out" / "run.json").read_text() == "old"
    assert names(tmp_path) == ["out"]


def test_a_publication_that_fails_keeps_the_old_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(tmp_path / "out", "old")
    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if self.name == "out.part":
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(OutputNotWritableError, match="Input/output error"):
        publish(tmp_path / "out", "new", overwrite=True)
    assert (tmp_path / "out" / "run.json").read_text() == "old"
    assert names(tmp_path) == ["out"]


def test_a_place_that_cannot_be_written_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with (
        pytest.raises(OutputNotWritableError, match="cannot be written"),
        OutputFolder(tmp_path / "file" / "out"),
    ):
        pass
    with pytest.raises(OutputNotWritableError, match="cannot be written"), OutputFolder(Path("/proc/out")):
        pass
    with pytest.raises(OutputNotWritableError, match="Name a folder inside it"), OutputFolder(Path("/")):
        pass


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="rights do not bind root")
def test_a_folder_without_rights_is_refused_at_once(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(OutputNotWritableError, match="Permission denied"), OutputFolder(tmp_path / "out"):
            pass
    finally:
        tmp_path.chmod(0o700)


def test_a_link_to_a_folder_is_followed(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "out")
    publish(tmp_path / "link", "{}")
    assert names(tmp_path / "disk") == ["out"]
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "link" / "run.json").exists()


def test_no_space_is_said_before_the_work_and_after_it(tmp_path: Path) -> None:
    require_space(tmp_path, 1000)
    with pytest.raises(OutputNotWritableError, match=r"no space left on the disk: about 1,000,0"):
        require_space(tmp_path, 10**21)
    with (
        pytest.raises(OutputNotWritableError, match="no space left on the disk"),
        OutputFolder(tmp_path / "out"),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert names(tmp_path) == []
    with pytest.raises(OSError, match="a broken pipe"), OutputFolder(tmp_path / "out"):
        raise OSError(errno.EPIPE, "a broken pipe")
