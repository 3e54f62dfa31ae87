"""`terralapse bench dvl`: whoever answers questions on series of dates, under the rules of DVL-Bench."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer


def dvl(
    root: Annotated[Path, typer.Option("--root", help="The folder that holds train and test.")],
    answerer: Annotated[
        str,
        typer.Option(
            help="Who answers: rules or agent (about the runs in --runs), vlm (a model that sees images, "
            "behind --base-url), or SLUG=WEIGHTS of a system."
        ),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="The folder of results.")] = Path(
        "terralapse-dvl"
    ),
    runs: Annotated[
        Path | None, typer.Option("--runs", help="For rules and agent: CITY/REGION, each a finished run.")
    ] = None,
    split: Annotated[str, typer.Option(help="test (DVL-Bench) or train (DVL-Instruct).")] = "test",
    tasks: Annotated[
        str | None, typer.Option("--tasks", help="Comma-separated codes, e.g. BCA-QA,EA; all by default.")
    ] = None,
    base_url: Annotated[
        str | None, typer.Option("--base-url", help="An OpenAI-compatible endpoint; else OPENAI_BASE_URL.")
    ] = None,
    llm: Annotated[
        str | None, typer.Option("--llm", help="For agent and vlm: the name of the model.")
    ] = None,
    judge: Annotated[
        str, typer.Option(help="Who grades texts: rules (offline), or the name of a model of the endpoint.")
    ] = "rules",
    prompts: Annotated[
        Path | None, typer.Option("--prompts", help="A JSON file of templates in the place of ours.")
    ] = None,
    video: Annotated[bool, typer.Option("--video", help="Show the dates as one video.")] = False,
    partial: Annotated[
        bool, typer.Option("--partial", help="Leave out questions whose images are not there.")
    ] = False,
    limit: Annotated[
        int | None, typer.Option(help="Only the first N questions of each task: a quick look, marked as one.")
    ] = None,
    device: Annotated[str, typer.Option(help="Of a system: cpu, cuda, cuda:1, mps.")] = "cpu",
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on from the answers of a benchmark that broke off."),
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a result that is there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print dvl.json on standard output.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Print nothing but errors.")] = False,
    verbose: Annotated[int, typer.Option("-v", "--verbose", count=True, help="Say more.")] = 0,
) -> None:
    """Ask the questions of DVL-Bench on series of dates, and score the answers."""
    from terralapse.cli.progress import shown_progress
    from terralapse.workflows.dialogue import bench_dvl

    named = answerer if llm is None else f"{answerer} {llm}"
    who = _answerer(answerer, runs, base_url, llm, device)
    grader: Any = None
    if judge != "rules":
        from terralapse.ask.vision import Vision
        from terralapse.engine.dialogue import judge_prompt

        model = Vision(base_url, judge)

        def graded(question: Any, text: str) -> str:
            return model.judge(judge_prompt(question, text))

        grader = graded

    with shown_progress(quiet=quiet, verbose=verbose) as (progress, _say):
        result = bench_dvl(
            output,
            root,
            who,
            name=named,
            split=split,
            tasks=[t.strip() for t in tasks.split(",") if t.strip()] if tasks else None,
            judge=grader,
            judge_name=judge,
            prompts=prompts,
            video=video,
            partial=partial,
            limit=limit,
            overwrite=overwrite,
            resume=resume,
            progress=progress,
        )
    if as_json:
        typer.echo(json.dumps(result, indent=1))
    elif not quiet:
        _print(result, output)


def _answerer(
    name: str, runs: Path | None, base_url: str | None, llm: str | None, device: str
) -> Callable[..., Any]:
    from terralapse.engine.dialogue import NotAnsweredError, of_model, of_runs
    from terralapse.errors import FileMissingError, SettingError

    if name in ("rules", "agent"):
        from terralapse.ask import Conversation

        if runs is None:
            raise SettingError(f"answerer {name}", "answers about finished runs", "Give --runs FOLDER.")
        if not runs.is_dir():
            raise FileMissingError(runs, "is not there", "Give the folder of the runs.")

        def opened(place: str) -> Any:
            if not (runs / place / "facts.json").is_file():
                raise NotAnsweredError(f"no run of {place}")
            return Conversation(runs / place, name, base_url=base_url, llm=llm)

        return of_runs(opened)
    if runs is not None:
        raise SettingError("runs", "are for the answerers rules and agent", "Leave --runs out.")
    if name == "vlm":
        from terralapse.ask.vision import Vision

        return of_model(Vision(base_url, llm))
    from terralapse import registry

    slug, _, weights = name.partition("=")
    system: Any = registry.build(slug, **({"weights": weights} if weights else {}))
    if not callable(system):
        raise SettingError(f"answerer {slug}", "answers no questions on series", "Use rules, agent or vlm.")
    return system.to(device)  # pyright: ignore[reportFunctionMemberAccess]


def _print(result: dict[str, Any], output: Path) -> None:
    from terralapse.workflows.dialogue import RESULT, rows

    table = [("task", "measure", "score", "questions"), *rows(result)]
    wide = [max(len(r[k]) for r in table) for k in range(4)]
    typer.echo(f"{result['data']['title']}, answered by {result['answerer']}")
    for row in table:
        typer.echo("  ".join(cell.ljust(n) for cell, n in zip(row, wide, strict=True)).rstrip())
    if result["quick_look"]:
        typer.echo("! Only the first questions of each task were asked.")
    if missing := result["data"]["without_images"]:
        typer.echo(f"! {missing} questions were left out, since their images are not there.")
    if result["judge"] == "rules":
        typer.echo("! Grades are those of rules and stand beside those of no other judge.")
    typer.echo(f"\nScores  {output / RESULT}")
