"""GAIA: five captions an image from what is known of it, and CLIP trained further on such pairs.

Source: Zavras, Michail, Zhu, Demir and Papoutsis, "GAIA: A Global, Multi-modal, Multi-scale Vision-Language
Dataset for Remote Sensing Image Analysis", IEEE GRSM 2026 (arXiv:2502.09598), and its released annotation
notebook. Published are the schema of the records, the rules for captions, and the split; the fine-tuning code
and the weights are not. Differs from it in: the wording of the prompts, which is ours; a captioner by rules
that fills the same schema without any language model; every sentence of a model is checked against what is
known of the image; the training of CLIP (settings of ours) and the small network of two towers.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from terralapse.cards import Card, Inputs, Licences, Normalisation, Status, Task
from terralapse.data.bpe import Bpe
from terralapse.data.rule_map import rule_map
from terralapse.errors import SettingError, UnreadableFileError
from terralapse.labels import NOT_COUNTED, RULES
from terralapse.layers.clip import HIGHEST, Clip, ClipSize, from_released
from terralapse.layers.two_towers import TwoTowers, hashed_words
from terralapse.layers.weights import load_strict, load_weights
from terralapse.registry import register
from terralapse.sensors import Unit
from terralapse.tasks.made_text import PLACES, WHOLE, CaptionMaker, Item, Sheet
from terralapse.tasks.retrieval import TextImageSystem

PREFIX = "The image showcases:"
CAPTIONS = 5
RESOLUTIONS = ("Low", "Moderate", "High", "Very High")
KEYS = ("id", "image_src", "image_alt", "captions", "credits", "location", "lat", "lon", "tag", "resolution",
        "satellite", "sensor", "modalities")  # fmt: skip
SHARES = {"train": 0.7, "val": 0.1, "test": 0.2}
LEAST = 0.01  # share below which the rules do not speak of a class
DARK, BRIGHT = 85.0, 150.0  # mean of 0..255
SMOOTH, ROUGH = 4.0, 10.0  # mean difference of neighbouring pixels

TITLE = "GAIA: A Global, Multi-modal, Multi-scale Vision-Language Dataset for Remote Sensing Image Analysis"
LIMITS = (
    "Fine-tuning code and weights are not released: the training here has settings of this library.",
    "The images of the data set are links, and links rot.",
    "By rules, an image is described by five classes of colour and brightness, which are no land cover.",
)
CARD = Card(
    slug="gaia",
    title=TITLE,
    task=Task.LANGUAGE,
    status=Status.RUNS,
    summary="Five captions an image from its metadata and content, each sentence checked against them.",
    year=2025,
    paper="arXiv:2502.09598",
    repository="https://github.com/Orion-AI-Lab/GAIA",
    inputs=Inputs(dates=1, bands=("red", "green", "blue"), units=(Unit.RGB255,)),
    licences=Licences(code="MIT"),
    checkpoints="none",
    limits=LIMITS,
    threshold=None,
)


# --- records ---------------------------------------------------------------------------------------------
def resolution_class(gsd: float) -> str:
    """The class of a pixel size in metres: above 300 low, above 30 moderate, above 4 high. The data set names
    the classes and not their bounds; these are those of the Copernicus contributing missions."""
    for least, name in ((300.0, "Low"), (30.0, "Moderate"), (4.0, "High")):
        if gsd > least:
            return name
    return "Very High"


def record_faults(record: Mapping[str, Any]) -> list[str]:
    """What a record breaks of the schema of GAIA; empty when nothing."""
    found = [f"{k} is missing" for k in KEYS if k not in record]
    captions = record.get("captions")
    if not isinstance(captions, list) or len(captions) != CAPTIONS:
        found.append(f"captions are not a list of {CAPTIONS}")
    else:
        if bad := [c for c in captions if not re.match(rf"{re.escape(PREFIX)} [A-Z]", str(c))]:
            found.append(f"a caption does not begin with {PREFIX!r} and a capital: {str(bad[0])[:60]!r}")
        if len({" ".join(str(c).lower().split()) for c in captions}) < CAPTIONS:
            found.append("two captions are the same")
        found += [
            f"a caption says {w!r}" for w in ("photograph",) if any(w in str(c).lower() for c in captions)
        ]
    if record.get("resolution") not in (None, *RESOLUTIONS):
        found.append(f"resolution {record['resolution']!r} is none of {', '.join(RESOLUTIONS)}")
    for key in ("tag", "satellite", "sensor", "modalities"):
        if key in record and not (
            isinstance(record[key], list) and all(isinstance(v, str) for v in record[key])
        ):
            found.append(f"{key} is no list of names")
    if isinstance(record.get("tag"), list) and len(record["tag"]) > 3:
        found.append("there are more than three tags")
    for key, most in (("lat", 90.0), ("lon", 180.0)):
        value = record.get(key)
        if value is not None and not (isinstance(value, int | float) and abs(value) <= most):
            found.append(f"{key} {value!r} is no coordinate")
    return found


def split_of(lat: float, lon: float, date: str = "") -> str:
    """The split of an image by the cell of one degree and month that it falls in: no cell is in two splits.

    Args:
        date: YYYY-MM-DD or its beginning; empty where it is not known.
    """
    cell = f"{math.floor(lat)} {math.floor(lon)} {date[:7]}"
    place = int.from_bytes(hashlib.sha256(cell.encode()).digest()[:8], "big") / 2**64
    for name, share in SHARES.items():
        if place < share:
            return name
        place -= share
    return "test"


def about_of(item: Item) -> dict[str, Any]:
    """What is known of an image, in the fields of the schema.

    Raises:
        UnreadableFileError: a field that is not what the schema wants.
    """
    given = item.about

    def several(*names: str) -> list[str]:
        value = next((given[n] for n in names if given.get(n)), [])
        parts = value.split(";") if isinstance(value, str) else value
        return [str(p).strip() for p in parts if str(p).strip()]

    def number(*names: str) -> float | None:
        value = next((given[n] for n in names if given.get(n) not in (None, "")), None)
        try:
            return None if value is None else float(value)
        except (TypeError, ValueError) as error:
            raise UnreadableFileError(
                item.key, f"has {names[0]} {value!r}, which is no number", "Correct the metadata."
            ) from error

    gsd = number("gsd")
    if gsd is not None and not gsd > 0:
        raise UnreadableFileError(item.key, f"has gsd {gsd:g}", "Give the pixel size in metres.")
    return {
        "tag": several("tag", "tags")[:3],
        "location": str(given.get("location") or ""),
        "lat": number("lat", "latitude"),
        "lon": number("lon", "longitude"),
        "modalities": several("modalities", "modality"),
        "satellite": several("satellite"),
        "sensor": several("sensor"),
        "resolution": str(given.get("resolution") or ("" if gsd is None else resolution_class(gsd))),
        "gsd": gsd,
        "date": str(given.get("date") or ""),
        "summary": str(given.get("summary") or ""),
        "image_src": str(given.get("image_src") or ""),
        "image_alt": str(given.get("image_alt") or ""),
        "credits": str(given.get("credits") or ""),
    }


# --- the pipeline ----------------------------------------------------------------------------------------
CONDENSE = (
    "You are an expert in Earth observation. Condense the article on a satellite image that you are given "
    "into a few sentences. Keep what can be seen in the image: places, objects, colours, patterns, sensors. "
    'Answer in JSON: {"summary": "..."}.'
)
ANNOTATE = (
    "You are an expert in Earth observation and caption a satellite image from the image and from what is "
    "known of it. Write five captions that differ in what they tell: use the words of the field; give "
    "counts, shapes and types, positions and relations, the season only where it can be seen, causes, "
    "atmosphere, environment, land use and what is unusual; use brightness and texture. Name modality, "
    "satellite, sensor and the class of spatial resolution where they are known, and write "
    "acronyms out at their first use. Do "
    "not repeat one caption in other words, invent nothing, and leave out ornament, opinion, the word "
    "photograph, the size of the file, and dates, coordinates, events and credits that cannot be seen. State "
    f"numbers only as they are given. Begin each caption with {PREFIX!r} and a noun in a capital. Answer in "
    'JSON: {"captions": ["...", "...", "...", "...", "..."]}.'
)
# What the classes of colour are called: the first is what the rules say, which is no more than was measured.
_WORDS = {
    "vegetation": ("green cover", "vegetation"),
    "dark": ("dark cover", "water", "shadow"),
    "bright": ("bright grey cover", "built-up area"),
    "soil": ("brown cover", "bare soil", "soil"),
    "other": ("mixed cover",),
}


class Gaia(CaptionMaker):
    """Makes five captions of an image; see `terralapse.tasks.made_text`. An item with a map is described by
    its classes, any other by the five classes of `terralapse.data.rule_map`."""

    version = "gaia-1"

    def __init__(self, card: Card) -> None:
        self.card = card

    def statistics(self, item: Item) -> dict[str, Any] | None:
        if item.image is None:
            raise SettingError(item.key, "has no image", "Give images, or choose --kind chatearthnet.")
        labels, scheme = item.labels, item.scheme
        if labels is None or scheme is None:
            labels, scheme = rule_map(np.moveaxis(item.image, -1, 0).astype(np.float32)), RULES
        counted = [c for c in scheme.classes if c.name not in NOT_COUNTED]
        called = {c.value: _WORDS[c.name] if scheme is RULES else (c.title.lower(),) for c in counted}
        known = {value: words[0] for value, words in called.items()}
        words = {names[0]: list(names) for names in called.values()}
        h, w = labels.shape
        parts = {
            WHOLE: labels,
            "top left": labels[: h // 2, : w // 2],
            "top right": labels[: h // 2, w // 2 :],
            "bottom left": labels[h // 2 :, : w // 2],
            "bottom right": labels[h // 2 :, w // 2 :],
            "middle": labels[h // 4 : 3 * h // 4, w // 4 : 3 * w // 4],
        }
        shares = {place: _shares(part, known) for place, part in parts.items()}
        if not shares[WHOLE]:
            return None
        grey = item.image.astype(np.float32).mean(axis=2)
        steps = [np.abs(np.diff(grey, axis=a)).mean() for a in (0, 1) if grey.shape[a] > 1]
        return {
            "key": item.key,
            "about": about_of(item),
            "shares": shares,
            "words": words,
            "brightness": round(float(grey.mean()), 2),
            "texture": round(float(np.mean(steps)) if steps else 0.0, 2),
        }

    def sheet(self, statistics: Mapping[str, Any]) -> Sheet:
        about = statistics["about"]
        names = [about["location"], about["resolution"], PREFIX]
        names += [v for k in ("tag", "modalities", "satellite", "sensor") for v in about[k]]
        numbers = ((about["gsd"], "m"),) if about["gsd"] is not None else ()
        return Sheet(
            statistics["shares"],
            {n: tuple(w) for n, w in statistics["words"].items()},
            numbers=numbers,
            names=tuple(names),
            known=about["summary"],
            banned=(r"\bphotograph\w*",),
        )

    def write(self, statistics: Mapping[str, Any], seed: int) -> list[str]:
        about, shares = statistics["about"], statistics["shares"]
        rng = np.random.default_rng([seed, 3])
        order = [
            n for n in sorted(shares[WHOLE], key=lambda n: -shares[WHOLE][n]) if shares[WHOLE][n] >= LEAST
        ]
        top = order[0]
        by = _seen_by(about)
        at = f" in {about['location']}" if about["location"] else ""
        tags = " and ".join(about["tag"])
        first = f"{tags} scene" if tags else f"{top} as the main cover of a scene"
        second = ", ".join(f"{n} {_percent(shares[WHOLE][n])}" for n in order[1:4])
        ends = ("of the ground", "of the scene", "of the area")
        covers = f"{top} over {_percent(shares[WHOLE][top])} {ends[int(rng.integers(3))]}"
        said = [
            f"{first}{at}{by}",
            covers + (f", beside {second}" if second else ""),
            _positions(shares),
            _appearance(statistics, top),
            _detail(statistics, order),
        ]
        return [f"{PREFIX} {s[0].upper()}{s[1:]}." for s in said]

    def before(self, item: Item) -> list[dict[str, Any]] | None:
        text = str(item.about.get("text") or "")
        if not text:
            return None
        return [{"role": "system", "content": CONDENSE}, {"role": "user", "content": text[:20_000]}]

    def messages(self, statistics: Mapping[str, Any], item: Item, seed: int) -> list[dict[str, Any]]:
        assert item.image is not None
        about = {
            k: v for k, v in statistics["about"].items() if v and k not in ("lat", "lon", "date", "credits")
        }
        shares = {
            place or "whole image": {n: _percent(s) for n, s in part.items()}
            for place, part in statistics["shares"].items()
        }
        text = f"Known: {json.dumps(about, ensure_ascii=False)}\nShares of cover: {json.dumps(shares)}"
        held = io.BytesIO()
        Image.fromarray(item.image).save(held, "PNG")
        url = "data:image/png;base64," + base64.b64encode(held.getvalue()).decode()
        return [
            {"role": "system", "content": ANNOTATE},
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}},
                                         {"type": "text", "text": text}]},
        ]  # fmt: skip

    def read(self, reply: str) -> list[str]:
        found = re.search(r"\{.*\}", reply, re.S)
        try:
            said = json.loads(found[0])["captions"] if found else []
        except (ValueError, KeyError, TypeError):
            return []
        if not isinstance(said, list) or len(said) != CAPTIONS or not all(isinstance(s, str) for s in said):
            return []
        kept = [" ".join(s.split()) for s in said]
        return kept if all(re.match(rf"{re.escape(PREFIX)} [A-Z]", s) for s in kept) else []

    def record(self, statistics: Mapping[str, Any], captions: Sequence[str]) -> dict[str, Any]:
        about = statistics["about"]
        names = ("image_src", "image_alt", "credits", "location", "lat", "lon", "tag", "satellite", "sensor",
                 "modalities")  # fmt: skip
        found = {"id": statistics["key"], "captions": list(captions), **{k: about[k] for k in names}}
        found["resolution"] = about["resolution"] or None
        if faults := record_faults(found):
            raise UnreadableFileError(
                statistics["key"], f"would break the schema: {'; '.join(faults)}", "Correct the metadata."
            )
        if about["lat"] is not None and about["lon"] is not None:
            found["split"] = split_of(about["lat"], about["lon"], about["date"])
        return found


def _shares(part: np.ndarray, known: Mapping[int, str]) -> dict[str, float]:
    found = {name: int((part == value).sum()) for value, name in known.items()}
    total = sum(found.values())
    return {name: n / total for name, n in found.items() if n}


def _percent(share: float) -> str:
    return f"{100 * share:.0f}%"


def _seen_by(about: Mapping[str, Any]) -> str:
    sensor, satellite = " and ".join(about["sensor"]), " and ".join(about["satellite"])
    by = f"{sensor} on {satellite}" if sensor and satellite else sensor or satellite
    how = " and ".join(m.lower() for m in about["modalities"])
    text = f", seen by {by}" if by else ""
    text += f" in {how} data" if how else ""
    return text + (f" of {about['resolution'].lower()} spatial resolution" if about["resolution"] else "")


def _positions(shares: Mapping[str, Mapping[str, float]]) -> str:
    """Which class is the largest where; places of one class together."""
    where: dict[str, list[str]] = {}
    for place in PLACES:
        if shares[place]:
            where.setdefault(max(shares[place], key=lambda n: shares[place][n]), []).append(place)
    parts = [f"{n} as the largest cover of the {_and(places)}" for n, places in where.items()]
    return parts[0] + "".join(f"; {p}" for p in parts[1:])


def _and(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else ", the ".join(parts[:-1]) + " and the " + parts[-1]


def _appearance(statistics: Mapping[str, Any], top: str) -> str:
    light, step = statistics["brightness"], statistics["texture"]
    bright = "dark" if light < DARK else "bright" if light > BRIGHT else "moderately bright"
    rough = "smooth" if step < SMOOTH else "rough" if step > ROUGH else "moderately textured"
    return f"a {bright}, {rough} surface on which {top} takes the largest share"


def _detail(statistics: Mapping[str, Any], order: Sequence[str]) -> str:
    """Where the second class lies, or what is missing."""
    shares = statistics["shares"]
    if len(order) > 1:
        name = order[1]
        place = max(PLACES, key=lambda p: shares[p].get(name, 0.0))
        return f"{name} that is densest in the {place}, at {_percent(shares[place].get(name, 0.0))} of it"
    missing = [n for n in statistics["words"] if n not in shares[WHOLE]]
    return f"{order[0]} in every part" + (f", with no {missing[0]}" if missing else "")


@register(CARD)
def build(card: Card) -> Gaia:
    """The maker; there is nothing to load."""
    return Gaia(card)


# --- CLIP on such pairs ----------------------------------------------------------------------------------
CLIP_STD = Normalisation((122.7709, 116.7460, 104.0937), (68.5005, 66.6322, 70.3232))  # OpenAI's, of 0..255
HF_SIZES = {
    "b32": ClipSize(),
    "b16": ClipSize(patch=16),
    "l14": ClipSize(patch=14, width=1024, layers=24, heads=16, text_width=768, text_heads=12, embed=768),
}


def _clip_card(variant: str, summary: str, parameters: int, limits: tuple[str, ...]) -> Card:
    return replace(
        CARD,
        slug=f"gaia/{variant}",
        title=f"{TITLE}: CLIP",
        task=Task.RETRIEVAL,
        summary=summary,
        inputs=replace(CARD.inputs, normalisation=CLIP_STD),
        parameters=parameters,
        limits=limits,
    )


NANO = _clip_card(
    "clip-nano",
    "Two small towers for images and captions (a size of our own); a CPU trains them in minutes.",
    1_362_337,
    ("No weights come with it.", "It knows the words of its training captions and nothing of the language."),
)
CLIPS = {
    f"clip-{name}": _clip_card(
        f"clip-{name}",
        f"CLIP ViT-{name[0].upper()}/{name[1:]} from weights of your own, trained further on such pairs.",
        parameters,
        (
            "Weights and the merges of its tokens are the user's to bring (OpenAI, OpenCLIP, transformers).",
            "Captions of more than 77 tokens are cut; `cut` counts them.",
            "The figures of the paper are not known, and its training is not published.",
        ),
    )
    for name, parameters in (("b32", 151_277_313), ("b16", 149_620_737), ("l14", 427_616_513))
}


def stripped(caption: str) -> str:
    """A caption without the words that all of them begin with."""
    return caption.removeprefix(PREFIX).strip()


class GaiaClip(TextImageSystem):
    """A system of two towers; see `terralapse.tasks.retrieval`.

    Args:
        tokens: a caption to ids int64 [L].
        strip: leave out what all captions begin with.
    """

    def __init__(self, card: Card, network: TwoTowers | Clip, tokens: Any, strip: bool = True) -> None:
        super().__init__(card, network)
        self._tokens, self.strip = tokens, strip
        self.cut = 0  # captions that did not fit

    def encode_image(self, images: Tensor) -> Tensor:
        return self._net.encode_image(images)

    def encode_text(self, tokens: Tensor) -> Tensor:
        return self._net.encode_text(tokens)

    @property
    def _net(self) -> Any:
        return self.network

    def tokens_of(self, captions: Sequence[str]) -> np.ndarray:
        rows = np.stack([self._tokens(stripped(c) if self.strip else c) for c in captions])
        self.cut += int((rows[:, -1] != 0).sum())
        return rows

    def scale(self) -> Tensor:
        return self._net.logit_scale.clamp(max=HIGHEST).exp()

    def start_encoder(self, published: dict[str, Tensor]) -> None:
        if isinstance(self.network, Clip):
            load_strict(self.network, from_released(published), "encoder")
        else:
            super().start_encoder(published)


@register(NANO, *CLIPS.values())
def build_clip(
    card: Card,
    weights: Path | str | None = None,
    untrained: bool = False,
    merges: Path | str | None = None,
    quick: bool = True,
    strip: bool = True,
    length: int = 48,
) -> GaiaClip:
    """Two towers with weights.

    Args:
        weights: of training here; for `gaia/clip-*` also those of OpenAI, OpenCLIP or `transformers`.
        untrained: random weights, for training.
        merges: of CLIP: see `terralapse.data.bpe.Bpe`.
        quick: the activation of OpenAI's weights; False for GELU (most of OpenCLIP's).
        strip: see `GaiaClip`.
        length: words of a caption, of the small one.

    Raises:
        SettingError: CLIP without `merges`.
        and those of `load_weights`.
    """
    if card.slug == NANO.slug:
        network: TwoTowers | Clip = TwoTowers(length=length)
        system = GaiaClip(card, network, lambda text: hashed_words(text, length), strip)
    else:
        if merges is None:
            raise SettingError(
                f"{card.slug}: merges",
                "is not given, and without it texts have no ids",
                "Give merges.txt or bpe_simple_vocab_16e6.txt.gz: --build merges=FILE, or build_merges.",
            )
        bpe = Bpe(merges)
        size = HF_SIZES[card.slug.rpartition("-")[2]]
        network = Clip(replace(size, vocabulary=bpe.size), quick)
        system = GaiaClip(card, network, lambda text: bpe.encode(text, size.places), strip)
    if not untrained:
        load_weights(network, card, weights, None if card.slug == NANO.slug else from_released)
    network.eval()
    return system
