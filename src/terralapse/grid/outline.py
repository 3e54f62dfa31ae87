"""Outlines that a person would draw, from outlines that follow pixels.

Geometries are in pixel coordinates: axis-aligned edges of whole length.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import shapely

_STEP = 1.0  # an edge of one pixel is a step of the staircase
_TOLERANCE = 0.3  # pixels, Douglas-Peucker after the steps are gone
_COVERAGE_TOLERANCE = 1.0  # pixels, Visvalingam
_RECTANGLE_FIT = 0.85  # intersection over union of outline and rectangle


def smooth(polygons: np.ndarray, shared: bool) -> np.ndarray:
    """Polygons without the staircase, as valid as they came.

    Args:
        polygons: valid shapely (multi)polygons that follow pixel edges.
        shared: some share borders (several classes); those are simplified together, so that no sliver
            opens between them.

    Returns:
        polygons within about one pixel of the originals. Without shared borders the area is kept: a corner
        next to a step of one pixel gives way to the middles of its two edges (the mid-crack outline, which
        cuts diagonals without bias), collinear points go, and what the cut corners took is given back by an
        offset of a fraction of a pixel.
    """
    if not len(polygons):
        return polygons
    if shared:
        return shapely.make_valid(shapely.coverage_simplify(polygons, _COVERAGE_TOLERANCE))
    cut = _map_rings(polygons, _mid_crack)
    drawn = shapely.simplify(cut, _TOLERANCE, preserve_topology=True)
    drawn = _same_area(polygons, drawn)
    bad = ~shapely.is_valid(drawn) | shapely.is_empty(drawn) | _in_more_parts(polygons, drawn)
    drawn = np.where(bad, polygons, drawn)
    while len(clash := _overlapping(drawn, polygons)):
        drawn[clash] = polygons[clash]
    return drawn


def _overlapping(drawn: np.ndarray, raw: np.ndarray) -> np.ndarray:
    """Positions of smoothed outlines that now share ground with another; the raw ones never do."""
    a, b = shapely.STRtree(drawn).query(drawn, predicate="intersects")
    a, b = a[a < b], b[a < b]
    shared = shapely.area(shapely.intersection(drawn[a], drawn[b])) > 1e-9
    clash = np.unique(np.concatenate([a[shared], b[shared]]))
    return clash[~shapely.equals_identical(drawn[clash], raw[clash])]


def _in_more_parts(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Which outlines have lost or gained a part or a hole by being smoothed."""

    def counts(shapes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        parts, owner = shapely.get_parts(shapes, return_index=True)
        holes = np.bincount(owner, shapely.get_num_interior_rings(parts), minlength=len(shapes))
        return np.bincount(owner, minlength=len(shapes)), holes

    (parts_a, holes_a), (parts_b, holes_b) = counts(before), counts(after)
    return (parts_a != parts_b) | (holes_a != holes_b)


def _same_area(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Offsets the outline by the area that is missing over its length (negative where too much)."""
    length = shapely.length(after)
    gap = np.divide(
        shapely.area(before) - shapely.area(after), length, out=np.zeros_like(length), where=length > 0
    )
    moved = shapely.buffer(after, np.clip(gap, -0.35, 0.35), join_style="mitre", mitre_limit=2.0)
    return np.where(np.abs(gap) > 1e-3, moved, after)


def _map_rings(polygons: np.ndarray, change: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Applies `change` to each closed ring [n, 2] of each (multi)polygon."""
    parts, owner = shapely.get_parts(polygons, return_index=True)
    rings, part = shapely.get_rings(parts, return_index=True)
    coords, ring = shapely.get_coordinates(rings, return_index=True)
    starts = np.searchsorted(ring, np.arange(len(rings) + 1))
    changed = [change(coords[a:b]) for a, b in pairwise(starts)]
    lengths = [len(c) for c in changed]
    index = np.repeat(np.arange(len(rings)), lengths)
    flat = np.asarray(shapely.linearrings(np.concatenate(changed), indices=index), dtype=object)
    whole = np.asarray(shapely.polygons(flat, indices=part), dtype=object)
    single = shapely.get_type_id(polygons) == shapely.GeometryType.POLYGON
    out = np.empty(len(polygons), object)
    first = np.searchsorted(owner, np.arange(len(polygons)))
    out[single] = whole[first[single]]
    for i in np.flatnonzero(~single):
        out[i] = shapely.multipolygons(whole[owner == i])
    return out


def _mid_crack(ring: np.ndarray) -> np.ndarray:
    """Replaces the corners at steps of one pixel by the middles of their edges."""
    corner = ring[:-1]
    following = np.roll(corner, -1, axis=0)
    turn = corner - np.roll(corner, 1, axis=0)
    straight = (turn[:, 0] * (following - corner)[:, 1]) == (turn[:, 1] * (following - corner)[:, 0])
    corner = corner[~straight]
    following = np.roll(corner, -1, axis=0)
    edge = np.abs(following - corner).sum(axis=1)
    step = np.minimum(edge, np.roll(edge, 1)) <= _STEP
    if len(corner) <= 4:  # a rectangle is no staircase
        step[:] = False
    middle = (corner + following) / 2
    points = np.stack([corner, middle], axis=1)
    wanted = np.stack([~step, step | np.roll(step, -1)], axis=1)
    drawn = points[wanted]
    return np.concatenate([drawn, drawn[:1]])


def rectangle_if_it_fits(polygons: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rectangles of any direction for the outlines that are nearly one.

    Returns:
        bool [n]: the outline and its rectangle share at least 85 % of their union; object [n]: the smallest
        rotated rectangle around the outline, scaled about its centre to the outline's area.
    """
    if not len(polygons):
        return np.zeros(0, bool), polygons
    smoothed = smooth(polygons, shared=False)
    boxes = shapely.minimum_rotated_rectangle(smoothed)
    area, target = shapely.area(boxes), shapely.area(polygons)
    ratio = np.sqrt(np.divide(target, area, out=np.ones_like(area), where=area > 0))
    centre = shapely.get_coordinates(shapely.centroid(boxes))
    coords, owner = shapely.get_coordinates(boxes, return_index=True)
    scaled = centre[owner] + (coords - centre[owner]) * ratio[owner, None]
    boxes = shapely.set_coordinates(boxes, scaled)
    union = shapely.area(shapely.union(polygons, boxes))
    fit = shapely.area(shapely.intersection(polygons, boxes)) / union
    return (fit >= _RECTANGLE_FIT) & (shapely.get_type_id(boxes) == shapely.GeometryType.POLYGON), boxes
