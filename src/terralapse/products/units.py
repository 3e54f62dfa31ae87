"""Numbers as people read them. Rounding happens here and nowhere before."""

from __future__ import annotations

import math
from datetime import datetime

_NO = "not known"


def number(value: float, digits: int = 3) -> str:
    """Three significant digits, thousands with commas, no exponent: 1,230 or 0.0123."""
    if not math.isfinite(value):
        return _NO
    if value == 0:
        return "0"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    rounded = round(value, digits - 1 - math.floor(math.log10(abs(value))))
    text = f"{rounded:,.{min(decimals, 6)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def count(value: int, one: str, many: str | None = None) -> str:
    """`1 object`, `1,234 objects`."""
    return f"{value:,} {one if value == 1 else many or one + 's'}"


def area(value: float, unit: str = "m2") -> str:
    """m², hectares from one on, km² from a hundred hectares on; pixels without a CRS."""
    if unit == "px":
        return f"{number(value)} px"
    if abs(value) >= 1e6:
        return f"{number(value / 1e6)} km²"
    if abs(value) >= 1e4:
        return f"{number(value / 1e4)} ha"
    return f"{number(value)} m²"


def length(value: float, unit: str = "m") -> str:
    """Metres, kilometres from one on; pixels without a CRS."""
    if unit == "px":
        return f"{number(value)} px"
    return f"{number(value / 1000)} km" if abs(value) >= 1000 else f"{number(value)} m"


def percent(share: float) -> str:
    """`12.3 %`; what is neither nothing nor all never reads as if it were."""
    if not math.isfinite(share):
        return _NO
    value = 100 * share
    if 0 < value < 0.01:
        return "< 0.01 %"
    if 99.99 < value < 100:
        return "> 99.99 %"
    return f"{number(value)} %"


def probability(value: float) -> str:
    """Two decimals."""
    return f"{value:.2f}" if math.isfinite(value) else _NO


def date(value: datetime | None) -> str:
    """`24 May 2011`, with the hour when it is stated; `date not stated`."""
    if value is None:
        return "date not stated"
    day = f"{value.day} {value:%B %Y}"
    return day if (value.hour, value.minute) == (0, 0) else f"{day}, {value:%H:%M} UTC"


def interval(before: datetime | None, after: datetime | None) -> str:
    """`3 years 2 months`, `14 days`; empty when a date is not known."""
    if before is None or after is None:
        return ""
    days = abs((after - before).days)
    if days < 60:
        return count(days, "day")
    months = round(days / 30.4375)
    if months < 24:
        return count(months, "month")
    years, rest = divmod(months, 12)
    return count(years, "year") + (f" {count(rest, 'month')}" if rest else "")


def coordinates(lon: float, lat: float) -> str:
    """`37.06012° N, 94.52345° W`; empty where there are none."""
    if not (math.isfinite(lon) and math.isfinite(lat)):
        return ""
    return f"{abs(lat):.5f}° {'N' if lat >= 0 else 'S'}, {abs(lon):.5f}° {'E' if lon >= 0 else 'W'}"
