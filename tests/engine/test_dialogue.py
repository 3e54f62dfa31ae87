"""The benchmark of answers: whoever answers, kept answers, judges, scores, and the command."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from model_server import says, serve
from terralapse.ask.vision import Vision
from terralapse.cli.app import app
from terralapse.data.dvl import SINGLE, TASKS, DvlQuestion, DvlSuite, Part
from terralapse.data.dvl_made import Scene, made_scene, solve, write_made
from terralapse.engine.dialogue import NotAnsweredError, judge_prompt, of_model, of_runs, read_answers
from terralapse.errors import (
    EndpointError,
    OutputExistsError,
    ResumeMismatchError,
    SettingError,
    TerralapseError,
)
from terralapse.workflows.dialogue import bench_dvl

YEARS = (2005, 2008, 2010, 2015, 2020)


@pytest.fixture(scope="module")
def scenes() -> dict[str, Scene]:
    rng = np.random.default_rng(4)
    return {f"austin/r{k}": made_scene(f"austin/r{k}", YEARS, rng) for k in range(2)}


@pytest.fixture(scope="module")
def tree(scenes: dict[str, Scene], tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("dvl")
    write_made(root, list(scenes.values()))
    return root


class Perfect:
    """Knows the maps and the references."""

    def __init__(self, scenes: dict[str, Scene]) -> None:
        self.scenes, self.asked = scenes, 0

    def __call__(self, question: DvlQuestion, parts: Sequence[Part]) -> Any:
        self.asked += 1
        assert parts
        if question.task.code in ("BCA-QA", "CSE-QA"):
            return solve(question.prompt, question.options, self.scenes[question.place])
        if question.task.kind == "mask":
            return SimpleNamespace(text="[SEG].", mask=question.read_mask())
        return question.truth


def test_whoever_makes_no_mistake_gets_every_point(
    tree: Path, scenes: dict[str, Scene], tmp_path: Path
) -> None:
    result = bench_dvl(tmp_path / "out", tree, Perfect(scenes), name="perfect")
    assert result["average"] == 1.0
    assert set(result["tasks"]) == set(TASKS)
    for code in ("BCA-Report", "CSE-Report", "DTC", "RCC"):
        assert result["tasks"][code]["grades"]["score"] == 5
        assert result["tasks"][code]["captions"]["bleu4"] == pytest.approx(1.0)
    masks = result["tasks"]["RCD"]
    assert masks["giou"] == pytest.approx(1, abs=1e-6)
    assert masks["change"]["Recall"] == 1.0
    assert (result["judge"], result["quick_look"], result["answerer"]) == ("rules", False, "perfect")
    assert json.loads((tmp_path / "out/dvl.json").read_text()) == result
    with pytest.raises(OutputExistsError):
        bench_dvl(tmp_path / "out", tree, Perfect(scenes), name="perfect")


def test_nothing_said_is_wrong_and_an_empty_mask_is_scored(tree: Path, tmp_path: Path) -> None:
    def mute(_question: DvlQuestion, _parts: Sequence[Part]) -> str:
        raise NotAnsweredError("no run")

    result = bench_dvl(tmp_path / "out", tree, mute, name="mute")
    assert result["average"] == 0.0
    assert result["tasks"]["RCD"]["giou"] == 0.0
    assert all(part["empty"] == part["questions"] for part in result["tasks"].values())
    single = result["tasks"]["BCA-QA"][SINGLE]
    assert single["chance"] == pytest.approx(0.2)


def test_a_benchmark_that_broke_off_goes_on(tree: Path, scenes: dict[str, Scene], tmp_path: Path) -> None:
    class Breaks(Perfect):
        def __call__(self, question: DvlQuestion, parts: Sequence[Part]) -> Any:
            if self.asked == 3:
                raise KeyboardInterrupt
            return super().__call__(question, parts)

    who = Breaks(scenes)
    with pytest.raises(KeyboardInterrupt):
        bench_dvl(tmp_path / "out", tree, who, name="x", resume=True)
    assert not (tmp_path / "out").exists()
    again = Perfect(scenes)
    with pytest.raises(ResumeMismatchError, match="another answerer"):
        bench_dvl(tmp_path / "out", tree, again, name="y", resume=True)
    result = bench_dvl(tmp_path / "out", tree, again, name="x", resume=True)
    assert result["average"] == 1.0
    assert again.asked == len(DvlSuite(tree)) - 3
    ids = [a.id for a in read_answers(tmp_path / "out")]
    assert len(ids) == len(set(ids)) == len(DvlSuite(tree))


@pytest.mark.parametrize("fault", [500, b"no JSON"])
def test_an_endpoint_that_fails_half_way_costs_no_answer(
    tree: Path, tmp_path: Path, fault: int | bytes
) -> None:
    """Nobody asked for `--resume` beforehand, because nobody knew."""
    out, total = tmp_path / "o", len(DvlSuite(tree, tasks=("EA", "DTC")))
    said = iter(range(3))
    command = ("--root", str(tree), "--answerer", "vlm", "--llm", "tiny", "--tasks", "EA,DTC", "-o", str(out))
    with serve(lambda _body: says(f"A {k}") if (k := next(said, None)) is not None else fault) as model:
        done = run(*command, "--base-url", model.url)
        assert isinstance(done.exception, EndpointError)
        assert "3 answers are kept; go on with --resume." in str(done.exception)
        assert len(model.requests) == 4
        assert not out.exists()
        again = run(*command, "--base-url", model.url, "--resume")
        assert "3 answers are kept" in str(again.exception)
        failed_at = model.requests[3]
        assert model.requests[4:] == [failed_at]
    with serve(lambda _body: says("B")) as model:
        done = run(*command, "--base-url", model.url, "--resume")
        assert done.exit_code == 0, done.output
        assert len(model.requests) == total - 3
        assert model.requests[0] == failed_at
    assert [a.text for a in read_answers(out)] == ["A 0", "A 1", "A 2", *["B"] * (total - 3)]
    assert not list(tmp_path.glob("*.part"))


def test_a_judge_that_fails_costs_no_grade(tree: Path, tmp_path: Path) -> None:
    def who(_question: DvlQuestion, _parts: Sequence[Part]) -> str:
        return "Something happened."

    calls = 0

    def judge(_question: DvlQuestion, _text: str) -> str:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise EndpointError("the endpoint", "is down", "Start it.")
        return "<temporal_coverage>5</temporal_coverage>"

    settings: Any = {"name": "w", "tasks": ("DTC",), "judge": judge, "judge_name": "gpt"}
    with pytest.raises(EndpointError, match=r"Start it\. 2 answers are kept"):
        bench_dvl(tmp_path / "o", tree, who, **settings)
    (grades,) = (tmp_path / "o.part").rglob("grades.jsonl")
    grades.write_bytes(grades.read_bytes() + b'{"id": "x", "judge": "gp')
    bench_dvl(tmp_path / "o", tree, who, **settings, resume=True)
    assert calls == 3
    assert len((tmp_path / "o/grades.jsonl").read_text().splitlines()) == 2


def test_without_resume_a_benchmark_starts_afresh(
    tree: Path, scenes: dict[str, Scene], tmp_path: Path
) -> None:
    def down(_question: DvlQuestion, _parts: Sequence[Part]) -> str:
        raise EndpointError("the endpoint", "is down", "Start it.")

    with pytest.raises(EndpointError, match="0 answers are kept"):
        bench_dvl(tmp_path / "o", tree, down, name="down")
    again = Perfect(scenes)
    bench_dvl(tmp_path / "o", tree, again, name="other", tasks=("EA",))
    assert again.asked == len(DvlSuite(tree, tasks=("EA",)))


@pytest.mark.parametrize("line", ["no json", "[]", '{"id": "b"}'])
def test_a_damaged_answer_is_one_error(tmp_path: Path, line: str) -> None:
    (tmp_path / "answers.jsonl").write_text(f'{{"id": "a", "text": "B"}}\n{line}\n')
    with pytest.raises(ResumeMismatchError, match="is damaged in line 2"):
        read_answers(tmp_path)


def test_a_line_that_was_cut_off_is_asked_again(tmp_path: Path) -> None:
    (tmp_path / "answers.jsonl").write_bytes('{"id": "a", "text": "B"}\n{"id": "b", "text": "ü'.encode()[:-1])
    assert [a.id for a in read_answers(tmp_path)] == ["a"]
    assert (tmp_path / "answers.jsonl").read_text() == '{"id": "a", "text": "B"}\n'


def test_a_limit_is_marked_and_tasks_are_chosen(tree: Path, scenes: dict[str, Scene], tmp_path: Path) -> None:
    result = bench_dvl(tmp_path / "o", tree, Perfect(scenes), name="p", tasks=("EA", "DTC"), limit=1)
    assert {c: p["questions"] for c, p in result["tasks"].items()} == {"EA": 1, "DTC": 1}
    assert (result["quick_look"], result["average"]) == (True, None)
    with pytest.raises(SettingError, match="under 1"):
        bench_dvl(tmp_path / "p", tree, Perfect(scenes), name="p", limit=0)


# --- answerers -------------------------------------------------------------------------------------------
def test_a_model_behind_an_endpoint_sees_texts_and_images_in_order(tree: Path) -> None:
    question = DvlSuite(tree, tasks=("CSE-QA",))[0]
    with serve(lambda _body: says("B")) as model:
        from terralapse.data.dvl import message

        vision = Vision(model.url, "some-vlm", side=16)
        assert of_model(vision)(question, message(question)) == "B"
        content = model.requests[0]["messages"][0]["content"]
    kinds = [c["type"] for c in content]
    assert kinds.count("image_url") == 5
    first = kinds.index("image_url")
    assert content[first - 1]["text"] == "\nyear 2005:"
    assert content[first]["image_url"]["url"].startswith("data:image/png;base64,")
    with pytest.raises(SettingError, match="llm"):
        Vision("http://localhost:1/v1")


def test_somebody_is_asked_about_the_run_of_the_place(tree: Path) -> None:
    asked: list[tuple[str, str]] = []

    class Talk:
        def __init__(self, place: str) -> None:
            self.place = place

        def ask(self, question: str, /) -> Any:
            asked.append((self.place, question))
            return SimpleNamespace(text="A")

    question = DvlSuite(tree, tasks=("BCA-QA",))[0]
    from terralapse.data.dvl import message

    reply = of_runs(Talk)(question, message(question))
    assert getattr(reply, "text", "") == "A"
    place, text = asked[0]
    assert place == "austin/r0"
    assert text.startswith(question.prompt)
    assert "A. " in text
    assert "ONLY the capital letter" in text


# --- judges ----------------------------------------------------------------------------------------------
def test_a_judge_is_asked_once_and_its_grades_are_clamped(tree: Path, tmp_path: Path) -> None:
    calls: list[str] = []

    def judge(question: DvlQuestion, text: str) -> str:
        calls.append(judge_prompt(question, text))
        return " ".join(f"<{c}>9</{c}>" for c in question.task.criteria[:1])

    def who(_question: DvlQuestion, _parts: Sequence[Part]) -> str:
        return "Something happened."

    out = tmp_path / "o"
    result = bench_dvl(out, tree, who, name="w", tasks=("DTC",), judge=judge, judge_name="gpt")
    assert result["tasks"]["DTC"]["grades"] == {
        "temporal_coverage": 5.0,
        "spatial_accuracy": 0.0,
        "process_fidelity": 0.0,
        "score": pytest.approx(5 / 3),
    }
    assert result["judge"] == "gpt"
    assert len(calls) == 2
    assert "<temporal_coverage>" in calls[0]
    assert "Something happened." in calls[0]
    assert len((out / "grades.jsonl").read_text().splitlines()) == 2


# --- the command -----------------------------------------------------------------------------------------
def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["bench", "dvl", *arguments])


def test_the_command_with_a_model(tree: Path, tmp_path: Path) -> None:
    with serve(lambda _body: says("A")) as model:
        done = run(
            "--root", str(tree), "--answerer", "vlm", "--llm", "tiny", "--base-url", model.url,
            "--tasks", "EA",
            "-o", str(tmp_path / "o"),
        )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "answered by vlm tiny" in done.output
    truth = [q.truth for q in DvlSuite(tree, tasks=("EA",))]
    assert f"{100 * truth.count('A') / len(truth):.1f} %" in done.output


def test_the_command_with_runs(tree: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    runs.mkdir()
    done = run(
        "--root", str(tree), "--answerer", "rules", "--runs", str(runs), "--json", "-o", str(tmp_path / "o")
    )
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert result["tasks"]["EA"]["empty"] == result["tasks"]["EA"]["questions"]


@pytest.mark.parametrize(
    ("arguments", "says_"),
    [
        (("--answerer", "rules"), "Give --runs FOLDER"),
        (("--answerer", "vlm", "--runs", "."), "Leave --runs out"),
        (("--answerer", "rules", "--runs", "nowhere"), "is not there"),
        (("--answerer", "cva"), "answers no questions"),
        (("--answerer", "nobody"), "no system has this name"),
    ],
)
def test_what_the_command_refuses(tree: Path, arguments: tuple[str, ...], says_: str) -> None:
    done = run("--root", str(tree), *arguments)
    assert isinstance(done.exception, TerralapseError)
    assert says_ in str(done.exception)
    assert not isinstance(done.exception, EndpointError)


def test_other_prompts_are_read_from_a_file(tree: Path, tmp_path: Path, scenes: dict[str, Scene]) -> None:
    path = tmp_path / "p.json"
    path.write_text(json.dumps({"dense_temporal_caption": "See <image> and tell."}))
    seen: list[str] = []

    def who(_question: DvlQuestion, parts: Sequence[Part]) -> str:
        seen.append(parts[-1].text)
        return "x"

    result = bench_dvl(tmp_path / "o", tree, who, name="w", tasks=("DTC",), prompts=path)
    assert (set(seen), result["prompts"]) == ({" and tell."}, "the user's")
    path.write_text(json.dumps({"poem": "x"}))
    with pytest.raises(SettingError, match="template poem"):
        bench_dvl(tmp_path / "q", tree, who, name="w", prompts=path)
