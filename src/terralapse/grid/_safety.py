"""What a file really is, and whether it is safe to hand to GDAL; nothing here allocates for pixels.

The danger is not a large image (scenes are streamed) but a header whose blocks, bands or compression make a
decoder allocate or work without bound, a document that names other files (VRT), and an archive that writes
outside of itself. The format is told by content, never by the extension, and GDAL then gets one driver only.
"""

from __future__ import annotations

import struct
import xml.etree.ElementTree as ET
import zipfile
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from terralapse.errors import FileMissingError, HostileFileError, TruncatedFileError, UnreadableFileError
from terralapse.grid._tiff import MAX_BLOCK_BYTES, Bytes, TiffLayout, is_tiff, read_layouts
from terralapse.grid.scene import Note

SUPPORTED = "GeoTIFF, COG, JPEG 2000, PNG, JPEG, WebP, VRT, NetCDF or Zarr"
MAX_TEXT_BYTES = 64 * 2**20  # of any XML, JSON or MTL file that is read whole
_AGAIN = "Copy or download the file again."
_EXTENSIONS = {
    "GTiff": (".tif", ".tiff", ".gtiff", ".cog"),
    "PNG": (".png",),
    "JPEG": (".jpg", ".jpeg"),
    "JP2OpenJPEG": (".jp2", ".j2k", ".j2c", ".jpx", ".jpf"),
    "WEBP": (".webp",),
    "VRT": (".vrt",),
}


@dataclass
class Checked:
    """A file that may be opened: its GDAL `driver`, its TIFF directories if any, and what was noticed."""

    path: Path
    driver: str
    size: int
    layouts: list[TiffLayout] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)


class LocalBytes:
    """Random access to a local file."""

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._file = path.open("rb")
        self.size = path.stat().st_size

    def at(self, offset: int, count: int) -> bytes:
        self._file.seek(offset)
        return self._file.read(count)

    def __enter__(self) -> LocalBytes:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def sniff(head: bytes) -> str | None:
    """The format by the first bytes of a file: a GDAL driver name, or HDF5, NETCDF3, ZIP, GRIB; else None."""
    if is_tiff(head):
        return "GTiff"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if head.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if head.startswith((b"\x00\x00\x00\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51")):
        return "JP2OpenJPEG"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        return "HDF5"
    if head[:3] == b"CDF" and head[3:4] in (b"\x01", b"\x02", b"\x05"):
        return "NETCDF3"
    if head.startswith(b"PK\x03\x04"):
        return "ZIP"
    if head.startswith(b"GRIB"):
        return "GRIB"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if text.startswith(b"<VRTDataset") or (text.startswith(b"<?xml") and b"<VRTDataset" in text):
        return "VRT"
    return None


def format_of(path: Path) -> str:
    """The format of a local file, as `sniff` names it.

    Raises:
        FileMissingError: no such file.
        UnreadableFileError: an empty file or one that is of no known format.
    """
    try:
        if not path.exists():
            raise FileMissingError(path, "does not exist", "Check the path.")
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as e:
        raise UnreadableFileError(
            path, f"cannot be read ({e.strerror})", "Check the rights of the file."
        ) from e
    if not head:
        raise UnreadableFileError(path, "is empty (0 bytes)", _AGAIN)
    found = sniff(head)
    if found is None:
        kind = "text" if _is_text(head) else "data of an unknown format"
        raise UnreadableFileError(path, f"holds {kind}, not an image", f"Give a {SUPPORTED} file.")
    return found


def check_image(path: Path) -> Checked:
    """Judges a local image file before it is opened.

    Raises:
        FileMissingError, UnreadableFileError, TruncatedFileError, HostileFileError: each with the reason.
    """
    driver = format_of(path)
    if driver not in _EXTENSIONS:
        raise UnreadableFileError(path, f"is a {driver} file, not an image", f"Give a {SUPPORTED} file.")
    checked = Checked(path, driver, path.stat().st_size)
    suffix = path.suffix.lower()
    if suffix and suffix not in _EXTENSIONS[driver]:
        named = next((d for d, e in _EXTENSIONS.items() if suffix in e), None)
        if named:
            text = f"{path.name} is named {suffix} but holds {driver}; it was read as what it holds."
            checked.notes.append(Note("warning", "content-is-not-extension", text))
    if driver == "VRT":
        check_vrt(path)
        return checked
    with LocalBytes(path) as source:
        if driver == "GTiff":
            checked.layouts = read_layouts(source)
        else:
            {"PNG": _check_png, "JPEG": _check_jpeg, "JP2OpenJPEG": _check_jp2, "WEBP": _check_webp}[driver](
                source
            )
    return checked


