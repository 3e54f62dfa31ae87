"""Checkpoints as their authors published them: found by file name, fetched once, checked by hash.

A file whose hash the card does not hold is never fetched: what comes over the network must be what somebody
looked at. The user then downloads it and gives its path.
"""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from pathlib import Path

from terralapse.cards import Card, Released
from terralapse.errors import FileMissingError, SettingError, UnsafeWeightsError
from terralapse.layers.weights import cache, check_hash

SITES = {"HUB": "https://huggingface.co", "ZENODO": "https://zenodo.org"}
CHUNK = 1 << 20


def find(card: Card, given: Path | str) -> Path:
    """The file of weights that a user means: a path, or the name of a file that the authors released.

    Raises:
        FileMissingError: neither is there, or the file could not be fetched.
        UnsafeWeightsError: the hash is not the card's.
    """
    path = Path(given)
    if path.exists():
        return path
    named = [r for r in card.released if r.file == str(given)]
    if not named:
        names = ", ".join(r.file for r in card.released)
        hint = f"Give a path, or one of the released files: {names}." if names else "Give the path of a file."
        raise FileMissingError(path, "is not there", hint)
    return fetch(named[0])


def fetch(released: Released) -> Path:
    """A released file in the cache, downloaded when it is not there yet.

    Raises:
        FileMissingError: no hash is known for it, or the connection or the file is missing.
        UnsafeWeightsError: the hash differs.
        SettingError: the card names no known kind of source.
    """
    if not (released.sha256 or released.md5):
        raise FileMissingError(
            f"{released.file} of {released.source}",
            "is not fetched, because its hash is not known yet",
            "Download it and give its path with --weights.",
        )
    kind, _, place = released.source.partition(":")
    if kind == "hub":
        name, _, revision = place.partition("@")
        url = f"{_site('HUB')}/{name}/resolve/{revision or 'main'}/{released.file}"
    elif kind == "zenodo":
        url = f"{_site('ZENODO')}/records/{place}/files/{released.file}?download=1"
    else:
        raise SettingError(released.source, "is no known source", "Report this as a defect of the card.")
    path = cache() / kind / place.replace("/", "--").replace("@", "--") / released.file
    if not path.exists():
        _download(url, path, released)
    _check(path, released)
    return path


def _site(name: str) -> str:
    """A mirror can stand in for a site: `TERRALAPSE_HUB`, `TERRALAPSE_ZENODO`."""
    return os.environ.get(f"TERRALAPSE_{name}", SITES[name]).rstrip("/")


def _check(path: Path, released: Released) -> None:
    """Compares the hash that the card holds; the stronger one where it holds both."""
    kind, known = ("sha256", released.sha256) if released.sha256 else ("md5", released.md5)
    check_hash(path, known, kind)


def _download(url: str, path: Path, released: Released) -> None:
    """Streams to a file beside the target, which appears whole and checked, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with urllib.request.urlopen(url, timeout=60) as reply, part.open("wb") as file:
            while chunk := reply.read(CHUNK):
                file.write(chunk)
        _check(part, released)
        part.replace(path)
    except UnsafeWeightsError as error:
        raise UnsafeWeightsError(url, error.fault, "The file there is not the one that is known.") from error
    except (urllib.error.URLError, OSError) as error:
        raise FileMissingError(
            url,
            f"could not be fetched ({getattr(error, 'reason', error)})",
            "Check the connection, or download the file elsewhere and give its path.",
        ) from error
    finally:
        part.unlink(missing_ok=True)
