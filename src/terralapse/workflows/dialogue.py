"""The benchmark of answers on series of dates, from the command line or from Python."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from terralapse._version import __version__
from terralapse.data.dvl import IMAGE, PROMPTS, TASKS, DvlSuite
from terralapse.engine.dialogue import Answerer, Judge, ask_all, grade_all, read_answers, score_all
from terralapse.engine.output import OutputFolder
from terralapse.engine.parts import WORK
from terralapse.errors import EndpointError, FileMissingError, SettingError, UnreadableFileError
from terralapse.tasks import dvl_judge

RESULT = "dvl.json"


def bench_dvl(
    output: Path | str,
    root: Path | str,
    answerer: Answerer,
    *,
    name: str,
    split: str = "test",
    tasks: Sequence[str] | None = None,
    judge: Judge | None = None,
    judge_name: str = dvl_judge.NAME,
    prompts: Path | str | None = None,
    video: bool = False,
    partial: bool = False,
    limit: int | None = None,
    overwrite: bool = False,
    resume: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, Any]:
    """Asks all questions, scores the answers, and publishes `answers.jsonl`, `masks/`, `grades.jsonl` (of a
    judge) and `dvl.json`.

    Args:
        output: the folder to create; it appears whole or not at all.
        root: the folder with `train` and `test`.
        answerer: who answers, see `terralapse.engine.dialogue`; `name` is written beside every score.
        split, tasks, partial: as in `terralapse.data.dvl.DvlSuite`.
        judge: who grades texts, a question and an answer to a reply with tags; None for the rules of
            `terralapse.tasks.dvl_judge`. `judge_name` is written beside every grade.
        prompts: a JSON file of templates over those of this library.
        video: show dates as one video.
        limit: only the first questions of each task, for a quick look; marked as one.
        overwrite: replace a result that is there.
        resume: go on from the answers of a benchmark that broke off, which every one leaves.

    Returns:
        The content of `dvl.json`.

    Raises:
        Errors of the data, of the output folder, of `ask_all`, and of the answerer and the judge. After an
        EndpointError or an interrupt the answers so far lie beside the output, for `resume`.
    """
    suite = DvlSuite(root, split, tuple(tasks) if tasks else None, partial=partial)
    templates = read_prompts(prompts) if prompts else None
    tell = progress or (lambda _stage, _done, _total: None)
    with OutputFolder(Path(output), overwrite=overwrite, resume=resume, keep=True) as folder:
        work = folder.staging / WORK / "dvl"  # what a run that goes on finds again
        work.mkdir(parents=True, exist_ok=True)
        try:
            questions = ask_all(
                suite,
                answerer,
                work,
                name=name,
                templates=templates,
                video=video,
                limit=limit,
                progress=lambda done, total: tell("questions", done, total),
            )
            answers = {a.id: a for a in read_answers(work)}
            grades = grade_all(questions, answers, work, judge, judge_name)
        except EndpointError as error:
            kept = f"{len(read_answers(work)):,} answers are kept; go on with --resume."
            raise EndpointError(error.what, error.fault, f"{error.hint} {kept}") from error
        result = {
            "version": 1,
            "software": __version__,
            "data": {"title": suite.title, "questions": len(questions), "without_images": suite.missing},
            "answerer": name,
            "judge": judge_name,
            "prompts": "the user's" if templates else "the library's",
            "quick_look": limit is not None,
            **score_all(questions, answers, grades),
        }
        text = json.dumps(_plain(result), indent=1, allow_nan=False) + "\n"
        for path in work.iterdir():
            path.rename(folder.staging / path.name)
        (folder.staging / RESULT).write_text(text, encoding="utf-8")
        folder.publish()
    return json.loads(text)


def _plain(value: Any) -> Any:
    """Without NaN."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return None if isinstance(value, float) and value != value else value


def read_prompts(path: Path | str) -> dict[str, str]:
    """Templates by the keys of `terralapse.data.dvl.PROMPTS`, with `<image>`, `{prompt}` and `{options_str}`.

    Raises:
        FileMissingError, UnreadableFileError: no such file, or no JSON of texts.
        SettingError: a key that is not known.
    """
    path = Path(path)
    if not path.is_file():
        raise FileMissingError(path, "is not there", "Give a JSON file of templates.")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UnreadableFileError(path, "is no JSON", "Give a JSON file of templates.") from error
    if not isinstance(found, dict) or not all(isinstance(v, str) for v in found.values()):
        raise UnreadableFileError(path, "holds no table of texts", f"Write {{key: text with {IMAGE}}}.")
    if strange := sorted(set(found) - set(PROMPTS)):
        raise SettingError(f"template {strange[0]}", "is not known", f"There are {', '.join(PROMPTS)}.")
    return found


def rows(result: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """Task, measure, score and number of questions, for a table."""
    found = []
    for code in (c for c in TASKS if c in result["tasks"]):
        part = result["tasks"][code]
        count = str(part["questions"])
        for kind in ("Single choice", "Multiple choice"):
            if part.get(kind):
                score, n = part[kind]["accuracy"], part[kind]["questions"]
                chance = f"accuracy, {kind.lower()} (chance {100 * part[kind]['chance']:.1f} %)"
                found.append((code, chance, f"{100 * score:.1f} %", str(n)))
        if part.get("grades"):
            found.append((code, f"grade 0-5 by {result['judge']}", f"{part['grades']['score']:.2f}", count))
        if "giou" in part:
            found.append((code, "gIoU", f"{100 * part['giou']:.1f} %", count))
            found.append((code, "cIoU", f"{100 * part['ciou']:.1f} %", count))
    if result["average"] is not None:
        found.append(("all choices", "mean of the five accuracies", f"{100 * result['average']:.1f} %", ""))
    return found
