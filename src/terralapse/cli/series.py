"""`terralapse series`: breaks and composites of a stack of dated images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer


def series(
    stack: Annotated[
        list[str],
        typer.Argument(help="Dated images; one pattern in quotes or one folder of them; or a cube."),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="The folder of results.")],
    index: Annotated[
        str,
        typer.Option(help="ndvi, nbr, ndwi, mndwi, ndmi, ndbi, evi2, nd:A,B, or a band by name or number."),
    ] = "ndvi",
    scale: Annotated[
        float, typer.Option(help="What the values of a band are multiplied by, e.g. 0.0001.")
    ] = 1.0,
    dates: Annotated[
        Path | None, typer.Option(help="A CSV with the columns file,date, over what the files say.")
    ] = None,
    breaks: Annotated[bool, typer.Option("--breaks/--no-breaks", help="Look for breaks.")] = True,
    period: Annotated[str | None, typer.Option(help="Make composites: monthly, quarterly or yearly.")] = None,
    composite: Annotated[
        str, typer.Option(help="How a composite is made: median, max-ndvi or least-cloud.")
    ] = "median",
    since: Annotated[
        str | None,
        typer.Option(help="Report no break before this day (YYYY-MM-DD); it is still learnt from."),
    ] = None,
    pick: Annotated[
        str, typer.Option(help="Which break of a pixel is written: largest, first or last.")
    ] = "largest",
    probability: Annotated[
        float, typer.Option(help="Share of residuals inside of the limit when nothing changes.")
    ] = 0.99,
    consecutive: Annotated[
        int | None,
        typer.Option(help="Exceedances in a row that make a break; by default 6, or 3 without a season."),
    ] = None,
    harmonics: Annotated[
        int | None, typer.Option(help="Harmonics of the year, 0 to 3; by default what the dates allow.")
    ] = None,
    floor: Annotated[
        float | None, typer.Option(help="Smallest standard error, in units of the index.")
    ] = None,
    grid: Annotated[
        str, typer.Option(help="The common grid: coarser, first, a raster, or metres a pixel.")
    ] = "coarser",
    aoi: Annotated[Path | None, typer.Option(help="A vector file: look only inside of it.")] = None,
    assume_crs: Annotated[
        str | None, typer.Option(help="CRS of files that state none, e.g. EPSG:32633.")
    ] = None,
    s2_offset: Annotated[
        float | None,
        typer.Option(help="Offset of Sentinel-2 in reflectance (0 or -0.1), over what its metadata say."),
    ] = None,
    min_area: Annotated[
        float | None, typer.Option(help="Smallest polygon in m2; by default about four pixels.")
    ] = None,
    geoparquet: Annotated[
        bool, typer.Option("--geoparquet", help="Write the polygons as GeoParquet too.")
    ] = False,
    block: Annotated[int | None, typer.Option(help="Side of a block in pixels: 32 to 512.")] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of the fit.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from an interrupted run; keep the work if interrupted.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a result that is there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Print nothing but errors.")] = False,
    verbose: Annotated[int, typer.Option("-v", "--verbose", count=True, help="Say more.")] = 0,
) -> None:
    """Find when each pixel of a time series broke, and make composites by month, quarter or year."""
    from terralapse.cli.progress import shown_progress
    from terralapse.workflows.series import series as run

    with shown_progress(quiet=quiet, verbose=verbose) as (progress, say):
        result = run(
            stack,
            output,
            overwrite=overwrite,
            resume=resume,
            progress=progress,
            say=say,
            index=index,
            scale=scale,
            dates=dates,
            breaks=breaks,
            period=period,
            composite=composite,
            since=since,
            pick=pick,
            probability=probability,
            consecutive=consecutive,
            harmonics=harmonics,
            floor=floor,
            grid=_grid(grid),
            aoi=aoi,
            assume_crs=assume_crs,
            s2_offset=s2_offset,
            min_area=min_area,
            geoparquet=geoparquet,
            block=block,
            threads=threads,
        )
    if as_json:
        typer.echo(json.dumps(result.as_dict(), indent=1, default=str))
    elif not quiet:
        _print(result)


def _grid(text: str) -> str | float:
    try:
        return float(text)
    except ValueError:
        return text


def _print(result: Any) -> None:
    typer.echo(result.summary)
    for warning in result.warnings:
        typer.echo(f"! {warning}")
    typer.echo(f"\nReport  {result.folder / 'report.html'}")
    if (result.folder / "map.png").is_file():
        typer.echo(f"Map     {result.folder / 'map.png'}")
