"""The structure of a TIFF file, read without libtiff, so that it can be judged before GDAL allocates for it.

Only the tags that say how much memory and how many bytes the file asks for are read. Classic TIFF and
BigTIFF, both byte orders; all directories of the main chain (image, overviews, masks).
Source: TIFF revision 6.0 and the BigTIFF layout.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from math import ceil
from typing import Protocol

import numpy as np

from terralapse.errors import HostileFileError, TruncatedFileError

MAX_SAMPLES = 4096
MAX_BLOCK_BYTES = 512 * 2**20
MAX_BLOCKS = 2**28
MAX_DIRECTORIES = 128
SPLIT_ROWS = 2000  # GDAL reads a single strip of more rows line by line

_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8}
_INTEGER = {1: "u1", 3: "u2", 4: "u4", 13: "u4", 16: "u8"}
_KIND, _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _SAMPLES, _ROWS_PER_STRIP, _PLANAR = (
    254,
    256,
    257,
    258,
    259,
    277,
    278,
    284,
)
_STRIP_OFFSETS, _STRIP_COUNTS, _TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS, _TILE_COUNTS = (
    273,
    279,
    322,
    323,
    324,
    325,
)

# How many bytes one stored byte can at most become; a codec that is not listed has no useful bound, and then
# the size of a block is the only limit that is needed, because blocks are decoded one by one.
_MAX_RATIO = {1: 1, 5: 4000, 6: 5000, 7: 5000, 8: 1100, 32946: 1100, 32773: 130}


class Bytes(Protocol):
    """Random access to the bytes of a local or remote file."""

    name: str
    size: int

    def at(self, offset: int, count: int) -> bytes:
        """At most `count` bytes from `offset`; fewer at the end."""
        ...


@dataclass
class TiffLayout:
    """One directory: sizes in pixels; `offsets` and `counts` uint64 [planes * rows * cols] of its blocks, or
    empty where they were not read. `mask` says that it masks another one."""

    width: int
    height: int
    samples: int
    bits: int
    compression: int
    planar: bool  # one plane a band
    tiled: bool
    block_width: int
    block_height: int
    offsets: np.ndarray
    counts: np.ndarray
    mask: bool = False

    @property
    def blocks(self) -> tuple[int, int, int]:
        """Planes, block rows and block columns."""
        return (
            self.samples if self.planar else 1,
            ceil(self.height / self.block_height),
            ceil(self.width / self.block_width),
        )

    def block_name(self, index: int) -> str:
        """`band 1, block (column, row)` of a block's position in the arrays."""
        _, rows, cols = self.blocks
        plane, rest = divmod(index, rows * cols)
        return f"band {plane + 1}, block ({rest % cols}, {rest // cols})"

    def ranges(
        self, planes: list[int], rows: tuple[int, int], cols: tuple[int, int]
    ) -> list[tuple[int, int]]:
        """Where the blocks behind a window lie in the file, as (first byte, one past the last).

        Args:
            planes: numbers of bands from 0; all are in one plane unless the file is `planar`.
            rows, cols: first pixel and one past the last.
        """
        if self.offsets.size == 0:
            return []
        picked = np.ix_(
            planes if self.planar else [0],
            range(rows[0] // self.block_height, ceil(rows[1] / self.block_height)),
            range(cols[0] // self.block_width, ceil(cols[1] / self.block_width)),
        )
        offsets = self.offsets.reshape(self.blocks)[picked].ravel().tolist()
        counts = self.counts.reshape(self.blocks)[picked].ravel().tolist()
        # A cloud-optimised file has four bytes before and after each block that are read with it.
        return [(max(0, at - 4), at + n + 4) for at, n in zip(offsets, counts, strict=True) if at and n]

    def missing(self) -> np.ndarray | None:
        """bool [rows, cols]: blocks that were never written, in any band; None when all were."""
        if self.offsets.size == 0:
            return None
        absent = (self.offsets == 0) | (self.counts == 0)
        return absent.reshape(self.blocks).any(axis=0) if absent.any() else None


def is_tiff(head: bytes) -> bool:
    """Whether the first bytes are those of a classic or big TIFF."""
    return head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def read_layouts(source: Bytes, *, most_blocks: int = MAX_BLOCKS) -> list[TiffLayout]:
    """All directories of the main chain, checked against the size of the file.

    Args:
        source: the bytes.
        most_blocks: of a directory with so many blocks or fewer it is also read where each lies, and checked
            that it is within the file; 0 reads sizes only. In remote files the lists must be fetched.

    Raises:
        TruncatedFileError: the header, or a block that it lists, lies beyond the end of the file.
        HostileFileError: sizes that no honest file of this length has.
    """
    return _Parser(source).layouts(most_blocks)


class _Parser:
    def __init__(self, source: Bytes) -> None:
        self.source = source
        head = source.at(0, 16)
        self.order = "<" if head[:2] == b"II" else ">"
        self.big = head[2:4] in (b"+\0", b"\0+")
        if len(head) < (16 if self.big else 8):
            raise self._cut()
        self.first = struct.unpack(
            self.order + ("Q" if self.big else "I"), head[8:16] if self.big else head[4:8]
        )[0]

    def _cut(self) -> TruncatedFileError:
        return TruncatedFileError(
            self.source.name, "ends inside its header", "Copy or download the file again."
        )

    def _hostile(self, fault: str) -> HostileFileError:
        return HostileFileError(
            self.source.name,
            fault,
            "Ask where the file comes from; an honest file can be rewritten as a tiled one.",
        )

    def _bytes(self, offset: int, count: int) -> bytes:
        got = self.source.at(offset, count) if offset + count <= self.source.size else b""
        if len(got) != count:
            raise self._cut()
        return got

    def layouts(self, most_blocks: int) -> list[TiffLayout]:
        found: list[TiffLayout] = []
        seen: set[int] = set()
        offset = self.first
        while offset:
            if offset in seen or len(seen) >= MAX_DIRECTORIES:
                raise self._hostile("has a chain of directories that does not end")
            seen.add(offset)
            entries, offset = self._directory(offset)
            if _WIDTH in entries and _HEIGHT in entries:
                found.append(self._layout(entries, most_blocks))
        if not found:
            raise self._hostile("has no image in its header")
        return found

    def _directory(self, offset: int) -> tuple[dict[int, tuple[int, int, bytes]], int]:
        """Tag to (type, count, value or offset field), and where the next directory is."""
        head, entry, word = (8, 20, 8) if self.big else (2, 12, 4)
        count = struct.unpack(self.order + ("Q" if self.big else "H"), self._bytes(offset, head))[0]
        if count > 4096:
            raise self._hostile(f"has a directory of {count} tags")
        raw = self._bytes(offset + head, count * entry + word)
        entries = {}
        for i in range(count):
            one = raw[i * entry : (i + 1) * entry]
            tag, kind = struct.unpack(self.order + "HH", one[:4])
            number = struct.unpack(self.order + ("Q" if self.big else "I"), one[4 : 4 + word])[0]
            entries[tag] = (kind, number, one[4 + word :])
        return entries, struct.unpack(self.order + ("Q" if self.big else "I"), raw[-word:])[0]

    def _values(self, entry: tuple[int, int, bytes]) -> np.ndarray:
        kind, count, field = entry
        if kind not in _INTEGER:
            raise self._hostile("stores a size in a type that is not a whole number")
        dtype = np.dtype(self.order + _INTEGER[kind])
        length = count * dtype.itemsize
        if length <= len(field):
            return np.frombuffer(field[:length], dtype).astype(np.uint64)
        start = struct.unpack(self.order + ("Q" if self.big else "I"), field)[0]
        return np.frombuffer(self._bytes(start, length), dtype).astype(np.uint64)

    def _layout(self, entries: dict[int, tuple[int, int, bytes]], most_blocks: int) -> TiffLayout:
        def one(tag: int, default: int) -> int:
            if tag not in entries:
                return default
            values = self._values(entries[tag])
            if values.size == 0:
                raise self._hostile(f"has an empty tag {tag}")
            return int(values[0])

        width, height, samples = one(_WIDTH, 0), one(_HEIGHT, 0), one(_SAMPLES, 1)
        if samples > MAX_SAMPLES:
            raise self._hostile(f"declares {samples} bands (at most {MAX_SAMPLES} are read)")
        tiled = _TILE_WIDTH in entries
        block_width = one(_TILE_WIDTH, width) if tiled else width
        block_height = one(_TILE_HEIGHT, height) if tiled else min(one(_ROWS_PER_STRIP, height), height)
        if min(width, height, samples, block_width, block_height) < 1:
            raise self._hostile("declares an image or a block without pixels")
        none = np.empty(0, np.uint64)
        layout = TiffLayout(
            width,
            height,
            samples,
            one(_BITS, 1),
            one(_COMPRESSION, 1),
            one(_PLANAR, 1) == 2,
            tiled,
            block_width,
            block_height,
            none,
            none,
            bool(one(_KIND, 0) & 4),
        )
        self._check_sizes(layout, entries)
        if int(np.prod(layout.blocks)) <= most_blocks:
            self._add_blocks(layout, entries)
        return layout

    def _check_sizes(self, layout: TiffLayout, entries: dict[int, tuple[int, int, bytes]]) -> None:
        planes, rows, cols = layout.blocks
        needed = planes * rows * cols
        single_strip = not layout.tiled and rows == 1 and layout.height > SPLIT_ROWS
        block = self._block_bytes(layout)
        at_once = block // layout.height if single_strip else block
        if at_once > MAX_BLOCK_BYTES:
            raise self._hostile(
                f"is stored in blocks of {layout.block_width} x {layout.block_height} pixels, "
                f"{at_once / 2**20:,.0f} MiB each (at most {MAX_BLOCK_BYTES // 2**20} MiB are read)"
            )
        offsets = entries.get(_TILE_OFFSETS if layout.tiled else _STRIP_OFFSETS)
        if offsets is None:
            raise self._hostile("does not say where its pixels are")
        listed = offsets[1]
        size = self.source.size
        if needed > MAX_BLOCKS or (needed > size and listed * 4 > size):
            raise self._hostile(
                f"declares {layout.width} x {layout.height} pixels in {needed:,} blocks in {size:,} bytes"
            )
        if listed < needed:
            raise self._hostile(f"declares {needed:,} blocks and lists {listed:,}")

    def _block_bytes(self, layout: TiffLayout) -> int:
        per_pixel = layout.bits * (1 if layout.planar else layout.samples)
        return ceil(layout.block_width * per_pixel / 8) * layout.block_height

    def _add_blocks(self, layout: TiffLayout, entries: dict[int, tuple[int, int, bytes]]) -> None:
        needed = int(np.prod(layout.blocks))
        layout.offsets = self._values(entries[_TILE_OFFSETS if layout.tiled else _STRIP_OFFSETS])[:needed]
        counts = entries.get(_TILE_COUNTS if layout.tiled else _STRIP_COUNTS)
        if counts is None:
            layout.counts = np.where(layout.offsets > 0, 1, 0).astype(np.uint64)
        else:
            layout.counts = self._values(counts)[:needed]
        if layout.counts.size < needed:
            raise self._hostile(f"declares {needed:,} blocks and lists {layout.counts.size:,}")
        written = (layout.offsets > 0) & (layout.counts > 0)
        size = np.uint64(self.source.size)
        beyond = written & (
            (layout.counts > size) | (layout.offsets > size - np.minimum(layout.counts, size))
        )
        if beyond.any():
            raise TruncatedFileError(
                self.source.name,
                f"ends before {layout.block_name(int(np.argmax(beyond)))} ({int(beyond.sum()):,} of "
                f"{int(written.sum()):,} blocks are cut off)",
                "Copy or download the file again.",
            )
        self._check_ratio(layout, int(written.sum()), int(layout.counts[written].sum()), counts is not None)

    def _check_ratio(self, layout: TiffLayout, blocks: int, stored: int, known: bool) -> None:
        ratio = _MAX_RATIO.get(layout.compression)
        if ratio is None or not known or not blocks:
            return
        # The last strip holds only the rows that are left; a tile is always whole.
        rows = blocks * layout.block_height
        if not layout.tiled:
            rows = min(rows, layout.height * layout.blocks[0])
        declared = self._block_bytes(layout) // layout.block_height * rows
        if declared > stored * ratio + 4096:
            raise self._hostile(
                f"declares {declared:,} bytes of pixels in {stored:,}, which its compression cannot do"
            )
