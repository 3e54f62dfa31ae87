"""Reports on a finished run for a purpose: the disaster report."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from terralapse.errors import SettingError, TerralapseError

if TYPE_CHECKING:
    from odc.geo.geobox import GeoBox

    from terralapse.products.disaster import DisasterReport
    from terralapse.products.facts import Fact

KINDS = ("disaster",)
FILES = ("disaster.html", "disaster.json", "disaster.png", "disaster.pdf")
_LONGEST = 120  # characters of a name of an event

Say = Callable[[str], None]


def report(
    output: str | Path, kind: str = "disaster", *, event: str = "", say: Say | None = None
) -> dict[str, Any]:
    """Writes a report into the folder of a finished run, beside its products.

    Args:
        output: the folder of a run of `terralapse change`.
        kind: `disaster`: damage, roads, water, vegetation, what cannot be told, immediate needs and
            long-term recovery, as `disaster.html`, `disaster.json`, `disaster.png` and `disaster.pdf`.
        event: what the disaster is called; it is shown and nothing is derived from it.
        say: called with sentences about decisions.

    Returns:
        the content of `disaster.json`.

    Raises:
        SettingError: no such kind, or an event that is too long.
        FileMissingError, UnreadableFileError: no finished run of two dates, or damaged files.
    """
    from terralapse.grid._gdal import gdal_env
    from terralapse.products.facts import Facts
    from terralapse.products.record import products_of, write_json
    from terralapse.workflows.facts import finished, staged_beside

    if kind not in KINDS:
        raise SettingError(f"kind {kind}", "is no kind of report", f"Choose {' or '.join(KINDS)}.")
    if len(event) > _LONGEST or any(not c.isprintable() for c in event):
        raise SettingError("event", "is no name of one line", f"Give at most {_LONGEST} characters.")
    folder = Path(output)
    run, record, box = finished(folder)
    with gdal_env(), staged_beside(folder, (*FILES, "run.json")) as staged:
        made = _made(Facts.from_dict(record), folder, run, box, event, say or (lambda _: None))
        _write(made, folder, staged, run, box)
        content = made.as_dict()
        write_json(content, staged / "disaster.json")
        files = sorted({*run["summary"]["files"], *FILES})
        new = {p["file"]: p for p in products_of(staged)}
        old = {p["file"]: p for p in run["products"]}
        run = run | {"summary": run["summary"] | {"files": files}}
        write_json(run | {"products": [(old | new)[k] for k in sorted(old | new)]}, staged / "run.json")
    return content


def _made(facts: Any, folder: Path, run: dict[str, Any], box: GeoBox, event: str, say: Say) -> DisasterReport:
    from terralapse.products.disaster import disaster_report
    from terralapse.products.disaster_facts import damage_places

    more: list[Fact] = []
    if "damage.buildings" in facts:
        more += damage_places(folder, box, facts.facts)
    indices, why = _indices(folder, run, box)
    if why:
        say(f"Spectral indices are left out: {why}.")
    model = run["model"]
    looks_for = model.get("summary", "") if isinstance(model, dict) else ""
    return disaster_report(facts, [*more, *indices], looks_for=looks_for, no_index=why, event=event)


def _indices(folder: Path, run: dict[str, Any], box: GeoBox) -> tuple[list[Fact], str]:
    """The facts of spectral indices, or none and the reason."""
    from terralapse.products.disaster_facts import covers_of
    from terralapse.sensors import Unit

    inputs = run["inputs"]
    common = set.intersection(*({b["name"] for b in inputs[d]["bands"]} for d in ("before", "after")))
    covers = covers_of(common)
    if not covers:
        return [], "these images share no bands of an index of water or vegetation (near infrared is missing)"
    units = {inputs[d]["unit"] for d in ("before", "after")}
    if units != {Unit.REFLECTANCE}:
        return [], f"the images are in {' and '.join(sorted(units))}, and the indices need reflectance"
    for date in ("before", "after"):
        if str(inputs[date]["uri"]).startswith("memory:"):
            return [], "the images of this run were given in memory and are gone"
    try:
        return _measured(folder, run, box, sorted(_bands(covers, common)))
    except TerralapseError as error:
        return [], f"the images cannot be read again ({error.what}: {error.fault})"


def _bands(covers: dict[str, Any], common: set[str]) -> set[str]:
    from terralapse.grid.indices import parse_index

    wanted = {b for cover in covers.values() for b in parse_index(cover.index).bands}
    return {b if b in common else "nir08" for b in wanted}


def _measured(folder: Path, run: dict[str, Any], box: GeoBox, bands: list[str]) -> tuple[list[Fact], str]:
    """Both images opened and aligned as the run did, and checked against what the run has read."""
    from terralapse.products.disaster_facts import index_facts
    from terralapse.products.findings import sources_of
    from terralapse.workflows.reopen import reopened

    with reopened(folder, bands) as pair:
        for date, info in (("before", pair.before), ("after", pair.after)):
            known = {(s["bytes"], s["sha256"]) for s in run["inputs"][date]["sources"]}
            if {(s.bytes, s.sha256) for s in sources_of(info)} != known:
                return [], f"the image {date} is not the one that the run has read"
        if pair.geobox != box:
            return [], "the images no longer give the grid of the run"
        return list(index_facts(pair, folder)), ""


def _write(made: DisasterReport, folder: Path, staged: Path, run: dict[str, Any], box: GeoBox) -> None:
    from terralapse.products.disaster_map import write_disaster_map
    from terralapse.products.disaster_page import write_disaster_page
    from terralapse.products.sheet import clip
    from terralapse.products.units import date

    started = datetime.fromisoformat(run["started"])
    names = {d: str(run["inputs"][d]["name"]) for d in ("before", "after")}
    sources = [(d.capitalize(), clip(names[d], 44)) for d in ("before", "after")]
    sources += [("Model", clip(str(run["summary"]["model"]), 44)), ("Run", run["run_id"])]
    shown = [n for n in ("after.tif", "valid.tif", "change.tif", "damage.tif") if (folder / n).is_file()]
    for name in shown:
        (staged / name).symlink_to((folder / name).resolve())
    write_disaster_map(made, staged, box, started, sources)
    write_disaster_page(
        made,
        staged / "disaster.png",
        staged / "disaster.html",
        warnings=list(run["summary"]["warnings"]),
        names=names,
        made=date(started),
    )
    for name in shown:
        (staged / name).unlink()
