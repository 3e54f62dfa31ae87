"""`disaster.html`: the disaster report as one file that prints, works offline and loads nothing.

There is no script on it, and its content security policy allows none, so that text from names and tags
cannot act.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from PIL import Image

from terralapse._version import __version__
from terralapse.labels import DAMAGE
from terralapse.products.disaster import GRADES, DisasterReport
from terralapse.products.imagery import data_uri

_WIDE = 1560  # pixels of the map sheet on the page


def write_disaster_page(
    report: DisasterReport, sheet: Path, path: Path, *, warnings: list[str], names: dict[str, str], made: str
) -> None:
    """Writes the page.

    Args:
        sheet: the map sheet as PNG.
        path: of the page; its links are relative to the folder of the run.
        warnings: of the run.
        names: of the images `before` and `after`.
        made: the date on which the run was made.
    """
    environment = Environment(
        loader=PackageLoader("terralapse.products", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    css = _asset("report.css") + _asset("disaster.css")
    page = environment.get_template("disaster.html").render(
        report=report,
        facts=report.facts,
        cited={key: i for i, key in enumerate(report.cited, start=1)},
        tiles=_tiles(report),
        grades=_grades(report),
        picture=_picture(sheet),
        warnings=warnings,
        names=names,
        made=made,
        version=__version__,
        css=Markup(css),
        marked=_marked,
    )
    path.write_text(page, encoding="utf-8")


def _asset(name: str) -> str:
    return resources.files("terralapse.products").joinpath("templates", name).read_text(encoding="utf-8")


def _marked(text: str) -> Markup:
    """What stands between backticks as code; everything is escaped."""
    parts = text.split("`")
    told = [Markup("<code>{}</code>").format(p) if i % 2 else escape(p) for i, p in enumerate(parts)]
    return Markup("").join(told)


def _picture(sheet: Path) -> str:
    with Image.open(sheet) as source:
        picture = source.convert("RGB")
    size = (_WIDE, round(picture.height * _WIDE / picture.width))
    return data_uri(np.asarray(picture.resize(size, Image.Resampling.LANCZOS)), quality=86, most=900_000)


def _tiles(report: DisasterReport) -> list[tuple[str, str, str, str]]:
    """Label, value, remark, and the fact that is shown."""
    facts = report.facts
    wanted = [
        ("Destroyed", "damage.destroyed.count", "damage.destroyed.share", "{} of the graded buildings"),
        ("Damaged", "damage.any.count", "damage.any.share", "in some grade, {} of them"),
        ("Roads lost", "roads.lost", "roads.lost.share", "{} of what was compared"),
        ("New water", "water.gained", "water.gained.share", "{} of what was compared"),
        ("Vegetation lost", "vegetation.lost", "vegetation.lost.share", "{} of what was compared"),
        ("Burnt", "cover.burnt.gained", "cover.burnt.gained.share", "{} of what was compared"),
        ("Changed", "area.changed", "share.changed", "{} of what was compared"),
        ("Objects", "object.count", "object.minimum", "of {} or more"),
        ("Not seen", "share.masked", "area.considered", "of {}"),
    ]
    return [
        (label, facts[key].display, remark.format(facts[of].display), key)
        for label, key, of, remark in wanted
        if key in facts and of in facts
    ]


def _grades(report: DisasterReport) -> list[dict[str, Any]]:
    """The grades as parts of a bar, the worst first; empty without grades or buildings."""
    facts = report.facts
    if "damage.buildings" not in facts or not facts["damage.buildings"].value:
        return []
    colours = {c.name: c.colour for c in DAMAGE.classes}
    return [
        {
            "title": title,
            "colour": colours[name],
            "value": facts[f"damage.{name}.share"].value,
            "count": facts[f"damage.{name}.count"].display,
            "share": facts[f"damage.{name}.share"].display,
            "area": facts[f"damage.{name}.area"].display,
            "fact": f"damage.{name}.count",
        }
        for name, title in reversed(GRADES)
    ]
