"""The folder of one run: locked while it is written, and published whole by one rename or not at all.

A run writes to `NAME.part/` beside the folder. When the run is killed, that folder stays, and a run that is
started with `resume` goes on in it; any other run starts afresh.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import sys
import uuid
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

from terralapse.engine.parts import CLASS_LAYERS, LAYERS, WORK, sync_folder
from terralapse.errors import (
    EndpointError,
    OutputExistsError,
    OutputLockedError,
    OutputNotWritableError,
    ResumeMismatchError,
    TerralapseError,
)

if sys.platform == "win32":  # pragma: no cover - the same two calls under other names
    import msvcrt

    def _try_lock(handle: int) -> None:
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _try_lock(handle: int) -> None:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


# A folder with one of these is a result of ours, and may be replaced when the user says so.
_OURS = ("run.json", "prob.tif", "bench.json", "merged.json", "unit.json")


class OutputFolder:
    """Use as a context manager: write into `staging`, then call `publish`.

    Leaving without having published removes the staging folder, whatever the reason, except that a
    keyboard interrupt, or a language model that fails, leaves it when the run was started with `resume` or
    is to `keep` its work, and a `ResumeMismatchError` leaves what an earlier run wrote.

    Args:
        path: the folder to create. Its parent must exist or be creatable.
        overwrite: replace a result that is there. Folders that hold anything else are never replaced.
        resume: go on in the staging folder of an interrupted run, if there is one.
        keep: leave the work of an interrupted run as one with `resume` does; for work that was paid for.

    Raises (on entering, before anything is computed):
        OutputExistsError: there is a result already and `overwrite` is False, or something else is there.
        OutputLockedError: another run is writing to the same folder.
        OutputNotWritableError: the place cannot be written.
    """

    def __init__(
        self, path: Path, *, overwrite: bool = False, resume: bool = False, keep: bool = False
    ) -> None:
        self.path = Path(os.path.realpath(path))
        self.overwrite = overwrite
        self.resume = resume
        self.keep = keep or resume
        self.staging = self._beside(".part")
        self.published = False
        self._lock = FolderLock(self._beside(".lock"), subject=self.path)
        self._aside = self._beside(".replaced")

    def _beside(self, suffix: str) -> Path:
        return self.path.parent / (self.path.name + suffix)

    def __enter__(self) -> OutputFolder:
        if os.path.ismount(self.path):
            raise OutputNotWritableError(
                self.path,
                "is the root of a file system, which cannot appear in one step",
                f"Name a folder inside it, e.g. {self.path / 'result'}.",
            )
        self._lock.take_or_explain()
        try:
            self._repair()
            self._refuse_existing()
            self._sweep()
            self.staging.mkdir(exist_ok=True)
            _try_writing(self.staging)
        except OSError as error:
            self._lock.release()
            raise _unwritable(self.staging, error) from error
        except BaseException:
            self._lock.release()
            raise
        return self

    def publish(self) -> Path:
        """Gives the staging folder its name; from here on the result exists. Returns its path."""
        try:
            shutil.rmtree(self.staging / WORK, ignore_errors=True)
            sync_folder(self.staging)
            if self.path.exists():
                self.path.rename(self._aside)
            self.staging.rename(self.path)
            sync_folder(self.path.parent)
        except OSError as error:
            self._repair()
            raise _unwritable(self.path, error) from error
        self.published = True
        shutil.rmtree(self._aside, ignore_errors=True)
        return self.path

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        full = isinstance(error, Exception) and _is_full(error, self.path.parent)
        try:
            keep = self.keep and isinstance(error, KeyboardInterrupt | EndpointError)
            if not self.published and not keep and not isinstance(error, ResumeMismatchError):
                shutil.rmtree(self.staging, ignore_errors=True)
        finally:
            self._lock.release()
        if full and not isinstance(error, TerralapseError):
            raise _no_space(self.path) from error

    def _sweep(self) -> None:
        """Removes what an interrupted run left, except, for a run that goes on, what the engine can use."""
        if not self.staging.exists():
            return
        if not self.resume:
            shutil.rmtree(self.staging)
            return
        useful = {WORK, *(f"{layer}.tif" for layer in (*LAYERS, *CLASS_LAYERS))}
        for path in self.staging.iterdir():
            if path.name not in useful:
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _refuse_existing(self) -> None:
        if not self.path.exists():
            return
        if not self.path.is_dir():
            raise OutputExistsError(self.path, "is a file, not a folder", "Choose another name with -o.")
        if not any(self.path.iterdir()):
            return
        if not any((self.path / name).is_file() for name in _OURS):
            raise OutputExistsError(
                self.path,
                "holds files that are not a result of terralapse, and is never replaced",
                "Choose a new or an empty folder.",
            )
        if not self.overwrite:
            raise OutputExistsError(
                self.path,
                "already holds a result",
                "Add --overwrite to replace it, or choose another folder.",
            )

    def _repair(self) -> None:
        """Puts back a result that a run, killed between two renames, had set aside."""
        if not self._aside.exists():
            return
        if self.path.exists():
            shutil.rmtree(self._aside, ignore_errors=True)
        else:
            self._aside.rename(self.path)


class FolderLock:
    """An exclusive lock on a file that vanishes with its owner; the system frees it when a process dies.

    Args:
        path: the file; its parent must exist.
        subject: the folder that it stands for, as errors name it.
    """

    def __init__(self, path: Path, *, subject: Path) -> None:
        self.path = path
        self.subject = subject
        self._handle: int | None = None

    def take(self) -> None:
        """Locks, or says who has locked.

        Raises:
            OutputLockedError: another run, of this process or another, holds it.
            OSError: the file cannot be made.
        """
        while True:
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                _try_lock(handle)
            except OSError as error:
                owner = self._owner()
                os.close(handle)
                raise OutputLockedError(
                    self.subject,
                    f"another run is writing to it{owner}",
                    "Wait until it has finished, or choose another folder.",
                ) from error
            if self._same_file(handle):
                break
            os.close(handle)  # its last owner removed the file in between: lock the new one
        self._handle = handle
        me = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "since": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        os.ftruncate(handle, 0)
        os.write(handle, json.dumps(me).encode())

    def take_or_explain(self) -> None:
        """Makes the parent folder and locks; an `OSError` becomes an `OutputNotWritableError`."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.take()
        except OSError as error:
            raise _unwritable(self.path.parent, error) from error

    def release(self) -> None:
        """Unlocks and removes the file."""
        if self._handle is not None:
            self.path.unlink(missing_ok=True)
            os.close(self._handle)
            self._handle = None

    def _same_file(self, handle: int) -> bool:
        try:
            return os.path.samestat(os.fstat(handle), self.path.stat())
        except FileNotFoundError:
            return False

    def _owner(self) -> str:
        try:
            owner = json.loads(self.path.read_text())
            return f" (process {owner['pid']} on {owner['host']}, since {owner['since']})"
        except (OSError, ValueError, KeyError):
            return ""


