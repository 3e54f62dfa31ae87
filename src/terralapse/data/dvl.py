"""DVL-Bench and DVL-Instruct: eight files of questions on series of aerial images of American cities, as
released.

`<root>/{train,test}/<file>.json` with the images under `<root>/{train,test}/images/<city>/<region>/`;
DVL-Instruct is the part `train`, DVL-Bench the part `test`. A question shows all dates of a region, two of
them (a mask) or one image (the state of the environment). Years are the first four characters of the time
stamps.

Source: Xuan et al., DynamicVL: Benchmarking Multimodal Large Language Models for Dynamic City
Understanding, 2025 (arXiv:2505.21076), and the released reader, whose order of texts and images the prompts
here have. Differs from it in: the wording of the instructions is ours (give the released ones as
`templates`); a missing image is an error unless `partial` is asked for."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from terralapse.data.pairs import IGNORE
from terralapse.data.pictures import read_rgb, read_values
from terralapse.errors import FileMissingError, SettingError, UnreadableFileError

LAND_COVER = ("vegetation", "non vegetated surface", "water", "building", "playground")  # values 1..5
SINGLE, MULTIPLE = "Single choice", "Multiple choice"
PARTS = ("train", "test")
MOST_DATES = 10
IMAGE = "<image>"  # where a template has the dates
SEGMENTED = "[SEG]."  # the answer that comes with a mask


@dataclass(frozen=True)
class DvlTask:
    """A task: its file without suffix, `kind` (`choice`, `text` or `mask`), its title, and what a judge
    grades."""

    code: str
    file: str
    kind: str
    title: str
    criteria: tuple[str, ...] = ()


_PERIODS = "time_period_accuracy"
_PROCESS = ("temporal_coverage", "spatial_accuracy", "process_fidelity")
TASKS = {
    t.code: t
    for t in (
        DvlTask("BCA-QA", "basic_change_choice_qa", "choice", "Basic change, choices"),
        DvlTask("CSE-QA", "change_speed_choice_qa", "choice", "Speed of change, choices"),
        DvlTask("EA", "eco_assessment", "choice", "State of the environment"),
        DvlTask(
            "BCA-Report",
            "basic_change_report_qa",
            "text",
            "Basic change, report",
            ("land_cover_type_identification_accuracy", _PERIODS, "change_quantification_accuracy"),
        ),
        DvlTask(
            "CSE-Report",
            "change_speed_report_qa",
            "text",
            "Speed of change, report",
            ("change_rate_precision", _PERIODS, "change_pattern_accuracy"),
        ),
        DvlTask("DTC", "dense_temporal_caption", "text", "Dense description of the whole", _PROCESS),
        DvlTask("RCC", "regional_caption", "text", "Description of a box", (*_PROCESS, "region_containment")),
        DvlTask("RCD", "change_referring_seg_qa", "mask", "Mask of a change that is described"),
    )
}

_SERIES = (
    "You see one place in images of several years, in their order. Compare them to find out what changed and "
    "what stayed."
)
_SHOWN = f"\n\n{IMAGE}\n\n"
_ASKED = "Question:\n{prompt}\n\nChoices:\n{options_str}\n\n"
PROMPTS = {
    "single_choice": f"{_SERIES} One of the choices below answers the question.{_SHOWN}{_ASKED}"
    'Answer with ONLY the capital letter, for example "B", and nothing else.',
    "multi_choice": f"{_SERIES} One or more of the choices below answer the question.{_SHOWN}{_ASKED}"
    'Answer with ONLY the capital letter(s), for example "B", or "C, D" where there are several, with a '
    "comma and a blank between them, and nothing else.",
    "eco_assessment": f"Look at the image, and choose what answers the question best.\n\n{_ASKED}"
    'Answer with ONLY the capital letter, for example "C", and nothing else.',
    "basic_change_report_qa": f"{_SERIES}{_SHOWN}Report how the land cover changed, in one to three "
    "sentences: the whole period with its first and last year; the main transitions between vegetation, "
    "surfaces without vegetation, water, buildings and playgrounds; and for each the share of the area "
    "in per cent.",
    "change_speed_report_qa": f"{_SERIES}{_SHOWN}Report how the area of buildings changed from each date to "
    'the next, relative to the earlier one, in the form "The changes were as follows: 1.5% expansion from '
    '2004 to 2007, no significant change from 2007 to 2010, 0.8% shrinkage from 2010 to 2012."',
    "regional_caption": f"{_SERIES}{_SHOWN}Describe everything that happened inside of the red box, and "
    "nothing outside of it: by ranges of years, with the state at the beginning, what was built, cleared, "
    "added or removed, and what stayed; say where, and name only what can be seen.",
    "dense_temporal_caption": f"{_SERIES}{_SHOWN}Describe the course of this place: first its trend in one "
    "sentence, then the changes in their order with where they lie (top-left, center-right, ...), and at the "
    "end, if you like, the final state.",
    "change_referring_seg_qa": f"You see one place in two images. Segment what the text asks for.\n\n"
    f"Pre-image: {IMAGE}\nPost-image: {IMAGE}\n\n{{prompt}}",
}
_MASK_WANTED = " Please output segmentation mask."  # the phrase that asks a model for a mask, as released


@dataclass(frozen=True)
class Part:
    """A piece of a message: a text, an image with its year, or (for video models) several images."""

    text: str = ""
    images: tuple[Path, ...] = ()
    year: int | None = None


@dataclass(frozen=True)
class DvlQuestion:
    """One question.

    `choice` is `SINGLE`, `MULTIPLE` or empty; `images` are what is shown, in order, with their `years` (0
    where none is known); `truth` the letters or the text of the reference; `mask` the file of the reference
    mask, whose change is from the class `source` to `target` (1..5)."""

    id: str
    task: DvlTask
    prompt: str
    options: str
    choice: str
    images: tuple[Path, ...]
    years: tuple[int, ...]
    truth: str
    mask: Path | None = None
    source: int = 0
    target: int = 0

    @property
    def place(self) -> str:
        """`<city>/<region>`: the folders that hold its images."""
        return "/".join(self.images[0].parts[-3:-1])

    @property
    def text(self) -> str:
        """The question with its choices and without images, for answerers that see a run in their place."""
        asked = self.prompt or self.task.title
        return f"{asked}\nChoices:\n{self.options}" if self.options else asked

    @property
    def answer(self) -> str:
        """What a model is taught to say."""
        return SEGMENTED if self.task.kind == "mask" else self.truth

    @property
    def change(self) -> int:
        """The number 1..25 of its change, for scores of a mask."""
        return (self.source - 1) * len(LAND_COVER) + self.target

    def read_mask(self) -> np.ndarray:
        """The reference mask, bool [H, W].

        Raises:
            SettingError: a question of another task.
        """
        if self.mask is None:
            raise SettingError(self.id, "has no mask", "Only questions of RCD have one.")
        return read_values(self.mask) > 0

    def read_images(self) -> list[np.ndarray]:
        """What is shown, each float32 [3, H, W] of 0..255."""
        return [read_rgb(path) for path in self.images]


def message(
    question: DvlQuestion, templates: Mapping[str, str] | None = None, video: bool = False
) -> tuple[Part, ...]:
    """The texts and images that a model is shown, in order.

    Before each date stands a text "year YYYY:". With `video` one text lists the years, and one part holds
    all images.

    Args:
        templates: other wordings for some of `PROMPTS`.

    Raises:
        SettingError: a template that does not say where its images come.
    """
    key = {SINGLE: "single_choice", MULTIPLE: "multi_choice"}.get(question.choice, question.task.file)
    key = question.task.file if question.task.code == "EA" else key
    template = {**PROMPTS, **(templates or {})}[key]
    places = {"EA": 0, "RCD": 2}.get(question.task.code, 1)
    pieces = template.replace("{prompt}", question.prompt).replace("{options_str}", question.options)
    before, *after = pieces.split(IMAGE)
    if len(after) != places:
        raise SettingError(
            f"template {key}", f"has {len(after)} times {IMAGE}", f"It needs it {places} times."
        )
    if places == 0:
        return Part(images=question.images), Part(text=before)
    if places == 2:
        after[-1] = after[-1] + ("" if after[-1].endswith(".") else ".") + _MASK_WANTED
        shown = zip(question.images, question.years, after, strict=True)
        return Part(before), *(
            p for image, year, text in shown for p in (Part(images=(image,), year=year), Part(text))
        )
    years = question.years
    if video:
        listed = Part(f"The images are of the years {', '.join(map(str, years))}.\n")
        return Part(before), listed, Part(images=question.images), Part(after[0])
    dates = (
        p
        for i, y in zip(question.images, years, strict=True)
        for p in (Part(f"\nyear {y}:"), Part(images=(i,), year=y))
    )
    return Part(before), *dates, Part(after[0])


# --- masks of change -------------------------------------------------------------------------------------
def from_stored(mask: np.ndarray) -> np.ndarray:
    """Classes 0..35 (6 source + target; 0 unchanged) of a mask of change as stored: 10 source + target,
    digits 1..5, 0 unchanged, `IGNORE` kept.

    Raises:
        ValueError: other values.
    """
    source, target = np.divmod(mask.astype(np.int64), 10)
    known = mask != IGNORE
    right = ((source >= 1) & (source <= 5) & (target >= 1) & (target <= 5)) | (mask == 0)
    if not right[known].all():
        raise ValueError(f"no code of a change: {np.unique(mask[known & ~right])[:6].tolist()}")
    return np.where(known, 6 * source + target, IGNORE).astype(np.uint8)


def to_stored(classes: np.ndarray) -> np.ndarray:
    """The inverse of `from_stored`."""
    source, target = np.divmod(classes.astype(np.int64), 6)
    return np.where(classes == IGNORE, IGNORE, 10 * source + target).astype(np.uint8)


def change_of(path: Path | str) -> tuple[int, int]:
    """Source and target (1..5) that the name of a mask tells: `..._building2vegetation.png`.

    Raises:
        UnreadableFileError: it tells none.
    """
    source, _, target = Path(path).stem.rpartition("_")[2].partition("2")
    if source not in LAND_COVER or target not in LAND_COVER:
        raise UnreadableFileError(
            path, "does not end in the two classes of a change", f"Name it ..._water2{LAND_COVER[3]}.png."
        )
    return LAND_COVER.index(source) + 1, LAND_COVER.index(target) + 1


# --- the reader ------------------------------------------------------------------------------------------
class DvlSuite:
    """The questions of some tasks of one part, in the order of the files.

    Args:
        root: the folder that holds `train` and `test`.
        split: `train` (DVL-Instruct) or `test` (DVL-Bench).
        tasks: codes of `TASKS`; by default all whose files are there.
        partial: leave out questions whose images are not there; `missing` counts them.

    Raises:
        FileMissingError: no file of questions, or (unless `partial`) an image or a mask is missing.
        UnreadableFileError: a file that is no list of such questions.
        SettingError: a task or a split that there is not.
    """

    title = "DVL-Bench"

    def __init__(
        self,
        root: Path | str,
        split: str = "test",
        tasks: tuple[str, ...] | None = None,
        partial: bool = False,
    ) -> None:
        if split not in PARTS:
            raise SettingError(f"split={split}", "is no part of it", f"Choose from {', '.join(PARTS)}.")
        if strange := [t for t in tasks or () if t not in TASKS]:
            raise SettingError(
                f"task {strange[0]}", "is none of DVL-Bench", f"Choose from {', '.join(TASKS)}."
            )
        self.folder, self.split = Path(root) / split, split
        self.title = ("DVL-Bench" if split == "test" else "DVL-Instruct") + f" {split}"
        there = [t for t in TASKS if (self.folder / f"{TASKS[t].file}.json").is_file()]
        if not there and not tasks:
            raise FileMissingError(
                self.folder,
                "holds no file of questions",
                f"Give the folder that holds {split}/{TASKS['BCA-QA'].file}.json.",
            )
        self.missing = 0
        self.questions: list[DvlQuestion] = []
        for code in tasks or there:
            for question in read_questions(self.folder, TASKS[code]):
                files = (*question.images, *((question.mask,) if question.mask else ()))
                lost = [p for p in files if not p.is_file()]
                if lost and not partial:
                    raise FileMissingError(
                        lost[0], f"belongs to {question.id} and is not there", "Add the images."
                    )
                if lost:
                    self.missing += 1
                else:
                    self.questions.append(question)

    def __len__(self) -> int:
        return len(self.questions)

    def __getitem__(self, index: int) -> DvlQuestion:
        return self.questions[index]

    def __iter__(self) -> Iterator[DvlQuestion]:
        return iter(self.questions)


def read_questions(folder: Path, task: DvlTask) -> list[DvlQuestion]:
    """The questions of one file of a part; files that they name are not opened.

    Raises:
        FileMissingError, UnreadableFileError: there is no such file, or something else is in it.
    """
    path = folder / f"{task.file}.json"
    if not path.is_file():
        raise FileMissingError(path, "is not there", "Copy it from the release.")
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
        return [
            _question(folder, task, f"{task.file}_{number}", record) for number, record in enumerate(records)
        ]
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise UnreadableFileError(path, f"is no list of questions ({error!r})", "Copy it again.") from error


def _question(folder: Path, task: DvlTask, name: str, record: Mapping[str, Any]) -> DvlQuestion:
    listed = [record["image_path"]] if "image_path" in record else list(record["image_list"])
    years = [int(str(t)[:4]) for t in record.get("time_stamps", ())] or [0] * len(listed)
    if len(years) != len(listed):
        raise ValueError(f"{name} has {len(listed)} images and {len(years)} time stamps")
    choice = ""
    if task.kind == "choice":
        choice = SINGLE if task.code == "EA" else record["task_type"]
        if choice not in (SINGLE, MULTIPLE):
            raise ValueError(f"{name} is a {choice}")
    mask, source, target = None, 0, 0
    if task.kind == "mask":
        mask = folder / record["ground_truth"]
        source, target = change_of(mask)
        chosen = [years.index(int(y)) for y in record["cd_years"]]
        if len(chosen) != 2:
            raise ValueError(f"{name} has {len(chosen)} dates of change")
        listed, years = [listed[i] for i in chosen], [years[i] for i in chosen]
    return DvlQuestion(
        id=name,
        task=task,
        prompt=record["prompts"] if task.kind != "text" else record.get("prompts", ""),
        options=record["options_str"] if choice else "",
        choice=choice,
        images=tuple(folder / i for i in listed),
        years=tuple(years),
        truth=record["ground_truth_option"] if choice else "" if mask else record["ground_truth"],
        mask=mask,
        source=source,
        target=target,
    )
