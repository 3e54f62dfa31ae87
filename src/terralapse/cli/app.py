"""The commands and their options."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from terralapse._version import __version__
from terralapse.cli import run
from terralapse.cli.area import area
from terralapse.cli.ask import ask, chat
from terralapse.cli.bench import bench
from terralapse.cli.captions import captions
from terralapse.cli.export import export
from terralapse.cli.facts import facts
from terralapse.cli.look import look
from terralapse.cli.report import report
from terralapse.cli.series import series
from terralapse.cli.serve import serve

app = typer.Typer(
    name="terralapse",
    help="Earth observation over time: what changed between two images, where, how much.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(bench)
app.add_typer(area)
app.add_typer(captions)
run.add_to(app)
app.command()(series)
app.command()(export)
app.command()(facts)
app.command()(report)
app.command()(look)
app.command()(ask)
app.command()(chat)
app.command()(serve)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"terralapse {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Holds the options of the command itself."""


Verbose = Annotated[int, typer.Option("-v", "--verbose", count=True, help="Say more; twice for debugging.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Print nothing but errors.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the summary as JSON on standard output.")]


@app.command()
def change(
    before: Annotated[
        str, typer.Argument(help="The earlier image: file, folder, glob, SAFE, STAC item, cube.")
    ],
    after: Annotated[str, typer.Argument(help="The later image, of any grid.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The folder of results.")],
    model: Annotated[
        str, typer.Option("--model", "-m", help="A slug of `terralapse systems`, SLUG=WEIGHTS, or auto.")
    ] = "auto",
    weights: Annotated[
        Path | None, typer.Option(help="A file of weights for the system that --model names.")
    ] = None,
    before_map: Annotated[
        str | None,
        typer.Option(
            "--before-map",
            help="For models that take one: a raster of classes of the earlier date, or `rules`.",
        ),
    ] = None,
    bands: Annotated[
        str | None, typer.Option(help="Comma-separated bands to compare, e.g. red,green,blue or 4,3,2.")
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(help="Probability from which a pixel counts as changed (0 to 1).")
    ] = None,
    grid: Annotated[
        str, typer.Option(help="The common grid: coarser, before, after, a raster, or metres a pixel.")
    ] = "coarser",
    aoi: Annotated[Path | None, typer.Option(help="A vector file: look only inside of it.")] = None,
    zones: Annotated[Path | None, typer.Option(help="A vector file: count by its polygons.")] = None,
    coregister: Annotated[
        bool, typer.Option("--coregister/--no-coregister", help="Correct a shift between the dates.")
    ] = True,
    normalise: Annotated[
        bool, typer.Option("--normalise", help="Match the radiometry of the later image to the earlier.")
    ] = False,
    min_area: Annotated[
        float | None, typer.Option(help="The smallest polygon kept, in square metres.")
    ] = None,
    rectangles: Annotated[
        bool, typer.Option("--rectangles", help="Give near-rectangles right angles, as buildings have.")
    ] = False,
    geojson: Annotated[bool, typer.Option("--geojson", help="Write the polygons as GeoJSON too.")] = False,
    date_before: Annotated[str | None, typer.Option(help="Date of the earlier image (YYYY-MM-DD).")] = None,
    date_after: Annotated[str | None, typer.Option(help="Date of the later image (YYYY-MM-DD).")] = None,
    assume_crs: Annotated[
        str | None, typer.Option(help="CRS of files that state none, e.g. EPSG:32633.")
    ] = None,
    no_crs: Annotated[
        bool, typer.Option("--no-crs", help="Compare images without georeference pixel by pixel.")
    ] = False,
    s2_offset: Annotated[
        float | None,
        typer.Option(help="Offset of Sentinel-2 in reflectance (0 or -0.1), over what its metadata say."),
    ] = None,
    tile: Annotated[int | None, typer.Option(help="Side of a tile in pixels.")] = None,
    batch: Annotated[int | None, typer.Option(help="Tiles in one pass of the network.")] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of the network.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    precision: Annotated[str, typer.Option(help="auto, fp32 or bf16.")] = "auto",
    engine: Annotated[
        str, typer.Option(help="What computes: auto, torch, compile, openvino or onnx.")
    ] = "auto",
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from an interrupted run; keep the work if interrupted.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a result that is there.")] = False,
    server: Annotated[
        str | None, typer.Option(help="Have it done by the `terralapse serve` at this address.")
    ] = None,
    token: Annotated[
        str | None, typer.Option(envvar="TERRALAPSE_TOKEN", help="What the server of --server wants.")
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
) -> None:
    """Find what changed between two images of a place."""
    from terralapse.cli.progress import shown_progress
    from terralapse.cli.remote import runner

    run = runner(server, token)
    with shown_progress(quiet=quiet, verbose=verbose) as (progress, say):
        result = run(
            before,
            after,
            output,
            overwrite=overwrite,
            resume=resume,
            progress=progress,
            say=say,
            model=model,
            weights=weights,
            before_map=before_map,
            bands=_split(bands),
            threshold=threshold,
            grid=_grid(grid),
            aoi=aoi,
            zones=zones,
            coregister=coregister,
            normalise=normalise,
            min_area=min_area,
            rectangles=rectangles,
            geojson=geojson,
            date_before=date_before,
            date_after=date_after,
            assume_crs=assume_crs,
            pixel_grid=no_crs,
            s2_offset=s2_offset,
            tile=tile,
            batch=batch,
            threads=threads,
            device=device,
            precision=precision,
            engine=engine,
            seed=seed,
        )
    _print_result(result, as_json=as_json, quiet=quiet)


@app.command()
def demo(
    output: Annotated[Path, typer.Option("-o", "--output", help="The folder of results.")] = Path(
        "terralapse-demo"
    ),
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
) -> None:
    """Run on the pair that ships with it: Joplin, Missouri, before and after the 2011 tornado."""
    from terralapse.cli.progress import shown_progress
    from terralapse.workflows.demo import demo as run

    with shown_progress(quiet=quiet, verbose=verbose) as (progress, say):
        result = run(output, progress=progress, say=say)
    _print_result(result, as_json=as_json, quiet=quiet)


@app.command()
def inspect(
    files: Annotated[list[str], typer.Argument(help="Anything that `terralapse change` takes.")],
    assume_crs: Annotated[str | None, typer.Option(help="CRS of files that state none.")] = None,
    as_json: AsJson = False,
) -> None:
    """Say what a file is: sensor, bands, grid, nodata, date, and what is wrong with it."""
    from terralapse.cli.show import inspection_table
    from terralapse.errors import TerralapseError
    from terralapse.grid.inspect import inspect as look

    found: list[dict[str, Any]] = []
    failures: list[TerralapseError] = []
    for file in files:
        try:
            record = look(file, assume_crs=assume_crs).as_dict()
        except TerralapseError as error:
            failures.append(error)
            continue
        found.append(record)
        if not as_json:
            inspection_table(record)
    if as_json:
        typer.echo(
            json.dumps(found if len(files) > 1 else (found[0] if found else None), indent=1, default=str)
        )
    if failures:
        for error in failures[:-1]:
            typer.echo(f"terralapse: {error}", err=True)
        raise failures[-1]


@app.command()
def systems(
    as_json: AsJson = False,
    status: Annotated[str | None, typer.Option(help="Only those of this status, e.g. runs.")] = None,
    task: Annotated[str | None, typer.Option(help="Only those of this task, e.g. change.")] = None,
) -> None:
    """List every system with its task and its true status."""
    from terralapse.cli.show import systems_table
    from terralapse.registry import systems as known

    wanted = [s for s in known() if status in (None, s.status) and task in (None, s.task)]
    if as_json:
        typer.echo(json.dumps([s.as_dict() for s in wanted], indent=1))
    else:
        systems_table(wanted)


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(help="A YAML file of the folder `recipes`.")],
    settings: Annotated[list[str] | None, typer.Argument(help="key=value over what the recipe says.")] = None,
    data: Annotated[Path, typer.Option("--data", help="The folder of the data set.")] = Path("data"),
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="The folder of the run; by default runs/RECIPE.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Train a system from a recipe; needs the extra `train`."""
    from terralapse.engine.fit import fit
    from terralapse.engine.recipe import Recipe

    chosen = Recipe.read(recipe, settings or ())
    weights = fit(chosen, data, out or Path("runs") / recipe.stem, resume)
    result = json.loads(weights.with_name("result.json").read_text(encoding="utf-8"))
    if as_json:
        typer.echo(json.dumps({"weights": str(weights), **result}, indent=1))
    elif not quiet:
        from terralapse.cli.show import scores_table

        scores_table(f"{chosen.model} on {chosen.data} {chosen.val_split}", {"val": result["validation"]})
        typer.echo(f"Weights  {weights}")


