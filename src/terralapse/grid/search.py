"""Items of a STAC API or of a static catalogue that lie in a place and a period.

An API is searched by pystac-client. A static catalogue is walked here, because a link that leads nowhere must
not hide the items behind the other links: such links are handed back too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import Any

import shapely
from shapely.geometry import box, shape
from shapely.geometry.base import BaseGeometry

from terralapse.errors import FileMissingError, MissingExtraError, TerralapseError, UnreadableFileError
from terralapse.grid import _remote
from terralapse.grid._guess import parse_time
from terralapse.grid._safety import read_text
from terralapse.grid.stac import resolve

_MAX_DEPTH = 8


@dataclass(frozen=True)
class FoundItem:
    """An item as far as choosing needs it: `ground` in longitude and latitude, `cloud` in per cent or None,
    `content` a digest that stands for what it names."""

    href: str
    id: str
    ground: BaseGeometry
    time: datetime
    cloud: float | None
    content: str


@dataclass(frozen=True)
class Period:
    """From the first day to the last, both included."""

    start: datetime
    end: datetime

    @staticmethod
    def of(text: str) -> Period:
        """From `2021-06-01/2021-08-31`."""
        first, last = (date.fromisoformat(t) for t in text.split("/"))
        return Period(datetime.combine(first, time.min, UTC), datetime.combine(last, time.max, UTC))

    def holds(self, when: datetime) -> bool:
        """Whether a time lies in it."""
        return self.start <= when <= self.end

    @property
    def middle(self) -> datetime:
        """Half-way."""
        return self.start + (self.end - self.start) / 2


def search(
    href: str,
    period: Period,
    bounds: tuple[float, float, float, float],
    *,
    collections: Sequence[str] = (),
    max_cloud: float = 100.0,
) -> tuple[list[FoundItem], list[str]]:
    """Items of a place and a period.

    Args:
        href: of an API's landing page, a catalogue, a collection or an item; a path or an address.
        period: of `datetime`.
        bounds: west, south, east, north in degrees.
        collections: names; empty for all.
        max_cloud: items with more `eo:cloud_cover` are left out; those that state none are kept.

    Returns:
        The items by identifier, and the addresses of a static catalogue that lead nowhere.

    Raises:
        UnreadableFileError, FileMissingError: the root cannot be read, or is no STAC.
        MissingExtraError: it is an API, and pystac-client is not installed.
    """
    root = _read(href)
    broken: list[str] = []
    if _is_api(root):
        items = _search_api(href, period, bounds, collections)
    else:
        items = _walk(href, root, set(collections), broken, 0)
    place = box(*bounds)
    found = {}
    for address, item in items:
        known = _found(address, item)
        clear = known.cloud is None or known.cloud <= max_cloud
        if clear and period.holds(known.time) and shapely.intersects(known.ground, place):
            found[known.id, known.href] = known
    return [found[k] for k in sorted(found)], sorted(broken)


def _read(href: str) -> dict[str, Any]:
    if not _remote.is_url(href) and not Path(href).is_file():
        raise FileMissingError(href, "does not exist", "Check the path of the catalogue.")
    text = _remote.read_text(href) if _remote.is_url(href) else read_text(Path(href))
    try:
        tree = json.loads(text)
    except ValueError as error:
        raise UnreadableFileError(href, f"is not JSON ({error})", "Give a STAC catalogue or API.") from error
    if not (isinstance(tree, dict) and tree.get("type") in ("Catalog", "Collection", "Feature")):
        raise UnreadableFileError(href, "is no STAC catalogue, collection or item", "Check the address.")
    return tree


def _is_api(root: dict[str, Any]) -> bool:
    return any(link.get("rel") == "search" for link in _links(root))


def _links(tree: dict[str, Any]) -> list[dict[str, Any]]:
    links = tree.get("links")
    return [x for x in links if isinstance(x, dict)] if isinstance(links, list) else []


def _search_api(
    href: str, period: Period, bounds: tuple[float, float, float, float], collections: Sequence[str]
) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        from pystac_client import Client
        from pystac_client.exceptions import APIError
    except ImportError as error:
        raise MissingExtraError(
            href,
            "is a STAC API, which needs pystac-client",
            "Install it with pip install 'terralapse[scale]'.",
        ) from error
    try:
        asked = Client.open(href).search(
            bbox=list(bounds), datetime=[period.start, period.end], collections=list(collections) or None
        )
        for item in asked.items_as_dicts():
            own = next((x["href"] for x in _links(item) if x.get("rel") == "self"), None)
            if own is None:
                raise UnreadableFileError(
                    href, f"gives the item {item.get('id')} without its address", "Use another API."
                )
            yield resolve(href, str(own)), item
    except APIError as error:
        raise UnreadableFileError(href, f"cannot be searched ({error})", "Check the address.") from error


def _walk(
    href: str, tree: dict[str, Any], collections: set[str], broken: list[str], depth: int
) -> Iterator[tuple[str, dict[str, Any]]]:
    """All items below a catalogue. What cannot be read is put into `broken`."""
    if tree["type"] == "Feature":
        if not collections or tree.get("collection") in collections:
            yield href, tree
        return
    if depth >= _MAX_DEPTH or (
        tree["type"] == "Collection" and collections and tree.get("id") not in collections
    ):
        return
    for link in _links(tree):
        if link.get("rel") not in ("child", "item") or not isinstance(link.get("href"), str):
            continue
        address = resolve(href, link["href"])
        try:
            below = _read(address)
        except TerralapseError:
            broken.append(address)
            continue
        yield from _walk(address, below, collections, broken, depth + 1)


def _found(href: str, item: dict[str, Any]) -> FoundItem:
    properties = item.get("properties") or {}
    when = parse_time(str(properties.get("datetime") or properties.get("start_datetime") or ""))
    try:
        ground = (
            shape(item["geometry"]) if item.get("geometry") else box(*item["bbox"][:2], *item["bbox"][-2:])
        )
    except (KeyError, TypeError, ValueError, AttributeError, shapely.errors.GEOSException) as error:
        raise UnreadableFileError(href, "says no place", "Leave the item out of the catalogue.") from error
    if when is None:
        raise UnreadableFileError(href, "says no time", "Leave the item out of the catalogue.")
    cloud = properties.get("eo:cloud_cover")
    kept = {k: item.get(k) for k in ("id", "assets", "properties")}
    return FoundItem(
        href,
        str(item.get("id")),
        ground,
        when if when.tzinfo else when.replace(tzinfo=UTC),
        float(cloud) if isinstance(cloud, int | float) else None,
        hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:16],
    )
