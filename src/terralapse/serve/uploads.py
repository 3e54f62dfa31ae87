"""Images that are sent to the server: taken in pieces, kept while they are needed, and gone after that.

Each upload has a folder of its own below `.terralapse-uploads` of the workspace, with a record and one file:
`data.part` while it comes, then its own name with everything odd replaced. How many bytes are there is what
the file has, so that a transfer goes on where it stopped, also after the server has. What is not an image of
an allowed kind is removed as soon as that is known.
"""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import shutil
import threading
import time
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from terralapse.errors import TerralapseError
from terralapse.grid._safety import format_of
from terralapse.grid.sources import sha256_of
from terralapse.serve.inputs import ALLOWED
from terralapse.serve.library import NotThereError
from terralapse.serve.looks import Looker
from terralapse.serve.options import Limits

FOLDER = ".terralapse-uploads"
SUFFIXES = (".tif", ".tiff", ".png", ".jpg", ".jpeg", ".jp2", ".zip")
PREFIX = "upload:"  # of the name of an input; no folder of an operator has a colon in what it is called here
_RECORD, _PART = "upload.json", "data.part"
_SPARE = 2**30  # bytes that an upload leaves on the disk
_ID = re.compile(r"[0-9a-f]{16}")
_KINDS = "GeoTIFF, PNG, JPEG, JPEG 2000, or a Sentinel-2 product as it is downloaded (.zip)"


class RefusedError(Exception):
    """An upload that cannot be taken: the status and the sentence to answer with."""

    def __init__(self, status: int, text: str, offset: int | None = None) -> None:
        super().__init__(text)
        self.status, self.text, self.offset = status, text, offset


@dataclass
class Upload:
    """One upload. `file` is its name on the disk; `found` is what `Looker.look` says once it is whole."""

    id: str
    name: str
    file: str
    bytes: int
    key: str
    created: float
    found: dict[str, Any] | None = None

    @property
    def input(self) -> str:
        """What an analysis calls it."""
        return f"{PREFIX}{self.id}/{self.file}"


