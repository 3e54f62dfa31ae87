"""What captions are made of: maps cut into tiles with the image beside them, and images with what is known.

A source is a list that reads one item at a time, so that memory does not grow with it, and that can begin
anywhere, so that a run can go on where it stopped.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import numpy as np
from odc.geo.geobox import GeoBox

from terralapse.data.pairs import IGNORE
from terralapse.data.pictures import RGB, SUFFIXES, read_classes, read_rgb
from terralapse.errors import BandError, FileMissingError, SettingError, UnreadableFileError
from terralapse.grid.map_before import MapFile
from terralapse.grid.open import open_scene
from terralapse.grid.scene import Scene
from terralapse.grid.sources import sha256_of
from terralapse.grid.warp import read_onto
from terralapse.labels import SCHEMES, ClassScheme, numbered
from terralapse.sensors import Unit

VECTORS = (".shp", ".gpkg", ".geojson")
SHOWN = 0.3  # reflectance that is shown as 255
MOST_CLASSES = 200


class Source(Protocol):
    """A list of items. `fingerprint` is what a resumed run compares and the record of the run keeps."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> dict[str, Any]:
        """The fields of an item: `name`, `image` uint8 [H, W, 3] or None, `labels` [H, W] or None, `scheme`
        or None, `about`, and `source`: file, sha256, place."""
        ...

    def fingerprint(self) -> dict[str, Any]: ...

    def close(self) -> None: ...


def scheme_of(text: str) -> ClassScheme:
    """A scheme by its slug, or one of your own, written `1=Wheat,2=Maize`.

    Raises:
        SettingError: neither.
    """
    if text in SCHEMES:
        return SCHEMES[text]
    pairs = [part.partition("=") for part in text.split(",")]
    if any(not (e and n.strip() and v.strip().isdigit()) for v, e, n in pairs):
        raise SettingError(
            f"scheme={text}",
            "is no class scheme",
            f"Write 1=Name,2=Name, or one of {', '.join(sorted(SCHEMES))}.",
        )
    values = [int(v) for v, _, _ in pairs]
    names = [n.strip() for *_, n in pairs]
    if len(set(values)) < len(values) or len(set(map(str.lower, names))) < len(names) or max(values) > 254:
        raise SettingError(f"scheme={text}", "numbers or names a class twice, or above 254", "Correct it.")
    return _own_scheme(values, names)


def _own_scheme(values: Sequence[int], names: Sequence[str]) -> ClassScheme:
    from dataclasses import replace

    slugs = " ".join("_".join(n.lower().split()) for n in names)
    made = numbered("own", "classes of the user's own", slugs)
    classes = zip(made.classes, values, names, strict=True)
    return replace(made, classes=tuple(replace(c, value=v, title=n) for c, v, n in classes))


# --- maps ------------------------------------------------------------------------------------------------
class _Polygons:
    """Polygons with a class in a column, on the grid of an image."""

    def __init__(self, path: Path, column: str | None, geobox: GeoBox) -> None:
        import pyogrio
        from pyogrio.errors import DataLayerError, DataSourceError

        try:
            frame = pyogrio.read_dataframe(path)
        except (DataSourceError, DataLayerError, ValueError) as error:
            raise UnreadableFileError(path, f"holds no polygons ({error})", "Check the file.") from error
        columns = [str(c) for c in frame.columns if c != "geometry"]
        if column not in columns:
            fault = (
                "needs --column, the column of the classes" if column is None else f"has no column {column}"
            )
            raise SettingError(path, fault, f"It has {', '.join(columns) or 'none'}.")
        if frame.crs is None or geobox.crs is None:
            raise SettingError(path, "or its image has no CRS", "Give both a georeference.")
        frame = frame[frame[column].notna() & frame.geometry.notna()].to_crs(str(geobox.crs))
        names = sorted({str(n) for n in frame[column]})
        if not 1 <= len(names) <= MOST_CLASSES:
            raise SettingError(f"column={column}", f"has {len(names)} classes", "Name another column.")
        self.scheme = _own_scheme(range(1, len(names) + 1), names)
        values = [names.index(str(n)) + 1 for n in frame[column]]
        self._shapes = list(zip(frame.geometry, values, strict=True))
        self.geobox = geobox

    def resampled(self, grid: GeoBox) -> np.ndarray:
        from rasterio.features import rasterize

        shape = (grid.shape.y, grid.shape.x)
        return rasterize(self._shapes, shape, fill=IGNORE, transform=grid.affine, dtype="uint8")

    def close(self) -> None:
        """Nothing is held open."""


