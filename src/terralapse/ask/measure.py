"""Areas and lengths in the unit that was asked for."""

from __future__ import annotations

from terralapse.products import units

# Square metres of one, and how it is written.
AREAS = {
    "m2": (1.0, "m²"),
    "ha": (1e4, "ha"),
    "km2": (1e6, "km²"),
    "acre": (4046.8564224, "acres"),
    "ft2": (0.09290304, "sq ft"),
    "yd2": (0.83612736, "sq yd"),
    "mi2": (2589988.110336, "sq mi"),
}
# Metres of one.
LENGTHS = {
    "m": (1.0, "m"),
    "km": (1000.0, "km"),
    "ft": (0.3048, "ft"),
    "mi": (1609.344, "miles"),
    "yd": (0.9144, "yd"),
}


def area(value: float, base: str, unit: str | None) -> str:
    """`value` in `base` (`m2` or `px`) as people read it, in `unit` or in the one that suits its size."""
    if base == "px" or unit is None:
        return units.area(value, base)
    size, word = AREAS[unit]
    return f"{units.number(value / size)} {word}"


def length(value: float, base: str, unit: str | None) -> str:
    """The same for lengths (`m` or `px`)."""
    if base == "px" or unit is None:
        return units.length(value, base)
    size, word = LENGTHS[unit]
    return f"{units.number(value / size)} {word}"
