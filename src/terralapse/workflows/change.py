"""Two images of a place in, a folder of checked change products out."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from terralapse import registry
from terralapse._version import __version__
from terralapse.cards import Card, Task
from terralapse.errors import FileMissingError, ModelInputError, NoValidDataError, SettingError
from terralapse.grid.scene import Note, Scene
from terralapse.labels import RULES
from terralapse.workflows import choose

if TYPE_CHECKING:
    from terralapse.engine.scene import SceneResult
    from terralapse.grid.align import AlignedPair
    from terralapse.grid.map_before import MapSource
    from terralapse.products.class_facts import ClassMaps
    from terralapse.products.result import ChangeResult
    from terralapse.tasks.change import ChangeDetector

Progress = Callable[[str, int, int], None]
Say = Callable[[str], None]

GRAPHS = ("openvino", "onnx")  # engines that hold change alone
RULES_MAP = "rules"  # in place of a file: the map is made from the earlier image


@dataclass(frozen=True)
class ChangeSettings:
    """Everything that a user can set, as it is kept in `run.json`.

    Attributes:
        model: slug of a system, `auto`, or a path of weights for one (`lapsenet/rgb=weights.safetensors`).
        weights: a file of weights for `model`, or the name of one that its authors released.
        before_map: for models that take one, a map of classes of the earlier date: a raster of any grid, or
            `rules` for one made from the earlier image (see `terralapse.data.rule_map`).
        bands: common names, provider ids or 1-based numbers; None takes what the model needs.
        threshold: probability from which a pixel counts as changed, 0..1; None takes the model's own.
        grid: `coarser`, `before`, `after`, the path of a raster, or a resolution in metres.
        aoi, zones: vector files: the area to look at; the units to count by.
        coregister: estimate and correct the shift between the dates.
        normalise: match the radiometry of the second date to the first before detection.
        min_area: the smallest polygon kept, in square metres; None chooses by pixel size.
        rectangles: give polygons that are nearly rectangles right angles, as buildings have.
        geojson: write the polygons as GeoJSON too.
        pictures: write what is for looking at: the map sheet, the report, and pictures of both dates.
        date_before, date_after: which date of a cube to take; also sets the date of a file without one.
        assume_crs: the CRS of files that do not state one.
        pixel_grid: compare images without any georeference by their pixels.
        s2_offset: the offset of Sentinel-2 in reflectance (0 or -0.1), over what metadata and pixels say.
        tile, batch, threads: how the scene is cut and computed; they do not change the result.
        device: `auto`, `cpu`, `cuda`, `mps`.
        precision: `auto`, `fp32`, `bf16`.
        engine: `auto`, `torch`, `compile`, `openvino`, `onnx`; the last two give no maps of classes.
        seed: of everything random.
    """

    model: str = "auto"
    weights: Path | None = None
    before_map: Path | str | None = None
    bands: tuple[str, ...] | None = None
    threshold: float | None = None
    grid: str | float = "coarser"
    aoi: Path | None = None
    zones: Path | None = None
    coregister: bool = True
    normalise: bool = False
    min_area: float | None = None
    rectangles: bool = False
    geojson: bool = False
    pictures: bool = True
    date_before: str | None = None
    date_after: str | None = None
    assume_crs: str | None = None
    pixel_grid: bool = False
    s2_offset: float | None = None
    tile: int | None = None
    batch: int | None = None
    threads: int | None = None
    device: str = "auto"
    precision: str = "auto"
    engine: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.threshold is not None and not 0 < self.threshold < 1:
            raise SettingError(
                f"threshold {self.threshold:g}", "lies outside of 0 to 1", "Give a probability, e.g. 0.5."
            )
        if self.min_area is not None and self.min_area < 0:
            raise SettingError(f"min-area {self.min_area:g}", "is negative", "Give square metres.")
        for name in ("tile", "batch", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SettingError(f"{name} {value}", "is not positive", "Leave it out to have it chosen.")
        if self.weights is not None:
            object.__setattr__(self, "weights", Path(self.weights))
            if self.model == "auto" or "=" in self.model:
                raise SettingError(
                    f"weights {self.weights}",
                    "needs the name of its system, once",
                    "Name the system with --model SLUG, for example changemamba/bcd-tiny.",
                )
        files = {"aoi": "area of interest", "zones": "zones", "before_map": "map of the earlier date"}
        for name, which in files.items():
            path = getattr(self, name)
            if path is None or (name == "before_map" and str(path) == RULES_MAP):
                continue
            object.__setattr__(self, name, Path(path))  # a string will do
            if not Path(path).exists():
                raise FileMissingError(path, f"the file of the {which} does not exist", "Check the path.")


def change(
    before: str | Path,
    after: str | Path,
    output: str | Path,
    *,
    overwrite: bool = False,
    resume: bool = False,
    progress: Progress | None = None,
    say: Say | None = None,
    **settings: Any,
) -> ChangeResult:
    """Finds what changed between two images of a place and writes the products folder.

    Args:
        before, after: a raster file, a folder or glob of tiles, a Sentinel-2 SAFE, a Landsat Collection 2
            folder, a STAC item, or a Zarr/NetCDF cube (`cube.zarr::2021-06-01`).
        output: the folder to write; it appears whole or not at all.
        overwrite: replace a result that is there.
        resume: go on from what an interrupted run of the same inputs and settings left.
        progress: called as `progress(stage, done, total)`.
        say: called with sentences about decisions (which model, which shift).
        settings: the fields of `ChangeSettings`.

    Returns:
        A `ChangeResult` over the written folder.

    Raises:
        TerralapseError: one of its subclasses, for anything that the caller can mend.
    """
    from terralapse.engine.output import OutputFolder
    from terralapse.grid._gdal import gdal_env
    from terralapse.products.result import ChangeResult

    try:
        chosen = ChangeSettings(**settings)
    except TypeError as error:
        raise SettingError("settings", str(error), "See help(terralapse.ChangeSettings).") from error
    tell = say or (lambda _: None)
    report = progress or (lambda _stage, _done, _total: None)
    with OutputFolder(Path(output), overwrite=overwrite, resume=resume) as folder, gdal_env():
        _run(before, after, folder.staging, chosen, resume=resume, progress=report, say=tell)
        folder.publish()
    return ChangeResult(Path(output))


def _run(
    before: str | Path,
    after: str | Path,
    staging: Path,
    settings: ChangeSettings,
    *,
    resume: bool,
    progress: Progress,
    say: Say,
) -> None:
    """Everything between the empty staging folder and the finished one."""
    from terralapse.engine.looks import write_looks
    from terralapse.engine.scene import predict_scene
    from terralapse.grid.map_before import PairWithMap
    from terralapse.products.run import ChangeRun
    from terralapse.products.write import write_products
    from terralapse.products.zones import load_zones

    started = datetime.now(UTC)
    timings: dict[str, float] = {}
    clock = time.perf_counter()

    def lap(stage: str) -> None:
        nonlocal clock
        now = time.perf_counter()
        timings[stage] = round(now - clock, 3)
        clock = now

    with ExitStack() as stack:
        first = stack.enter_context(_open(before, settings.date_before, settings))
        second = stack.enter_context(_open(after, settings.date_after, settings))
        lap("open")
        choice = choose.choose(first, second) if settings.model == "auto" else _named(settings.model)
        say(choice.why)
        detector = _build(choice, settings)  # wrong weights fail now, not after the alignment
        about = _map_of_before(detector, choice, settings, stack)
        pair = _align(first, second, choice, settings)
        shown = pair if about is None else PairWithMap(pair, about)
        say(pair.report.verdict)
        if settings.zones is not None:
            load_zones(settings.zones, pair.geobox)  # a bad file fails now, not after the scene
        lap("align")
        warnings = [n for n in pair.notes if n.level == "warning"]
        warnings += choose.misfits(choice.card.inputs, first.info, second.info, pair.report.resolution_m)
        result = predict_scene(
            detector,
            shown,
            staging,
            threshold=settings.threshold,
            tile=settings.tile,
            batch=settings.batch,
            threads=settings.threads,
            device=settings.device,
            precision=settings.precision,
            engine=settings.engine,
            resume=resume,
            progress=progress,
        )
        say(f"Computed by {result.engine['name']}: {result.engine['why']}.")
        maps = _class_maps(detector, result.classes)
        warnings += _partial(choice.card, result)
        _refuse_if_empty(result.valid_pixels, first, second)
        write_looks(pair, staging)
        lap("predict")
        run = ChangeRun(
            run_id=run_id(shown.fingerprint(), choice.card.slug, settings),
            folder=staging,
            pair=pair,
            card=choice.card,
            state=result.state,
            threshold=result.threshold,
            alignment=pair.report.as_dict(),
            scene=result.as_dict(),
            settings=_plain(settings) | {"before": str(before), "after": str(after), "choice": choice.why},
            started=started,
            zones=settings.zones,
            aoi=settings.aoi,
            min_area_m2=settings.min_area,
            warnings=warnings,
            notes=[n for n in pair.notes if n.level != "warning"],
            classes=maps,
            timings=timings,
        )
        write_products(run, progress=progress)


def _open(source: str | Path, date: str | None, settings: ChangeSettings) -> Scene:
    from terralapse.grid.open import open_scene

    return open_scene(
        source,
        assume_crs=settings.assume_crs,
        time=date,
        pixel_grid=settings.pixel_grid,
        s2_offset=settings.s2_offset,
    )


# What is missing where a system says more than where something changed and there are no maps of it.
ON_A_SCENE = {
    Task.CHANGE: "",
    Task.SEMANTIC_CHANGE: "The map shows where something changed; which class it was and became is left out.",
    Task.DAMAGE: "The map shows damaged buildings; their grade is left out.",
    Task.LANGUAGE: "The map shows where something changed; its class and the sentence about it are left out.",
}


def _partial(card: Card, result: SceneResult) -> list[Note]:
    """Says so where the products hold less than the system knows."""
    text = ON_A_SCENE[card.task]
    if result.classes or not text:
        return []
    if result.engine["name"] in GRAPHS and card.task is not Task.LANGUAGE:
        text += f" The engine {result.engine['name']} computes change alone; --engine torch gives the rest."
    return [Note("warning", "part-of-the-output", text)]


def _class_maps(detector: ChangeDetector, written: list[str]) -> ClassMaps | None:
    """Which maps of classes lie beside the rasters of a run."""
    from terralapse.products.class_facts import ClassMaps

    rule = detector.class_maps
    if rule is None or not written:
        return None
    damage = "damage" in written
    return ClassMaps(None if damage else rule.scheme, damage)


def _named(model: str) -> choose.Choice:
    slug = model.partition("=")[0]
    if slug.endswith((".pth", ".pt", ".ckpt", ".safetensors", ".bin")):
        from terralapse.layers.weights import read_tensors

        read_tensors(Path(slug))
        raise ModelInputError(
            slug,
            "a file of weights does not say which network it is for",
            "Name the system too, as SLUG=FILE: --model lapsenet/rgb=" + Path(slug).name,
        )
    choice = choose.named(slug)
    if choice.card.task not in ON_A_SCENE:
        raise ModelInputError(
            slug,
            f"is a system for {choice.card.task}, not for change between two dates",
            "Choose one whose task is `change` in `terralapse systems`.",
        )
    return choice


def _align(first: Scene, second: Scene, choice: choose.Choice, settings: ChangeSettings) -> AlignedPair:
    from terralapse.grid.align import align

    return align(
        first,
        second,
        grid=settings.grid,
        bands=settings.bands or choice.card.inputs.bands,
        aoi=settings.aoi,
        coregister=settings.coregister,
        normalise=settings.normalise,
    )


def _build(choice: choose.Choice, settings: ChangeSettings) -> ChangeDetector:
    weights = settings.weights or settings.model.partition("=")[2]
    options = {"weights": Path(weights)} if weights else {}
    return registry.build(choice.card.slug, **options)


def _map_of_before(
    detector: ChangeDetector, choice: choose.Choice, settings: ChangeSettings, stack: ExitStack
) -> MapSource | None:
    """The map of the earlier date, checked, for a model that takes one; None for any other."""
    from terralapse.grid.map_before import MapFile
    from terralapse.tasks.mapped import MapDetector

    if not isinstance(detector, MapDetector):
        if settings.before_map is not None:
            raise ModelInputError(
                choice.card.slug,
                "takes no map of the earlier date",
                "Leave --before-map out, or choose a model that takes one, such as mapformer/nano.",
            )
        return None
    if settings.before_map is None:
        raise detector.mapless()
    if str(settings.before_map) == RULES_MAP:
        from terralapse.data.rule_map import RuleSource

        detector.check_scheme(RULES, "--before-map rules")
        return RuleSource()
    found = MapFile(
        settings.before_map,
        detector.map_scheme,
        assume_crs=settings.assume_crs,
        pixel_grid=settings.pixel_grid,
    )
    stack.callback(found.close)
    return found


def _refuse_if_empty(valid_pixels: int, first: Scene, second: Scene) -> None:
    if valid_pixels == 0:
        raise NoValidDataError(
            f"{first.info.uri} and {second.info.uri}",
            "no pixel can be compared: nodata, cloud or shadow covers one date or the other everywhere",
            "Run `terralapse inspect` on both, and choose images with clear ground in common.",
        )


def run_id(fingerprint: dict[str, Any], slug: str, settings: ChangeSettings) -> str:
    """A short name of a run: the same inputs, settings and version give the same one."""
    record = json.dumps([__version__, fingerprint, slug, _plain(settings)], sort_keys=True, default=str)
    return hashlib.sha256(record.encode()).hexdigest()[:12]


def _plain(settings: ChangeSettings) -> dict[str, Any]:
    """The settings as JSON-ready values."""
    plain: dict[str, Any] = {}
    for name, value in asdict(settings).items():
        if isinstance(value, Path):
            plain[name] = str(value)
        elif isinstance(value, Sequence) and not isinstance(value, str):
            plain[name] = list(value)
        else:
            plain[name] = value
    return plain
