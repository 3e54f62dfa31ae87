"""`terralapse facts`: maps of classes and damage added to the facts of a finished run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def facts(
    output: Annotated[Path, typer.Argument(help="The folder that `terralapse change` has written.")],
    classes_before: Annotated[
        Path | None, typer.Option(help="A raster of class ids of the earlier date, of any grid.")
    ] = None,
    classes_after: Annotated[Path | None, typer.Option(help="The same of the later date.")] = None,
    scheme: Annotated[str | None, typer.Option(help="The classes of both, e.g. second-mamba.")] = None,
    damage: Annotated[
        Path | None, typer.Option(help="A raster of grades of damage of buildings (0 none .. 4 destroyed).")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print all facts as JSON.")] = False,
) -> None:
    """Add maps of classes or of damage to a finished run, so that its facts tell what became what."""
    from terralapse.workflows.facts import add_classes

    result = add_classes(output, before=classes_before, after=classes_after, scheme=scheme, damage=damage)
    if as_json:
        typer.echo(json.dumps(list(result.facts.values()), indent=1, ensure_ascii=False))
    else:
        new = [f for f in result.facts.values() if f["evidence"].get("raster", "") in _MAPS]
        typer.echo("\n".join(f["sentence"] for f in new if f["id"].count(".") < 3))


_MAPS = ("classes_before.tif", "classes_after.tif", "damage.tif")