class Uploads:
    """Takes and keeps uploads; safe to use from several threads.

    Args:
        workspace: the folder that the operator gave.
        limits: see `Limits`.
        looker: says what an image is.
        in_use: paths that analyses which wait or run will read.
        clock: seconds since 1970.
    """

    def __init__(
        self,
        workspace: Path,
        limits: Limits,
        looker: Looker,
        in_use: Callable[[], set[str]] = set,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._folder = workspace.resolve() / FOLDER
        self._limits, self._looker, self._in_use, self._clock = limits, looker, in_use, clock
        self._lock = threading.Lock()
        self._busy: set[str] = set()
        if self._folder.is_symlink():
            raise RefusedError(500, f"{FOLDER} is a link.")
        self._folder.mkdir(mode=0o700, exist_ok=True)
        self._known = {u.id: u for u in self._listed()}

    def _listed(self) -> Iterator[Upload]:
        """What an earlier server has left; whatever else lies there is removed."""
        for path in sorted(self._folder.iterdir()):
            found = None if path.is_symlink() or not _ID.fullmatch(path.name) else _record_of(path)
            if found is not None:
                yield found
            elif path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()

    # --- what is there ---------------------------------------------------------------------------------
    def get(self, identity: str) -> Upload:
        """By id, or NotThereError."""
        with self._lock:
            found = self._known.get(identity)
        if found is None:
            raise NotThereError
        return found

    def path(self, upload: Upload) -> Path:
        """Where its bytes lie."""
        return self._folder / upload.id / (_PART if upload.found is None else upload.file)

    def offset(self, upload: Upload) -> int:
        """How many bytes have come."""
        try:
            return self.path(upload).stat().st_size
        except FileNotFoundError as error:
            raise NotThereError from error

    def ready(self) -> dict[str, Upload]:
        """Whole images by the names that analyses call them."""
        with self._lock:
            return {u.input: u for u in self._known.values() if u.found is not None}

    def describe(self, upload: Upload) -> dict[str, Any]:
        """For a client: no path of this machine in it."""
        whole = upload.found is not None
        keep = self._limits.upload_whole if whole else self._limits.upload_half
        return {
            "id": upload.id,
            "name": upload.name,
            "bytes": upload.bytes,
            "offset": upload.bytes if whole else self.offset(upload),
            "expires": self._seen(upload) + keep,
            "input": upload.input if whole else None,
            "image": upload.found,
        }

    # --- taking ----------------------------------------------------------------------------------------
    def create(self, name: str, size: int, key: str = "") -> Upload:
        """Begins an upload, or finds the half of one with the same key, name and size.

        Raises:
            RefusedError: the name, the size, or too many of them.
        """
        file = safe_name(name)
        limits = self._limits
        if size < 1:
            raise RefusedError(422, f"{name}: is empty (0 bytes). Copy or export the file again.")
        if size > limits.upload:
            raise RefusedError(
                413,
                f"{name}: has {_text(size)}, and this server takes at most {_text(limits.upload)}. "
                "Cut it to the place that matters, or compress it.",
            )
        self.sweep()
        with self._lock:
            for known in self._known.values():
                if key and (known.key, known.name, known.bytes) == (key, name, size) and known.found is None:
                    return known
            if len(self._known) >= limits.uploads:
                raise RefusedError(429, "Too many uploads are kept here; remove some or come back later.")
            promised = sum(u.bytes for u in self._known.values())
            free = shutil.disk_usage(self._folder).free
            coming = sum(u.bytes - self._size(u) for u in self._known.values() if u.found is None)
            if promised + size > limits.upload_disk or coming + size + _SPARE > free:
                raise RefusedError(507, f"{name}: there is no room for {_text(size)} here now.")
            made = Upload(secrets.token_hex(8), name, file, size, key, self._clock())
            folder = self._folder / made.id
            folder.mkdir(mode=0o700)
            _write_record(folder, made)
            os.close(os.open(folder / _PART, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
            self._known[made.id] = made
        return made

    @contextmanager
    def writing(self, upload: Upload, offset: int) -> Iterator[Sink]:
        """Where the bytes from `offset` on go, for one transfer at a time.

        Raises:
            RefusedError: another transfer writes, the upload is whole, or it has another number of bytes.
        """
        with self._held(upload):
            if upload.found is not None:
                raise RefusedError(409, f"{upload.name}: is whole already.", upload.bytes)
            have = self.offset(upload)
            if offset != have:
                text = f"{upload.name}: has {have:,} bytes here; go on from there."
                raise RefusedError(409, text, have)
            handle = os.open(self.path(upload), os.O_WRONLY | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0))
            with os.fdopen(handle, "ab", buffering=0) as file:
                yield Sink(file, upload, have)

    def finish(self, upload: Upload, sha256: str) -> Upload:
        """Checks a whole upload, says what it is, and lets analyses use it; what fails is removed.

        Raises:
            RefusedError: bytes are missing or wrong, or it is no image that can be used here.
        """
        with self._held(upload):
            if upload.found is not None:
                return upload
            have = self.offset(upload)
            if have != upload.bytes:
                text = f"{upload.name}: {have:,} of {upload.bytes:,} bytes are here; send the others first."
                raise RefusedError(409, text, have)
            try:
                return self._judge(upload, sha256)
            except BaseException:
                self._forget(upload)
                raise

    def remove(self, upload: Upload) -> None:
        """Removes an upload.

        Raises:
            RefusedError: an analysis needs it.
        """
        with self._held(upload):
            if str(self.path(upload)) in self._in_use():
                raise RefusedError(409, f"{upload.name}: an analysis needs it; cancel that first.")
            self._forget(upload)

    def sweep(self) -> None:
        """Removes what nobody has gone on with for too long; never what an analysis needs."""
        now, used = self._clock(), self._in_use()
        with self._lock:
            known = list(self._known.values())
        for upload in known:
            keep = self._limits.upload_half if upload.found is None else self._limits.upload_whole
            if now - self._seen(upload) > keep and str(self.path(upload)) not in used:
                with suppress(RefusedError, NotThereError), self._held(upload):
                    self._forget(upload)

    # --- inside ----------------------------------------------------------------------------------------
    @contextmanager
    def _held(self, upload: Upload) -> Iterator[None]:
        with self._lock:
            if upload.id not in self._known:
                raise NotThereError
            if upload.id in self._busy:
                raise RefusedError(423, f"{upload.name}: another transfer of it is under way.")
            self._busy.add(upload.id)
        try:
            yield
        finally:
            with self._lock:
                self._busy.discard(upload.id)

    def _judge(self, upload: Upload, sha256: str) -> Upload:
        part = self.path(upload)
        if part.is_symlink() or sha256_of(part) != sha256.lower():
            raise RefusedError(
                422, f"{upload.name}: did not arrive as it was sent (its SHA-256 differs). Send it again."
            )
        whole = part.with_name(upload.file)
        try:
            kind = format_of(part)
            if kind not in ALLOWED and not (kind == "ZIP" and upload.file.lower().endswith(".zip")):
                raise RefusedError(422, f"{upload.name}: holds {kind}, which is not taken. Give {_KINDS}.")
            if kind != "ZIP" and upload.file.lower().endswith(".zip"):
                raise RefusedError(422, f"{upload.name}: is named .zip and is no archive. Give {_KINDS}.")
            part.rename(whole)
            found = self._looker.look(whole)
        except TerralapseError as error:
            raise RefusedError(422, f"{upload.name}: {error.fault}. {error.hint}") from error
        upload.found = found | {"name": upload.name}
        _write_record(whole.parent, upload)
        return upload

    def _forget(self, upload: Upload) -> None:
        with self._lock:
            self._known.pop(upload.id, None)
        shutil.rmtree(self._folder / upload.id, ignore_errors=True)

    def _size(self, upload: Upload) -> int:
        try:
            return self.path(upload).stat().st_size
        except OSError:
            return 0

    def _seen(self, upload: Upload) -> float:
        """When something last came of it."""
        try:
            return max(upload.created, self.path(upload).stat().st_mtime)
        except OSError:
            return upload.created


class Sink:
    """Writes the bytes of one upload as they come; `offset` is how many there are."""

    def __init__(self, file: BinaryIO, upload: Upload, offset: int) -> None:
        self._file, self._upload, self.offset = file, upload, offset

    def write(self, piece: bytes | bytearray) -> None:
        """Adds bytes at the end.

        Raises:
            RefusedError: more than were announced, or the disk is full.
        """
        if self.offset + len(piece) > self._upload.bytes:
            text = (
                f"{self._upload.name}: is longer than the {self._upload.bytes:,} bytes that were announced."
            )
            raise RefusedError(413, text, self.offset)
        view = memoryview(piece)
        try:
            while view:
                count = self._file.write(view)
                self.offset += count
                view = view[count:]
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            text = f"{self._upload.name}: the disk of the server is full."
            raise RefusedError(507, text, self.offset) from error


def safe_name(name: str) -> str:
    """A name for the disk: letters, digits, `.`, `_` and `-`, at most 100 of them.

    Raises:
        RefusedError: a path, or an ending that no image has.
    """
    if not name or any(c in name for c in "/\\\0") or name in (".", ".."):
        raise RefusedError(422, "name: give the name of the file alone, without folders.")
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    stem, dot, suffix = plain.rpartition(".")
    suffix = f"{dot}{suffix}"
    if suffix.lower() not in SUFFIXES:
        raise RefusedError(422, f"{name}: is not named like an image that is taken. Give {_KINDS}.")
    stem = re.sub(r"[^A-Za-z0-9._-]+", "_", stem).strip("._-")[: 100 - len(suffix)] or "image"
    return stem + suffix


def _record_of(folder: Path) -> Upload | None:
    record = folder / _RECORD
    try:
        found = Upload(**json.loads(record.read_text(encoding="utf-8")))
        if found.id != folder.name or safe_name(found.file) != found.file:
            return None
        file = folder / (_PART if found.found is None else found.file)
        return found if file.is_file() and not file.is_symlink() else None
    except (OSError, ValueError, TypeError, RefusedError):
        return None


def _write_record(folder: Path, upload: Upload) -> None:
    new = folder / f"{_RECORD}.new"
    new.write_text(json.dumps(asdict(upload)), encoding="utf-8")
    new.replace(folder / _RECORD)


def _text(size: int) -> str:
    return f"{size / 1e9:.3g} GB" if size >= 1e9 else f"{size / 1e6:.3g} MB"
