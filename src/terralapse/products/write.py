"""All products of a run, written into its folder."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from terralapse.grid.areas import has_place
from terralapse.labels import BINARY_CHANGE, VALIDITY
from terralapse.products import stac
from terralapse.products.class_facts import silent
from terralapse.products.facts import Facts, collect, write_facts
from terralapse.products.findings import Findings, find, pictures_of
from terralapse.products.imagery import write_preview
from terralapse.products.mapsheet import write_map
from terralapse.products.polygons import write_geojson, write_geopackage
from terralapse.products.qgis import class_style, probability_style
from terralapse.products.record import plain, record, write_json
from terralapse.products.report import write_report
from terralapse.products.run import ChangeRun
from terralapse.products.stats import write_csv
from terralapse.products.tally import PROB_STEPS

Progress = Callable[[str, int, int], None]
_STAGE = "products"
_STEPS = 100


def write_products(run: ChangeRun, progress: Progress | None = None) -> dict[str, Any]:
    """Writes every product beside the three rasters of the run.

    Everything but `run.json` (which holds times) depends on the run alone: the same run gives the same
    bytes. Memory is bounded by a strip of the rasters and by the number of polygons.

    Args:
        run: its folder holds `change.tif`, `prob.tif` and `valid.tif`, and the maps that its `classes` name.
            `settings["geojson"]` asks for
            `change.geojson` too.
            `settings["pictures"]` of False leaves out what is for looking at.
        progress: called as `progress("products", done, 100)`.

    Returns:
        the summary that `--json` prints: `summary` (sentences with the facts that they cite), the main
        numbers, warnings, and the names of the files.

    Raises:
        TerralapseError: the file of the zones cannot be used.
    """
    tell = progress or (lambda _stage, _done, _total: None)
    folder = run.folder
    watch = _Watch()
    pictures = pictures_of(run)
    watch.lap("pictures")
    findings = find(run, lambda share: tell(_STAGE, round(50 * share), _STEPS), pictures)
    watch.lap("measure")
    facts = collect(findings)
    write_geopackage(findings.polygons, folder / "change.gpkg", run.started)
    if run.settings.get("geojson") and has_place(run.pair.geobox):
        write_geojson(findings.polygons, folder / "change.geojson")
    write_csv(findings.stats, folder / "stats.csv")
    write_facts(facts, folder / "facts.json")
    write_json(run.alignment, folder / "alignment.json")
    _write_styles(run)
    watch.lap("tables")
    tell(_STAGE, 60, _STEPS)
    if run.settings.get("pictures", True):
        _write_pictures(findings, facts, folder, watch)
        tell(_STAGE, 90, _STEPS)
    files = sorted({p.name for p in folder.iterdir() if p.is_file()} | {"run.json"})
    item = stac.item(run, files)
    if item is not None:
        write_json(item, folder / stac.FILE)
        files = sorted({*files, stac.FILE})
    said = plain(summary(findings, facts, files))
    write_json(record(findings, said, watch.seconds), folder / "run.json")
    tell(_STAGE, _STEPS, _STEPS)
    return said


def summary(findings: Findings, facts: Facts, files: list[str]) -> dict[str, Any]:
    """What a script wants to know of a run without opening its files."""
    t, run = findings.tally, findings.run
    return {
        "run_id": run.run_id,
        "summary": facts.text,
        "model": run.card.slug,
        "threshold": run.threshold,
        "area_unit": findings.unit,
        "changed_area": t.changed_area,
        "changed_share": t.changed_area / t.observed_area if t.observed_area else None,
        "observed_area": t.observed_area,
        "masked_area": t.masked_area,
        "polygons": len(findings.polygons),
        "alignment": findings.alignment.verdict,
        "warnings": [n.text for n in run.warnings],
        "files": files,
    }


def _write_pictures(findings: Findings, facts: Facts, folder: Path, watch: _Watch) -> None:
    """What is for looking at: both dates, the map sheet, and the report, which shows them."""
    pictures = findings.pictures
    write_preview(folder / "before.tif", pictures.before, pictures.before_alpha, pictures.geobox)
    write_preview(folder / "after.tif", pictures.after, pictures.after_alpha, pictures.geobox)
    write_map(findings, facts, folder)
    watch.lap("map")
    write_report(findings, facts, folder / "report.html")
    watch.lap("report")


def _write_styles(run: ChangeRun) -> None:
    """QML files beside what they style; QGIS finds them by name."""
    styles = {
        "change.qml": class_style(BINARY_CHANGE, (0,), polygons=True),
        "valid.qml": class_style(VALIDITY, (0,)),
        "prob.qml": probability_style(PROB_STEPS),
    }
    for name, (scheme, _) in ({} if run.classes is None else run.classes.rasters).items():
        styles[name.replace(".tif", ".qml")] = class_style(scheme, silent(scheme))
    for name, text in styles.items():
        (run.folder / name).write_text(text, encoding="utf-8")


class _Watch:
    """Seconds by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self.seconds[f"products.{stage}"] = round(now - self._last, 3)
        self._last = now
