"""`terralapse run`: change over many places, unit by unit, on whatever there is to run it on."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from terralapse.engine.jobs.executors import executor
from terralapse.engine.jobs.ledger import Ledger, State
from terralapse.engine.jobs.partition import units_of
from terralapse.engine.jobs.plan import JobPlan
from terralapse.engine.jobs.schedule import Progress, run_units
from terralapse.engine.jobs.units import Unit
from terralapse.engine.output import OutputFolder
from terralapse.engine.parts import LAYERS, write_whole
from terralapse.errors import (
    NoOverlapError,
    NoValidDataError,
    ResumeMismatchError,
    SettingError,
    UnreadableFileError,
)
from terralapse.workflows.change import ChangeSettings, change

if TYPE_CHECKING:
    from terralapse.engine.jobs.clear import Look

UNITS = "units"
MANIFEST = "unit.json"
MERGED = "merged"


@dataclass(frozen=True)
class JobResult:
    """What a job came to; `dead_letters` is the list of units that were given up, None when none was."""

    folder: Path
    units: int
    done: int
    dead: int
    retries: int
    dead_letters: Path | None

    @property
    def complete(self) -> bool:
        """Whether every unit is done."""
        return self.dead == 0

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        return {k: str(v) if isinstance(v, Path) else v for k, v in asdict(self).items()}


@dataclass(frozen=True)
class Placed:
    """A unit and where its outputs go; `threads` of computation do not change them."""

    unit: Unit
    folder: Path
    threads: int

    @property
    def id(self) -> str:
        """Of the unit."""
        return self.unit.id

    def as_dict(self) -> dict[str, Any]:
        """Plain data, as `compute` takes it."""
        return {"unit": self.unit.as_dict(), "folder": str(self.folder), "threads": self.threads}


def run_job(
    plan: JobPlan,
    output: Path | str,
    *,
    kind: str = "processes",
    workers: int = 1,
    address: str | None = None,
    cards: tuple[int, ...] = (),
    in_flight: int | None = None,
    resume: bool = False,
    retry_dead: bool = False,
    merge: bool = True,
    tell: Callable[[Progress], None] | None = None,
    say: Callable[[str], None] | None = None,
) -> JobResult:
    """Runs a plan and merges what its units give.

    The bytes of `units/*/{change,prob,valid}.tif` and of all of `merged/` depend on the plan and its inputs
    alone: not on the workers, their number or their deaths, nor on how often the job was killed.

    Args:
        plan: what to do.
        output: a folder: `journal.jsonl`, `units/ID/`, `merged/`, and `dead.jsonl` where units were given up.
        kind, workers, address, cards: see `terralapse.engine.jobs.executors.executor`.
        in_flight: the most units at once, waiting ones included; None for two more than there are workers.
        resume: go on with the job that the folder holds.
        retry_dead: when resuming, try again what was given up.
        merge: merge at the end, also when some units are dead (`merged.json` says which).
        tell: called with the counts after each unit.
        say: called with sentences.

    Raises:
        SettingError, FileMissingError: a setting or the source cannot be used.
        MissingExtraError: a product or an executor needs a package that is not installed.
        OutputExistsError, OutputLockedError, OutputNotWritableError, ResumeMismatchError: the folder.
    """
    check_settings(plan)
    check_products(plan)
    folder = Path(os.path.realpath(output))
    threads = max(1, (os.cpu_count() or 1) // workers) if address is None else 1
    speak = say or (lambda _text: None)
    units = list(units_of(plan))
    speak(f"{len(units):,} units.")
    with Ledger(folder, plan.digest(), resume=resume) as ledger:
        if retry_dead:
            speak(f"{ledger.revive()} units that were given up are tried again.")
        write_whole(folder / "plan.json", json.dumps(asdict(plan), indent=1, sort_keys=True).encode())
        _forget_lost(ledger, folder, units)
        with executor(kind, compute, workers=workers, address=address, cards=cards) as runs:
            placed = (Placed(u, folder / UNITS / u.id, threads) for u in units)
            counts = run_units(placed, runs, ledger, plan.retry, in_flight=in_flight, tell=tell)
        dead_letters = ledger.write_dead_letters((u.id, u.name) for u in units)
        if merge:
            merge_job(plan, folder, units, ledger)
    return JobResult(folder, counts.total, counts.done, counts.dead, counts.retries, dead_letters)


def check_settings(plan: JobPlan) -> None:
    """Refuses settings that no unit could run with.

    Raises:
        SettingError, FileMissingError: as `terralapse change` would.
        UnknownSystemError, SystemNotReadyError: of the model.
    """
    from terralapse import registry

    told = change_settings(plan.settings)
    model = str(told.get("model", "auto")).partition("=")[0]
    try:
        ChangeSettings(**told)
    except TypeError as error:
        name = str(error).rpartition("'")[0].rpartition("'")[2]
        raise SettingError(
            f"settings.{name}", "is no setting of a change", "See `terralapse change`."
        ) from error
    if model != "auto":
        registry.card(model)


def change_settings(told: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a plan as `terralapse change` takes them.

    `pictures` are left out unless asked for: a map sheet costs more than the detection of a small cell.
    """
    settings: dict[str, Any] = {"pictures": False, **told}
    if isinstance(settings.get("bands"), str):
        settings["bands"] = tuple(b.strip() for b in settings["bands"].split(","))
    elif isinstance(settings.get("bands"), list):
        settings["bands"] = tuple(map(str, settings["bands"]))
    return settings


