"""The finished folder of a series as a Python object: what `terralapse.workflows.series.series` returns."""

from __future__ import annotations

import json
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from terralapse.errors import FileMissingError, UnreadableFileError
from terralapse.products.facts_file import read_facts

if TYPE_CHECKING:
    import xarray as xr

    from terralapse.ask.answer import Answer


class SeriesResult:
    """A products folder of a series. `run` is the content of its `run.json`.

    Args:
        folder: that `terralapse series` has written.

    Raises:
        FileMissingError: there is no finished run in it.
        UnreadableFileError: its `run.json` is not that of a series.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.run: dict[str, Any] = self._json("run.json")
        if self.run.get("kind") != "series":
            raise UnreadableFileError(
                self.folder, "is the result of another command", "Give a folder of `terralapse series`."
            )

    def _json(self, name: str) -> dict[str, Any]:
        path = self.folder / name
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise FileMissingError(
                path, "is missing, so this is no finished run", "Give the folder that a run has written."
            ) from error
        except (ValueError, OSError) as error:
            raise UnreadableFileError(path, "is damaged", "Run `terralapse series` again.") from error

    @cached_property
    def facts(self) -> dict[str, dict[str, Any]]:
        """The facts by id, each with value, unit, evidence and sentence."""
        return {fact["id"]: fact for fact in read_facts(self.folder / "facts.json")["facts"]}

    @property
    def summary(self) -> str:
        """The result in a paragraph, made of facts only."""
        return self.run["summary"]["summary"]

    @property
    def warnings(self) -> list[str]:
        """What a reader must know before the result is used."""
        return self.run["summary"]["warnings"]

    def raster(self, name: str) -> xr.DataArray:
        """A raster by its name without extension (`break_date`, `magnitude`, ...), as it is stored. Read
        when it is used.

        Raises:
            FileMissingError: the run has no such raster.
        """
        from terralapse.products.lazy import open_raster

        path = self.folder / f"{name}.tif"
        if not path.is_file():
            raise FileMissingError(path, "is no raster of this run", "See run.json for its products.")
        return open_raster(path, scaled=False)

    def ask(self, question: str, **settings: Any) -> Answer:
        """The answer to a question about this run, see `terralapse.ask.ask`. For a conversation, in which
        questions go on from each other, use `terralapse.ask.Conversation`."""
        # That room stands to the right of this one, so it is looked up by name when it is wanted.
        return import_module("terralapse.ask").ask(self.folder, question, **settings)

    def as_dict(self) -> dict[str, Any]:
        """The summary that `--json` prints."""
        return {"folder": str(self.folder), **self.run["summary"]}

    def __repr__(self) -> str:
        return f"SeriesResult({str(self.folder)!r})\n{self.summary}"
