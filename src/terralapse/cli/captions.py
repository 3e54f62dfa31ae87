"""`terralapse captions`: image-text data from maps and images, and its check."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

captions = typer.Typer(
    name="captions",
    help="Make captions of maps and images, each sentence checked, and check them again.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@captions.command()
def make(
    source: Annotated[Path, typer.Argument(help="A map, a folder of maps, or a folder or zip of images.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The folder of shards.")],
    kind: Annotated[
        str, typer.Option("--kind", help="chatearthnet (from maps of classes) or gaia (five an image).")
    ],
    scheme: Annotated[
        str | None,
        typer.Option(help="The classes of a map: worldcover, chatearthnet, ..., or 1=Name,2=Name."),
    ] = None,
    image: Annotated[
        Path | None, typer.Option(help="The image of a map, of any grid; for a folder of maps theirs.")
    ] = None,
    column: Annotated[str | None, typer.Option(help="For polygons: the column of the classes.")] = None,
    metadata: Annotated[
        Path | None,
        typer.Option(help="For images: CSV or JSON with a column `image` and what is known of it."),
    ] = None,
    about: Annotated[
        list[str] | None,
        typer.Option("--about", help="key=value of all images, e.g. satellite=Sentinel-2, gsd=10."),
    ] = None,
    folder_tag: Annotated[
        bool, typer.Option("--folder-tag", help="The name of an image's folder is its tag.")
    ] = False,
    licence: Annotated[str, typer.Option(help="Of the source; it is recorded with every sample.")] = "",
    tile: Annotated[int, typer.Option(help="Side in pixels of the tiles of a large map.")] = 256,
    shard: Annotated[int, typer.Option(help="Items in one tar.")] = 512,
    parquet: Annotated[bool, typer.Option("--parquet", help="Write each shard as a table too.")] = False,
    variant: Annotated[
        str | None,
        typer.Option(help="Of chatearthnet with a language model: 3.5 (text) or 4v (with the map)."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the words that the rules choose among.")] = 0,
    base_url: Annotated[
        str | None, typer.Option("--base-url", help="An OpenAI-compatible endpoint that rewrites.")
    ] = None,
    llm: Annotated[str | None, typer.Option("--llm", help="The name of its model.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from an interrupted run.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a result that is there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print run.json.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Print nothing but errors.")] = False,
    verbose: Annotated[int, typer.Option("-v", "--verbose", count=True, help="Say more.")] = 0,
) -> None:
    """Make captions: statistics to text by rules, or by a language model whose every sentence is checked."""
    from terralapse.cli.progress import shown_progress
    from terralapse.engine.recipe import settings_of
    from terralapse.workflows.captions import first_captions, make_captions

    chat = None
    if llm is not None or base_url is not None:
        from terralapse.ask.writer import Writer

        chat = Writer(base_url, llm)
    with shown_progress(quiet=quiet, verbose=verbose) as (progress, _say):
        result = make_captions(
            source,
            output,
            kind=kind,
            scheme=scheme,
            image=image,
            column=column,
            metadata=metadata,
            about=settings_of(about or ()),
            folder_tag=folder_tag,
            licence=licence,
            tile=tile,
            shard=shard,
            parquet=parquet,
            seed=seed,
            chat=chat,
            chat_name=llm or "",
            build={} if variant is None else {"variant": variant},
            overwrite=overwrite,
            resume=resume,
            progress=progress,
        )
    if as_json:
        typer.echo(json.dumps(result, indent=1, ensure_ascii=False))
    elif not quiet:
        for key, said in first_captions(output):
            typer.echo("\n".join([key, *(f"  {s}" for s in said)]))
        told = ", ".join(f"{n:,} {what}" for what, n in result["counts"].items() if n)
        typer.echo(f"\n{result['samples']:,} samples ({told}) in {output}")


@captions.command()
def check(
    folder: Annotated[Path, typer.Argument(help="A folder that `terralapse captions make` wrote.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Check the hash of every file, and every sentence against the statistics that stand beside it."""
    from terralapse.workflows.captions import check_captions

    found: dict[str, Any] = check_captions(folder)
    if as_json:
        typer.echo(json.dumps(found, indent=1, ensure_ascii=False))
    else:
        for fault in found["faults"]:
            typer.echo(fault)
        if not found["faults"]:
            typer.echo(f"{found['sentences']:,} sentences of {found['samples']:,} samples hold.")
    if found["faults"]:
        raise typer.Exit(2)
