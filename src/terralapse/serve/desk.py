"""Everything that new analyses need, put together: the queue, the uploads, and who looks at images."""

from __future__ import annotations

import threading
from pathlib import Path

from fastapi import APIRouter

from terralapse.serve import jobs_api, uploads_api
from terralapse.serve.inputs import Inputs
from terralapse.serve.jobs import Jobs
from terralapse.serve.looks import Looker
from terralapse.serve.on_dask import OnDask
from terralapse.serve.options import Options
from terralapse.serve.sources import Sources
from terralapse.serve.uploads import Uploads

_SWEEP = 60.0  # seconds between two looks for what has expired


class Desk:
    """Takes new analyses.

    Args:
        workspace: the folder that the operator gave.
        options: what the operator decided.
        looker: who looks at images; one of its own when it is None.
    """

    def __init__(self, workspace: Path, options: Options, looker: Looker | None = None) -> None:
        limits = options.limits
        fetch = limits.fetch if options.urls else None
        runner = None if options.dask is None else OnDask(options.dask)
        self.jobs = Jobs(workspace, fetch=fetch, database=options.database, runner=runner)
        self._owns = looker is None
        self._soon = options.uploads or options.urls
        self.looker = looker or Looker(limits.look, limits.look_memory, limits.pixels, fetch)
        self.uploads = Uploads(workspace, limits, self.looker, self.jobs.in_use) if options.uploads else None
        sources = Sources(Inputs(options.inputs), self.looker, limits, self.uploads, options.urls)
        self._routers = [jobs_api.router(self.jobs, sources)]
        if self.uploads is not None:
            self._routers.append(uploads_api.router(self.uploads, limits))
        self._ending = threading.Event()

    def routers(self) -> list[APIRouter]:
        """The routes of all parts."""
        return self._routers

    def start(self) -> None:
        """Begins to work through the queue and to remove what has expired."""
        self._ending.clear()
        self.jobs.start()
        if self._owns and self._soon:
            threading.Thread(target=self.looker.warm, name="terralapse-look", daemon=True).start()
        if self.uploads is not None:
            threading.Thread(target=self._sweep, name="terralapse-sweep", daemon=True).start()

    def stop(self) -> None:
        """Ends the work; what is running keeps its work for the next start."""
        self._ending.set()
        self.jobs.stop()
        if self._owns:
            self.looker.close()

    def _sweep(self) -> None:
        assert self.uploads is not None
        while not self._ending.wait(_SWEEP):
            self.uploads.sweep()
