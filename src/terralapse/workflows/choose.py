"""Which detector a pair of scenes gets when the user names none, and what does not fit when one is named."""

from __future__ import annotations

from dataclasses import dataclass

from terralapse import registry
from terralapse.cards import Card, Inputs, Status, Task
from terralapse.errors import ModelInputError
from terralapse.grid.scene import Note, Scene, SceneInfo
from terralapse.sensors import Unit


@dataclass(frozen=True)
class Choice:
    """A card and the sentence that says why it was taken."""

    card: Card
    why: str


def common_bands(before: SceneInfo, after: SceneInfo) -> list[str]:
    """Common names that both scenes have, in the order of the scene before."""
    theirs = {b.name for b in after.bands}
    return [b.name for b in before.bands if b.name in theirs]


def pixel_size(before: Scene, after: Scene) -> float | None:
    """The coarser of the two pixel sizes on the ground in metres; None when neither has a place on Earth."""
    from terralapse.grid.common import ground_size

    sizes = [ground_size(s.info.geobox) for s in (before, after)]
    return max((s for s in sizes if s is not None), default=None)


def misfits(inputs: Inputs, before: SceneInfo, after: SceneInfo, gsd: float | None) -> list[Note]:
    """Warnings, one for each way in which a pair is outside of what a system was made for."""
    notes: list[Note] = []
    low, high = inputs.gsd_range or (0.0, float("inf"))
    if gsd is None and inputs.gsd_range is not None:
        text = (
            f"The size of the pixels on the ground is unknown; the model was made for {low:g} to {high:g} m."
        )
        notes.append(Note("warning", "unknown-gsd", text))
    elif gsd is not None and not low * 0.99 <= gsd <= high * 1.01:
        text = f"The pixels are {gsd:.3g} m wide; the model was made for {low:g} to {high:g} m."
        notes.append(Note("warning", "outside-gsd", text))
    for which, info in (("before", before), ("after", after)):
        if inputs.units and info.unit not in inputs.units:
            wanted = " or ".join(str(u) for u in inputs.units)
            notes.append(
                Note(
                    "warning",
                    f"outside-unit-{which}",
                    f"The image {which} is in {info.unit}; the model was trained on {wanted}.",
                )
            )
        if inputs.sensors and info.sensor.slug not in inputs.sensors:
            notes.append(
                Note(
                    "warning",
                    f"outside-sensor-{which}",
                    f"The image {which} is from {info.sensor.title}; "
                    f"the model was trained on {', '.join(inputs.sensors)}.",
                )
            )
    return notes


def _fits(card: Card, before: SceneInfo, after: SceneInfo, gsd: float | None) -> bool:
    shared = common_bands(before, after)
    if card.inputs.bands is not None and not set(card.inputs.bands) <= set(shared):
        return False
    if len(shared) < card.inputs.min_bands:
        return False
    # A sensor that the model never saw is a warning, not a reason against it: unit and pixel size decide,
    # and nothing speaks against a model when the pixel size is not known.
    soft = ("sensor", "unknown-gsd")
    hard = [n for n in misfits(card.inputs, before, after, gsd) if not any(s in n.code for s in soft)]
    return not hard


def choose(before: Scene, after: Scene) -> Choice:
    """The system of the lowest rank whose bands, units and pixel size fit both scenes.

    Raises:
        ModelInputError: none fits (two scenes without a common band).
    """
    gsd = pixel_size(before, after)
    candidates = [
        c
        for c in registry.cards()
        if c.task is Task.CHANGE
        and c.status in (Status.RUNS, Status.REPRODUCED)
        and c.default_rank is not None
    ]
    candidates.sort(key=lambda c: (c.default_rank, c.slug))
    for card in candidates:
        if _fits(card, before.info, after.info, gsd):
            return Choice(card, _why(card, before.info, after.info, gsd))
    raise ModelInputError(
        f"{before.info.uri} and {after.info.uri}",
        "no detector fits this pair of images",
        f"They share the bands {common_bands(before.info, after.info) or 'none'}; "
        "see `terralapse inspect` on both, or name a detector with --model.",
    )


def _why(card: Card, before: SceneInfo, after: SceneInfo, gsd: float | None) -> str:
    kinds = {Unit.RGB255: "8-bit RGB", Unit.REFLECTANCE: "reflectance"}
    unit = kinds.get(before.unit, str(before.unit))
    shared = len(common_bands(before, after))
    kind = "a trained network" if card.weights else "an unsupervised method"
    size = "pixels of unknown size" if gsd is None else f"{gsd:.3g} m"
    return f"{card.slug} ({kind}) was chosen for {shared} common bands of {unit} at {size}."


def named(slug: str) -> Choice:
    """The system that the user asked for."""
    return Choice(registry.card(slug), f"{slug} was asked for.")
