"""What `alignment.json` says, in the form that the report, the map and the facts need."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

_WARN_PX = 0.5


@dataclass(frozen=True)
class Arrow:
    """The shift found in one block: `x`, `y` are its middle in shares of the grid (0..1, from the upper
    left), `dx`, `dy` pixels to the right and down, `reliable` says if it counted."""

    x: float
    y: float
    dx: float
    dy: float
    reliable: bool


@dataclass(frozen=True)
class AlignmentView:
    """`level` is `good`, `warning` or `unknown`; shifts in pixels of the common grid, None when unknown."""

    level: str
    verdict: str
    found_px: float | None = None
    residual_px: float | None = None
    rows: tuple[tuple[str, str], ...] = ()
    arrows: tuple[Arrow, ...] = field(default=(), repr=False)


def view(report: dict[str, Any], shape: tuple[int, int]) -> AlignmentView:
    """Reads the content of `alignment.json`.

    Args:
        report: as `terralapse.grid.align.AlignmentReport.as_dict` gives it.
        shape: height and width of the common grid.
    """
    found = report.get("coregistration", {})
    residual = found.get("residual_median_px")
    blocks = found.get("blocks", [])
    return AlignmentView(
        level=_level(found.get("status", "skipped"), residual, found.get("misregistered", [])),
        verdict=report["verdict"],
        found_px=found.get("median_before_px"),
        residual_px=residual,
        rows=tuple(_rows(report, found)),
        arrows=tuple(_arrow(b, shape) for b in blocks),
    )


def _level(status: str, residual: float | None, misregistered: list[Any]) -> str:
    if status in ("skipped", "unknown") or residual is None:
        return "unknown"
    good = residual <= _WARN_PX and status != "inconsistent" and not misregistered
    return "good" if good else "warning"


def _arrow(block: dict[str, Any], shape: tuple[int, int]) -> Arrow:
    row, col, height, width = block["window"]
    dy, dx = block["shift_px"] or (0.0, 0.0)
    return Arrow(
        x=(col + width / 2) / shape[1],
        y=(row + height / 2) / shape[0],
        dx=dx,
        dy=dy,
        reliable=block["state"] == "reliable" and block["shift_px"] is not None,
    )


def _rows(report: dict[str, Any], found: dict[str, Any]) -> list[tuple[str, str]]:
    """The numbers, as a table of two columns; what was not measured is left out."""

    def pixels(key: str, metres: str = "") -> str | None:
        value = found.get(key)
        if value is None:
            return None
        ground = found.get(metres)
        return f"{value:.2f} px" + (f" ({ground:.2f} m)" if ground is not None else "")

    shift = found.get("shift_px")
    measured, reliable = found.get("blocks_measured"), found.get("blocks_reliable")
    rows = [
        ("Median distance as delivered", pixels("median_before_px")),
        ("Shift of the later date", _direction(shift["dx"], shift["dy"]) if shift else None),
        ("Its standard error", pixels("standard_error_px")),
        ("Correction", {"none": "none"}.get(found.get("model", "none"), f"by {found.get('model')}")),
        ("Date that was moved", found.get("moved")),
        ("Median distance that is left", pixels("residual_median_px", "residual_median_m")),
        ("90 % of the blocks are within", pixels("residual_p90_px")),
        ("Blocks that could be told", f"{reliable} of {measured}" if measured else None),
        (
            "Places masked as not aligned",
            str(len(found["misregistered"])) if "misregistered" in found else None,
        ),
        ("Common grid", report.get("rule")),
    ]
    for date in ("before", "after"):
        rows.append((f"Resampling of the date {date}", report.get(date, {}).get("resampling")))
    return [(name, text) for name, text in rows if text]


def _direction(dx: float, dy: float) -> str:
    across, down = "right" if dx >= 0 else "left", "down" if dy >= 0 else "up"
    return f"{abs(dx):.2f} px {across}, {abs(dy):.2f} px {down}"
