"""`terralapse look`: Sentinel-2 as six pictures and a text, and an answer to a closed question."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def look(
    image: Annotated[str, typer.Argument(help="A scene of Sentinel-2: folder, SAFE, STAC item, cube.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The folder of pictures and text.")],
    classes: Annotated[str, typer.Option("--classes", help="The options, separated by commas.")],
    question: Annotated[str | None, typer.Option(help="In place of which class the scene shows.")] = None,
    several: Annotated[bool, typer.Option("--several", help="More than one class may be right.")] = False,
    ndvi: Annotated[
        str, typer.Option(help="notebook (0 to 1, as published) or rescaled (-1 to 1).")
    ] = "notebook",
    span: Annotated[float, typer.Option(help="NDWI and NDMI are shown from -SPAN to SPAN.")] = 0.8,
    least: Annotated[int, typer.Option(help="Enlarge smaller pictures to this side, in pixels.")] = 0,
    prototypes: Annotated[
        Path | None, typer.Option(help="A file of prototypes, to answer by the indices; else by rules.")
    ] = None,
    base_url: Annotated[
        str | None, typer.Option("--base-url", help="An OpenAI-compatible endpoint that sees and answers.")
    ] = None,
    llm: Annotated[str | None, typer.Option("--llm", help="The name of its model.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a result that is there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print run.json.")] = False,
) -> None:
    """Show a vision-language model Sentinel-2 in six pictures; without one, answer by the indices alone."""
    from terralapse.workflows.look import look as run

    chat = None
    if llm is not None or base_url is not None:
        from terralapse.ask.writer import Writer

        chat = Writer(base_url, llm, tokens=100)
    result = run(
        image,
        output,
        classes=[c.strip() for c in classes.split(",")],
        question=question,
        several=several,
        ndvi=ndvi,
        span=span,
        least=least,
        prototypes=prototypes,
        chat=chat,
        chat_name=llm or "",
        overwrite=overwrite,
    )
    if as_json:
        typer.echo(json.dumps(result, indent=1))
        return
    answer = result["answer"]
    said = ", ".join(answer["classes"]) or f"no class in the reply {answer['text'][:80]!r}"
    typer.echo(f"{said}  (by {answer['answerer']})\nPictures  {output}")