@app.command()
def score(
    system: Annotated[str, typer.Argument(help="A slug of `terralapse systems`.")],
    data: Annotated[str, typer.Option("--data", help="A data set by name, e.g. levir-cd, second, eurosat.")],
    root: Annotated[Path, typer.Option("--root", help="The folder of the data set.")],
    split: Annotated[
        str, typer.Option(help="As the data set calls it; none where ROOT itself is the split.")
    ] = "test",
    option: Annotated[
        list[str] | None, typer.Option("--option", help="key=value for the reader, e.g. holdout=0.1.")
    ] = None,
    build: Annotated[
        list[str] | None, typer.Option("--build", help="key=value for the system, e.g. data=aid.")
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(help="A file of weights in place of its own, or a released one by name.")
    ] = None,
    tile: Annotated[int, typer.Option(help="Side of the tiles that are scored too; 0 for none.")] = 256,
    threshold: Annotated[
        float | None, typer.Option(help="Probability from which a pixel counts as changed (0 to 1).")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps.")] = "cpu",
    output: Annotated[Path | None, typer.Option("-o", "--output", help="A JSON file to write.")] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Score a system on a labelled data set: whole images and tiles, by the published definitions."""
    from terralapse.cli.show import scores_table
    from terralapse.engine.recipe import settings_of
    from terralapse.engine.score import score_split

    report = score_split(
        system,
        data,
        root,
        None if split == "none" else split,
        options=settings_of(option or ()),
        build=settings_of(build or ()),
        weights=weights,
        tile=tile or None,
        threshold=threshold,
        device=device,
    )
    found = report.as_dict()
    if output is not None:
        output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if as_json:
        typer.echo(json.dumps(found, indent=1))
    elif not quiet:
        modes = found["modes"]
        scores_table(f"{system} on {report.title}", {name: m["scores"] for name, m in modes.items()})
        for name, mode in modes.items():
            if (interval := mode["interval_95"]) is not None:
                low, high = interval
                typer.echo(f"{name}: {mode['main']} 95 % interval {100 * low:.2f} to {100 * high:.2f}")
        typer.echo(f"Protocol: {report.protocol}.")


def _split(bands: str | None) -> tuple[str, ...] | None:
    return tuple(b.strip() for b in bands.split(",") if b.strip()) if bands else None


def _grid(text: str) -> str | float:
    try:
        return float(text)
    except ValueError:
        return text


def _print_result(result: Any, *, as_json: bool, quiet: bool) -> None:
    if as_json:
        typer.echo(json.dumps(result.as_dict(), indent=1, default=str))
    elif not quiet:
        from terralapse.cli.show import result_panel

        result_panel(result)
    sys.stdout.flush()
