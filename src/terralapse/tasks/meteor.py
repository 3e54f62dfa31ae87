"""METEOR 1.5 of sentences in words, by the program of its authors, where Java and that program are at hand.

Its tables of synonyms and paraphrases (60 MB) and its rules come with the package pycocoevalcap and are not
ours to ship. Nothing else of the library needs them: without, there is
`terralapse.tasks.caption_metrics.meteor_exact`, which is another score and has another name.
"""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from terralapse.errors import FileMissingError, MissingExtraError, UnreadableFileError

JAR = "meteor-1.5.jar"


@dataclass(frozen=True)
class MeteorScores:
    """`corpus` from the counts of all sentences together, which is not the mean of `each`."""

    corpus: float
    each: tuple[float, ...]


def find_jar() -> Path:
    """The program, as the package pycocoevalcap brings it along.

    Raises:
        MissingExtraError: it is not installed.
    """
    spec = importlib.util.find_spec("pycocoevalcap")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if (path := Path(folder) / "meteor" / JAR).is_file():
            return path
    raise MissingExtraError(
        "METEOR 1.5",
        f"needs {JAR}, which is not installed",
        "Install it with: pip install pycocoevalcap; or use meteor_exact, which is another score.",
    )


def meteor(
    hypotheses: Sequence[str], references: Sequence[Sequence[str]], jar: Path | str | None = None
) -> MeteorScores:
    """METEOR 1.5 for English with all its modules (`-l en -norm`), as COCO and the papers on captions use it.

    Args:
        hypotheses: one sentence for each image.
        references: one or more for each image.
        jar: the program, beside the folder `data` with its paraphrases; None looks for pycocoevalcap.

    Raises:
        ValueError: an image without a hypothesis or a reference.
        MissingExtraError: no Java, or no program.
        FileMissingError, UnreadableFileError: `jar` is not there, or is another program.
    """
    if not hypotheses or len(hypotheses) != len(references) or not all(references):
        raise ValueError("every image needs one hypothesis and at least one reference")
    java = shutil.which("java")
    if java is None:
        raise MissingExtraError(
            "METEOR 1.5",
            "needs Java",
            "Install Java 8 or later, or use meteor_exact, which is another score.",
        )
    path = find_jar() if jar is None else Path(jar).resolve()
    if not path.is_file():
        raise FileMissingError(path, "is not there", f"Give the path of {JAR}.")
    command = [java, "-Xmx2G", "-jar", str(path), "-", "-", "-stdio", "-l", "en", "-norm"]
    process = subprocess.Popen(
        command,
        cwd=path.parent,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        encoding="utf-8",
    )
    try:
        counts = [
            _ask(process, " ||| ".join(["SCORE", *map(_line, several), _line(said)]), path)
            for said, several in zip(hypotheses, references, strict=True)
        ]
        first = _ask(process, " ||| ".join(["EVAL", *counts]), path)
        found = [first, *(_answer(process, path) for _ in counts)]  # each sentence, and then all
    finally:
        _end(process)
    *each, corpus = map(float, found)
    return MeteorScores(corpus, tuple(each))


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    assert process.stdin is not None
    assert process.stdout is not None
    with contextlib.suppress(OSError):  # what was not read yet has nobody left to read it
        process.stdin.close()
    process.stdout.close()


def _line(sentence: str) -> str:
    """A sentence that cannot be taken for two fields or two lines."""
    return " ".join(sentence.replace("|||", "").split())


def _ask(process: subprocess.Popen[str], line: str, jar: Path) -> str:
    assert process.stdin is not None
    try:
        process.stdin.write(line + "\n")
        process.stdin.flush()
    except OSError as error:
        raise _broken(jar) from error
    return _answer(process, jar)


def _answer(process: subprocess.Popen[str], jar: Path) -> str:
    assert process.stdout is not None
    answer = process.stdout.readline()
    if not answer.strip() or answer.startswith("Error"):
        raise _broken(jar)
    return answer.strip()


def _broken(jar: Path) -> UnreadableFileError:
    return UnreadableFileError(
        jar,
        "does not answer as METEOR 1.5 does",
        "Install pycocoevalcap again; its folder `data` is needed too.",
    )
