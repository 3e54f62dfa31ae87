"""Every data set that can be read, by name: its task, its splits, its licence, and how to open it.

Splits have the names of their authors, and `test` is only what they call test. Where no validation split is
published none is made up: `holdout` parts the training split by a hash of the names, which is the same on
every machine, into `train-rest` and `train-held`, and a folder without splits into `rest` and `held`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from terralapse.cards import Task
from terralapse.data.building_talk import BuildingCaptions, BuildingQuestions
from terralapse.data.buildings import Buildings
from terralapse.data.cdvqa import Cdvqa, MadeCdvqa
from terralapse.data.changechat import FILES, ChangeChat, MadeChangeChat
from terralapse.data.chat import Turn, is_chat
from terralapse.data.damage_questions import DamageQuestions
from terralapse.data.dynamicearthnet import DynamicEarthNet
from terralapse.data.folders import BiTemporal, SemanticBiTemporal
from terralapse.data.fusu import Fusu
from terralapse.data.hrscd import Hrscd
from terralapse.data.isprs import Isprs
from terralapse.data.levir import Levir
from terralapse.data.levir_mci import LevirMci
from terralapse.data.loveda import LoveDA
from terralapse.data.mshs_bcd import MshsPairs
from terralapse.data.rule_map import WithRuleMap
from terralapse.data.samples import DataSet
from terralapse.data.scenes import Scenes
from terralapse.data.shards import ImageText
from terralapse.data.xbd import XBD
from terralapse.errors import SettingError
from terralapse.labels import AID, EUROSAT, LANDSAT_SCD, RESISC45, SECOND_MAMBA, UCMERCED

PARTS = {"train-rest": "train", "train-held": "train", "rest": None, "held": None}  # of which split


class Named(DataSet[Any], Protocol):
    """A data set that knows the names of its samples without reading them."""

    names: list[str]


@dataclass(frozen=True)
class Entry:
    """One data set.

    `open` takes the folder, a split (None: the folder itself is the split) and `options`, those of its
    reader; `splits` are those that are published with labels; `whole` says that None is a split as well;
    `notes` are what a user of its scores must know.
    """

    task: Task
    open: Callable[..., Named]
    splits: tuple[str, ...]
    title: str
    licence: str
    notes: str
    whole: bool = False
    options: tuple[str, ...] = ()


class Part:
    """Some samples of a data set."""

    def __init__(self, dataset: Named, indices: list[int], title: str) -> None:
        self._dataset, self._indices = dataset, indices
        self.title, self.scheme = title, dataset.scheme
        self.names = [dataset.names[i] for i in indices]

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Any:
        return self._dataset[self._indices[index]]

    def __iter__(self) -> Iterator[Any]:
        return (self[i] for i in range(len(self)))


class ChatPart(Part):
    """Some turns of a data set of instructions."""

    def __init__(self, dataset: Any, indices: list[int], title: str) -> None:
        super().__init__(dataset, indices, title)
        self.kinds: tuple[str, ...] = dataset.kinds

    def turn(self, index: int) -> Turn:
        """A turn, without its images."""
        whole: Any = self._dataset
        return whole.turn(self._indices[index])


def held_out(name: str, share: float) -> bool:
    """Whether a sample belongs to the part that is held out: the SHA-256 of its name, as a number of 0 to 1,
    is below `share`."""
    digest = hashlib.sha256(name.encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 < share


def open_dataset(
    name: str,
    root: Path | str,
    split: str | None = None,
    *,
    holdout: float | None = None,
    holdout_by: str | None = None,
    **options: Any,
) -> Named:
    """A split of a data set of the catalogue.

    Args:
        name: a key of `DATASETS`.
        root: the folder of the data set.
        split: one of the entry's; None where `root` itself is the split; with `holdout` also `train-rest` and
            `train-held`, or `rest` and `held` of `root` itself.
        holdout: the share of the training split that is held out, between 0 and 1.
        holdout_by: a regular expression; what it finds first in a name is hashed in place of the name, so
            that samples of one place stay together, such as `^.+?_\\d{8}` for tiles of xBD.
        options: of the reader, see the entry; and for pairs `map="rules"`, which gives each sample a map of
            its earlier image by fixed rules, for systems that take one (see `terralapse.data.rule_map`).

    Raises:
        SettingError: no such data set, split or option, or `holdout` with the whole training split.
        FileMissingError, UnreadableFileError: from the reader.
    """
    if name not in DATASETS:
        raise SettingError(f"data={name}", "no such data set", f"Known are {', '.join(sorted(DATASETS))}.")
    entry = DATASETS[name]
    if "map" in options:
        if options.pop("map") != "rules" or entry.task not in (Task.CHANGE, Task.SEMANTIC_CHANGE):
            raise SettingError("map", f"cannot be had like this for {name}", "Pairs of dates have map=rules.")
        given = {"holdout": holdout, "holdout_by": holdout_by, **options}
        return WithRuleMap(open_dataset(name, root, split, **given))
    if unknown := sorted(options.keys() - set(entry.options)):
        known = ", ".join(entry.options) or "none"
        raise SettingError(unknown[0], f"is no option of {name}", f"Its options are: {known}.")
    if holdout is not None and not 0 < holdout < 1:
        raise SettingError(f"holdout={holdout}", "is no share", "Give a number between 0 and 1.")
    if holdout is not None and split in ("train", None):
        raise SettingError(
            f"split={split or 'none'}",
            "includes what `holdout` holds out",
            f"Choose one of {', '.join(PARTS)}.",
        )
    if split not in PARTS or split is None:
        _check_split(name, entry, split)
        return entry.open(root, split, **options)
    if holdout is None:
        raise SettingError(f"split={split}", "needs `holdout`", "Say which share is held out, such as 0.1.")
    _check_split(name, entry, PARTS[split])
    whole = entry.open(root, PARTS[split], **options)
    wanted = split.endswith("held")
    keys = whole.names if holdout_by is None else [_place(n, holdout_by) for n in whole.names]
    indices = [i for i, k in enumerate(keys) if held_out(k, holdout) == wanted]
    if not indices:
        raise SettingError(
            f"holdout={holdout}", f"leaves {split} without a sample of {len(whole)}", "Choose another share."
        )
    part = ChatPart if is_chat(whole) else Part
    found: Any = whole
    return part(found, indices, f"{whole.title} ({split}, {holdout:g} held out)")


def _place(name: str, pattern: str) -> str:
    try:
        found = re.search(pattern, name)
    except re.error as error:
        raise SettingError(f"holdout_by={pattern}", f"is no pattern ({error})", "Mend it.") from error
    if found is None:
        raise SettingError(
            f"holdout_by={pattern}", f"finds nothing in {name}", "Give one that fits all names."
        )
    return found.group()


def _check_split(name: str, entry: Entry, split: str | None) -> None:
    if split in entry.splits or (split is None and entry.whole) or (split is not None and not entry.splits):
        return
    if split == "val":
        raise SettingError(
            "split=val",
            f"{name} is published without one",
            "Hold out a share of the training split: `holdout=0.1` with train-rest and train-held.",
        )
    every = [*entry.splits, *(["none (the folder itself)"] if entry.whole else [])]
    raise SettingError(
        f"split={split or 'none'}", f"{name} has no such split", f"Choose one of {', '.join(every)}."
    )


# --- how each is opened ----------------------------------------------------------------------------------
def _pairs(title: str, gsd: float) -> Callable[..., Named]:
    def opened(root: Path | str, split: str | None, **options: Any) -> Named:
        return BiTemporal(root, split, **{"gsd": gsd, "title": title, **options})

    return opened


def _levir(title: str) -> Callable[..., Named]:
    def opened(root: Path | str, split: str | None, **options: Any) -> Named:
        return Levir(root, split, **{"title": title, **options})

    return opened


def _levir_cc(root: Path | str, split: str, **options: Any) -> Named:
    return LevirMci(root, split, **{"title": "LEVIR-CC", **options}, masks=False)


def _second(root: Path | str, split: str | None, **options: Any) -> Named:
    return SemanticBiTemporal(root, split, **{"scheme": SECOND_MAMBA, "title": "SECOND", **options})


def _landsat_scd(root: Path | str, split: str | None, **options: Any) -> Named:
    return SemanticBiTemporal(
        root, split, **{"scheme": LANDSAT_SCD, "gsd": 30.0, "title": "Landsat-SCD", **options}
    )


def _mshs(sensor: str) -> Callable[..., Named]:
    def opened(root: Path | str, split: str, **options: Any) -> Named:
        return MshsPairs(root, split, sensor, **options)

    return opened


def _made_mshs(task: Task, reader: Any, what: str, *options: str) -> Entry:
    title, note = f"{what} on MS-HS-BCD", "Made here by rules; `turns` lays tiles of train in all 8 ways."
    return Entry(task, reader, ("train", "val", "test"), title, "not stated", note, options=options)


def _with_map(reader: Callable[..., Named], semantic: bool) -> Callable[..., Named]:
    def opened(root: Path | str, split: str | None, **options: Any) -> Named:
        return reader(root, split, semantic=semantic, **options)

    return opened


def _isprs(area: str) -> Callable[..., Named]:
    def opened(root: Path | str, split: str | None, **options: Any) -> Named:
        return Isprs(root, area, split, **options)

    return opened


def _scenes(title: str, scheme: Any, gsd: float) -> Callable[..., Named]:
    def opened(root: Path | str, split: str | None, **options: Any) -> Named:
        return Scenes(root, split, **{"scheme": scheme, "gsd": gsd, "title": title, **options})

    return opened


NAN = float("nan")
UNCHECKED = "ask its authors"  # no statement of theirs was found that could be cited
PAIRS = ("gsd", "title", "threshold")
SEMANTIC = ("scheme", "gsd", "title")
LISTED = ("lists", "classes", "scheme", "gsd", "title")
LISTS_NOTE = "The folders have no split; that of RSMamba is in lists (`lists=`), whose `val` is its test set."
DATASETS: dict[str, Entry] = {
    "sysu-cd": Entry(
        Task.CHANGE,
        _pairs("SYSU-CD", 0.5),
        ("train", "val", "test"),
        "SYSU-CD",
        UNCHECKED,
        "12,000, 4,000 and 4,000 pairs of 256 x 256 pixels; changes of many kinds.",
        options=PAIRS,
    ),
    "levir-cd": Entry(
        Task.CHANGE,
        _levir("LEVIR-CD"),
        ("train", "val", "test"),
        "LEVIR-CD",
        "academic use",
        "445, 64 and 128 pairs of 1024 x 1024 pixels; buildings only.",
        whole=True,
        options=("gsd", "title"),
    ),
    "levir-cd-plus": Entry(
        Task.CHANGE,
        _levir("LEVIR-CD+"),
        ("train", "test"),
        "LEVIR-CD+",
        "academic use",
        "637 and 348 pairs of 1024 x 1024 pixels; published without a validation split, so many papers "
        "choose their checkpoint on the test split.",
        options=("gsd", "title"),
    ),
    "whu-cd": Entry(
        Task.CHANGE,
        _pairs("WHU-CD", 0.2),
        ("train", "val", "test"),
        "WHU-CD",
        UNCHECKED,
        "Released as one scene; papers cut and split it in different ways, so that scores compare only where "
        "the lists are the same. Cut it into tiles first.",
        whole=True,
        options=PAIRS,
    ),
    "clcd": Entry(
        Task.CHANGE,
        _pairs("CLCD", NAN),
        ("train", "val", "test"),
        "CLCD",
        UNCHECKED,
        "360, 120 and 120 pairs of 512 x 512 pixels of Gaofen-2, 0.5 to 2 m; changes of cropland only.",
        options=PAIRS,
    ),
    "dsifn": Entry(
        Task.CHANGE,
        _pairs("DSIFN", NAN),
        ("train", "val", "test"),
        "DSIFN",
        "not stated",
        "The pixel size is not stated.",
        whole=True,
        options=PAIRS,
    ),
    "mshs-bcd": Entry(
        Task.CHANGE,
        _mshs("gf1"),
        ("train", "val", "test"),
        "MS-HS-BCD, Gaofen-1",
        "not stated: research use",
        "The samples: 453, 30 and 10 official tiles of 256 x 256 pixels; buildings only.",
    ),
    "mshs-bcd-s2": Entry(
        Task.CHANGE,
        _mshs("s2"),
        ("train", "val", "test"),
        "MS-HS-BCD, Sentinel-2",
        "not stated: research use",
        "The same tiles as 64 x 64 pixels, stored as 8 bit that are not reflectance.",
        options=("bands",),
    ),
    "folder": Entry(
        Task.CHANGE,
        _pairs("pairs", NAN),
        (),
        "Any folder of pairs",
        "that of your data",
        "Folders for the two dates and for the change; any name of a split.",
        whole=True,
        options=PAIRS,
    ),
    "second": Entry(
        Task.SEMANTIC_CHANGE,
        _second,
        ("train", "test"),
        "SECOND",
        UNCHECKED,
        "2,968 and 1,694 pairs of 512 x 512 pixels, published without a validation split. Stored ids have no "
        "official order: `scheme=` says which; colours need none.",
        options=SEMANTIC,
    ),
    "landsat-scd": Entry(
        Task.SEMANTIC_CHANGE,
        _landsat_scd,
        ("train", "val", "test"),
        "Landsat-SCD",
        UNCHECKED,
        "8,468 pairs of 416 x 416 pixels with augmented copies, which leak from test to train unless the "
        "lists keep them together; papers use different lists.",
        options=SEMANTIC,
    ),
    "dynamicearthnet": Entry(
        Task.CHANGE,
        _with_map(DynamicEarthNet, semantic=False),
        ("train", "val", "test"),
        "DynamicEarthNet, change of land cover",
        UNCHECKED,
        "With the map of the earlier month. The split of MapFormer: 35, 10 and 10 sites; all pairs of months "
        "of train, consecutive ones of the others (`pairs=`).",
        whole=True,
        options=("pairs", "gsd", "title"),
    ),
    "dynamicearthnet-scd": Entry(
        Task.SEMANTIC_CHANGE,
        _with_map(DynamicEarthNet, semantic=True),
        ("train", "val", "test"),
        "DynamicEarthNet, classes of what changed",
        UNCHECKED,
        "The same pairs with six classes at both dates.",
        whole=True,
        options=("pairs", "gsd", "title"),
    ),
    "hrscd": Entry(
        Task.CHANGE,
        _with_map(Hrscd, semantic=False),
        ("train", "val", "test"),
        "HRSCD",
        UNCHECKED,
        "With the map of the earlier date. The split of MapFormer: 191, 50 and 50 scenes of 10,000 x 10,000 "
        "pixels, in tiles of 500 (`tile=`).",
        whole=True,
        options=("tile", "gsd", "title"),
    ),
    "hrscd-scd": Entry(
        Task.SEMANTIC_CHANGE,
        _with_map(Hrscd, semantic=True),
        ("train", "val", "test"),
        "HRSCD, classes of what changed",
        UNCHECKED,
        "The same tiles with five classes at both dates.",
        whole=True,
        options=("tile", "gsd", "title"),
    ),
    "fusu": Entry(
        Task.SEMANTIC_CHANGE,
        Fusu,
        ("train", "val", "test"),
        "FUSU",
        UNCHECKED,
        "62,752 pairs of 512 x 512 pixels of five cities with the class of every pixel at both dates, and a "
        "monthly series of 14 bands at 10 m. The sizes of the splits are not established.",
        whole=True,
        options=("series", "series_scale", "full", "gsd", "title"),
    ),
    "mshs-captions": _made_mshs(Task.LANGUAGE, BuildingCaptions, "Sentences", "turns"),
    "mshs-vqa": _made_mshs(Task.VQA, BuildingQuestions, "Questions", "turns", "seed"),
    "levir-mci": Entry(
        Task.LANGUAGE,
        LevirMci,
        ("train", "val", "test"),
        "LEVIR-MCI",
        "academic use",
        "6,815, 1,333 and 1,929 pairs of 256 x 256 pixels with five sentences each and a mask of changed "
        "roads and buildings; about half of the pairs show no change.",
        options=("gsd", "title"),
    ),
    "levir-cc": Entry(
        Task.LANGUAGE,
        _levir_cc,
        ("train", "val", "test"),
        "LEVIR-CC",
        "academic use",
        "The same pairs and sentences without the masks.",
        options=("gsd", "title"),
    ),
    "changechat": Entry(
        Task.LANGUAGE,
        ChangeChat,
        FILES,
        "ChangeChat-105k",
        "CC BY 4.0 (annotations); images of LEVIR-MCI: academic use",
        "87,935 and 17,172 instructions of six types on the pairs of LEVIR-MCI, whose `images` are "
        "`images=`. A split is a file; without one for validation, hold out a share of the pairs.",
        options=("images", "prefix", "gsd", "title"),
    ),
    "levir-chat": Entry(
        Task.LANGUAGE,
        MadeChangeChat,
        ("train", "val", "test"),
        "LEVIR-MCI, instructions by the rules of ChangeChat",
        "academic use",
        "Made here from the masks and sentences of LEVIR-MCI; all types but the open questions.",
        options=("prefix", "seed", "gsd", "title"),
    ),
    "image-text": Entry(
        Task.RETRIEVAL,
        ImageText,
        ("train", "val", "test"),
        "Images with captions",
        "as its run.json says",
        "A folder of WebDataset shards, as `terralapse captions make` writes it.",
        whole=True,
        options=("gsd", "title"),
    ),
    "xbd": Entry(
        Task.DAMAGE,
        XBD,
        ("train", "tier3", "test", "hold", "holdout"),
        "xBD (xView2)",
        "CC BY-NC-SA 4.0",
        "Released as train, tier3, test and hold; `holdout` is the name that ChangeMamba gives to hold.",
        whole=True,
        options=("source", "unclassified", "gsd", "title"),
    ),
    "buildings": Entry(
        Task.SEGMENTATION,
        Buildings,
        ("train", "val", "test"),
        "Building masks of several sets",
        "research use",
        "The samples; val and test are patches of Austin and Chicago from Inria, cities that train has too.",
        options=("sets", "gsd"),
    ),
    "isprs-potsdam": Entry(
        Task.SEGMENTATION,
        _isprs("potsdam"),
        ("train", "test"),
        "ISPRS Potsdam",
        "research use",
        "Two divisions are in use (`tiles=`); scores compare within one, and mostly against eroded labels.",
        whole=True,
        options=("tiles", "eroded"),
    ),
    "isprs-vaihingen": Entry(
        Task.SEGMENTATION,
        _isprs("vaihingen"),
        ("train", "test"),
        "ISPRS Vaihingen",
        "research use",
        "Infrared, red, green. Two divisions are in use (`tiles=`); mostly scored against eroded labels.",
        whole=True,
        options=("tiles", "eroded"),
    ),
    "loveda": Entry(
        Task.SEGMENTATION,
        LoveDA,
        ("train", "val"),
        "LoveDA",
        "CC BY-NC-SA 4.0",
        "The labels of test are not published; networks are compared by the server of its authors.",
        options=("scenes",),
    ),
    "cdvqa": Entry(
        Task.VQA,
        Cdvqa,
        ("train", "val", "test", "test2"),
        "CDVQA",
        "Apache-2.0 (questions); images of SECOND: ask its authors",
        "About 122,000 questions of eight types on 2,968 pairs of SECOND, whose `train` folder is `images=`.",
        options=("images", "gsd", "title"),
    ),
    "second-vqa": Entry(
        Task.VQA,
        MadeCdvqa,
        ("train", "test"),
        "SECOND, questions by the rules of CDVQA",
        UNCHECKED,
        "Made here from the maps, for any folder in the layout of SECOND.",
        whole=True,
        options=("scheme", "seed", "gsd", "title"),
    ),
    "damage-vqa": Entry(
        Task.VQA,
        DamageQuestions,
        ("train", "val", "test"),
        "Questions on damaged buildings",
        "that of xBD (CC BY-NC-SA 4.0) or BRIGHT",
        "Made here from the maps of xBD or BRIGHT (`source=`); with `leave=EVENT` test is that event.",
        whole=True,
        options=("source", "folders", "leave", "share", "texts", "seed", "gsd", "title"),
    ),
    "eurosat": Entry(
        Task.CLASSIFICATION,
        _scenes("EuroSAT", EUROSAT, 10.0),
        ("train", "val", "test"),
        "EuroSAT, RGB",
        "MIT",
        "Published without a split; in the samples the splits share no block of one degree.",
        whole=True,
        options=LISTED,
    ),
    "ucmerced": Entry(
        Task.CLASSIFICATION,
        _scenes("UC Merced", UCMERCED, 0.3),
        ("train", "val"),
        "UC Merced Land Use",
        "public domain (USGS)",
        f"{LISTS_NOTE} Near-duplicates lie in both parts.",
        whole=True,
        options=LISTED,
    ),
    "aid": Entry(
        Task.CLASSIFICATION,
        _scenes("AID", AID, NAN),
        ("train", "val"),
        "AID",
        UNCHECKED,
        LISTS_NOTE,
        whole=True,
        options=LISTED,
    ),
    "resisc45": Entry(
        Task.CLASSIFICATION,
        _scenes("NWPU-RESISC45", RESISC45, NAN),
        ("train", "val"),
        "NWPU-RESISC45",
        UNCHECKED,
        LISTS_NOTE,
        whole=True,
        options=LISTED,
    ),
}
