"""Reading `facts.json`, with nothing heavier than the standard library."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from terralapse.errors import FileMissingError, UnreadableFileError

VERSION = 2
READABLE = (1, 2)  # 1 has no facts by ninth and none of classes; all that it has reads the same


def read_facts(path: Path) -> dict[str, Any]:
    """The content of a `facts.json` of any version that can be read.

    Raises:
        FileMissingError: there is none.
        UnreadableFileError: it is damaged, no record of facts, or of a version that is not known.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FileMissingError(
            path, "is missing, so this is no finished run", "Give the folder that a run has written."
        ) from error
    except (ValueError, OSError) as error:
        raise UnreadableFileError(path, "is damaged", "Run `terralapse change` again.") from error
    if not isinstance(record, dict) or record.get("schema") != "terralapse-facts":
        raise UnreadableFileError(path, "is no record of facts", "Run `terralapse change` again.")
    if record.get("version") not in READABLE:
        raise UnreadableFileError(
            path,
            f"is of version {record.get('version')} of the facts, and this terralapse reads 1 and 2",
            "Update terralapse, or run `terralapse change` again.",
        )
    well = isinstance(record.get("facts"), list) and isinstance(record.get("summary"), list)
    if not well or not all(set(f) >= _FIELDS for f in record["facts"] if isinstance(f, dict)):
        raise UnreadableFileError(path, "lacks facts or fields of them", "Run `terralapse change` again.")
    return record


_FIELDS = {"id", "kind", "value", "unit", "display", "evidence", "sentence", "cites"}
