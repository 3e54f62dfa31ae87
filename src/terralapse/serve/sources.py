"""What an analysis may be started on: images of the operator's folders, uploads, and public addresses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from terralapse.grid._door import Door
from terralapse.serve.inputs import Inputs
from terralapse.serve.library import NotThereError
from terralapse.serve.looks import Looker
from terralapse.serve.options import Limits
from terralapse.serve.uploads import SUFFIXES, Uploads


class Sources:
    """Finds inputs by the names that clients give; nothing that a client sends becomes a path.

    Args:
        inputs: what lies in the operator's folders.
        looker: says what an image is.
        limits: see `Limits`.
        uploads: None takes none.
        urls: whether public https addresses may be named.
    """

    def __init__(
        self, inputs: Inputs, looker: Looker, limits: Limits, uploads: Uploads | None, urls: bool
    ) -> None:
        self._inputs, self._looker, self._limits = inputs, looker, limits
        self._uploads, self._urls = uploads, urls

    def find(self, name: str) -> Path | str | None:
        """Where an input lies: a path, an address, or None where there is no such input."""
        if name.lower().startswith(("http:", "https:")):
            if self._urls:
                Door(0).check(name)
            return name if self._urls else None
        if self._uploads is not None and (upload := self._uploads.ready().get(name)) is not None:
            return self._uploads.path(upload)
        return self._inputs.all().get(name)

    def look(self, name: str) -> dict[str, Any]:
        """See `Looker.look`; NotThereError where there is no such input."""
        found = self.find(name)
        if found is None:
            raise NotThereError
        return self._looker.look(found)

    def describe(self) -> list[dict[str, Any]]:
        """All that has a name, uploads first and the newest of them at the top."""
        ready = [] if self._uploads is None else self._uploads.ready().values()
        sent = [
            {"name": u.input, "title": u.name, "kind": "upload", "bytes": u.bytes, "id": u.id}
            for u in sorted(ready, key=lambda u: u.created, reverse=True)
        ]
        return [*sent, *self._inputs.describe()]

    def allowed(self) -> dict[str, Any]:
        """What else may be given."""
        taken = {"bytes": self._limits.upload, "suffixes": list(SUFFIXES)}
        return {"uploads": None if self._uploads is None else taken, "urls": self._urls}