def require_space(folder: Path, needed: int) -> None:
    """Refuses a run that clearly cannot be stored.

    Args:
        folder: where files will go.
        needed: bytes, estimated low: what compresses well may need less than any guess.

    Raises:
        OutputNotWritableError: less is free.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OutputNotWritableError(
            folder,
            f"no space left on the disk: about {needed / 1e6:,.0f} MB are needed, {free / 1e6:,.0f} are free",
            "Free some, or write elsewhere with -o.",
        )


def _try_writing(folder: Path) -> None:
    probe = folder / f".probe-{uuid.uuid4().hex[:8]}"
    try:
        probe.write_bytes(b"terralapse")
    finally:
        probe.unlink(missing_ok=True)


def _is_full(error: Exception, folder: Path) -> bool:
    """Whether a failure comes from a full disk: libraries that write files hardly ever say so themselves."""
    full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return getattr(error, "errno", None) in full or shutil.disk_usage(folder).free < 1 << 20


def _no_space(path: Path) -> OutputNotWritableError:
    return OutputNotWritableError(path, "no space left on the disk", "Free some, or write elsewhere with -o.")


def _unwritable(path: Path, error: OSError) -> OutputNotWritableError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return _no_space(path)
    reason = error.strerror or str(error)
    return OutputNotWritableError(
        path, f"cannot be written ({reason})", "Choose a folder that you may write to."
    )
