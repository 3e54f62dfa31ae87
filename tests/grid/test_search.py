"""A static catalogue behind a server of this machine: what is found, and what a dead link does."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from shapely.geometry import box

from fixtures_eo import serve
from terralapse.engine.jobs.catalogue import choose
from terralapse.engine.jobs.plan import StacSource
from terralapse.errors import FileMissingError, HostileFileError, UnreadableFileError
from terralapse.grid.search import FoundItem, Period, search

SUMMER = Period.of("2021-06-01/2021-08-31")
HERE = (10.0, 46.0, 10.2, 46.2)


def item(name: str, day: str, cloud: float | None = 10, bounds: tuple[float, ...] = HERE) -> dict[str, Any]:
    properties: dict[str, Any] = {"datetime": f"{day}T10:00:00Z"}
    if cloud is not None:
        properties["eo:cloud_cover"] = cloud
    geometry = json.loads(json.dumps(box(*bounds).__geo_interface__))
    return {
        "type": "Feature", "stac_version": "1.0.0", "id": name, "collection": "made", "bbox": list(bounds),
        "geometry": geometry, "properties": properties, "links": [], "assets": {},
    }  # fmt: skip


def catalogue(folder: Path, items: list[dict[str, Any]], dead: tuple[str, ...] = ()) -> None:
    """A catalogue with one collection, whose links are relative."""
    folder.mkdir(exist_ok=True)
    links = [{"rel": "item", "href": f"./{i['id']}.json"} for i in items]
    links += [{"rel": "item", "href": f"./{name}.json"} for name in dead]
    for i in items:
        (folder / f"{i['id']}.json").write_text(json.dumps(i))
    made = {"type": "Collection", "stac_version": "1.0.0", "id": "made", "links": links}
    (folder / "collection.json").write_text(json.dumps(made))
    below = [{"rel": "self", "href": "./catalog.json"}, {"rel": "child", "href": "./collection.json"}]
    root = {"type": "Catalog", "stac_version": "1.0.0", "id": "root", "links": below}
    (folder / "catalog.json").write_text(json.dumps(root))


def test_items_of_a_place_and_a_period_over_http(tmp_path: Path) -> None:
    items = [
        item("b", "2021-07-01"),
        item("a", "2021-08-31", cloud=None),
        item("cloudy", "2021-07-02", cloud=95),
        item("late", "2021-09-01"),
        item("elsewhere", "2021-07-01", bounds=(20.0, 46.0, 20.2, 46.2)),
    ]
    catalogue(tmp_path / "c", items, dead=("gone",))
    with serve(tmp_path / "c") as address:
        found, broken = search(f"{address}/catalog.json", SUMMER, HERE, max_cloud=80)
        assert [(f.id, f.cloud) for f in found] == [("a", None), ("b", 10)]
        assert found[1].href == f"{address}/b.json"
        assert broken == [f"{address}/gone.json"]
        assert search(f"{address}/catalog.json", SUMMER, HERE, collections=("other",)) == ([], [])
        with pytest.raises(FileMissingError):
            search(f"{address}/nothing.json", SUMMER, HERE)
    local, _ = search(str(tmp_path / "c" / "catalog.json"), SUMMER, HERE)
    assert [f.id for f in local] == ["a", "b", "cloudy"]


def test_a_catalogue_of_another_machine_names_no_file_of_this_one(tmp_path: Path) -> None:
    catalogue(tmp_path / "c", [])
    (tmp_path / "c" / "catalog.json").write_text(
        json.dumps({"type": "Catalog", "links": [{"rel": "item", "href": "file:///etc/passwd"}]})
    )
    with serve(tmp_path / "c") as address, pytest.raises(HostileFileError):
        search(f"{address}/catalog.json", SUMMER, HERE)


def test_what_is_no_catalogue(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"type": "FeatureCollection"}')
    with pytest.raises(UnreadableFileError, match="no STAC"):
        search(str(tmp_path / "a.json"), SUMMER, HERE)


def found(name: str, day: str, cloud: float | None, bounds: tuple[float, ...] = HERE) -> FoundItem:
    when = datetime.fromisoformat(day).replace(tzinfo=UTC)
    return FoundItem(f"{name}.json", name, box(*bounds), when, cloud, name)


def picked(among: list[FoundItem], **rules: Any) -> list[str]:
    source = StacSource("c.json", "", "", **rules)
    return [i.id for i in choose(among, box(10.0, 46.0, 10.1, 46.1), SUMMER, source)]


def test_candidates_for_the_best_cover_the_cell_and_come_in_order() -> None:
    half = (10.0, 46.0, 10.05, 46.1)
    items = [
        found("clear-but-half", "2021-07-16", 0, half),
        found("cloudy", "2021-07-16", 40),
        found("early", "2021-06-02", 5),
        found("middle", "2021-07-15", 5),
        found("silent", "2021-07-16", None),
    ]
    assert picked(items) == ["middle", "early", "cloudy", "silent"]
    assert picked(items[:1]) == ["clear-but-half"]
    assert picked([found("away", "2021-07-16", 0, (12, 46, 13, 47))]) == []
    assert picked(items, cover=0.4)[0] == "clear-but-half"
    many = [found(f"i{n:03d}", "2021-07-16", 5) for n in range(60)]
    assert picked(many[::-1]) == [i.id for i in many[:50]]


def test_a_composite_takes_the_clearest_first() -> None:
    items = [found("c", "2021-07-16", 40), found("a", "2021-06-01", 5), found("b", "2021-07-16", 5)]
    assert picked(items, rule="composite") == ["b", "a", "c"]
    assert picked(items, rule="composite", items=2) == ["b", "a"]
