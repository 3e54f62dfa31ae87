"""The benchmark as a run: every item answered once, reports judged, tables by task and sensor.

`answers.jsonl` and `marks.jsonl` grow by a line an item, so that an interrupted run goes on where it was;
`bench.json` and `bench.md` are written at the end.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from terralapse._version import __version__
from terralapse.ask.disaster.answerers import Answerer, Reply
from terralapse.ask.disaster.judges import Judge
from terralapse.ask.disaster.tables import markdown
from terralapse.data.disasterm3 import CHOICES, SUBSETS, DisasterM3, Item, read_mask
from terralapse.errors import (
    FileMissingError,
    OutputExistsError,
    ResumeMismatchError,
    SettingError,
    UnreadableFileError,
)
from terralapse.tasks.disaster import (
    CRITERIA,
    Choice,
    MaskTally,
    choice_table,
    judged_scores,
    letters_of,
    mask_scores,
    read_letters,
)

ALL = "all"
_FILES = ("settings.json", "answers.jsonl", "marks.jsonl", "bench.json", "bench.md")

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class DisasterSettings:
    """What a run is of. `data` is the folder with the subsets; `subsets` None takes those that are there;
    `limit` the first items of each, which makes it a quick look; `notes` are the settings of the answerer
    and the judge that change what they say."""

    data: Path
    subsets: tuple[str, ...] | None = None
    limit: int | None = None
    notes: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise SettingError(f"limit {self.limit}", "leaves nothing to ask", "Give a positive number.")


def run_disaster(
    settings: DisasterSettings,
    output: Path,
    answerer: Answerer,
    judge: Judge | None,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Answers, judges and scores; returns the content of `bench.json`.

    Args:
        settings: what is asked.
        output: the folder of results.
        answerer: who answers.
        judge: of reports; None leaves them unjudged.
        resume: go on in a folder of the same settings.
        overwrite: replace the results of an earlier run.
        progress: called as `progress(subset, done, total)`.

    Raises:
        FileMissingError, UnreadableFileError, SettingError: the benchmark's files.
        OutputExistsError, ResumeMismatchError: the folder of results.
        EndpointError: a model; what was answered before is kept for `resume`.
    """
    sets = _opened(settings)
    _prepare(settings, output, sets, answerer, judge, resume=resume, overwrite=overwrite)
    tell = progress or (lambda _stage, _done, _total: None)
    answers = _answered(sets, settings, output, answerer, tell)
    marks = _judged(sets, settings, output, judge, answers, tell)
    result = _result(sets, settings, answerer, judge, answers, marks)
    text = json.dumps(result, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    (output / "bench.json").write_text(text, encoding="utf-8")
    (output / "bench.md").write_text(markdown(result), encoding="utf-8")
    return result


def _opened(settings: DisasterSettings) -> list[DisasterM3]:
    if not settings.data.is_dir():
        raise FileMissingError(
            settings.data, "is no folder", "Give the folder of the benchmark's JSON files."
        )
    names = settings.subsets or tuple(n for n in SUBSETS if (settings.data / f"{n}.json").is_file())
    if not names:
        known = ", ".join(f"{n}.json" for n in SUBSETS)
        raise FileMissingError(settings.data, "holds no subset of DisasterM3", f"They are {known}.")
    return [DisasterM3(settings.data, n) for n in dict.fromkeys(names)]


def _items(data: DisasterM3, settings: DisasterSettings) -> Iterator[Item]:
    return (data[i] for i in range(min(len(data), settings.limit or len(data))))


# --- the folder ----------------------------------------------------------------------------------------
def _prepare(
    settings: DisasterSettings,
    output: Path,
    sets: list[DisasterM3],
    answerer: Answerer,
    judge: Judge | None,
    *,
    resume: bool,
    overwrite: bool,
) -> None:
    own = {
        "version": __version__,
        "subsets": {d.subset.name: hashlib.sha256(d.path.read_bytes()).hexdigest() for d in sets},
        "limit": settings.limit,
        "answerer": answerer.name,
        "judge": None if judge is None else judge.name,
        "notes": dict(settings.notes),
    }
    path = output / "settings.json"
    if output.exists() and any(output.iterdir()):
        if not path.is_file():
            raise OutputExistsError(output, "holds something else", "Name another folder with -o.")
        if resume:
            earlier = json.loads(path.read_text(encoding="utf-8"))
            if earlier != own:
                differs = ", ".join(k for k in own if earlier.get(k) != own[k])
                raise ResumeMismatchError(
                    output, f"was begun with other settings ({differs})", "Use --overwrite or another folder."
                )
            return
        if not overwrite:
            raise OutputExistsError(output, "holds a benchmark", "Add --resume to go on, or --overwrite.")
        for name in _FILES:
            (output / name).unlink(missing_ok=True)
        for mask in (output / "masks").glob("*.png"):
            mask.unlink()
    output.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(own, indent=1) + "\n", encoding="utf-8")


def _lines(path: Path) -> dict[str, dict[str, Any]]:
    """Records of a grown file by id. A last line that was cut off by a kill is dropped from the file too."""
    if not path.is_file():
        return {}
    found: dict[str, dict[str, Any]] = {}
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole, encoding="utf-8")
    for line in whole.splitlines():
        record = json.loads(line)
        found[record["id"]] = record
    return found