def check_products(plan: JobPlan) -> None:
    """Refuses products that cannot be written here, before anything runs.

    Raises:
        MissingExtraError: pyarrow is not installed.
        SettingError: this GDAL writes no PMTiles.
    """
    if "geoparquet" in plan.products:
        from terralapse.products.polygons import check_geoparquet

        check_geoparquet("products: geoparquet")
    if "pmtiles" in plan.products:
        import pyogrio

        if "w" not in pyogrio.list_drivers().get("PMTiles", ""):
            raise SettingError(
                "products: pmtiles", "cannot be written by this GDAL", "Install pyogrio 0.10 or newer."
            )


# --- one unit --------------------------------------------------------------------------------------
def compute(payload: Mapping[str, Any]) -> str:
    """One attempt at a unit: its folder appears whole with its manifest, or not at all.

    Args:
        payload: of `Placed.as_dict`.

    Returns:
        The digest of its rasters. A unit whose folder holds what its manifest says is not computed again.

    Raises:
        TerralapseError: as `terralapse change`.
    """
    unit, folder = Unit.of_dict(payload["unit"]), Path(payload["folder"])
    finished = read_manifest(folder, unit.id, verify=True)
    if finished is not None:
        return finished["digest"]
    # `auto` follows the clock, so that units could be computed by different engines.
    settings = {"engine": "torch"} | change_settings(unit.settings) | {"threads": payload["threads"]}
    if unit.grid is not None:
        settings["grid"] = unit.grid
    if unit.area is not None:
        settings["aoi"] = unit.area
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        before, after, chosen = sources_of(unit, folder)
        _change(before, after, folder, settings)
    except (NoOverlapError, NoValidDataError) as error:
        if unit.core is None:
            raise
        # A cell at the edge of an image, or under cloud: there is nothing to say, and nothing is wrong.
        with OutputFolder(folder, overwrite=True) as empty:
            _write_manifest(empty.staging, unit, empty=error.fault)
            empty.publish()
    else:
        _write_manifest(folder, unit, chosen)
    written = read_manifest(folder, unit.id)
    assert written is not None
    return written["digest"]


def sources_of(unit: Unit, folder: Path) -> tuple[str, str, dict[str, Any]]:
    """What `terralapse change` takes for the dates of a unit: an image, or a list of several in a file; and
    for the manifest, which items these are and why.

    Raises:
        NoOverlapError: a date has no image.
        TerralapseError: for `best`, an image cannot be read.
    """
    from terralapse.grid.composite import CompositeList

    found, chosen = [], {}
    for number, (date, sources) in enumerate((("before", unit.before), ("after", unit.after))):
        if not sources:
            raise NoOverlapError(unit.name, f"no image of the period {date}", "Widen the period.")
        several = CompositeList(sources)
        if unit.rule == "best":
            looks = _looks(unit, number)
            found.append(looks[0].candidate.href)
            chosen[date] = [look.as_dict() for look in looks]
            continue
        if unit.rule:
            chosen[date] = [{"href": c["href"], "id": c["id"]} for c in unit.candidates[number]]
        if unit.rule == "median":
            assert unit.grid is not None
            several = CompositeList(sources, "median", unit.grid, unit.min_clear)
        elif len(sources) == 1:
            found.append(sources[0])
            continue
        found.append(str(several.write(folder.with_name(f"{folder.name}.{date}.json"))))
    return found[0], found[1], {"rule": unit.rule, **chosen} if unit.rule else {}


