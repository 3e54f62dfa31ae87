"""`terralapse run` and `terralapse plan`: change over many places."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from terralapse.engine.jobs.schedule import Progress

SOME_DEAD = 3


def add_to(app: typer.Typer) -> None:
    """Registers the two commands."""
    app.command()(run)
    app.command()(plan)


Plan = Annotated[Path, typer.Argument(help="A YAML file; see the page on large jobs.")]


def run(
    plan: Plan,
    output: Annotated[Path, typer.Option("-o", "--output", help="The folder of the job.")] = Path(
        "terralapse-job"
    ),
    workers: Annotated[int, typer.Option("--workers", help="Workers of this machine.")] = 1,
    executor: Annotated[
        str, typer.Option(help="processes, threads, or cluster (Dask workers of this machine).")
    ] = "processes",
    cluster: Annotated[
        str | None, typer.Option("--cluster", help="A Dask scheduler to use, e.g. tcp://host:8786.")
    ] = None,
    gpus: Annotated[
        str | None, typer.Option("--gpus", help="Cards by number, e.g. 0,1: each worker sees one.")
    ] = None,
    in_flight: Annotated[
        int | None, typer.Option(help="The most units at once; by default two more than workers.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the job in the folder.")] = False,
    retry_dead: Annotated[
        bool, typer.Option("--retry-dead", help="With --resume: try again what was given up.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the counts as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Print nothing but errors.")] = False,
    verbose: Annotated[int, typer.Option("-v", "--verbose", count=True, help="Say more.")] = 0,
) -> None:
    """Find change over many places by a plan. Exit code 3: some units were given up."""
    from terralapse.cli.progress import shown_progress
    from terralapse.engine.jobs.plan import JobPlan
    from terralapse.workflows.run import run_job

    with shown_progress(quiet=quiet, verbose=verbose) as (progress, say):

        def tell(counts: Progress) -> None:
            progress("units", counts.done + counts.dead, max(counts.total, 1))

        result = run_job(
            JobPlan.read(plan),
            output,
            kind="cluster" if cluster else executor,
            workers=workers,
            address=cluster,
            cards=_cards(gpus),
            in_flight=in_flight,
            resume=resume or retry_dead,
            retry_dead=retry_dead,
            tell=tell,
            say=say,
        )
    if as_json:
        typer.echo(json.dumps(result.as_dict(), indent=1))
    elif not quiet:
        typer.echo(f"{result.done:,} of {result.units:,} units done, {result.retries:,} attempts repeated.")
        typer.echo(f"Merged  {result.folder / 'merged'}")
    if not result.complete:
        typer.echo(
            f"terralapse: {result.dead:,} units were given up; why is in {result.dead_letters}.", err=True
        )
        raise typer.Exit(SOME_DEAD)


def plan(
    plan: Plan,
    workers: Annotated[int, typer.Option("--workers", help="Workers to plan for.")] = 1,
    probe: Annotated[
        bool, typer.Option("--probe/--no-probe", help="Run one unit, and measure its time and memory.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print the estimate as JSON.")] = False,
) -> None:
    """Say what a plan would cost before it runs: units, pixels, bytes to read, hours, memory of a worker."""
    from terralapse.engine.jobs.plan import JobPlan
    from terralapse.workflows.cost import estimate

    found = estimate(JobPlan.read(plan), workers=workers, probe=probe)
    if as_json:
        typer.echo(json.dumps(found.as_dict(), indent=1))
    else:
        typer.echo(found.text())


def _cards(text: str | None) -> tuple[int, ...]:
    from terralapse.errors import SettingError

    try:
        return tuple(int(n) for n in text.split(",")) if text else ()
    except ValueError as error:
        raise SettingError(f"gpus {text}", "is no list of numbers", "Write it like --gpus 0,1.") from error
