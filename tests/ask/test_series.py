"""Questions on the course of a series: when, first and last, how fast, by period, the largest, and
choices."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from typer.testing import CliRunner

from ask_runs import Truth
from fixtures_eo import write_tif
from terralapse.ask import Conversation
from terralapse.ask.choices import divide
from terralapse.ask.verify import problems
from terralapse.cli.app import app

PIXEL = 100.0  # m2
LARGE, SMALL = (slice(4, 20), slice(6, 34)), (slice(30, 38), slice(30, 40))
CALLS = Callable[[str], Any]


class Course:
    """A run whose larger block fell early and whose smaller one rose two years later; the truth is read from
    its rasters."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with rasterio.open(folder / "break_date.tif") as file:
            self.dates = file.read(1)
        self.days = sorted({int(v) for v in self.dates[self.dates > 0]})
        # Areas on the ground differ from those of the grid by the scale of the projection.
        facts = json.loads((folder / "facts.json").read_text())["facts"]
        self.facts = {f["id"]: f for f in facts}
        self.pixel = self.facts["area.broken"]["value"] / int((self.dates > 0).sum())

    def area(self, start: int, end: int) -> float:
        """Of the breaks from one day to another, yyyymmdd, both included."""
        return float(((self.dates >= start) & (self.dates <= end)).sum()) * self.pixel

    def year(self, year: int) -> float:
        return self.area(year * 10000, year * 10000 + 9999)

    @staticmethod
    def iso(day: int) -> str:
        return f"{day // 10000}-{day // 100 % 100:02d}-{day % 100:02d}"


@pytest.fixture(scope="module")
def course(tmp_path_factory: pytest.TempPathFactory) -> Course:
    from terralapse.workflows.series import series

    folder = tmp_path_factory.mktemp("course")
    rng, start, side = np.random.default_rng(3), np.datetime64("2016-01-05"), 44
    stack = folder / "stack"
    stack.mkdir()
    for i in range(66):
        day = start + np.timedelta64(33 * i, "D")
        ndvi = 0.5 + 0.08 * np.cos(2 * np.pi * 33 * i / 365.25) + rng.normal(0, 0.01, (side, side))
        if i >= 24:  # March 2018
            ndvi[LARGE] -= 0.3
        if i >= 47:  # April 2020
            ndvi[SMALL] += 0.3
        data = np.stack([np.full((side, side), 0.08), 0.08 * (1 + ndvi) / (1 - ndvi)]).astype(np.float32)
        here = Affine(10, 0, 500000, 0, -10, 5000000)
        name = f"scene_{str(day).replace('-', '')}.tif"
        write_tif(stack / name, data, descriptions=("red", "nir"), nodata=np.nan, transform=here)
    series(stack, folder / "out", threads=1)
    return Course(folder / "out")


@pytest.fixture
def ask(course: Course) -> CALLS:
    def call(question: str) -> Any:
        talk = Conversation(course.folder)
        answer = talk.ask(question)
        assert answer.answered, answer.text
        assert "left_out" not in answer.confidence, answer.text
        assert problems(answer.text, answer.facts, talk.book, question) == []
        assert answer.facts, "every answer cites what it rests on"
        return answer

    return call


def test_the_run_is_what_it_was_made_to_be(course: Course) -> None:
    assert course.year(2018) == pytest.approx(448 * course.pixel, rel=0.03)
    assert course.year(2020) == pytest.approx(80 * course.pixel, rel=0.03)
    assert course.pixel == pytest.approx(PIXEL, rel=2e-3)


# --- when --------------------------------------------------------------------------------------------------
def test_when_most_and_when_nothing(course: Course, ask: CALLS) -> None:
    assert ask("When did most of it break?").value == 2018
    quiet = [y for y in range(2016, 2022) if course.year(y) == 0]
    assert quiet
    assert ask("In which years did nothing break?").value == quiet
    least = ask("In which year did it change the least?").value
    assert least == (quiet if len(quiet) > 1 else quiet[0])