def _looks(unit: Unit, date: int) -> list[Look]:
    """The items of a date with their clear shares over the cell, the one that is taken first."""
    from terralapse.engine.jobs.clear import Candidate, area_of, cell_of, look_at
    from terralapse.grid.common import grid_of_cell

    assert unit.grid is not None
    assert unit.core is not None
    cell = cell_of(grid_of_cell(unit.grid), unit.core)
    candidates = [Candidate(**c) for c in unit.candidates[date]]
    return look_at(candidates, cell, area_of(unit.area), unit.settings)


def _change(before: str, after: str, folder: Path, settings: dict[str, Any]) -> None:
    try:
        change(before, after, folder, overwrite=True, resume=True, **settings)
    except ResumeMismatchError:  # what an attempt left that saw another file, or that was cut in its record
        change(before, after, folder, overwrite=True, **settings)


def _write_manifest(
    folder: Path, unit: Unit, chosen: Mapping[str, Any] | None = None, *, empty: str = ""
) -> None:
    files = {
        p.name: [p.stat().st_size, _sha256(p)]
        for p in sorted(folder.iterdir())
        if p.is_file() and p.name != MANIFEST
    }
    rasters = [files[f"{layer}.tif"][1] for layer in LAYERS] if not empty else [empty]
    digest = hashlib.sha256(" ".join([unit.id, *rasters]).encode()).hexdigest()[:16]
    record = {"unit": unit.id, "name": unit.name, "digest": digest, "empty": empty, "files": files}
    if chosen:
        record["items"] = chosen
    write_whole(folder / MANIFEST, json.dumps(record, indent=1).encode())


def read_manifest(folder: Path, unit: str, *, verify: bool = False) -> dict[str, Any] | None:
    """The manifest of a finished unit; None when it is not finished, or files are not as it says.

    Args:
        folder: of the unit.
        unit: its identifier.
        verify: compare the hash of every file, not only its size.
    """
    try:
        record = json.loads((folder / MANIFEST).read_bytes())
        if record["unit"] != unit:
            return None
        for name, (size, sha256) in record["files"].items():
            path = folder / name
            if path.stat().st_size != size or (verify and _sha256(path) != sha256):
                return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return record


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _forget_lost(ledger: Ledger, folder: Path, units: Iterable[Unit]) -> None:
    """Units that the journal calls done and whose folder says otherwise are pending again."""
    for unit in units:
        done = ledger.entry(unit.id).state is State.DONE
        if done and read_manifest(folder / UNITS / unit.id, unit.id) is None:
            ledger.forget(unit.id)


# --- all units -------------------------------------------------------------------------------------
def merge_job(plan: JobPlan, folder: Path, units: list[Unit], ledger: Ledger) -> Path:
    """Merges the products of all finished units; the folder `merged` appears whole or not at all."""
    from terralapse.products.merge import Part, write_merged

    def parts() -> Iterator[Part]:
        for unit in units:
            if ledger.entry(unit.id).state is not State.DONE:
                continue
            manifest = read_manifest(folder / UNITS / unit.id, unit.id)
            if manifest is None:
                raise UnreadableFileError(
                    folder / UNITS / unit.id, "is not what its manifest says", "Run again with --resume."
                )
            if not manifest["empty"]:
                yield Part(unit.id, unit.name, folder / UNITS / unit.id, unit.core)

    cores = [u.core for u in units if u.core is not None]
    dead = [u.name for u in units if ledger.entry(u.id).state is State.DEAD]
    with OutputFolder(folder / MERGED, overwrite=True) as merged:
        write_merged(
            merged.staging,
            list(parts()),
            name=plan.name,
            grid=None if plan.grid is None else (plan.grid.crs, plan.grid.resolution),
            cores=cores,
            products=plan.products,
            min_area_m2=plan.settings.get("min_area"),
            missing=dead,
        )
        return merged.publish()
