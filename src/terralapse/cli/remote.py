"""Where `terralapse change` runs: here, or on a server."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from terralapse.errors import SettingError


def runner(server: str | None, token: str | None) -> Callable[..., Any]:
    """What takes the arguments of `workflows.change.change`."""
    if server is None:
        from terralapse.workflows.change import change

        return change
    from terralapse.serve.client import Client

    client = Client(server, token)

    def run(
        before: str,
        after: str,
        output: Path,
        *,
        overwrite: bool,
        resume: bool,
        progress: Callable[[str, int, int], None],
        say: Callable[[str], None],
        **settings: Any,
    ) -> Any:
        from terralapse.serve.client import change, settings_of
        from terralapse.workflows.change import ChangeSettings

        if resume:
            hint = "Leave it out; a server goes on by itself, and so does the sending of an image."
            raise SettingError("--resume", "has no meaning with --server", hint)
        chosen = settings_of(settings, asdict(ChangeSettings()))
        return change(client, before, after, output, chosen, overwrite=overwrite, progress=progress, say=say)

    return run