@pytest.mark.parametrize(
    "question", ["When did it first break?", "When did the change begin?", "When was the first break?"]
)
def test_first(course: Course, ask: CALLS, question: str) -> None:
    answer = ask(question)
    assert answer.value == course.iso(course.days[0])
    assert [f["id"] for f in answer.facts] == ["break.first"]


@pytest.mark.parametrize(
    "question", ["When did it last break?", "When was the latest break?", "When did it stop?"]
)
def test_last(course: Course, ask: CALLS, question: str) -> None:
    answer = ask(question)
    assert answer.value == course.iso(course.days[-1])
    assert answer.facts[0]["evidence"]["raster"] == "break_date.tif"


# --- how fast ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "question", ["How fast is it changing?", "What is the average area that broke per year?"]
)
def test_speed_is_the_area_over_the_span_of_the_images(course: Course, ask: CALLS, question: str) -> None:
    span = (33 * 65) / 365.2425
    answer = ask(question)
    assert answer.unit == "m2"
    assert answer.value == pytest.approx(course.area(1, 99999999) / span, rel=1e-3)
    assert ask("How fast is it changing, in acres?").value == pytest.approx(answer.value / 4046.856, rel=1e-4)


def test_pace_is_from_half_to_half(course: Course, ask: CALLS) -> None:
    middle = 20181223  # half of 2,145 days after 5 January 2016
    early, late = course.area(1, middle - 1), course.area(middle, 99999999)
    assert early > late
    assert ask("Is the change getting faster?").value is False
    assert ask("Is it slowing down?").value is True
    answer = ask("Did it speed up or slow down?")
    assert answer.value == "slower"
    assert "Kendall" in answer.text
    first = ask("How much broke in the first half of the period?")
    second = ask("How much broke in the second half of the period?")
    assert (first.value, second.value) == (pytest.approx(early), pytest.approx(late))


# --- by period ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("question", "start", "end"),
    [
        ("How much broke between 2018 and 2020?", 2018, 2020),
        ("How much broke from 2016 to 2018?", 2016, 2018),
        ("How much has broken since 2019?", 2019, 2021),
        ("How much broke before 2020?", 2016, 2019),
        ("How much broke after 2018?", 2019, 2021),
        ("How much broke until 2018?", 2016, 2018),
        ("How much broke in 2017?", 2017, 2017),
    ],
)
def test_sums_over_calendar_years(course: Course, ask: CALLS, question: str, start: int, end: int) -> None:
    answer = ask(question)
    wanted = sum(course.year(y) for y in range(start, end + 1))
    assert answer.value == pytest.approx(wanted, rel=1e-6)
    assert {f"year.{y}" for y in range(start, end + 1)} <= {f["id"] for f in answer.facts}


def test_two_years_are_compared(ask: CALLS, course: Course) -> None:
    assert ask("Did more break in 2018 or 2020?").value == 2018
    talk = Conversation(course.folder)
    assert talk.ask("How much broke in 1990?").reason == "no-year"


def test_the_trend_lists_the_years(course: Course, ask: CALLS) -> None:
    value = ask("How did it evolve over time?").value
    held = {str(y): course.year(y) for y in range(2016, 2022) if course.year(y)}
    assert value == {y: pytest.approx(a) for y, a in held.items()}


# --- the largest -------------------------------------------------------------------------------------------
def test_the_largest_has_its_day_and_its_direction(course: Course, ask: CALLS) -> None:
    answer = ask("What is the largest break?")
    assert answer.value == pytest.approx(448 * course.pixel, rel=0.03)
    assert "falling" in answer.text
    assert ask("When did the largest break happen?").value.startswith("2018")
    second = ask("How large is object 2?")
    assert second.value == pytest.approx(80 * course.pixel, rel=0.05)
    assert "rising" in second.text
    assert ask("When did object 2 break?").value.startswith("2020")
    assert ask("How many objects larger than 2 ha are there?").value == 1
    assert ask("Where did it change?").value[0] in ("north", "north-west")


# --- choices -----------------------------------------------------------------------------------------------
ONE = '\nAnswer with ONLY the capital letter, for example "B".'
SOME = "\nAnswer with ONLY the capital letter(s)."


