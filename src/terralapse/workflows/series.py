"""A stack of dated images in, a folder of breaks and composites out."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from terralapse._version import __version__
from terralapse.errors import FileMissingError, NoValidDataError, SettingError

if TYPE_CHECKING:
    from terralapse.engine.breaks import BreakSettings
    from terralapse.grid.scene import Note
    from terralapse.grid.series import Series
    from terralapse.products.series_result import SeriesResult

Progress = Callable[[str, int, int], None]
Say = Callable[[str], None]

_READERS = 4
_COMPOSITES = "composites"


@dataclass(frozen=True)
class SeriesSettings:
    """Everything that a user can set, as it is kept in `run.json`.

    Attributes:
        index: `ndvi`, `nbr`, `ndwi`, `mndwi`, `ndmi`, `ndbi`, `evi2`, `nd:A,B`, or a band by name or
            number.
        scale: what the values of a band are multiplied by (0.0001 for stored NDVI x 10000).
        dates: a CSV with the columns `file` and `date`, over what the files say.
        breaks: look for breaks.
        period: of composites: `monthly`, `quarterly`, `yearly`; None for none.
        composite: `median`, `max-ndvi` or `least-cloud`, see `terralapse.engine.composites`.
        since: date (YYYY-MM-DD) before which breaks are not reported; the model still learns from it.
        pick, probability, consecutive, harmonics, floor: see `terralapse.engine.breaks.BreakSettings`; a
            floor of None is that of the index.
        grid: `coarser`, `first`, the path of a raster, or a resolution in metres.
        aoi: a vector file: the area to look at.
        assume_crs: the CRS of files that do not state one.
        s2_offset: the offset of Sentinel-2 in reflectance, over what metadata and pixels say.
        min_area: m2 of the smallest polygon kept; None for about four pixels.
        geoparquet: write `breaks.parquet` beside `breaks.gpkg`; needs pyarrow.
        block, threads: how the stack is cut and computed; they do not change the result.
    """

    index: str = "ndvi"
    scale: float = 1.0
    dates: Path | None = None
    breaks: bool = True
    period: str | None = None
    composite: str = "median"
    since: str | None = None
    pick: str = "largest"
    probability: float = 0.99
    consecutive: int | None = None
    harmonics: int | None = None
    floor: float | None = None
    grid: str | float = "coarser"
    aoi: Path | None = None
    assume_crs: str | None = None
    s2_offset: float | None = None
    min_area: float | None = None
    geoparquet: bool = False
    block: int | None = None
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise SettingError(
                f"threads {self.threads}", "is not positive", "Leave it out to have it chosen."
            )
        if self.min_area is not None and self.min_area < 0:
            raise SettingError(f"min-area {self.min_area:g}", "is negative", "Give square metres.")
        if self.geoparquet and not self.breaks:
            raise SettingError(
                "geoparquet", "has no meaning without breaks", "Leave --geoparquet or --no-breaks out."
            )
        if not self.breaks and self.period is None:
            raise SettingError(
                "breaks", "are not wanted, and no composites either", "Add --period monthly, for example."
            )
        if self.period is None and self.composite != "median":
            raise SettingError(
                f"composite {self.composite}", "has no meaning without a period", "Add --period monthly."
            )
        for name, which in {"dates": "dates", "aoi": "area of interest"}.items():
            path = getattr(self, name)
            if path is not None:
                object.__setattr__(self, name, Path(path))
                if not Path(path).exists():
                    raise FileMissingError(path, f"the file of the {which} does not exist", "Check the path.")


def series(
    stack: str | Path | Sequence[str | Path],
    output: str | Path,
    *,
    overwrite: bool = False,
    resume: bool = False,
    progress: Progress | None = None,
    say: Say | None = None,
    **settings: Any,
) -> SeriesResult:
    """Finds the breaks of each pixel of a stack, makes its composites, and writes the products folder.

    Args:
        stack: dated images, each as `terralapse.change` takes one; a pattern or a folder of them; or a
            NetCDF or Zarr cube.
        output: the folder to write; it appears whole or not at all.
        overwrite: replace a result that is there.
        resume: go on from what an interrupted run of the same inputs and settings left.
        progress: called as `progress(stage, done, total)`.
        say: called with sentences about decisions.
        settings: the fields of `SeriesSettings`.

    Returns:
        A `SeriesResult` over the written folder.

    Raises:
        TerralapseError: one of its subclasses, for anything that the caller can mend.
    """
    from terralapse.engine.output import OutputFolder
    from terralapse.grid._gdal import gdal_env
    from terralapse.products.polygons import check_geoparquet
    from terralapse.products.series_result import SeriesResult

    try:
        chosen = SeriesSettings(**settings)
    except TypeError as error:
        raise SettingError("settings", str(error), "See terralapse.workflows.series.") from error
    if chosen.geoparquet:
        check_geoparquet("geoparquet")
    sources = [stack] if isinstance(stack, str | Path) else list(stack)
    tell = say or (lambda _: None)
    report = progress or (lambda _stage, _done, _total: None)
    with OutputFolder(Path(output), overwrite=overwrite, resume=resume) as folder, gdal_env():
        _run(sources, folder.staging, chosen, resume=resume, progress=report, say=tell)
        folder.publish()
    return SeriesResult(Path(output))


def _run(
    sources: Sequence[str | Path],
    staging: Path,
    settings: SeriesSettings,
    *,
    resume: bool,
    progress: Progress,
    say: Say,
) -> None:
    from terralapse.engine.breaks import choose_model
    from terralapse.engine.composites import compositor, periods_of, write_composites
    from terralapse.engine.parts import WORK
    from terralapse.engine.series import choose_block, detect_breaks
    from terralapse.grid.indices import parse_index
    from terralapse.grid.series import open_series
    from terralapse.products.series import SeriesRun, write_products

    started, clock = datetime.now(UTC), time.perf_counter()
    timings: dict[str, float] = {}
    index = parse_index(settings.index, settings.scale)
    found = open_series(
        sources,
        index,
        dates=settings.dates,
        grid=settings.grid,
        aoi=settings.aoi,
        assume_crs=settings.assume_crs,
        s2_offset=settings.s2_offset,
    )
    with found, ThreadPoolExecutor(_READERS, thread_name_prefix="read") as pool:
        how = _break_settings(settings, found)
        say(f"{len(found)} dates, {found.times[0]:%Y-%m-%d} to {found.times[-1]:%Y-%m-%d}.")
        say(f"Common grid: {found.choice.rule}.")
        model = choose_model(found.days, how) if settings.breaks else None
        if model is not None:
            say(f"Model: {model.text}; {model.needed} observations a pixel are needed.")
        if settings.period is not None:  # what is wrong with it fails now, not after the scene
            periods_of(found.times, settings.period)
            compositor(found, settings.composite)
        timings["open"] = round(time.perf_counter() - clock, 3)
        threads = settings.threads or os.cpu_count() or 1
        bands = max(len(found.index.bands), len(found.bands) if settings.period else 1)
        block = choose_block(len(found), bands, settings.block)
        scene = None
        if model is not None:
            scene = detect_breaks(
                found,
                staging,
                model,
                how,
                block=block,
                pool=pool,
                threads=threads,
                resume=resume,
                progress=progress,
            )
            timings |= scene.seconds
            _refuse_if_empty(scene.quality, found)
        composites: list[dict[str, Any]] = []
        if settings.period is not None:
            clock = time.perf_counter()
            made = staging / WORK / _COMPOSITES / composite_key(found, settings)
            composites = write_composites(
                found,
                settings.period,
                settings.composite,
                made,
                block=block,
                pool=pool,
                threads=threads,
                progress=lambda done, total: progress("composites", done, total),
            )
            made.rename(staging / _COMPOSITES)
            timings["composites"] = round(time.perf_counter() - clock, 3)
        run = SeriesRun(
            run_id=run_id(found.fingerprint(), settings),
            folder=staging,
            series=found,
            scene=scene,
            composites=composites,
            settings=_plain(settings) | {"stack": [str(s) for s in sources]},
            command=command(sources, settings),
            started=started,
            name=area_name(sources, settings.aoi),
            min_area_m2=settings.min_area,
            warnings=_warnings(found),
            notes=[n for n in found.notes if n.level != "warning"],
            timings=timings,
        )
        write_products(run)


def area_name(sources: Sequence[str | Path], aoi: Path | None) -> str:
    """What the area is called on the map: as its file, else as the folder or the cube of the stack."""
    if aoi is not None:
        return aoi.stem
    path = Path(str(sources[0]).rstrip("/"))
    folder = len(sources) > 1 or any(c in path.name for c in "*?[")
    return (path.absolute().parent.name if folder else path.absolute().stem) or "the area"


def _break_settings(settings: SeriesSettings, found: Series) -> BreakSettings:
    from terralapse.engine.breaks import BreakSettings
    from terralapse.grid._guess import parse_time

    since = None
    if settings.since is not None:
        day = parse_time(settings.since)
        if day is None:
            raise SettingError(f"since {settings.since!r}", "is not a date", "Write it like 2021-06-01.")
        if day > found.times[-1]:
            raise SettingError(
                f"since {settings.since}",
                f"lies after the last date, {found.times[-1]:%Y-%m-%d}",
                "Give an earlier day.",
            )
        since = day.timestamp() / 86400
    floor = found.index.floor(found.scenes[0].unit) if settings.floor is None else settings.floor
    return BreakSettings(
        probability=settings.probability,
        consecutive=settings.consecutive,
        harmonics=settings.harmonics,
        floor=floor,
        since=since,
        pick=settings.pick,  # pyright: ignore[reportArgumentType] - checked when it is made
    )


def _warnings(found: Series) -> list[Note]:
    """Those of the series, and what the readers say of its dates, each text once."""
    from terralapse.grid.scene import Note

    texts: dict[tuple[str, str], list[str]] = {}
    for info in found.scenes:
        for note in info.notes:
            if note.level == "warning":
                texts.setdefault((note.code, note.text), []).append(info.name)
    read = []
    for (code, text), names in texts.items():
        unique = list(dict.fromkeys(names))
        many = unique[0] if len(unique) == 1 else f"{unique[0]} and {len(unique) - 1} more"
        read.append(Note("warning", code, f"{many}: {text}"))
    return [*(n for n in found.notes if n.level == "warning"), *read]


def _refuse_if_empty(quality: dict[str, int], found: Series) -> None:
    if not set(quality) - {"no_observation", "outside_aoi"}:
        raise NoValidDataError(
            f"{len(found)} dates from {found.scenes[0].uri}",
            "no pixel has a usable value at any date: nodata, cloud or shadow covers all of them",
            "Run `terralapse inspect` on some, and check --index and --aoi.",
        )


def run_id(fingerprint: dict[str, Any], settings: SeriesSettings) -> str:
    """A short name of a run: the same inputs, settings and version give the same one."""
    kept = {k: v for k, v in _plain(settings).items() if k not in ("block", "threads")}
    record = json.dumps([__version__, "series", fingerprint, kept], sort_keys=True, default=str)
    return hashlib.sha256(record.encode()).hexdigest()[:12]


def composite_key(found: Series, settings: SeriesSettings) -> str:
    """A name of the folder in which composites wait: the same only for what makes the same ones."""
    record = json.dumps(
        [__version__, found.fingerprint(), settings.period, settings.composite], sort_keys=True, default=str
    )
    return hashlib.sha256(record.encode()).hexdigest()[:12]


def _plain(settings: SeriesSettings) -> dict[str, Any]:
    return {k: str(v) if isinstance(v, Path) else v for k, v in asdict(settings).items()}


def command(sources: Sequence[str | Path], settings: SeriesSettings) -> str:
    """The command line that does a run again; the output folder is left to the reader."""
    words = ["terralapse", "series", *map(str, sources)]
    plain, usual = _plain(settings), _plain(SeriesSettings())
    for name, value in plain.items():
        if value == usual[name] or name in ("block", "threads"):
            continue
        if name == "breaks":
            words.append("--no-breaks")
        elif name == "geoparquet":
            words.append("--geoparquet")
        else:
            words += [f"--{name.replace('_', '-')}", str(value)]
    return shlex.join([*words, "-o", "OUT"])