def check_member(path: Path, name: str) -> str:
    """Judges an image inside an archive by its first bytes, and returns its driver.

    The archive's directory has already shown that nothing is cut off; here it is about what the header asks
    for. Only JPEG 2000 and TIFF occur in products that are read from archives.
    """
    with zipfile.ZipFile(path) as archive:
        size = archive.getinfo(name).file_size
        with archive.open(name) as file:
            source = _Head(f"{path}/{name}", file.read(2**16), size)
    driver = sniff(source.at(0, 512))
    if driver == "JP2OpenJPEG":
        _check_jp2(source, walk=False)
    elif driver == "GTiff":
        read_layouts(source, most_blocks=0)
    else:
        raise UnreadableFileError(
            source.name, "is not JPEG 2000 or GeoTIFF", "Check where the archive comes from."
        )
    return driver


class _Head:
    """The first bytes of a file of known size."""

    def __init__(self, name: str, head: bytes, size: int) -> None:
        self.name, self.size, self._head = name, size, head

    def at(self, offset: int, count: int) -> bytes:
        return self._head[offset : offset + count]


def read_text(path: Path) -> str:
    """A small text file (XML, JSON, MTL), refused when it is too large to be one."""
    size = path.stat().st_size
    if size > MAX_TEXT_BYTES:
        raise HostileFileError(path, f"is a text of {size:,} bytes", "Check where it comes from.")
    return path.read_text(encoding="utf-8", errors="replace")


def parse_xml(what: object, text: str) -> ET.Element:
    """XML without entities and document types, which could expand without bound or name other files."""
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise HostileFileError(what, "declares XML entities", "Check where it comes from.")
    try:
        return ET.fromstring(text)
    except ET.ParseError as e:
        raise UnreadableFileError(what, f"is not well-formed XML ({e})", _AGAIN) from e


def check_vrt(path: Path, depth: int = 0) -> None:
    """Allows a VRT that mosaics or stacks images of its own folder, and nothing else that a VRT can do.

    Raises:
        HostileFileError: raw bands, derived bands, processing, or a source outside of the VRT's folder.
    """
    if depth > 4:
        raise HostileFileError(path, "is a VRT of VRTs nested too deep", "Give the images themselves.")
    root = parse_xml(path, read_text(path))
    folder = path.resolve().parent
    hint = "Give the images themselves, or a VRT beside them that mosaics or stacks them."
    for element in root.iter():
        kind = element.get("subClass", "")
        if kind not in ("", "VRTSourcedRasterBand", "VRTWarpedDataset", "VRTWarpedRasterBand"):
            raise HostileFileError(path, f"has a part of the kind {kind}, which is not read", hint)
        if element.tag in ("SourceFilename", "SourceDataset", "SourceVRTFilename") or element.tag.endswith(
            "Filename"
        ):
            target = (element.text or "").strip()
            inner = (folder / target).resolve()
            if "://" in target or target.startswith(("/vsi", "<")) or not inner.is_relative_to(folder):
                raise HostileFileError(path, f"names {target!r}, outside of its own folder", hint)
            if format_of(inner) == "VRT":
                check_vrt(inner, depth + 1)
            else:
                check_image(inner)


def check_zip(path: Path, max_bytes: int = 64 * 2**30) -> list[zipfile.ZipInfo]:
    """The files of an archive that is read in place, after checks of names, links and sizes.

    Raises:
        HostileFileError: absolute names, `..`, links, encryption, or sizes that no product has.
        TruncatedFileError: an archive without its end.
    """
    hint = "Unpack it with a tool that you trust and look at what is inside."
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError) as e:
        raise TruncatedFileError(path, f"is not a whole archive ({e})", _AGAIN) from e
    if len(members) > 100_000:
        raise HostileFileError(path, f"holds {len(members):,} files", hint)
    total = 0
    for m in members:
        name = PurePosixPath(m.filename)
        if name.is_absolute() or ".." in name.parts or "\\" in m.filename or ":" in m.filename:
            raise HostileFileError(path, f"holds a file named {m.filename!r}, which leads out of it", hint)
        if (m.external_attr >> 28) == 0xA:
            raise HostileFileError(path, f"holds a link ({m.filename!r})", hint)
        if m.flag_bits & 0x1:
            raise HostileFileError(path, "is encrypted", "Unpack it first.")
        total += m.file_size
        if m.file_size > 2**20 and m.file_size > 1100 * max(m.compress_size, 1):
            raise HostileFileError(path, f"declares {m.file_size:,} bytes for {m.filename!r}, a bomb", hint)
    if total > max_bytes:
        raise HostileFileError(path, f"unpacks to {total:,} bytes", hint)
    return [m for m in members if not m.is_dir()]


def read_member(path: Path, name: str) -> str:
    """A text file of an archive, never more of it than `MAX_TEXT_BYTES`."""
    with zipfile.ZipFile(path) as archive, archive.open(name) as file:
        raw = file.read(MAX_TEXT_BYTES + 1)
    if len(raw) > MAX_TEXT_BYTES:
        raise HostileFileError(
            path, f"holds a text of more than {MAX_TEXT_BYTES:,} bytes", "Check its origin."
        )
    return raw.decode("utf-8", errors="replace")


def _is_text(head: bytes) -> bool:
    try:
        head.decode("utf-8")
    except UnicodeDecodeError as e:
        return e.start > len(head) - 4 and b"\0" not in head
    return b"\0" not in head


