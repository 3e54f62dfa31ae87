"""A sheet of damage in words, in the tagged form that DisasterM3 asks for."""

from __future__ import annotations

from terralapse.data.damage_questions import STATES
from terralapse.data.disaster_sheet import ROADS, DamageSheet

CAPTION_TAGS = ("DISASTER", "BUILDING", "ROAD", "VEGETATION", "WATER_BODY", "AGRICULTURE", "CONCLUSION")
RECOVERY_TAGS = ("IMMEDIATE_RECOVERY", "LONG_TERM_RECOVERY")
NO_RECOVERY = "No recovery recommendations: there is no discernible impact."
MOST_WORDS = 50  # of a paragraph of advice
UNKNOWN = "not known from the maps of damage"


def many(count: int, what: str) -> str:
    """`1 building`, `3 buildings`, `no building`."""
    return f"no {what}" if count == 0 else f"{count} {what}" + ("" if count == 1 else "s")


def caption_of(sheet: DamageSheet) -> str:
    """The damage in the seven tags; what maps of damage do not hold is said to be unknown."""
    buildings = ", ".join(f"{many(sheet.buildings[s], f'{s} building')}" for s in STATES)
    words = {"intact": "intact", "flooded": "flooded", "debris": "debris-covered"}
    roads = ", ".join(f"{many(sheet.roads[s], f'{words[s]} road')}" for s in ROADS)
    end = (
        f"{many(sheet.buildings['destroyed'], 'destroyed building')} and "
        f"{many(sheet.buildings['damaged'], 'damaged building')}."
        if sheet.hurt
        else "No damage is seen."
    )
    said = {"BUILDING": f"{buildings}.", "ROAD": f"{roads}.", "CONCLUSION": end}
    return "\n".join(f"{tag}: {said.get(tag, UNKNOWN)}" for tag in CAPTION_TAGS)


def recovery_of(sheet: DamageSheet) -> str:
    """Advice in two paragraphs of at most `MOST_WORDS` words, or that none is needed."""
    if not sheet.hurt:
        return NO_RECOVERY
    b, r = sheet.buildings, sheet.roads
    now, later = [], []
    if b["destroyed"]:
        now.append(f"Search and rescue in {many(b['destroyed'], 'destroyed building')}.")
        now.append("Open temporary shelter.")
        later.append(f"Rebuild {many(b['destroyed'], 'destroyed building')} to a safer standard.")
    if b["damaged"]:
        now.append(f"Inspect and prop {many(b['damaged'], 'damaged building')}.")
        later.append(f"Repair {many(b['damaged'], 'damaged building')}.")
    if r["debris"]:
        now.append(f"Clear {many(r['debris'], 'debris-covered road')}.")
    if r["flooded"]:
        now.append(f"Pump and drain {many(r['flooded'], 'flooded road')}.")
        later.append("Improve drainage.")
    if r["debris"] or r["flooded"]:
        later.append("Restore the roads.")
    return f"IMMEDIATE_RECOVERY: {' '.join(now)}\nLONG_TERM_RECOVERY: {' '.join(later)}"
