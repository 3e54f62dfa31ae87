"""`terralapse export`: a detector as one file for other runtimes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def export(
    system: Annotated[str, typer.Argument(help="A slug of `terralapse systems`, a network for change.")],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="The file: .onnx, .xml (OpenVINO) or .pt2 (torch.export).")
    ],
    form: Annotated[
        str, typer.Option("--format", help="auto (as the suffix says), onnx, openvino or torch.")
    ] = "auto",
    weights: Annotated[
        Path | None, typer.Option(help="A file of weights in place of its own, or a released one by name.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the card and the comparison as JSON on standard output.")
    ] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Print nothing but errors.")] = False,
) -> None:
    """Write a detector to one file that runs without terralapse, checked on real tiles."""
    from terralapse.workflows.export import export_system

    card, check = export_system(system, output, kind=form, weights=weights, overwrite=overwrite)
    if as_json:
        typer.echo(json.dumps({"file": str(output), "card": card, "check": check.as_dict()}, indent=1))
    elif not quiet:
        typer.echo(f"{output}  {card['slug']}, {', '.join(card['inputs'])} -> {card['output']}")
        typer.echo(
            f"On {check.pixels} pixels of a real pair it differs from torch in float32 by at most "
            f"{check.max_difference:.2g} in probability; {check.share_flipped:.4%} of them change sides."
        )
        if check.own_rounding:
            typer.echo(f"Torch in float32 itself differs from float64 by {check.own_rounding:.2g} there.")