def test_choices(course: Course, ask: CALLS) -> None:
    area = course.year(2018) / 1e4
    options = "\n".join(f"{k}. {area * f:.2f} ha" for k, f in zip("ABCD", (0.6, 1.0, 1.2, 1.4), strict=True))
    assert ask(f"How much broke in 2018?\nChoices:\n{options}{ONE}").text == "B"
    years = "A. 2017\nB. 2018\nC. 2019\nD. 2020"
    assert ask(f"In which year did most of it break?\n{years}").value == "B"
    held = {k: course.year(y) > 0 for k, y in zip("ABCD", range(2017, 2021), strict=True)}
    assert held["B"]
    assert held["D"]
    quiet = ", ".join(k for k, h in held.items() if not h)
    assert ask(f"In which years did nothing break?\nChoices:\n{years}{SOME}").text == quiet
    loud = ", ".join(k for k, h in held.items() if h)
    assert ask(f"How did it evolve by year?\nChoices:\n{years}{SOME}").text == loud
    assert ask("Is the change getting faster?\nA. Yes\nB. No").value == "B"
    first = f"A. 3 May 2017\nB. {course.facts['break.first']['display']}\nC. 1 March 2021"
    assert ask(f"When did it first break?\n{first}").value == "B"


def test_no_choice_is_guessed(course: Course) -> None:
    talk = Conversation(course.folder)
    answer = talk.ask("How much broke in 2018?\nA. 0.1 ha\nB. 77 ha")
    assert (answer.answered, answer.reason, answer.value) == (False, "no-choice", None)
    assert talk.ask("Why did it break?\nA. Fire\nB. Flood").reason == "cause"


def test_a_list_that_is_no_list_of_choices_is_a_question() -> None:
    assert divide("How much broke in 2018?") is None
    assert divide("B. one\nC. two") is None
    found = divide("Question:\nWhich?\nChoices:\n(A) one\n(B) two\nONLY the capital letter(s)")
    assert found is not None
    assert (found.stem, found.options, found.several, found.bare) == (
        "Which?",
        {"A": "one", "B": "two"},
        True,
        True,
    )


# --- elsewhere ---------------------------------------------------------------------------------------------
def test_of_two_dates_there_is_no_course(zones: Path) -> None:
    for question in (
        "When was the first break?",
        "How fast is it changing?",
        "Did it speed up or slow down?",
    ):
        assert Conversation(zones).ask(question).reason == "series-only"


def test_a_folder_of_before_says_that_it_lacks_the_course(course: Course, tmp_path: Path) -> None:
    record = json.loads((course.folder / "facts.json").read_text())
    kept = ("break.f", "break.l", "rate.", "half.", "trend.", "object.1", "object.2", "location.")
    zero = {k for k, f in course.facts.items() if k.startswith("year.") and f["value"] == 0}
    record["facts"] = [f for f in record["facts"] if not f["id"].startswith(kept) and f["id"] not in zero]
    (tmp_path / "facts.json").write_text(json.dumps(record))
    talk = Conversation(tmp_path)
    for question in (
        "When was the first break?",
        "How fast is it?",
        "What is the largest break?",
        "Where did it change?",
    ):
        assert talk.ask(question).reason == "old-series", question
    wanted = sum(course.year(y) for y in (2017, 2018, 2019))
    assert talk.ask("How much broke between 2017 and 2019?").value == pytest.approx(wanted)
    quiet = next(y for y in range(2016, 2022) if course.year(y) == 0)
    assert talk.ask(f"How much broke in {quiet}?").value == 0.0


def test_from_the_command_line(course: Course) -> None:
    done = CliRunner().invoke(app, ["ask", str(course.folder), "When did it first break?", "--json"])
    assert done.exit_code == 0, done.output
    said = json.loads(done.output)
    assert said["value"] == course.iso(course.days[0])
    assert said["facts"][0]["id"] == "break.first"


def test_the_runs_of_the_acceptance_list_agree(runs: dict[str, Truth]) -> None:
    talk = Conversation(runs["series"].folder)
    assert talk.ask("How many objects are there?").value == 1
