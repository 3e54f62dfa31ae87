"""The facts of a run as an answerer uses them: looked up by id, added, subtracted, never made up."""

from __future__ import annotations

import math
import sqlite3
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from terralapse.ask.answer import Fact
from terralapse.errors import FileMissingError, UnreadableFileError
from terralapse.products import units
from terralapse.products.facts_file import read_facts

NINTHS = (
    "north-west", "north", "north-east", "west", "centre", "east", "south-west", "south", "south-east",
)  # fmt: skip
PARTS = ("north", "south", "east", "west")
GRADES = ("none", "minor", "major", "destroyed")


@dataclass
class Book:
    """All facts of one run.

    `series` says that it is a run over many dates. `classes` are the names of the classes that its maps hold
    with their titles, empty without maps.
    """

    folder: Path
    version: int
    unit: str
    facts: dict[str, Fact]
    summary: list[dict[str, Any]]
    derived: dict[str, Fact] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: str | Path) -> Book:
        """Reads `facts.json` of a run.

        Raises:
            FileMissingError, UnreadableFileError: see `terralapse.products.facts_file.read_facts`.
        """
        folder = Path(folder)
        record = read_facts(folder / "facts.json")
        facts = {f["id"]: f for f in record["facts"]}
        return cls(folder, record["version"], record["area_unit"], facts, record["summary"])

    def __contains__(self, key: str) -> bool:
        return key in self.facts

    def __getitem__(self, key: str) -> Fact:
        return self.facts[key] if key in self.facts else self.derived[key]

    def get(self, key: str) -> Fact | None:
        """A fact that has a value, or None."""
        fact = self.facts.get(key)
        return fact if fact is not None and fact["value"] is not None else None

    @property
    def series(self) -> bool:
        return "series.dates" in self.facts

    @property
    def classes(self) -> dict[str, str]:
        if "classes" not in self.facts:
            return {}
        return {c["name"]: c["title"] for c in self.facts["classes"]["value"]["classes"]}

    @property
    def whole(self) -> bool:
        """Whether the maps of classes hold every pixel, not only those that changed."""
        return "classes" in self.facts and bool(self.facts["classes"]["value"]["whole"])

    @property
    def damage(self) -> bool:
        return "damage.buildings" in self.facts

    @property
    def zones(self) -> dict[str, str]:
        """Names of the zones (or of the squares with the most change) by the key of their facts."""
        if "zones" in self.facts:
            return {f"zone.{z['id']}": z["name"] for z in self.facts["zones"]["value"]}
        squares = [
            k[: -len(".changed")] for k in self.facts if k.startswith("cell.") and k.endswith(".changed")
        ]
        return {k: k.partition(".")[2].upper() for k in squares}

    @property
    def years(self) -> list[int]:
        """Those with a break, of a series."""
        years = {k: f for k, f in self.facts.items() if k.startswith("year.") and k[5:].isdigit()}
        return sorted(int(k[5:]) for k, f in years.items() if f["value"])

    # --- worked out from others ----------------------------------------------------------------------
    def derive(
        self, kind: str, value: Any, sources: list[str], formula: str, unit: str = "", noun: str = "object"
    ) -> Fact:
        """A new fact from others; the same question gives the same one."""
        display = {
            "area": lambda: units.area(value, unit),
            "length": lambda: units.length(value, unit),
            "share": lambda: units.percent(value),
            "count": lambda: units.count(value, noun),
        }.get(kind, lambda: str(value))()
        key = "derived." + formula.replace(" ", "_")
        fact = {
            "id": key, "kind": kind, "value": value, "unit": unit, "display": display,
            "evidence": self[sources[0]]["evidence"] if sources else {"polygons": []},
            "uncertainty": None, "sentence": f"{formula} = {display}.", "cites": sources, "sources": sources,
            "formula": formula, "template": f"{formula} = {display}.",
        }  # fmt: skip
        self.derived[key] = fact
        return fact

    def total(self, keys: list[str], kind: str = "area") -> Fact:
        """The sum of facts of one unit; a single one is returned as it is."""
        if len(keys) == 1:
            return self[keys[0]]
        value = math.fsum(self[k]["value"] for k in keys)
        return self.derive(kind, value, keys, " + ".join(keys), self[keys[0]]["unit"])

    def rest(self, whole: str, part: str) -> Fact:
        """One area less another."""
        value = self[whole]["value"] - self[part]["value"]
        return self.derive("area", value, [whole, part], f"{whole} - {part}", self[whole]["unit"])

    def ratio(self, part: Fact, whole: str) -> Fact | None:
        """The share of one area in another; None of nothing."""
        if not self[whole]["value"]:
            return None
        value = part["value"] / self[whole]["value"]
        return self.derive("share", value, [part["id"], whole], f"{part['id']} / {whole}", "1")

    # --- polygons ------------------------------------------------------------------------------------
    def objects(
        self,
        least: float | None = None,
        most: float | None = None,
        places: tuple[str, ...] = (),
    ) -> list[int]:
        """Ids of the polygons with an area (m2 or pixels) from `least` to `most` in some of the ninths.

        Raises:
            FileMissingError, UnreadableFileError: the file of the polygons is gone or damaged.
        """
        table, command = ("breaks", "series") if self.series else ("change", "change")
        path = self.folder / f"{table}.gpkg"
        if not path.is_file():
            raise FileMissingError(path, "is missing, and the question is about its polygons", "Run again.")
        where, values = ["1"], []
        for sign, bound in ((">=", least), ("<=", most)):
            if bound is not None:
                where.append(f"area_{self.unit} {sign} ?")
                values.append(bound)
        if places:
            where.append(f"location IN ({','.join('?' * len(places))})")
            values += places
        try:
            with sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True) as file:
                rows = file.execute(f"SELECT id FROM {table} WHERE {' AND '.join(where)} ORDER BY id", values)
                found = [int(r[0]) for r in rows]
            file.close()
        except sqlite3.DatabaseError as error:
            raise UnreadableFileError(path, "is damaged", f"Run `terralapse {command}` again.") from error
        return found
