"""Zero-shot multi-spectral: bands of Sentinel-2 as six pictures and a text, for any model that sees RGB.

Source: Mallya, Gigi, Kim, Neumann, Beryozkin, Shekel and Angelova, "Zero-Shot Multi-Spectral Learning:
Reimagining a Generalist Multimodal Gemini 2.5 Model for Remote Sensing Applications", 2025
(arXiv:2509.19087), and the notebook of the same recipe in google-gemini/cookbook. Nothing is trained. Differs
from it in: the wording of the text is ours; the scaling of the composites, the range of the moisture pictures
and the formulas of NDWI and NDMI, which it does not print, are stated here; zero divided by zero is zero.

Beside the pictures stand two answerers that see nothing but the four indices, so that the recipe can be
tried, and its score compared, without any vision-language model: `by_rules`, with values from common
knowledge that nothing was fitted to, and `Prototypes`, the nearest mean of labelled training tiles.
"""

from __future__ import annotations

import base64
import io
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from terralapse.cards import Card, Figure, Inputs, Licences, Status, Task
from terralapse.errors import BandError, FileMissingError, SettingError, UnreadableFileError
from terralapse.registry import register
from terralapse.sensors import SENTINEL2, Unit

CARD = Card(
    slug="zeroshot-ms",
    title=(
        "Zero-Shot Multi-Spectral Learning: Reimagining a Generalist Multimodal Gemini 2.5 Model for Remote "
        "Sensing Applications"
    ),
    task=Task.LANGUAGE,
    status=Status.REPRODUCED,
    summary="Shows a general vision-language model Sentinel-2 bands as pseudo-colour images with a legend.",
    year=2025,
    paper="arXiv:2509.19087",
    repository="https://github.com/google-gemini/cookbook",
    inputs=Inputs(
        dates=1,
        bands=("blue", "green", "red", "nir", "nir08", "swir16", "swir22"),
        units=(Unit.REFLECTANCE,),
        sensors=("sentinel2",),
    ),
    licences=Licences(code="Apache-2.0"),
    checkpoints="none",
    figures=(
        Figure(
            "pixels that differ",
            0.0,
            "golden case zeroshot-ms/pseudo-images",
            "six pictures, the rescaled one and four indices of a cube of 9 x 11 pixels; sampled values",
            "golden",
        ),
    ),
    quirks=(
        "NDVI is shown from 0 to 1 although the text of the notebook says -1 to 1; `rescaled` shows it all.",
        "The moisture indices use B8A where others use B08.",
    ),
    limits=(
        "Needs a vision-language model that the user provides; without one, two baselines on the indices.",
        "The baselines see the mean and the spread of four indices: no shape, no texture, no neighbourhood.",
        "The figures of the paper are of a model that is not open; they cannot be repeated here.",
    ),
    threshold=None,
)
BANDS = CARD.inputs.bands or ()
TOP = 0.3  # reflectance that is shown as 255 in the composites
RANGE = 0.8  # of NDWI and NDMI, on both sides of zero
MOST_SIDE = 4096  # pixels to which a model's pictures may be enlarged
STEPS = 256
# The colours of RdYlGn by Cynthia Brewer, between which the map is linear.
_RDYLGN = ("a50026", "d73027", "f46d43", "fdae61", "fee08b", "ffffbf",
           "d9ef8b", "a6d96a", "66bd63", "1a9850", "006837")  # fmt: skip
_WATER = ("ffffff", "ffffff", "0000ff")
_MOISTURE = ("ff0000", "00ff00", "0000ff")
DIFFERENCES = {
    "ndvi": ("nir", "red"),
    "ndwi": ("green", "nir"),
    "ndmi_b11": ("nir08", "swir16"),
    "ndmi_b12": ("nir08", "swir22"),
}


