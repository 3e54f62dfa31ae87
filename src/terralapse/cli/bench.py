"""`terralapse bench`: comparing detectors, and whoever answers questions, under one protocol each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from terralapse.cli.bench_dvl import dvl

bench = typer.Typer(
    name="bench",
    help="Compare detectors, and whoever answers questions, under one protocol each.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
bench.command()(dvl)


@bench.command()
def change(
    data: Annotated[str, typer.Option("--data", help="A data set by name, e.g. levir-cd, mshs-bcd, second.")],
    root: Annotated[Path, typer.Option("--root", help="The folder of the data set.")],
    models: Annotated[
        str, typer.Option("--models", help="Comma-separated slugs, or SLUG=WEIGHTS for weights of your own.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="The folder of results.")] = Path(
        "terralapse-bench"
    ),
    split: Annotated[str, typer.Option(help="The test split; none where ROOT itself is the split.")] = "test",
    threshold: Annotated[
        str, typer.Option(help="card: as each card states; val: chosen on the validation split.")
    ] = "card",
    val_split: Annotated[str, typer.Option(help="Where --threshold val chooses.")] = "val",
    option: Annotated[
        list[str] | None, typer.Option("--option", help="key=value for the reader, e.g. gsd=0.5.")
    ] = None,
    tile: Annotated[int, typer.Option(help="Side of the tiles that are scored beside whole images.")] = 256,
    limit: Annotated[
        int | None, typer.Option(help="Only the first N images: a quick look, marked as one.")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of the networks.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "cpu",
    samples: Annotated[int, typer.Option(help="Draws of the bootstrap.")] = 2000,
    seed: Annotated[int, typer.Option(help="Seed of the bootstrap and of the perturbations.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a result that is there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print bench.json on standard output.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Print nothing but errors.")] = False,
    verbose: Annotated[int, typer.Option("-v", "--verbose", count=True, help="Say more.")] = 0,
) -> None:
    """Compare detectors of change on a labelled data set: scores, tests, robustness, costs."""
    from terralapse.cli.progress import shown_progress
    from terralapse.engine.recipe import settings_of
    from terralapse.workflows.bench import bench_change

    with shown_progress(quiet=quiet, verbose=verbose) as (progress, say):
        result = bench_change(
            output,
            overwrite=overwrite,
            progress=progress,
            say=say,
            data=data,
            root=root,
            models=tuple(m.strip() for m in models.split(",") if m.strip()),
            split=split,
            val_split=val_split,
            threshold=threshold,
            options=settings_of(option or ()),
            tile=tile,
            limit=limit,
            threads=threads,
            device=device,
            samples=samples,
            seed=seed,
        )
    if as_json:
        typer.echo(json.dumps(result, indent=1))
    elif not quiet:
        _print(result, output)


@bench.command()
def disaster(
    data: Annotated[Path, typer.Option("--data", help="The folder with the JSON files of DisasterM3.")],
    answerer: Annotated[
        str,
        typer.Option(
            "--answerer",
            help="rules (counts in maps), agent (a model reads the counts), vlm (one that sees), or files.",
        ),
    ] = "rules",
    output: Annotated[Path, typer.Option("-o", "--output", help="The folder of results.")] = Path(
        "terralapse-disaster"
    ),
    subsets: Annotated[
        str | None, typer.Option("--subsets", help="Comma-separated; by default those that are there.")
    ] = None,
    maps: Annotated[
        Path | None, typer.Option("--maps", help="For rules and agent: a folder with damage/ and roads/.")
    ] = None,
    responses: Annotated[
        Path | None, typer.Option("--responses", help="For files: SUBSET.jsonl of a runner, and masks/.")
    ] = None,
    base_url: Annotated[
        str | None, typer.Option("--base-url", help="An OpenAI-compatible endpoint; else OPENAI_BASE_URL.")
    ] = None,
    llm: Annotated[str | None, typer.Option("--llm", help="For agent and vlm: the model's name.")] = None,
    side: Annotated[
        int | None, typer.Option("--side", help="For vlm: resize images to squares of this side.")
    ] = None,
    judge: Annotated[
        str, typer.Option("--judge", help="Of reports: facts (offline), model, or none.")
    ] = "facts",
    judge_llm: Annotated[
        str | None, typer.Option("--judge-llm", help="For --judge model: the model's name.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="Only the first N of each subset: a quick look, marked as one.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a result that is there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print bench.json on standard output.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Print nothing but errors.")] = False,
    verbose: Annotated[int, typer.Option("-v", "--verbose", count=True, help="Say more.")] = 0,
) -> None:
    """Score an answerer on the nine tasks of DisasterM3: choices, masks and judged reports."""
    from terralapse.ask.disaster.answerers import answerer_of
    from terralapse.ask.disaster.judges import judge_of
    from terralapse.ask.disaster.run import DisasterSettings, run_disaster
    from terralapse.cli.progress import shown_progress

    who = answerer_of(answerer, maps=maps, responses=responses, base_url=base_url, llm=llm, side=side)
    marks = judge_of(judge, base_url, judge_llm)
    names = tuple(n.strip() for n in subsets.split(",") if n.strip()) if subsets else None
    notes = tuple((k, str(v)) for k, v in (("maps", maps), ("side", side)) if v is not None)
    with shown_progress(quiet=quiet, verbose=verbose) as (progress, _):
        result = run_disaster(
            DisasterSettings(data, names, limit, notes),
            output,
            who,
            marks,
            resume=resume,
            overwrite=overwrite,
            progress=progress,
        )
    if as_json:
        typer.echo(json.dumps(result, indent=1))
    elif not quiet:
        _print_disaster(result, output)


@bench.command()
def verify(
    folder: Annotated[Path, typer.Argument(help="The folder of a benchmark.")],
) -> None:
    """Check the log of a benchmark: its chain, its protocol, and that the result is the one it names."""
    from terralapse.workflows.bench import verify_bench

    found = verify_bench(folder)
    for fault in found:
        typer.echo(fault)
    if found:
        raise typer.Exit(2)
    typer.echo("The log holds: the test split was opened once, after every model had been frozen.")


def _print(result: dict[str, Any], output: Path) -> None:
    from terralapse.cli.show import bench_table
    from terralapse.products.bench_page import scores
    from terralapse.products.bench_words import advice, cautions

    bench_table(f"{result['data']['title']}, per cent", scores(result))
    for sentence in advice(result):
        typer.echo(sentence)
    for sentence in cautions(result):
        typer.echo(f"! {sentence}")
    typer.echo(f"\nPage  {output / 'index.html'}")


def _print_disaster(result: dict[str, Any], output: Path) -> None:
    from terralapse.ask.disaster.tables import cautions, tables
    from terralapse.cli.show import bench_table

    for title, head, rows in tables(result):
        bench_table(title, {"head": head, "rows": [[(cell, cell) for cell in row] for row in rows]})
    for sentence in cautions(result):
        typer.echo(f"! {sentence}")
    typer.echo(f"\nTables  {output / 'bench.md'}")
