"""Maps of classes and of damage added to a finished run: its facts then tell what became what."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from terralapse.errors import FileMissingError, SettingError, UnreadableFileError
from terralapse.labels import DAMAGE, SCHEMES, ClassScheme

if TYPE_CHECKING:
    from odc.geo.geobox import GeoBox

    from terralapse.products.facts import Facts
    from terralapse.products.result import ChangeResult

# What `class_facts` makes of either kind of map, by the beginning or a part of the id.
_OF_CLASSES = re.compile(r"class\.|classes|transition\.|.*\.class\.")
_OF_DAMAGE = re.compile(r"damage\.")


def add_classes(
    output: str | Path,
    *,
    before: str | Path | None = None,
    after: str | Path | None = None,
    scheme: str | None = None,
    damage: str | Path | None = None,
) -> ChangeResult:
    """Lays maps of classes over a finished run, writes them beside its rasters and renews its facts.

    Args:
        output: the folder of a run of `terralapse change`.
        before, after: rasters of class ids of both dates, of any grid; both or none.
        scheme: the slug of their classes, for example `second-mamba`.
        damage: a raster of the grades of damage of buildings, in the scheme `xbd-damage`.

    Returns:
        the result, with the new facts.

    Raises:
        FileMissingError, UnreadableFileError: no finished run, or files that are no maps.
        SettingError: one map without the other, no scheme or one that is not known.
        ModelInputError: a map holds values that the scheme has not.
    """
    from terralapse.grid._gdal import gdal_env
    from terralapse.products.class_facts import AFTER, BEFORE, DAMAGED, ClassMaps, class_facts, silent
    from terralapse.products.facts import Facts, write_facts
    from terralapse.products.qgis import class_style
    from terralapse.products.record import products_of, write_json
    from terralapse.products.result import ChangeResult
    from terralapse.products.zones import load_zones

    known = _scheme(before, after, scheme)
    if known is None and damage is None:
        raise SettingError("facts", "got no map to add", "Give --classes-before and --classes-after.")
    folder = Path(output)
    run, record, box = finished(folder)
    wanted: dict[str, tuple[Path, ClassScheme]] = {}
    if known is not None and before is not None and after is not None:
        wanted = {BEFORE: (Path(before), known), AFTER: (Path(after), known)}
    if damage is not None:
        wanted[DAMAGED] = (Path(damage), DAMAGE)
    styles = {name: name.replace(".tif", ".qml") for name in wanted}
    made = (*wanted, *styles.values())
    with gdal_env(), staged_beside(folder, (*made, "facts.json", "run.json")) as staged:
        for name, (path, classes) in wanted.items():
            _write_map(path, classes, box, staged / name)
            (staged / styles[name]).write_text(class_style(classes, silent(classes)), encoding="utf-8")
        facts = Facts.from_dict(record)
        own = [p for p, given in ((_OF_CLASSES, known), (_OF_DAMAGE, damage)) if given is not None]
        facts.facts = {k: f for k, f in facts.facts.items() if not any(p.match(k) for p in own)}
        (staged / "valid.tif").symlink_to((folder / "valid.tif").resolve())
        zones = load_zones(Path(run["settings"]["zones"]), box) if run["settings"].get("zones") else None
        maps = ClassMaps(known, damage is not None)
        facts.extend(class_facts(staged, box, maps, zones, facts["object.minimum"].value))
        _renew_summary(facts)
        write_facts(facts, staged / "facts.json")
        files = sorted({*run["summary"]["files"], *made})
        run = run | {"summary": run["summary"] | {"files": files, "summary": facts.text}}
        (staged / "valid.tif").unlink()
        new = {p["file"]: p for p in products_of(staged)}
        old = {p["file"]: p for p in run["products"]}
        write_json(run | {"products": [(old | new)[k] for k in sorted(old | new)]}, staged / "run.json")
    return ChangeResult(folder)


def _renew_summary(facts: Facts) -> None:
    """What the summary says of classes and damage follows from the facts that there are now."""
    from terralapse.products.facts import said_of_classes

    kinds = (_OF_CLASSES, _OF_DAMAGE)
    kept = [s for s in facts.summary if not any(p.match(k) for p in kinds for k in s["facts"])]
    filled = [facts.fill(template) for template in said_of_classes(facts)]
    new = [{"text": text, "facts": list(cites)} for text, cites in filled]
    at = len(kept) - 1  # the alignment has the last word
    facts.summary = [*kept[:at], *new, *kept[at:]]


def _scheme(before: Any, after: Any, scheme: str | None) -> ClassScheme | None:
    if (before is None) != (after is None):
        raise SettingError(
            "facts", "got a map of classes of one date only", "Give --classes-before and --classes-after."
        )
    if before is None:
        return None
    if scheme not in SCHEMES:
        said = "needs the scheme of its classes" if scheme is None else "is no scheme of classes"
        raise SettingError(
            f"scheme {scheme}", said, "Give --scheme, one of: " + ", ".join(sorted(SCHEMES)) + "."
        )
    return SCHEMES[scheme]


def _write_map(path: Path, scheme: ClassScheme, box: Any, target: Path) -> None:
    import numpy as np

    from terralapse.grid.cog import write_cog
    from terralapse.grid.map_before import MapFile

    if not path.is_file():
        raise FileMissingError(path, "the map of classes does not exist", "Check the path.")
    source = MapFile(path, scheme, pixel_grid=box.crs is None)
    try:
        ids = source.resampled(box)
    finally:
        source.close()
    write_cog(ids.astype(np.uint8), target, geobox=box, kind="class", nodata=255, scheme=scheme)


@contextmanager
def staged_beside(folder: Path, names: tuple[str, ...]) -> Iterator[Path]:
    """A folder beside the products; its files take their places when all are written, `run.json` last."""
    import tempfile

    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as made:
        yield Path(made)
        for name in names:
            (Path(made) / name).replace(folder / name)


def finished(folder: Path) -> tuple[dict[str, Any], dict[str, Any], GeoBox]:
    """`run.json` and `facts.json` of a finished run of two dates, and its grid.

    Raises:
        FileMissingError, UnreadableFileError: no such run, or facts of an older version.
    """
    from affine import Affine
    from odc.geo.geobox import GeoBox

    from terralapse.products.facts_file import VERSION, read_facts
    from terralapse.products.result import ChangeResult

    run = ChangeResult(folder).run
    if "grid" not in run or run.get("kind") == "series":
        raise UnreadableFileError(folder, "is no run of two dates", "Give a folder of `terralapse change`.")
    record = read_facts(folder / "facts.json")
    if record["version"] != VERSION:
        raise UnreadableFileError(
            folder / "facts.json", "is of an older version", "Run `terralapse change` again."
        )
    grid = run["grid"]
    box = GeoBox((grid["height"], grid["width"]), Affine(*grid["transform"]), grid["crs"])
    return run, record, box
