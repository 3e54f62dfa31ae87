"""ChatEarthNet: from the statistics of a land-cover map to a prompt, and to a caption.

Source: Yuan, Xiong, Mou and Zhu, "ChatEarthNet: A Global-Scale Image-Text Dataset Empowering Vision-Language
Geo-Foundation Models", ESSD 2025 (arXiv:2402.11325), and its released code. No network is in it: a map of 12
classes becomes text by one of two procedures, and a language model rewrites the text. Differs from it in: the
wording of the prompts, which is ours (what they ask for is theirs); a realiser by rules that writes the
caption where there is no language model; the words for sizes are drawn with a seed; equal shares in a region
stand in the order of the classes (there, in that of an unstable sort); any scheme can be described.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from terralapse.cards import Card, Figure, Inputs, Licences, Status, Task
from terralapse.errors import SettingError
from terralapse.labels import CHATEARTHNET, NOT_COUNTED, WORLDCOVER, ClassScheme, crosswalk
from terralapse.registry import register
from terralapse.tasks.made_text import BANDS, NOUNS, PLACES, WHOLE, CaptionMaker, Item, Sheet

REGIONS = tuple(PLACES)  # the middle overlaps the four others
LEAST = 20  # pixels below which a class is not mentioned, in all and in each region
MOST = 3  # classes of a region
SIDE_4V = 128  # of the maps that are shown as images; shares of the tables are of SIDE_4V squared pixels
NAMES_35 = ("background", "water", "developed area", "tree", "shrub", "grass", "crop", "bare land", "snow",
            "wetland", "mangroves", "moss")  # fmt: skip
NAMES_4V = tuple({"developed area": "developed", "bare land": "bare"}.get(n, n) for n in NAMES_35)
BANNED = ("possibly", "likely", "perhaps", "maybe", "might", "context", "segmentation", "appear", "seem",
          "change", "changing", "transition", "dynamic", "suggest", "probably")  # fmt: skip
_BANNED = tuple(rf"\b{word}\w*" for word in BANNED)
# Words that a language model may use for a class; what is narrower (river, city) stays unsupported.
_SYNONYMS = {
    "water": ("water", "water bodies", "water body"),
    "developed": ("developed area", "developed land", "developed", "built-up area", "built-up land"),
    "tree": ("tree", "tree cover", "forest", "woodland", "wooded area"),
    "shrub": ("shrub", "shrubland", "scrub"),
    "grass": ("grass", "grassland"),
    "crop": ("crop", "cropland", "farmland", "agricultural land"),
    "bare": ("bare land", "bare ground", "bare soil", "bare"),
    "snow": ("snow", "ice"),
    "wetland": ("wetland",),
    "mangroves": ("mangroves", "mangrove"),
    "moss": ("moss", "lichen"),
}

CARD = Card(
    slug="chatearthnet",
    title="ChatEarthNet: A Global-Scale Image-Text Dataset Empowering Vision-Language Geo-Foundation Models",
    task=Task.LANGUAGE,
    status=Status.REPRODUCED,
    summary="Captions of land-cover maps from their statistics, each sentence checked against them.",
    year=2024,
    paper="arXiv:2402.11325",
    repository="https://github.com/zhu-xlab/ChatEarthNet",
    inputs=Inputs(dates=1, sensors=("sentinel2",)),
    classes=CHATEARTHNET.slug,
    licences=Licences(code="Apache-2.0", data="CC BY 4.0"),
    checkpoints="none",
    figures=(
        Figure(
            "differences in statistics and texts",
            0.0,
            "golden case chatearthnet/statistics",
            "counts, shares, orders, sizes, tables and decoded colours of the two published procedures",
            "golden",
        ),
    ),
    quirks=(
        "A share is rounded to two decimals, multiplied by 100 and cut: 29 % becomes 28 %.",
        "The tables of the 4V procedure divide by 128 x 128 whatever the size of the map.",
        "The middle region overlaps the four quadrants.",
    ),
    limits=(
        "No network: the words are those of rules, or of a language model that the user provides.",
        "It says what the map says; errors of the map are in the captions.",
        "Shapes are never described by the rules, and what a language model says of them is not checked.",
    ),
    threshold=None,
)


# --- the map ---------------------------------------------------------------------------------------------
def decode_colours(rgb: np.ndarray) -> np.ndarray:
    """Classes uint8 [H, W] of a label file [H, W, 3]; a colour that is none of theirs is background."""
    wide = rgb.astype(np.int64)
    packed = wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2]
    found = np.zeros(packed.shape, np.uint8)
    for one in CHATEARTHNET.classes:
        found[packed == int(one.colour[1:], 16)] = one.value
    return found


def from_worldcover(codes: np.ndarray) -> np.ndarray:
    """Classes uint8 [H, W] of codes of ESA WorldCover; no data is background."""
    found = crosswalk(codes, WORLDCOVER, CHATEARTHNET)
    return np.where(found == CHATEARTHNET.nodata, 0, found).astype(np.uint8)


def indexed(labels: np.ndarray, scheme: ClassScheme) -> tuple[np.ndarray, tuple[str, ...]]:
    """A map of any scheme as uint8 [H, W] of 0 (background) and 1, 2, ..., and the names of these numbers.

    WorldCover becomes the classes of ChatEarthNet. Of other schemes, what says "unchanged" or "not labelled"
    is background, and a class is called by its title.
    """
    if scheme.slug == WORLDCOVER.slug:
        return from_worldcover(np.where(labels == 255, scheme.nodata, labels)), NAMES_35
    if scheme.slug == CHATEARTHNET.slug:
        return np.where(labels == scheme.nodata, 0, labels).astype(np.uint8), NAMES_35
    counted = [c for c in scheme.classes if c.name not in NOT_COUNTED]
    found = np.zeros(labels.shape, np.uint8)
    for number, one in enumerate(counted, start=1):
        found[labels == one.value] = number
    return found, ("background", *(c.title.lower() for c in counted))


def regions(labels: np.ndarray) -> dict[str, np.ndarray]:
    """The five parts of a map [H, W]: its quadrants, and rows h/4 to 3h/4 by columns w/4 to 3w/4."""
    h, w = labels.shape
    return {
        "top left": labels[: h // 2, : w // 2],
        "top right": labels[: h // 2, w // 2 :],
        "bottom left": labels[h // 2 :, : w // 2],
        "bottom right": labels[h // 2 :, w // 2 :],
        "middle": labels[h // 4 : 3 * h // 4, w // 4 : 3 * w // 4],
    }


def counts(labels: np.ndarray) -> dict[int, int]:
    """Pixels of each class but background, by class."""
    found = np.bincount(labels.ravel())
    return {int(v): int(found[v]) for v in np.flatnonzero(found) if v}


def first_seen(labels: np.ndarray) -> list[int]:
    """The classes but background in the order in which they first occur, row by row."""
    values, at = np.unique(labels, return_index=True)
    return [int(v) for v in values[np.argsort(at)] if v]


# --- the procedure of the 3.5 variant --------------------------------------------------------------------
def percent(share: float) -> int:
    """A share of 0 to 1 as the published code says it: rounded as numpy does (0.295 is 0.3), then cut."""
    return int(np.round(share, 2) * 100)


def band(whole: int) -> str:
    """The word for a size in per cent."""
    for top, word in ((10, "extra small"), (20, "small"), (50, "medium"), (80, "large")):
        if whole < top:
            return word
    return "extra large"


def overall(labels: np.ndarray) -> list[int]:
    """Classes by pixels, most first, those of `LEAST` or more; equal ones in the order of `first_seen`."""
    found = counts(labels)
    return sorted((v for v in first_seen(labels) if found[v] >= LEAST), key=lambda v: -found[v])


def region_shares(part: np.ndarray) -> dict[int, float]:
    """The share of each class of a region among its pixels that are not background."""
    found = counts(part)
    total = sum(found.values())
    return {v: n / total for v, n in found.items()}


def kept(part: np.ndarray) -> list[int]:
    """The classes of a region that are told: at most `MOST`, of `LEAST` pixels or more, most first."""
    found = counts(part)
    return sorted((v for v, n in found.items() if n >= LEAST), key=lambda v: (-found[v], v))[:MOST]


def text_35(
    labels: np.ndarray, names: Sequence[str] = NAMES_35, rng: np.random.Generator | None = None
) -> str:
    """The statistics as the text that the language model gets; without `rng` sizes have the first noun."""
    lines = ["".join(f"{names[v]}; " for v in overall(labels))]
    for region, part in regions(labels).items():
        shares = region_shares(part)
        told = []
        for v in kept(part):
            noun = NOUNS[0] if rng is None else NOUNS[int(rng.integers(len(NOUNS)))]
            told.append(f"{names[v]} ({band(percent(shares[v]))} {noun})")
        head = f"The {region} mainly contains the following land cover types, in descending order of content:"
        lines.append(f"{head} {_listed(told)}." if told else head)
    return "\n".join(lines) + "\n"


def _listed(parts: Sequence[str]) -> str:
    """A, B, and C."""
    if len(parts) < 3:
        return " and ".join(parts)
    return ", ".join(parts[:-1]) + f", and {parts[-1]}"


SYSTEM_35 = (
    "You describe a satellite image as if you saw it, from land cover statistics that you are given and must "
    "not mention. Write one paragraph in plain, objective English. Say first which land cover type is "
    "dominant and where. Then go through the parts of the image in the order given, joined fluently, and "
    "within each name its land cover types from the largest coverage to the smallest; vary the wording of "
    "portions. End with one sentence on the main theme of the image. State nothing that the "
    "statistics do not hold, and no "
    f"numbers. Never use these words or their forms: {', '.join(BANNED)}."
)


# --- the procedure of the 4V variant ---------------------------------------------------------------------
def halved(rgb: np.ndarray) -> np.ndarray:
    """Every second pixel of every second row."""
    return rgb[::2, ::2]


def class_table(labels: np.ndarray) -> dict[str, dict[int, str]]:
    """Part to the share of each class in it as `xx.xx%`, classes by first occurrence in the map."""
    parts = {f"{name} part": part for name, part in regions(labels).items()}
    order = first_seen(labels)
    return {
        name: {v: f"{100 * int((part == v).sum()) / SIDE_4V**2:.2f}%" for v in order}
        for name, part in parts.items()
    }


def region_table(labels: np.ndarray, names: Sequence[str] = NAMES_4V) -> list[str]:
    """A line a part: its classes by share of all of its pixels, most first, with two decimals."""
    lines = []
    for name, part in regions(labels).items():
        found = counts(part)
        order = sorted(found, key=lambda v: (-found[v], v))
        told = " ".join(f"{names[v]}: {found[v] / part.size:.2f};" for v in order)
        lines.append(f"{name.replace(' ', '_')}|{told}")
    return lines


SYSTEM_4V = (
    "You see up to four land cover maps as coloured images, with a legend and with statistics of each. For "
    "each map, in order, write one paragraph of its own, as if you described the satellite image behind it: "
    "each land cover and where it lies, with words for the shape of water, developed areas and crops, and "
    "last the main theme. Mention only classes that are present; never name a colour; take the statistics of "
    "a map as those of one image. Be objective, and never use these words or their forms: "
    f"{', '.join(BANNED)}."
)


def messages_4v(maps: Sequence[np.ndarray]) -> list[dict[str, Any]]:
    """The request of the 4V procedure for one to four maps of the classes of ChatEarthNet.

    Raises:
        SettingError: none, or more than four.
    """
    if not 1 <= len(maps) <= 4:
        raise SettingError(f"{len(maps)} maps", "do not fit one request", "Give one to four.")
    palette = np.array([c[:3] for c in CHATEARTHNET.palette().values()], np.uint8)
    legend = "; ".join(f"{n} {tuple(map(int, palette[v]))}" for v, n in enumerate(NAMES_4V) if v)
    parts: list[dict[str, Any]] = [
        {"type": "image_url", "image_url": {"url": _png(halved(palette[m]))}} for m in maps
    ]
    said = [f"Legend (red, green, blue): {legend}."]
    for number, labels in enumerate(maps, start=1):
        said.append(f"Map {number}, share of each part by class:")
        table = class_table(labels)
        for v in first_seen(labels):
            said.append(f"{NAMES_4V[v]}: " + ", ".join(f"{p} {row[v]}" for p, row in table.items()))
        said += [f"Map {number}, classes of each part:", *region_table(labels)]
    return [
        {"role": "system", "content": SYSTEM_4V},
        {"role": "user", "content": [*parts, {"type": "text", "text": "\n".join(said)}]},
    ]


def _png(rgb: np.ndarray) -> str:
    held = io.BytesIO()
    Image.fromarray(rgb).save(held, "PNG")
    return "data:image/png;base64," + base64.b64encode(held.getvalue()).decode()


# --- the caption by rules --------------------------------------------------------------------------------
_FIRST = ("This place is mostly {}.", "Most of this place is {}.", "The main cover of this place is {}.")
_PART = "Of the {}% of this place that is mapped, most is {}."
_VERBS = ("takes up", "covers", "fills")
_OPENINGS = ("In the {}, ", "Across the {}, ", "Within the {}, ")
_EMPTY = "Nothing is mapped in the {}."
_LAST = ("Overall, the main theme is {}", "As a whole, it is mainly about {}")


class ChatEarthNet(CaptionMaker):
    """Makes one caption of a map; see `terralapse.tasks.made_text`.

    Args:
        variant: `3.5`, whose language model gets text, or `4v`, whose model sees the map too (only maps of
            the classes of ChatEarthNet or WorldCover).

    Raises:
        SettingError: no such variant.
    """

    version = "chatearthnet-1"

    def __init__(self, card: Card, variant: str = "3.5") -> None:
        if variant not in ("3.5", "4v"):
            raise SettingError(f"variant={variant}", "is not published", "Choose 3.5 or 4v.")
        self.card, self.variant = card, variant

    def statistics(self, item: Item) -> dict[str, Any] | None:
        if item.labels is None or item.scheme is None:
            raise SettingError(item.key, "has no map of classes", "Give a map, or choose --kind gaia.")
        labels, names = indexed(item.labels, item.scheme)
        order, all_counts = overall(labels), counts(labels)
        if not order:
            return None
        known = sum(all_counts.values())
        parts = {}
        for region, part in regions(labels).items():
            shares = region_shares(part)
            parts[region] = {
                "shares": {names[v]: shares[v] for v in sorted(shares)},
                "told": [[names[v], percent(shares[v]), band(percent(shares[v]))] for v in kept(part)],
            }
        return {
            "scheme": item.scheme.slug,
            "classes": list(names[1:]),
            "pixels": int(labels.size),
            "background": int((labels == 0).sum()),
            "overall": [names[v] for v in order],
            "shares": {names[v]: n / known for v, n in all_counts.items()},
            "regions": parts,
            "text": text_35(labels, names),
        }

    def sheet(self, statistics: Mapping[str, Any]) -> Sheet:
        parts = statistics["regions"]
        told = {region: {name for name, *_ in part["told"]} for region, part in parts.items()}
        shares = {r: {n: s for n, s in p["shares"].items() if n in told[r]} for r, p in parts.items()}
        shares[WHOLE] = {n: s for n, s in statistics["shares"].items() if n in statistics["overall"]}
        sizes = {(region, name): size for region, p in parts.items() for name, _, size in p["told"]}
        sizes |= {(WHOLE, n): band(percent(s)) for n, s in statistics["shares"].items()}
        numbers = ((float(len(statistics["overall"])), ""), (float(len(REGIONS)), ""))
        numbers = (*numbers, (_mapped(statistics), "%"))
        return Sheet(shares, _words(statistics), sizes, numbers, banned=_BANNED)

    def write(self, statistics: Mapping[str, Any], seed: int) -> list[str]:
        rng = np.random.default_rng([seed, 1])

        def one(words: Sequence[str]) -> str:
            return words[int(rng.integers(len(words)))]

        names = statistics["overall"]
        turn = int(rng.integers(4))
        mapped = _mapped(statistics)
        said = [one(_FIRST).format(names[0])]
        if mapped < 50:
            said = [_PART.format(f"{mapped:g}", names[0])]
        for region in (*REGIONS[turn:4], *REGIONS[:turn], REGIONS[4]):
            told = statistics["regions"][region]["told"]
            if not told:
                said.append(_EMPTY.format(region))
                continue
            parts = [f"{'an' if size.startswith('e') else 'a'} {size} {one(NOUNS)}" for *_, size in told]
            clauses = [f"{told[0][0]} {one(_VERBS)} {parts[0]}"]
            clauses += [f"{name} {part}" for (name, *_), part in zip(told[1:], parts[1:], strict=True)]
            said.append(one(_OPENINGS).format(region) + _listed(clauses) + ".")
        rest = (
            ", the only land cover of note." if len(names) == 1 else f", among {len(names)} land cover types."
        )
        said.append(one(_LAST).format(names[0]) + rest)
        return [" ".join(said)]

    def messages(self, statistics: Mapping[str, Any], item: Item, seed: int) -> list[dict[str, Any]]:
        assert item.labels is not None
        assert item.scheme is not None
        labels, names = indexed(item.labels, item.scheme)
        if self.variant == "4v":
            if names != NAMES_35:
                raise SettingError(
                    f"variant=4v with {item.scheme.slug}",
                    "has colours for other classes only",
                    "Give a map of worldcover or chatearthnet, or take the variant 3.5.",
                )
            return messages_4v([labels])
        text = text_35(labels, names, np.random.default_rng([seed, 2]))
        ask = "Describe the image. Its land cover types in descending order of coverage: "
        return [
            {"role": "system", "content": SYSTEM_35},
            {"role": "user", "content": ask + text},
        ]

    def read(self, reply: str) -> list[str]:
        text = " ".join(reply.split())
        return [text] if text else []

    def record(self, statistics: Mapping[str, Any], captions: Sequence[str]) -> dict[str, Any]:
        return {"captions": list(captions)}


def _mapped(statistics: Mapping[str, Any]) -> float:
    """The share of the map that is no background, in per cent with one decimal."""
    return round(100 * (1 - statistics["background"] / statistics["pixels"]), 1)


def _words(statistics: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """The names of the classes to what they may be called."""
    if statistics["scheme"] in (WORLDCOVER.slug, CHATEARTHNET.slug):
        return {n: _SYNONYMS[c.name] for n, c in zip(NAMES_35[1:], CHATEARTHNET.classes[1:], strict=True)}
    return {name: (name,) for name in statistics["classes"]}


_TOLD = re.compile(
    rf"(?:^|, and |, | and )(?P<name>[^,.]+?) (?:(?:{'|'.join(_VERBS)}) )?an? (?P<size>{'|'.join(BANDS)}) "
    rf"(?:{'|'.join(NOUNS)})(?=,|\.| and |$)"
)


def parse(caption: str) -> dict[str, list[tuple[str, str]]]:
    """Region to its (class, size), in order, of a caption that `ChatEarthNet.write` wrote."""
    found: dict[str, list[tuple[str, str]]] = {}
    for sentence in re.split(r"(?<=\.) ", caption):
        for region in REGIONS:
            if sentence == _EMPTY.format(region):
                found[region] = []
            for opening in _OPENINGS:
                if sentence.startswith(head := opening.format(region)):
                    rest = sentence[len(head) :]
                    found[region] = [(m["name"], m["size"]) for m in _TOLD.finditer(rest)]
    return found


@register(CARD)
def build(card: Card, variant: str = "3.5") -> ChatEarthNet:
    """The maker; there is nothing to load."""
    return ChatEarthNet(card, variant)