def _cut(source: Bytes, fault: str) -> TruncatedFileError:
    return TruncatedFileError(source.name, fault, _AGAIN)


def _check_png(source: Bytes) -> None:
    """Walks the chunks to the end mark, because GDAL fills what a cut PNG lacks without an error."""
    offset = 8
    while True:
        head = source.at(offset, 8)
        if len(head) < 8:
            raise _cut(source, "ends before the end mark of a PNG, band 1")
        length, kind = struct.unpack(">I4s", head)
        if kind == b"IHDR":
            width, height, bits = struct.unpack(">IIB", source.at(offset + 8, 9))
            row = width * 4 * max(bits, 8) // 8
            if row > MAX_BLOCK_BYTES or width * height * bits // 8 > 1100 * source.size + 4096:
                raise HostileFileError(
                    source.name,
                    f"declares {width} x {height} pixels in {source.size:,} bytes",
                    "Check its origin.",
                )
        if kind == b"IEND":
            return
        offset += 12 + length
        if offset > source.size:
            raise _cut(source, f"ends inside a {kind.decode('latin-1')} chunk of band 1")


def _check_jpeg(source: Bytes) -> None:
    if b"\xff\xd9" not in source.at(max(source.size - 65536, 2), 65536):
        raise _cut(source, "ends before the end mark of a JPEG, band 1")
    offset = 2
    while True:
        head = source.at(offset, 10)
        if len(head) < 4 or head[0] != 0xFF:
            raise UnreadableFileError(source.name, "has a broken JPEG header", _AGAIN)
        if 0xC0 <= head[1] <= 0xCF and head[1] not in (0xC4, 0xC8, 0xCC):
            height, width, bands = struct.unpack(">HHB", head[5:10])
            if width * height * bands > 5000 * source.size:
                raise HostileFileError(
                    source.name,
                    f"declares {width} x {height} pixels in {source.size:,} bytes",
                    "Check its origin.",
                )
            return
        offset += 1 if head[1] == 0xFF else 2 + max(int.from_bytes(head[2:4], "big"), 2)


def _check_jp2(source: Bytes, *, walk: bool = True) -> None:
    """Reads the size marker and walks the tile parts, which a cut file does not have to the end."""
    start = _codestream(source)
    siz = source.at(start + 2, 42)
    if len(siz) < 42 or siz[:2] != b"\xff\x51":
        raise _cut(source, "ends inside its header")
    x1, y1, x0, y0, tile_w, tile_h, _, _, bands = struct.unpack(">8IH", siz[6:40])
    if tile_w == 0 or tile_h == 0 or bands == 0 or x1 <= x0 or y1 <= y0:
        raise HostileFileError(source.name, "declares an image without pixels", "Check its origin.")
    tiles = -(-(x1 - x0) // tile_w) * -(-(y1 - y0) // tile_h)
    tile_bytes = min(tile_w, x1 - x0) * min(tile_h, y1 - y0) * bands * 4
    if tile_bytes > 4 * MAX_BLOCK_BYTES or tiles * 12 > source.size or bands > 4096:
        raise HostileFileError(
            source.name,
            f"declares {x1 - x0} x {y1 - y0} pixels, {bands} bands, {tiles:,} tiles in {source.size:,} bytes",
            "Check its origin.",
        )
    offset = start + 2
    while walk:
        head = source.at(offset, 12)
        if head[:2] == b"\xff\xd9":
            return
        if len(head) < 4:
            raise _cut(source, f"ends before the end mark of its {tiles} tiles, band 1")
        if head[:2] != b"\xff\x90":  # another marker of the main header
            step = int.from_bytes(head[2:4], "big")
            if head[0] != 0xFF or step < 2:
                raise UnreadableFileError(source.name, "has a broken JPEG 2000 header", _AGAIN)
            offset += 2 + step
            continue
        tile, length = struct.unpack(">HI", head[4:10]) if len(head) == 12 else (0, 0)
        if length == 0:  # the last tile part runs to the end mark
            if source.at(source.size - 2, 2) != b"\xff\xd9":
                raise _cut(source, f"ends inside band 1, block {tile}")
            return
        if offset + length > source.size:
            raise _cut(source, f"ends inside band 1, block {tile} of {tiles}")
        offset += max(length, 12)


def _codestream(source: Bytes) -> int:
    """Where the JPEG 2000 codestream starts."""
    if source.at(0, 4) == b"\xff\x4f\xff\x51":
        return 0
    offset = 0
    while True:
        head = source.at(offset, 16)
        if len(head) < 8:
            raise _cut(source, "ends before its pixels")
        length, kind = struct.unpack(">I4s", head[:8])
        if kind == b"jp2c":
            return offset + (16 if length == 1 else 8)
        step = int.from_bytes(head[8:16], "big") if length == 1 else length
        if step < 8:
            raise _cut(source, "ends before its pixels")
        offset += step


def _check_webp(source: Bytes) -> None:
    if int.from_bytes(source.at(4, 4), "little") + 8 > source.size:
        raise _cut(source, "ends inside band 1")