# --- answers and marks ---------------------------------------------------------------------------------
def _answered(
    sets: list[DisasterM3], settings: DisasterSettings, output: Path, answerer: Answerer, tell: Progress
) -> dict[str, dict[str, Any]]:
    path = output / "answers.jsonl"
    found = _lines(path)
    with path.open("a", encoding="utf-8") as file:
        for data in sets:
            total = min(len(data), settings.limit or len(data))
            for i, item in enumerate(_items(data, settings), start=1):
                if item.id not in found:
                    started = time.perf_counter()
                    reply = answerer.answer(item)
                    record = {"id": item.id, **_kept(item, reply, output)}
                    record["seconds"] = round(time.perf_counter() - started, 4)
                    file.write(json.dumps(record, ensure_ascii=False) + "\n")
                    file.flush()
                    found[item.id] = record
                tell(data.subset.name, i, total)
    return found


def _kept(item: Item, reply: Reply, output: Path) -> dict[str, Any]:
    """What is written of a reply: its text, or the mask's counts beside the mask itself."""
    if item.subset.kind != "mask":
        return {"response": reply.text}
    if reply.mask is None:
        return {"response": None}
    truth = read_mask(Path(item.truth))
    try:
        tally = MaskTally.of(truth, reply.mask)
    except ValueError as error:
        raise UnreadableFileError(item.truth, str(error), "Answer with a mask of its size.") from error
    (output / "masks").mkdir(exist_ok=True)
    name = f"masks/{item.id}.png"
    Image.fromarray(reply.mask.astype(np.uint8) * 255).save(output / name)
    return {"response": name, **asdict(tally)}


def _judged(
    sets: list[DisasterM3],
    settings: DisasterSettings,
    output: Path,
    judge: Judge | None,
    answers: dict[str, dict[str, Any]],
    tell: Progress,
) -> dict[str, dict[str, Any]]:
    reports = [d for d in sets if d.subset.task in CRITERIA]
    if judge is None or not reports:
        return {}
    path = output / "marks.jsonl"
    found = _lines(path)
    with path.open("a", encoding="utf-8") as file:
        for data in reports:
            total = min(len(data), settings.limit or len(data))
            for i, item in enumerate(_items(data, settings), start=1):
                said = answers[item.id]["response"]
                if item.id not in found and said is not None:
                    given = judge.mark(item.subset.task, item.truth, said)
                    record = {"id": item.id, "judge": judge.name, "marks": given.marks, "raw": given.raw}
                    file.write(json.dumps(record, ensure_ascii=False) + "\n")
                    file.flush()
                    found[item.id] = record
                tell(f"judge {data.subset.name}", i, total)
    return found


# --- the result ----------------------------------------------------------------------------------------
def _result(
    sets: list[DisasterM3],
    settings: DisasterSettings,
    answerer: Answerer,
    judge: Judge | None,
    answers: dict[str, dict[str, Any]],
    marks: dict[str, dict[str, Any]],
) -> dict[str, Any]:
    items = [item for data in sets for item in _items(data, settings)]
    sensors = sorted({i.sensor for i in items})
    groups = {ALL: items, **({s: [i for i in items if i.sensor == s] for s in sensors})}
    unanswered = {
        data.subset.name: sum(answers[i.id]["response"] is None for i in _items(data, settings))
        for data in sets
    }
    return {
        "schema": "terralapse-disaster-bench",
        "version": 1,
        "terralapse": __version__,
        "data": str(settings.data),
        "answerer": answerer.name,
        "judge": None if judge is None else judge.name,
        "limit": settings.limit,
        "notes": dict(settings.notes),
        "questions": {d.subset.name: min(len(d), settings.limit or len(d)) for d in sets},
        "unanswered": {k: v for k, v in unanswered.items() if v},
        "seconds": round(sum(a["seconds"] for a in answers.values()), 3),
        "sensors": {s: _scores(own, answers, marks) for s, own in groups.items()},
    }


def _scores(
    items: list[Item], answers: dict[str, dict[str, Any]], marks: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """Choices over all questions: one that the answerer has no answer to is wrong. Masks and reports over
    those that it gave, and how many these are: no mask is not an empty mask."""
    choices = [
        Choice(
            i.subset.task,
            letters_of(i.truth),
            None if (said := answers[i.id]["response"]) is None else read_letters(said, i.letters),
            len(i.options),
        )
        for i in items
        if i.subset.task in CHOICES
    ]
    found: dict[str, Any] = {"choices": choice_table(choices, CHOICES)}
    drawn = [
        answers[i.id] for i in items if i.subset.kind == "mask" and answers[i.id]["response"] is not None
    ]
    if drawn:
        tallies = [MaskTally(a["both"], a["either"]) for a in drawn]
        found["segmentation"] = {**mask_scores(tallies), "masks": len(tallies)}
    for task, criteria in CRITERIA.items():
        own = [marks[i.id]["marks"] for i in items if i.subset.task == task and i.id in marks]
        if own:
            found[task] = judged_scores(own, criteria)
    return found
