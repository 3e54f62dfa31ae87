"""Images with captions in shards: WebDataset tars that are written once, in order, and read at random.

A sample is `<key>.png`, `<key>.txt` with a caption a line, and `<key>.json` with everything else. Tars hold
no times and no owners: the same samples give the same bytes.
"""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from terralapse.data.pictures import RGB, read_rgb
from terralapse.data.samples import CaptionedImage
from terralapse.errors import FileMissingError, MissingExtraError, SettingError, UnreadableFileError
from terralapse.labels import ClassScheme
from terralapse.sensors import Unit

NAME = "captions-{:05d}.tar"
SPLITS = ("train", "val", "test")


def key_of(number: int, name: str) -> str:
    """A key that WebDataset can part from its suffix: without dots and slashes."""
    return f"{number:08d}_{re.sub(r'[^A-Za-z0-9_-]+', '_', name)[:80]}"


class ShardWriter:
    """Writes one tar; it has its name only once it is whole. Use as a context manager."""

    def __init__(self, path: Path) -> None:
        self.path, self._part = path, path.with_suffix(".tar.tmp")

    def __enter__(self) -> ShardWriter:
        self._file = self._part.open("wb")
        self._tar = tarfile.open(fileobj=self._file, mode="w", format=tarfile.USTAR_FORMAT)
        return self

    def add(self, key: str, image: np.ndarray | None, captions: Sequence[str], record: Any) -> None:
        """One sample; `image` uint8 [H, W, 3], or None for a text without one."""
        if image is not None:
            held = io.BytesIO()
            Image.fromarray(image).save(held, "PNG")
            self._put(f"{key}.png", held.getvalue())
        self._put(f"{key}.txt", ("\n".join(captions) + "\n").encode())
        self._put(f"{key}.json", json.dumps(record, ensure_ascii=False).encode())

    def _put(self, name: str, content: bytes) -> None:
        entry = tarfile.TarInfo(name)
        entry.size, entry.mode = len(content), 0o644
        self._tar.addfile(entry, io.BytesIO(content))

    def __exit__(self, kind: object, *_: object) -> None:
        self._tar.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        if kind is None:
            self._part.replace(self.path)
        else:
            self._part.unlink(missing_ok=True)


def write_parquet(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """The records of one shard as a table: key, image (PNG), captions, and the record as JSON.

    Raises:
        MissingExtraError: pyarrow is not installed.
    """
    pa, parquet = _arrow()
    table = pa.table(
        {
            "key": pa.array([r["key"] for r in rows], pa.string()),
            "image": pa.array([r["image"] for r in rows], pa.binary()),
            "captions": pa.array([r["captions"] for r in rows], pa.list_(pa.string())),
            "record": pa.array([json.dumps(r["record"], ensure_ascii=False) for r in rows], pa.string()),
        }
    )
    part = path.with_suffix(".parquet.tmp")
    parquet.write_table(table, part)
    part.replace(path)


def _arrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            "Parquet", f"needs {error.name}", "Install it with: pip install 'terralapse[scale]'"
        ) from error
    return pyarrow, parquet


def read_shard(path: Path) -> Iterator[dict[str, Any]]:
    """The samples of a tar, one after the other: `key`, `image` (bytes or None), `captions`, `record`.

    Raises:
        UnreadableFileError: it is no whole shard.
    """
    for key, parts in _members(path).items():
        with path.open("rb") as file:
            yield _sample(path, file, key, parts)


def _members(path: Path) -> dict[str, dict[str, tuple[int, int]]]:
    """Key to the offset and size of each of its parts, in the order of the tar."""
    found: dict[str, dict[str, tuple[int, int]]] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for entry in tar:
                key, _, suffix = entry.name.partition(".")
                found.setdefault(key, {})[suffix] = (entry.offset_data, entry.size)
    except (tarfile.TarError, OSError) as error:
        raise UnreadableFileError(path, f"is no whole tar ({error})", "Make it again.") from error
    return found


def _sample(path: Path, file: Any, key: str, parts: dict[str, tuple[int, int]]) -> dict[str, Any]:
    def part(name: str) -> bytes | None:
        if name not in parts:
            return None
        file.seek(parts[name][0])
        return file.read(parts[name][1])

    text, record = part("txt"), part("json")
    if text is None:
        raise UnreadableFileError(path, f"has no text for {key}", "Make it again.")
    try:
        said = [line for line in text.decode().split("\n") if line.strip()]
        about = json.loads(record) if record is not None else {}
    except ValueError as error:
        raise UnreadableFileError(path, f"holds no text for {key} ({error})", "Make it again.") from error
    return {"key": key, "image": part("png") or part("jpg"), "captions": said, "record": about}


class ImageText:
    """Images with captions of a folder of shards, read at random.

    `<root>/*.tar`, or `<root>/<split>/*.tar`. Where the shards of `root` hold records with a `split`, it is
    taken for the split wanted.

    Args:
        root: the folder, as `terralapse captions make` writes it (or `img2dataset`, in its WebDataset form).
        split: `train`, `val` or `test`; None for all of `root`.
        gsd: in metres, NaN where it differs.
        title: for tables.

    Raises:
        FileMissingError: there are no shards.
        UnreadableFileError: a tar is broken, or a sample has no image or no caption.
        SettingError: no sample is of this split.
    """

    bands = RGB
    unit = Unit.RGB255
    scheme = ClassScheme("captions", "Captions", ())

    def __init__(
        self, root: Path | str, split: str | None, gsd: float = float("nan"), title: str = "image-text"
    ) -> None:
        self.root, self.gsd = Path(root), gsd
        self.title = title if split is None else f"{title} {split}"
        inside = split is not None and (self.root / split).is_dir()
        folder = self.root / split if inside and split is not None else self.root
        shards = sorted(folder.glob("*.tar"))
        if not shards:
            raise FileMissingError(folder, "holds no .tar", "Give a folder of `terralapse captions make`.")
        self._places: list[tuple[Path, str, dict[str, tuple[int, int]]]] = []
        self.captions: list[tuple[str, ...]] = []
        for path in shards:
            with path.open("rb") as file:
                for key, parts in _members(path).items():
                    found = _sample(path, file, key, {k: v for k, v in parts.items() if k in ("txt", "json")})
                    if not inside and split is not None and found["record"].get("split") != split:
                        continue
                    if not found["captions"] or not {"png", "jpg"} & parts.keys():
                        raise UnreadableFileError(
                            path, f"has no image or no caption for {key}", "Make it with images."
                        )
                    self._places.append((path, key, parts))
                    self.captions.append(tuple(found["captions"]))
        if not self._places:
            raise SettingError(
                f"split={split}", f"has no sample in {folder}", "Its records state other splits, or none."
            )
        self.names = [key for _, key, _ in self._places]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> CaptionedImage:
        path, key, parts = self._places[index]
        suffix = "png" if "png" in parts else "jpg"
        with path.open("rb") as file:
            file.seek(parts[suffix][0])
            content = file.read(parts[suffix][1])
        image = read_rgb(path.with_name(f"{key}.{suffix}"), content)
        return CaptionedImage(key, image, self.captions[index], self.gsd, self.bands, self.unit)

    def __iter__(self) -> Iterator[CaptionedImage]:
        return (self[i] for i in range(len(self)))
