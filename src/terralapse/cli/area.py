"""`terralapse area`: areas with intervals, from a sample of the map that people have labelled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

area = typer.Typer(
    name="area",
    help="Areas with 95 % intervals from a stratified sample: draw it, label it, estimate.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
AsJson = Annotated[bool, typer.Option("--json", help="Print as JSON on standard output.")]


@area.command()
def sample(
    output: Annotated[Path, typer.Argument(help="The folder that `terralapse change` has written.")],
    folder: Annotated[Path, typer.Option("-o", "--output", help="The folder of the sample.")],
    strata: Annotated[
        str, typer.Option(help="The map to draw from: change, classes_before, classes_after or damage.")
    ] = "change",
    size: Annotated[
        int | None, typer.Option(help="Points in all; by default what --standard-error needs.")
    ] = None,
    standard_error: Annotated[
        float, typer.Option(help="Wanted of the overall accuracy, where --size is not given.")
    ] = 0.02,
    expect: Annotated[
        list[str] | None,
        typer.Option(
            "--expect", help="CLASS=ACCURACY that is expected, e.g. change=0.6; else 0.8; repeatable."
        ),
    ] = None,
    allocation: Annotated[
        str, typer.Option(help="rare (small strata get --least), proportional, equal or neyman.")
    ] = "rare",
    least: Annotated[int, typer.Option(help="Points of a small stratum, for rare.")] = 50,
    buffer: Annotated[
        int, typer.Option(help="Pixels around change that are a stratum of their own; 0 for none.")
    ] = 0,
    seed: Annotated[int, typer.Option(help="The same seed draws the same points.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a sample that is there.")] = False,
    as_json: AsJson = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Print nothing but errors.")] = False,
) -> None:
    """Draw points of a finished run's map, as a CSV and a GeoPackage to label."""
    from terralapse.errors import OutputExistsError
    from terralapse.products.area_sample import Plan, draw, grid_of, write_sample

    if (folder / "sample.json").exists() and not overwrite:
        raise OutputExistsError(folder, "holds a sample", "Choose another folder, or give --overwrite.")
    plan = Plan(size, standard_error, _expected(expect or ()), allocation, least)
    found = draw(output, plan, name=strata, seed=seed, buffer=buffer)
    files = write_sample(found, folder, grid_of(output).crs)
    if as_json:
        typer.echo(json.dumps(found.as_dict(), indent=1))
    elif not quiet:
        for s in found.strata:
            typer.echo(f"{s.title:32} {s.points:6,} points of {s.pixels:,} pixels")
        typer.echo(f"Classes  {', '.join(found.classes)}, or unsure")
        typer.echo(f"Label    {files[0]} or {files[1]}, in the column label")
        typer.echo(f"Then     terralapse area estimate {folder}")


@area.command()
def estimate(
    folder: Annotated[Path, typer.Argument(help="The folder of a sample.")],
    labels: Annotated[
        Path | None, typer.Option(help="The labelled CSV or GeoPackage; by default points.csv of the folder.")
    ] = None,
    as_json: AsJson = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Print nothing but errors.")] = False,
) -> None:
    """Areas and accuracies with 95 % intervals from the labels of a sample."""
    from terralapse.products.area_report import report, write_report
    from terralapse.products.area_sample import read_labels, read_sample

    drawn = read_sample(folder)
    found = report(drawn, read_labels(labels or folder / "points.csv", drawn))
    write_report(found, folder)
    if as_json:
        typer.echo(json.dumps(found.as_dict(), indent=1))
    elif not quiet:
        _print(found.as_dict())


def _expected(given: Any) -> dict[str, float]:
    from terralapse.errors import SettingError

    found = {}
    for text in given:
        name, _, value = text.partition("=")
        try:
            found[name.strip()] = float(value)
        except ValueError as error:
            raise SettingError(f"--expect {text}", "is no CLASS=ACCURACY", "Write change=0.6.") from error
    return found


def _print(found: dict[str, Any]) -> None:
    for one in found["classes"]:
        typer.echo(one["text"])
        for name, title in (("users", "user's"), ("producers", "producer's")):
            typer.echo(f"  {title} accuracy {_share(one[name])}")
    typer.echo(
        f"Overall accuracy {_share(found['overall'])}, {found['labelled']} of {found['points']} points"
    )
    for caution in found["cautions"]:
        typer.echo(f"! {caution}")


def _share(told: dict[str, float | None]) -> str:
    if told["value"] is None or told["low"] is None:
        return "not known"
    return f"{100 * told['value']:.1f} % ± {100 * (told['value'] - told['low']):.1f}"