class MapTiles:
    """A raster of classes, or polygons on an image, in tiles; a map smaller than a tile is one.

    Args:
        path: a raster of class ids of one band; or polygons, with `image` and `column`.
        scheme: of a raster.
        image: anything that `open_scene` takes, of any grid, with red, green and blue.
        column: of polygons.
        tile: side in pixels of the map; edges that fill no tile are left out.

    Raises:
        what `MapFile` and `open_scene` raise; SettingError for what is missing.
    """

    def __init__(
        self,
        path: Path,
        scheme: ClassScheme | None,
        image: Path | None = None,
        column: str | None = None,
        tile: int = 256,
    ) -> None:
        self.path, self.image, self.tile = path, image, tile
        self._scene: Scene | None = None
        self._map: Any = None
        try:
            if path.suffix.lower() in VECTORS:
                if image is None:
                    raise SettingError(path, "needs --image, on whose grid it is drawn", "Give the image.")
                self._scene = open_scene(image)
                self._map = _Polygons(path, column, self._scene.info.geobox)
                self.scheme: ClassScheme = self._map.scheme
            elif scheme is None:
                raise SettingError(path, "needs --scheme, what its values mean", "Give it, e.g. worldcover.")
            else:
                self._map = MapFile(path, scheme, pixel_grid=True)
                self.scheme = scheme
                if image is not None:
                    self._scene = open_scene(image, pixel_grid=self._map.geobox.crs is None)
            if self._scene is not None:
                _need_colours(self._scene)
        except BaseException:
            self.close()
            raise
        self.geobox: GeoBox = self._map.geobox
        height, width = self.geobox.shape.y, self.geobox.shape.x
        self._rows = [r * tile for r in range(height // tile)] or [0]
        self._cols = [c * tile for c in range(width // tile)] or [0]
        self._digest = sha256_of(path)

    def __len__(self) -> int:
        return len(self._rows) * len(self._cols)

    def read(self, index: int) -> dict[str, Any]:
        row, col = self._rows[index // len(self._cols)], self._cols[index % len(self._cols)]
        box = self.geobox[row : row + self.tile, col : col + self.tile]
        image = None if self._scene is None else _picture(self._scene, box)
        place = {
            "file": self.path.name,
            "sha256": self._digest,
            "window": [row, col, box.shape.y, box.shape.x],
            "crs": str(box.crs),
            "bounds": list(box.boundingbox.bbox),
        }
        return {
            "name": f"{self.path.stem}_{row}_{col}",
            "image": image,
            "labels": self._map.resampled(box),
            "scheme": self.scheme,
            "about": {},
            "source": place | ({} if self.image is None else {"image": self.image.name}),
        }

    def fingerprint(self) -> dict[str, Any]:
        image = None if self.image is None else sha256_of(self.image)
        classes = [[c.value, c.title] for c in self.scheme.classes]
        return {"map": str(self.path), "sha256": self._digest, "image": str(self.image or ""),
                "image_sha256": image, "tile": self.tile, "scheme": self.scheme.slug,
                "classes": classes}  # fmt: skip

    def close(self) -> None:
        """Closes the files."""
        if self._map is not None:
            self._map.close()
        if self._scene is not None:
            self._scene.close()


def _need_colours(scene: Scene) -> None:
    names = [b.name for b in scene.info.bands]
    of_8_bits = scene.info.unit is Unit.RAW and scene.info.dtype == "uint8"  # scaled for display
    if not set(RGB) <= set(names) or not (of_8_bits or scene.info.unit in (Unit.RGB255, Unit.REFLECTANCE)):
        raise BandError(
            scene.info.uri,
            f"has the bands {', '.join(names)} in {scene.info.unit}, and cannot be shown in colours",
            "Give an image with red, green and blue of 0 to 255 or in reflectance.",
        )


def _picture(scene: Scene, box: GeoBox) -> np.ndarray:
    """The colours of a window as uint8 [H, W, 3]; 0 where there is nothing."""
    data = read_onto(scene, box, RGB).data
    scale = 255 / SHOWN if scene.info.unit is Unit.REFLECTANCE else 1.0
    return np.moveaxis(np.clip(np.nan_to_num(data) * scale, 0, 255).round().astype(np.uint8), 0, -1)


class MapFolder:
    """A folder of small maps (PNG or TIFF: ids, or the colours of the scheme), one item each, and a folder of
    images of the same names.

    Raises:
        FileMissingError: there is no map, or the image of one is missing.
    """

    def __init__(self, folder: Path, scheme: ClassScheme | None, images: Path | None = None) -> None:
        if scheme is None:
            raise SettingError(folder, "needs --scheme, what its values mean", "Give it, e.g. chatearthnet.")
        self.folder, self.scheme, self.images = folder, scheme, images
        self._files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
        if not self._files:
            raise FileMissingError(folder, "holds no map", "Give a folder of PNG or TIFF files.")
        self._shown: dict[str, Path] = {}
        if images is not None:
            if not images.is_dir():
                raise FileMissingError(images, "is no folder", "Give the folder of the images of these maps.")
            self._shown = {p.stem: p for p in images.rglob("*") if p.suffix.lower() in SUFFIXES}
            if lost := [p.stem for p in self._files if p.stem not in self._shown]:
                raise FileMissingError(images / lost[0], "has a map and no image", "Add the image.")

    def __len__(self) -> int:
        return len(self._files)

    def read(self, index: int) -> dict[str, Any]:
        path = self._files[index]
        labels = read_classes(path, self.scheme)
        image = None
        if self.images is not None:
            image = np.moveaxis(read_rgb(self._shown[path.stem]), 0, -1).astype(np.uint8)
        source = {"file": path.relative_to(self.folder).as_posix(), "sha256": sha256_of(path)}
        return {"name": path.stem, "image": image, "labels": labels, "scheme": self.scheme,
                "about": {}, "source": source}  # fmt: skip

    def fingerprint(self) -> dict[str, Any]:
        classes = [[c.value, c.title] for c in self.scheme.classes]
        return {"maps": str(self.folder), "files": _listing(self._files), "images": str(self.images or ""),
                "scheme": self.scheme.slug, "classes": classes}  # fmt: skip

    def close(self) -> None:
        """Nothing is held open."""


def _listing(files: Sequence[Path]) -> str:
    """A hash of names and sizes; that of each content stands with its sample."""
    text = "\n".join(f"{p.name} {p.stat().st_size}" for p in files)
    return hashlib.sha256(text.encode()).hexdigest()


# --- images ----------------------------------------------------------------------------------------------
class Images:
    """Images of a folder or of a zip, in the order of their names, with what a table says about each.

    Args:
        path: the folder or the zip.
        metadata: CSV, JSON Lines or JSON (a list of objects) with a column `image` (or `id`): the path of an
            image below `path`, or its name with or without suffix.
        about: what is known of all of them; a row wins over it.
        folder_tag: take the name of an image's folder as its tag.

    Raises:
        FileMissingError, UnreadableFileError: nothing to read, or a table that is none.
        SettingError: the table names an image that is not there.
    """

    def __init__(
        self,
        path: Path,
        metadata: Path | None = None,
        about: Mapping[str, Any] | None = None,
        folder_tag: bool = False,
    ) -> None:
        self.path, self.metadata = path, metadata
        self.about, self.folder_tag = dict(about or {}), folder_tag
        self._zip: zipfile.ZipFile | None = None
        if path.is_dir():
            names = [p.relative_to(path).as_posix() for p in path.rglob("*")]
        else:
            try:
                self._zip = zipfile.ZipFile(path)
            except FileNotFoundError as error:
                raise FileMissingError(path, "is not there", "Give a folder or a zip of images.") from error
            except (zipfile.BadZipFile, OSError) as error:
                raise UnreadableFileError(
                    path, f"is no folder and no zip ({error})", "Give images."
                ) from error
            names = self._zip.namelist()
        self.names = sorted(n for n in names if n.lower().endswith(SUFFIXES))
        if not self.names:
            raise FileMissingError(path, "holds no image", "Give a folder or a zip of images.")
        self._rows = {} if metadata is None else self._matched(read_table(metadata), metadata)

    def _matched(self, rows: Sequence[Mapping[str, Any]], table: Path) -> dict[str, Mapping[str, Any]]:
        by_name: dict[str, str] = {}
        for n in self.names:
            for short in (n, PurePosixPath(n).name, PurePosixPath(n).stem):
                by_name.setdefault(short, n)
        found = {}
        for row in rows:
            named = str(row.get("image") or row.get("id") or "")
            if named not in by_name:
                raise SettingError(
                    table, f"names the image {named or '(none)'}, which is not there", "Correct the table."
                )
            found[by_name[named]] = row
        return found

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> dict[str, Any]:
        name = self.names[index]
        try:
            content = self._zip.read(name) if self._zip else (self.path / name).read_bytes()
        except (zipfile.BadZipFile, OSError) as error:
            raise UnreadableFileError(
                f"{self.path}/{name}", f"cannot be read ({error})", "Copy it again."
            ) from error
        image = np.moveaxis(read_rgb(Path(name), content), 0, -1).astype(np.uint8)
        parent = PurePosixPath(name).parent.name
        tag = {"tag": [_spaced(parent)]} if self.folder_tag and parent else {}
        row = {k: v for k, v in self._rows.get(name, {}).items() if v not in (None, "")}
        source = {"file": f"{self.path.name}/{name}", "sha256": hashlib.sha256(content).hexdigest()}
        return {"name": PurePosixPath(name).stem, "image": image, "labels": None, "scheme": None,
                "about": self.about | tag | row, "source": source}  # fmt: skip

    def fingerprint(self) -> dict[str, Any]:
        table = None if self.metadata is None else sha256_of(self.metadata)
        files = _listing([self.path / n for n in self.names]) if self._zip is None else sha256_of(self.path)
        return {"images": str(self.path), "files": files, "metadata": table, "about": self.about,
                "folder_tag": self.folder_tag}  # fmt: skip

    def close(self) -> None:
        """Closes the zip."""
        if self._zip is not None:
            self._zip.close()


def _spaced(name: str) -> str:
    """`AnnualCrop` and `annual_crop` as annual crop."""
    parted = "".join(f" {c}" if c.isupper() and i else c for i, c in enumerate(name))
    return " ".join(parted.replace("_", " ").replace("-", " ").lower().split())


def read_table(path: Path) -> list[Mapping[str, Any]]:
    """The rows of a CSV, of JSON Lines, or of a JSON list of objects.

    Raises:
        FileMissingError, UnreadableFileError: no such file, or none of these.
    """
    if not path.is_file():
        raise FileMissingError(path, "is not there", "Give a CSV, JSON Lines or JSON file.")
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix.lower() == ".csv":
            return list(csv.DictReader(io.StringIO(text)))
        rows = (
            json.loads(text)
            if path.suffix.lower() == ".json"
            else [json.loads(s) for s in text.splitlines() if s]
        )
    except (ValueError, csv.Error) as error:
        raise UnreadableFileError(path, f"is no table ({error})", "Give CSV, JSON Lines or JSON.") from error
    if not isinstance(rows, list) or not all(isinstance(r, dict) for r in rows):
        raise UnreadableFileError(path, "is no list of objects", "Give one object an image.")
    return rows
