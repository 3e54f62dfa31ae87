"""Hashes of the files behind a scene, for the record of a run."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

from terralapse.errors import FileMissingError, UnreadableFileError
from terralapse.grid import _remote
from terralapse.grid.scene import SceneInfo, Source

_CHUNK = 2**20


def sha256_of(path: str | Path) -> str:
    """SHA-256 of a file, read in pieces; of a folder (a Zarr store), over the names and hashes of its files.

    Raises:
        FileMissingError, UnreadableFileError: it is not there or cannot be read.
    """
    path = Path(path)
    if path.is_dir():
        tree = hashlib.sha256()
        for file in sorted(p for p in path.rglob("*") if p.is_file()):
            tree.update(f"{file.relative_to(path).as_posix()}\0{sha256_of(file)}\n".encode())
        return tree.hexdigest()
    try:
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while piece := file.read(_CHUNK):
                digest.update(piece)
        return digest.hexdigest()
    except FileNotFoundError as e:
        raise FileMissingError(path, "does not exist any more", "Check the path.") from e
    except OSError as e:
        raise UnreadableFileError(
            path, f"cannot be read ({e.strerror})", "Check the rights of the file."
        ) from e


def hash_sources(info: SceneInfo) -> list[Source]:
    """The sources of a scene with their sizes and hashes; of remote ones, the size and the server's ETag."""
    out = []
    for source in info.sources:
        if _remote.is_url(source.path):
            size, etag = _remote.head(source.path)
            out.append(replace(source, bytes=size if size is not None else source.bytes, etag=etag))
        else:
            path = Path(source.path)
            size = path.stat().st_size if path.is_file() else source.bytes
            out.append(replace(source, bytes=size, sha256=sha256_of(path)))
    return out
