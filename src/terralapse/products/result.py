"""The finished folder as Python objects: what `terralapse.change` returns.

Everything is read from the folder, so that a result of last year, or of another machine, opens the same way:
`ChangeResult("out")`. Nothing is read before it is asked for.
"""

from __future__ import annotations

import html
import json
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from terralapse.errors import FileMissingError, MissingExtraError, UnreadableFileError
from terralapse.products.facts_file import read_facts

if TYPE_CHECKING:
    import folium
    import geopandas as gpd
    import pandas as pd
    import xarray as xr
    from matplotlib.figure import Figure

    from terralapse.ask.answer import Answer

_MOST_POLYGONS = 5000  # a browser map slows down beyond
_PANEL_PIXELS = 1200


class ChangeResult:
    """A products folder. `run` is the content of its `run.json`: inputs, model, settings, versions, times.

    Args:
        folder: that `terralapse change` has written.

    Raises:
        FileMissingError: there is no finished run in it.
        UnreadableFileError: its `run.json` is not one.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.run: dict[str, Any] = self._json("run.json")

    # --- records -----------------------------------------------------------------------------------
    def _json(self, name: str) -> dict[str, Any]:
        path = self.folder / name
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise FileMissingError(
                path, "is missing, so this is no finished run", "Give the folder that a run has written."
            ) from error
        except (ValueError, OSError) as error:
            raise UnreadableFileError(path, "is damaged", "Run `terralapse change` again.") from error

    @cached_property
    def facts(self) -> dict[str, dict[str, Any]]:
        """The facts by id, each with value, unit, uncertainty, evidence and sentence."""
        return {fact["id"]: fact for fact in read_facts(self.folder / "facts.json")["facts"]}

    @cached_property
    def alignment(self) -> dict[str, Any]:
        """The content of `alignment.json`."""
        return self._json("alignment.json")

    @property
    def summary(self) -> str:
        """The result in a paragraph, made of facts only."""
        return self.run["summary"]["summary"]

    @property
    def warnings(self) -> list[str]:
        """What a reader must know before the result is used."""
        return self.run["summary"]["warnings"]

    def ask(self, question: str, **settings: Any) -> Answer:
        """The answer to a question about this run, see `terralapse.ask.ask`. For a conversation, in which
        questions go on from each other, use `terralapse.ask.Conversation`."""
        # That room stands to the right of this one, so it is looked up by name when it is wanted.
        return import_module("terralapse.ask").ask(self.folder, question, **settings)

    def as_dict(self) -> dict[str, Any]:
        """The summary that `--json` prints."""
        return {"folder": str(self.folder), **self.run["summary"]}

    # --- data --------------------------------------------------------------------------------------
    @cached_property
    def change(self) -> xr.DataArray:
        """uint8 [y, x]: 0 no change, 1 change, 255 not compared. Pixels are read when they are used."""
        return self._raster("change.tif")

    @cached_property
    def probability(self) -> xr.DataArray:
        """float32 [y, x]: probability of change 0..1, NaN where not compared. Read when used."""
        return self._raster("prob.tif", scaled=True)

    @cached_property
    def valid(self) -> xr.DataArray:
        """uint8 [y, x]: codes of `terralapse.labels.Reason`; 0 was compared. Read when used."""
        return self._raster("valid.tif")

    def _raster(self, name: str, scaled: bool = False) -> xr.DataArray:
        from terralapse.products.lazy import open_raster

        return open_raster(self.folder / name, scaled=scaled)

    @cached_property
    def polygons(self) -> gpd.GeoDataFrame:
        """The change polygons, the largest first."""
        import geopandas as gpd

        return gpd.read_file(self.folder / "change.gpkg", layer="change")

    @cached_property
    def stats(self) -> pd.DataFrame:
        """Areas by zone or by square of the grid."""
        import pandas as pd

        return pd.read_csv(self.folder / "stats.csv", dtype={"id": "str", "name": "str"})

    # --- looking -----------------------------------------------------------------------------------
    def plot(self) -> Figure:
        """Before, after and the probability of change with the outlines, side by side."""
        import matplotlib.pyplot as plt
        import numpy as np
        from matplotlib.colors import LinearSegmentedColormap

        from terralapse.products.imagery import CHANGE_COLOUR, RAMP

        figure, axes = plt.subplots(1, 3, figsize=(15, 5.4), sharex=True, sharey=True, layout="constrained")
        pictures = {date: self._picture(date) for date in ("before", "after")}
        for axis, (date, (picture, box)) in zip(axes, pictures.items(), strict=False):
            axis.imshow(picture, extent=box)
            axis.set_title(f"{date.capitalize()}, {self._date(date)}", parse_math=False)
        step = max(1, -(-max(self.probability.shape) // _PANEL_PIXELS))
        shown = np.asarray(self.probability[::step, ::step])
        ramp = LinearSegmentedColormap.from_list("terralapse", RAMP)
        image = axes[2].imshow(shown, extent=pictures["after"][1], cmap=ramp, vmin=0, vmax=1)
        axes[2].set_title("Probability of change")
        figure.colorbar(image, ax=axes[2], shrink=0.8)
        if len(self.polygons):
            self.polygons.boundary.plot(ax=axes[2], color=CHANGE_COLOUR, linewidth=0.7)
        for axis in axes:
            axis.set_aspect("equal")
            axis.tick_params(labelsize=7)
        return figure

    def _picture(self, date: str) -> tuple[Any, tuple[float, float, float, float]]:
        """RGBA of a preview and its extent (left, right, bottom, top)."""
        import numpy as np
        import rasterio

        with rasterio.open(self.folder / f"{date}.tif") as source:
            rgba = np.concatenate([source.read(), source.dataset_mask()[None]])
            box = source.transform
            right, bottom = box.c + box.a * source.width, box.f + box.e * source.height
        return np.moveaxis(rgba, 0, -1), (box.c, right, bottom, box.f)

    def _date(self, date: str) -> str:
        time = self.run["inputs"][date]["time"]
        return time[:10] if time else "date not stated"

    def explore(self) -> folium.Map:
        """An interactive map for notebooks: both dates under the outlines, with a layer switch.

        Raises:
            MissingExtraError: folium is not installed.
            UnreadableFileError: the run has no georeference.
        """
        try:
            import folium
        except ImportError as error:
            raise MissingExtraError(
                "result.explore()",
                "needs folium, which is not installed",
                "pip install 'terralapse[notebook]'",
            ) from error
        if self.run["grid"]["crs"] is None:
            raise UnreadableFileError(self.folder, "has no georeference", "Use result.plot().")
        from terralapse.products.explore import explore

        return explore(self, folium, _MOST_POLYGONS)

    def _repr_html_(self) -> str:
        files = "".join(f"<li><code>{html.escape(name)}</code></li>" for name in self.run["summary"]["files"])
        warnings = "".join(f"<p>⚠ {html.escape(w)}</p>" for w in self.warnings)
        return (
            f"<div><h4>Change, run {html.escape(self.run['run_id'])}</h4><p>{html.escape(self.summary)}</p>"
            f"{warnings}<details><summary>{html.escape(str(self.folder))}</summary><ul>{files}</ul></details></div>"
        )

    def __repr__(self) -> str:
        return f"ChangeResult({str(self.folder)!r})\n{self.summary}"
