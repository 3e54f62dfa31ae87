"""`terralapse report`: a report on a finished run for a purpose."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer


def report(
    output: Annotated[Path, typer.Argument(help="The folder that `terralapse change` has written.")],
    kind: Annotated[
        str, typer.Option("--kind", help="disaster: damage, roads, water, vegetation, and what to do.")
    ] = "disaster",
    event: Annotated[str, typer.Option("--event", help="What the disaster is called, for the title.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Print nothing but errors.")] = False,
) -> None:
    """Write a report for responders into the folder of a run; every statement cites its facts."""
    from terralapse.workflows.report import report as run

    def say(text: str) -> None:
        if not quiet:
            typer.echo(text, err=True)

    content = run(output, kind, event=event, say=say)
    if as_json:
        typer.echo(json.dumps(content, indent=1, ensure_ascii=False))
    elif not quiet:
        _print(content, output)


def _print(content: dict[str, Any], output: Path) -> None:
    typer.echo(" ".join(s["text"] for s in content["short"]))
    for title, key in (("Immediate needs", "immediate"), ("Long-term recovery", "long_term"),
                       ("What this run cannot tell", "cannot_tell")):  # fmt: skip
        if content[key]:
            typer.echo(f"\n{title}")
            typer.echo("\n".join(f"- {s['text']}" for s in content[key]))
    typer.echo(f"\nReport  {output / 'disaster.html'}\nMap     {output / 'disaster.pdf'}")
