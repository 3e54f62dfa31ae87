"""`terralapse serve`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def serve(
    results: Annotated[
        list[Path] | None,
        typer.Argument(help="Folders that a run has written, or folders of them; by default this one."),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to bind to; any but the loopback needs a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes one that is free.")] = 8800,
    token: Annotated[
        str | None,
        typer.Option(envvar="TERRALAPSE_TOKEN", help="What everyone who opens the map must bring."),
    ] = None,
    basemap: Annotated[
        str | None, typer.Option(help="Background tiles, https://host/{z}/{x}/{y}.png; none by default.")
    ] = None,
    workspace: Annotated[
        Path | None, typer.Option(help="A folder for analyses that are started from the page.")
    ] = None,
    inputs: Annotated[
        list[Path] | None,
        typer.Option("--inputs", help="A folder of images that may be compared from the page; repeatable."),
    ] = None,
    uploads: Annotated[
        bool, typer.Option("--uploads", help="Let images be sent to the workspace from the page.")
    ] = False,
    upload_limit: Annotated[float, typer.Option(help="The largest image that may be sent, in GB.")] = 4.0,
    allow_urls: Annotated[
        bool,
        typer.Option("--allow-urls", help="Let images be named by public https addresses (COG, STAC item)."),
    ] = False,
    reviews: Annotated[
        Path | None,
        typer.Option(help="A folder for reviews and samples; by default --workspace, else none are kept."),
    ] = None,
    database: Annotated[
        str | None,
        typer.Option(
            envvar="TERRALAPSE_DATABASE",
            help="Keep the queue and the reviews in a PostgreSQL, postgresql+psycopg://USER@HOST/NAME.",
        ),
    ] = None,
    dask: Annotated[
        str | None,
        typer.Option(help="Run analyses under the workers of a Dask cluster, tcp://HOST:8786."),
    ] = None,
    llm: Annotated[
        str | None, typer.Option(help="A language model that may be asked on the page, beside the rules.")
    ] = None,
    base_url: Annotated[
        str | None,
        typer.Option("--base-url", help="Its OpenAI-compatible endpoint; else OPENAI_BASE_URL."),
    ] = None,
    show: Annotated[bool, typer.Option("--open", help="Open the map in the browser.")] = False,
) -> None:
    """Show results on a map in the browser, and start analyses from it; needs the extra `serve`."""
    from terralapse.errors import SettingError
    from terralapse.serve.options import Limits, Options
    from terralapse.serve.run import serve as run

    if not 0 < upload_limit <= 1e6:
        raise SettingError(f"upload-limit {upload_limit:g}", "is out of range", "Give GB, for example 4.")
    options = Options(
        tuple(results or ([] if workspace else [Path()])),
        host=host,
        port=port,
        token=token,
        basemap=basemap,
        workspace=workspace,
        inputs=tuple(inputs or ()),
        uploads=uploads,
        urls=allow_urls,
        limits=Limits(upload=int(upload_limit * 10**9)),
        reviews=reviews,
        database=database,
        dask=dask,
        llm=llm,
        base_url=base_url,
    )
    run(options, typer.echo, _show if show else None)


def _show(address: str) -> None:
    typer.launch(address)