# --- pictures --------------------------------------------------------------------------------------------
def ramp(colours: Sequence[str]) -> np.ndarray:
    """A map of 256 colours, float64 [256, 3] of 0..1, linear between colours at equal distances.

    The order of the operations is that of matplotlib: colours are cut to whole numbers later, and some lie
    exactly on one.
    """
    points = np.array([[int(c[i : i + 2], 16) / 255 for i in (0, 2, 4)] for c in colours])
    stops = np.linspace(0, 1, len(points)) * (STEPS - 1)
    at = (STEPS - 1) * np.linspace(0, 1, STEPS)
    right = np.searchsorted(stops, at)[1:-1]
    part = (at[1:-1] - stops[right - 1]) / (stops[right] - stops[right - 1])
    inside = part[:, None] * (points[right] - points[right - 1]) + points[right - 1]
    return np.concatenate([points[:1], inside, points[-1:]])


def coloured(values: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Values of 0..1 as uint8 [H, W, 3]; what is outside takes the end colours, and 1 the last."""
    place = np.clip(np.floor(values * STEPS), 0, STEPS - 1).astype(np.int64)
    return (table[place] * 255).astype(np.uint8)


def difference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(a - b) / (a + b) in double precision; 0 where both sides are 0."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    total = a + b
    return np.divide(a - b, total, out=np.zeros_like(total), where=total != 0)


def indices(bands: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """`ndvi`, `ndwi`, `ndmi_b11` and `ndmi_b12`, float64 [H, W], of bands by their common names.

    Raises:
        BandError: a band is missing.
    """
    need(bands)
    return {name: difference(bands[a], bands[b]) for name, (a, b) in DIFFERENCES.items()}


def pictures(
    bands: Mapping[str, np.ndarray], ndvi: str = "notebook", span: float = RANGE, top: float = TOP
) -> dict[str, np.ndarray]:
    """The six pictures in their order, uint8 [H, W, 3] each.

    Args:
        bands: common name to [H, W], in reflectance (or in the unit of `top`), of any number type.
        ndvi: `notebook` shows NDVI of 0 to 1, `rescaled` all of it.
        span: NDWI and NDMI are shown from -span to span.
        top: what is shown as 255 in the composites; 0 is 0.

    Raises:
        BandError: a band is missing.
        SettingError: no such way to show NDVI, or a span that is not above 0.
    """
    if not 0 < span < math.inf:
        raise SettingError(f"span={span:g}", "is not above 0", f"Take {RANGE:g}, or leave it out.")
    if ndvi not in ("notebook", "rescaled"):
        raise SettingError(f"ndvi={ndvi}", "is no way to show it", "Choose notebook or rescaled.")
    found = indices(bands)
    v = found["ndvi"] if ndvi == "notebook" else (found["ndvi"] + 1) / 2

    def composite(*names: str) -> np.ndarray:
        planes = np.stack([bands[n].astype(np.float64) for n in names], axis=-1)
        return (np.clip(planes / top, 0, 1) * 255).astype(np.uint8)

    def spread(name: str, colours: Sequence[str]) -> np.ndarray:
        return coloured((found[name] + span) / (2 * span), ramp(colours))

    return {
        "rgb": composite("red", "green", "blue"),
        "false_color": composite("nir", "red", "green"),
        "ndvi": coloured(v, ramp(_RDYLGN)),
        "ndwi": spread("ndwi", _WATER),
        "ndmi_b11": spread("ndmi_b11", _MOISTURE),
        "ndmi_b12": spread("ndmi_b12", _MOISTURE),
    }


def need(bands: Mapping[str, np.ndarray]) -> None:
    """Checks that all bands are there.

    Raises:
        BandError: lists those that are missing.
    """
    if missing := [b for b in BANDS if b not in bands]:
        ids = [band.id for name in missing if (band := SENTINEL2.band(name)) is not None]
        raise BandError(
            "the image",
            f"lacks {', '.join(f'{n} ({i})' for n, i in zip(missing, ids, strict=True))}",
            "Six pictures need B02, B03, B04, B08, B8A, B11 and B12 of Sentinel-2.",
        )


# --- the text --------------------------------------------------------------------------------------------
_ABOUT_BANDS = (
    ("B01", "coastal aerosol, 60 m"), ("B02", "blue, 10 m"), ("B03", "green, 10 m"), ("B04", "red, 10 m"),
    ("B05", "red edge at 704.1 nm, 20 m"), ("B06", "red edge at 740.5 nm, 20 m"),
    ("B07", "red edge at 782.8 nm, 20 m"), ("B08", "near infrared, 10 m"),
    ("B8A", "narrow near infrared, 20 m"), ("B09", "water vapour, 60 m"),
    ("B11", "short-wave infrared at 1613.7 nm, 20 m"), ("B12", "short-wave infrared at 2202.4 nm, 20 m"),
)  # fmt: skip


def prompt(
    options: Sequence[str],
    question: str = "Which of these classes does the scene show?",
    several: bool = False,
    ndvi: str = "notebook",
    span: float = RANGE,
) -> str:
    """The text that follows the six pictures.

    Args:
        options: the classes, numbered from 1 in this order.
        question: in words.
        several: whether more than one may be right.
        ndvi, span: as the pictures were made.

    Raises:
        SettingError: fewer than two options, or two of one name.
    """
    check_options(options)
    shown = "0 (red, also for everything below) over yellow at 0.5 to 1 (green)"
    if ndvi == "rescaled":
        shown = "-1 (red) over yellow at 0 to 1 (green)"
    lines = [
        "The six images before this text show one and the same scene. Each was made from other bands of one "
        "Sentinel-2 image.",
        "The bands: " + "; ".join(f"{i}: {what}" for i, what in _ABOUT_BANDS) + ".",
        "Image 1: natural colours; red is B04, green is B03, blue is B02.",
        "Image 2: false colours; red is B08, green is B04, blue is B03, so that vegetation is red.",
        f"Image 3: NDVI, (B08 - B04) / (B08 + B04), from {shown}; green is dense vegetation.",
        f"Image 4: NDWI, (B03 - B08) / (B03 + B08), from -{span:g} to {span:g}; white up to 0, then ever "
        "bluer: blue is open water.",
        f"Image 5: NDMI, (B8A - B11) / (B8A + B11), from -{span:g} (red) over green at 0 to {span:g} (blue); "
        "red is dry, blue is moist.",
        f"Image 6: the same with B12 for B11, from -{span:g} (red) over green at 0 to {span:g} (blue).",
        "Answer with the number of "
        + (
            "every class that applies, separated by commas, like (1),(3)"
            if several
            else "one class, like (2)"
        )
        + ". Write nothing else.",
        question,
        *(f"({n}) {name}" for n, name in enumerate(options, start=1)),
    ]
    return "\n".join(lines)


def check_options(options: Sequence[str]) -> None:
    """Checks that there is something to choose.

    Raises:
        SettingError: fewer than two options, or two of one name.
    """
    if len(options) < 2 or len(set(options)) < len(options) or not all(o.strip() for o in options):
        raise SettingError("classes", "are fewer than two, or one is named twice", "Give a,b,c.")


def messages(images: Mapping[str, np.ndarray], text: str, least: int = 0) -> list[dict[str, Any]]:
    """One user message: the pictures in order as PNG, then the text.

    Args:
        images: as `pictures` gives them.
        text: as `prompt` gives it.
        least: pictures with a shorter side than this are enlarged by a whole number, pixel by pixel.
    """
    parts: list[dict[str, Any]] = []
    for picture in images.values():
        times = max(1, -(-least // min(picture.shape[:2])))
        held = io.BytesIO()
        Image.fromarray(picture.repeat(times, axis=0).repeat(times, axis=1)).save(held, "PNG")
        data = base64.b64encode(held.getvalue()).decode()
        parts.append({"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}})
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


def parse(reply: str, options: int, several: bool = False) -> list[int]:
    """The numbers in a reply, each once and in order: those that are options; one unless `several`. Empty
    where there is none, which counts as wrong."""
    found = [int(n) for n in re.findall(r"\((\d+)\)", reply)]
    valid = list(dict.fromkeys(n for n in found if 1 <= n <= options))
    return valid if several else valid[:1]


# --- answers on the indices alone ------------------------------------------------------------------------
FEATURES = tuple(f"{part}_{name}" for part in ("mean", "spread") for name in DIFFERENCES)
# Kinds of ground: words in the names of classes, and typical NDVI, NDWI and NDMI (B11, B12) in the season of
# growth. From common knowledge of the indices; no data set was used to choose them.
KINDS: dict[str, tuple[tuple[str, ...], tuple[float, float, float, float]]] = {
    "water": (("water", "sea", "lake", "river", "ocean", "pond"), (-0.2, 0.4, 0.4, 0.6)),
    "snow": (("snow", "ice", "glacier"), (0.0, 0.1, 0.8, 0.8)),
    "forest": (("forest", "tree", "wood", "broadleaf", "conifer", "mangrove"), (0.75, -0.65, 0.3, 0.55)),
    "grass": (("grass", "pasture", "meadow"), (0.65, -0.6, 0.15, 0.4)),
    "crop": (("crop", "cultivated", "arable", "farm", "orchard", "vineyard"), (0.5, -0.5, 0.05, 0.3)),
    "shrub": (("shrub", "herbaceous", "heath", "moor"), (0.45, -0.45, 0.0, 0.2)),
    "wetland": (("wetland", "marsh", "peat", "swamp"), (0.4, -0.3, 0.25, 0.45)),
    "built": (("built", "urban", "artificial", "residential", "industrial", "highway", "road", "developed"),
              (0.2, -0.25, -0.1, 0.0)),
    "bare": (("bare", "sand", "soil", "rock", "beach", "dune"), (0.12, -0.2, -0.15, -0.1)),
}  # fmt: skip


def features(bands: Mapping[str, np.ndarray]) -> np.ndarray:
    """What a tile looks like to the baselines: the mean and the standard deviation of each index, float64
    [8], in the order of `FEATURES`."""
    found = indices(bands)
    return np.array([*(v.mean() for v in found.values()), *(v.std() for v in found.values())])


def kind_of(name: str) -> str | None:
    """The kind of ground that the name of a class speaks of; None where no word of it is known."""
    low = name.lower()
    return next((kind for kind, (words, _) in KINDS.items() if any(w in low for w in words)), None)


@dataclass(frozen=True)
class Reply:
    """`text` in the form that the prompt asks for; `numbers` of the options; who answered."""

    text: str
    numbers: tuple[int, ...]
    answerer: str


def by_rules(found: np.ndarray, options: Sequence[str]) -> Reply:
    """The option whose kind of ground lies nearest to the mean indices.

    Args:
        found: of `features`.
        options: the classes; those of no known kind are never chosen, and of several of one kind the first.

    Raises:
        SettingError: no option is of a known kind.
    """
    check_options(options)
    known = [(n, KINDS[kind][1]) for n, o in enumerate(options, 1) if (kind := kind_of(o)) is not None]
    if not known:
        raise SettingError(
            "classes", "name no ground that the rules know", "Give prototypes, or a language model."
        )
    best = min(known, key=lambda one: float(np.square(np.subtract(one[1], found[:4])).sum()))[0]
    return Reply(f"({best})", (best,), "rules")


@dataclass(frozen=True)
class Prototypes:
    """The mean features [K, 8] of training tiles of each class, and the spread [8] of the features within
    classes, by which distances are divided."""

    classes: tuple[str, ...]
    means: np.ndarray
    spread: np.ndarray

    @classmethod
    def fit(cls, found: np.ndarray, labels: Sequence[str]) -> Prototypes:
        """From features [N, 8] of training tiles and their classes. Nothing is chosen or tuned.

        Raises:
            SettingError: fewer than two classes.
        """
        names = tuple(sorted(set(labels)))
        if len(names) < 2:
            raise SettingError("prototypes", "need tiles of two classes or more", "Give labelled tiles.")
        each = np.array([names.index(label) for label in labels])
        means = np.stack([found[each == k].mean(axis=0) for k in range(len(names))])
        spread = np.sqrt(np.square(found - means[each]).mean(axis=0))
        return cls(names, means, np.maximum(spread, 1e-6))

    def answer(self, found: np.ndarray, options: Sequence[str]) -> Reply:
        """The option whose prototype is nearest.

        Raises:
            SettingError: an option was not among the classes of the training tiles.
        """
        check_options(options)
        if unknown := [o for o in options if o not in self.classes]:
            raise SettingError(
                f"class {unknown[0]}", "has no prototype", f"There are {', '.join(self.classes)}."
            )
        means = self.means[[self.classes.index(o) for o in options]]
        best = int(np.square((means - found) / self.spread).sum(axis=1).argmin()) + 1
        return Reply(f"({best})", (best,), "prototypes")

    def save(self, path: Path | str) -> None:
        """Writes JSON."""
        table = {c: m.tolist() for c, m in zip(self.classes, self.means, strict=True)}
        text = json.dumps({"features": FEATURES, "means": table, "spread": self.spread.tolist()}, indent=1)
        Path(path).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path | str) -> Prototypes:
        """What `save` wrote.

        Raises:
            FileMissingError, UnreadableFileError: no such file, or something else is in it.
        """
        path = Path(path)
        if not path.is_file():
            raise FileMissingError(path, "is not there", "Give the file of prototypes.")
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            means = np.array(list(found["means"].values()), np.float64)
            spread = np.array(found["spread"], np.float64)
            names = tuple(found["means"])
            if tuple(found["features"]) != FEATURES or means.shape != (len(names), len(FEATURES)):
                raise ValueError("other features")
            if spread.shape != (len(FEATURES),) or not (spread > 0).all():
                raise ValueError("no spread")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UnreadableFileError(path, f"holds no prototypes ({error})", "Fit them again.") from error
        return cls(names, means, spread)


class ZeroShot:
    """Answers closed questions about a tile of Sentinel-2.

    Args:
        chat: takes messages of the chat-completions protocol and returns the reply; None for the indices.
        prototypes: for the answer on the indices; None for the rules.
        least: see `messages`.

    Raises:
        SettingError: `least` is under 0, or makes pictures that are too large.
    """

    def __init__(
        self,
        card: Card,
        chat: Callable[[list[dict[str, Any]]], str] | None = None,
        prototypes: Prototypes | Path | str | None = None,
        least: int = 0,
    ) -> None:
        if not 0 <= least <= MOST_SIDE:
            raise SettingError(
                f"least={least}", f"is not between 0 and {MOST_SIDE}", "Take 512, or leave it out."
            )
        self.card, self.chat, self.least = card, chat, least
        self.prototypes = Prototypes.read(prototypes) if isinstance(prototypes, Path | str) else prototypes

    def look(self, bands: Mapping[str, np.ndarray], **how: Any) -> dict[str, np.ndarray]:
        """`pictures`."""
        return pictures(bands, **how)

    def prompt(self, options: Sequence[str], **how: Any) -> str:
        """`prompt`."""
        return prompt(options, **how)

    def request(self, bands: Mapping[str, np.ndarray], options: Sequence[str], **how: Any) -> list[dict]:
        """`messages` of the pictures and the text."""
        return messages(pictures(bands), prompt(options, **how), self.least)

    def answer(
        self, bands: Mapping[str, np.ndarray], options: Sequence[str], several: bool = False, **how: Any
    ) -> Reply:
        """The numbers of the options that the answerer names; none where its reply cannot be read.

        Args:
            bands: common name to [H, W] in reflectance.
            options: the classes.
            several: whether more than one may be right (the baselines name one).
            how: of `prompt`.
        """
        if self.chat is not None:
            said = self.chat(self.request(bands, options, several=several, **how))
            return Reply(said, tuple(parse(said, len(options), several)), "language model")
        found = features(bands)
        if self.prototypes is not None:
            return self.prototypes.answer(found, options)
        return by_rules(found, options)


@register(CARD)
def build(
    card: Card,
    chat: Callable[[list[dict[str, Any]]], str] | None = None,
    prototypes: Prototypes | Path | str | None = None,
    least: int = 0,
) -> ZeroShot:
    """The recipe with an answerer; there are no weights."""
    return ZeroShot(card, chat, prototypes, least)
