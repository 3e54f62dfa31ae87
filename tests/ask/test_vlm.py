"""The answerer that sees: what it is shown, how it is read, and that nothing unsupported gets through."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from odc.geo.geobox import GeoBox
from PIL import Image

from ask_hostile import HOSTILE
from product_runs import build_run
from terralapse.ask import Conversation
from terralapse.ask.book import Book
from terralapse.ask.verify import problems
from terralapse.ask.vlm import INPUTS, Vlm, left_out, parse_choice, parse_json, parse_text, parse_yes_no
from terralapse.cli import main
from terralapse.errors import FileMissingError, MissingExtraError, SettingError, UnsafeWeightsError
from terralapse.layers import chat_models
from terralapse.layers.chat_models import ChatModel, Written, model_folder
from terralapse.products.write import write_products
from tiny_models import save, tiny_llama, tiny_llava


class Scripted:
    """A model that says what it is told to, and keeps what it was shown."""

    def __init__(self, text: str, late: bool = False, written: int = 5) -> None:
        self.text, self.late, self.written = text, late, written
        self.messages: list[dict[str, Any]] = []
        self.pictures: list[Image.Image] = []

    def write(self, messages: Sequence[Any], pictures: Sequence[Any], **_limits: Any) -> Written:
        self.messages, self.pictures = list(messages), list(pictures)
        return Written(self.text, 10, self.written, self.late)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with pictures."""
    made = build_run(tmp_path_factory.mktemp("vlm") / "run")
    write_products(made)
    return made.folder


def seen(run: Path, text: str, question: str = "How much changed?", **settings: Any) -> tuple[Any, Scripted]:
    model = Scripted(text)
    return Vlm(model=model, **settings).answer(question, Book.open(run)), model  # pyright: ignore


def test_it_is_shown_both_dates_in_order_with_labels_and_facts(run: Path) -> None:
    answer, model = seen(run, "It looks darker after.")
    assert answer.answered
    assert answer.text == "It looks darker after."
    parts = model.messages[0]["content"]
    assert [p["type"] for p in parts] == ["text", "image", "text", "image", "text"]
    assert parts[0]["text"].startswith("Image 1: before (10 May 2023")
    assert parts[2]["text"].startswith("Image 2: after (2 June 2024")
    before, after = (np.asarray(p).astype(int) for p in model.pictures)
    assert before.shape == (240, 320, 3)
    assert np.abs(after - before)[40:80, 205:235].mean() > 20  # where the block of change is
    assert np.abs(after - before)[100:140, 100:140].mean() < 8
    assert '"area.changed"' in parts[-1]["text"]
    assert parts[-1]["text"].count("Question: How much changed?") == 1


def test_a_place_that_is_asked_for_is_cut_out(run: Path) -> None:
    _, model = seen(run, "It looks brighter.", "Has the north-east changed?")
    labels = [p["text"] for p in model.messages[0]["content"] if p["type"] == "text"]
    assert labels[2].endswith("only the north-east\n")
    assert [p.size for p in model.pictures[:2]] == [(320, 240)] * 2
    assert model.pictures[2].size == pytest.approx((107, 80), abs=2)
    assert model.pictures[3].size == model.pictures[2].size
    _, model = seen(run, "It looks brighter.", "How large is object 1?")
    assert "only object 1" in model.messages[0]["content"][4]["text"]
    assert model.pictures[2].size[1] in range(60, 90)  # 60 pixels and a margin


def test_builders_of_inputs_differ_in_order_and_number(run: Path) -> None:
    first = seen(run, "x.")[1].pictures
    turned = seen(run, "x.", inputs="after-first")[1]
    assert np.array_equal(np.asarray(turned.pictures[0]), np.asarray(first[1]))
    assert turned.messages[0]["content"][0]["text"].startswith("Image 1: after")
    one = seen(run, "x.", inputs="joined")[1]
    assert [p.size for p in one.pictures] == [(648, 240)]
    own = seen(run, "x.", inputs=lambda views: ([{"type": "image"}], [Image.new("RGB", (4, 4))]))[1]
    assert own.pictures[0].size == (4, 4)
    assert set(INPUTS) == {"before-first", "after-first", "joined"}


@pytest.mark.parametrize("name", sorted(HOSTILE))
def test_what_it_makes_up_is_not_said(zones_seen: Path, name: str) -> None:
    question = "Has anything changed, how much and where?"
    answer, _ = seen(zones_seen, HOSTILE[name], question)
    book = Book.open(zones_seen)
    body = answer.text.rpartition(" What the model said with ")[0] or answer.text
    assert HOSTILE[name] not in answer.text
    assert answer.confidence["left_out"] == 1
    assert "is left out" in answer.text
    assert problems(answer.text, answer.facts, book, question) == []
    assert answer.reason == "corrected"
    assert body


@pytest.fixture(scope="module")
def zones_seen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run with zones, with pictures of its own size beside it."""
    import rasterio

    from ask_runs import zones_run
    from terralapse.products.imagery import write_preview

    found = zones_run(tmp_path_factory.mktemp("seen")).folder
    rng = np.random.default_rng(3)
    with rasterio.open(found / "change.tif") as file:
        box = GeoBox(file.shape, file.transform, file.crs)
    for date in ("before", "after"):
        picture = rng.integers(0, 255, (*file.shape, 3), np.uint8)
        write_preview(found / f"{date}.tif", picture, np.full(file.shape, 255, np.uint8), box)
    return found


def test_a_wrong_number_is_corrected_and_the_rest_stays(zones_seen: Path) -> None:
    answer, _ = seen(zones_seen, "It looks brighter. About 999 ha changed.")
    assert answer.text.startswith("It looks brighter. 41.6 ha changed, 5.53 % of what could be compared.")
    assert answer.text.endswith("What the model said with numbers that no fact supports is left out.")
    assert "999" not in json.dumps(answer.as_dict())
    assert answer.confidence["left_out_kinds"] == ["number"]
    assert {f["id"] for f in answer.facts} >= {"area.changed", "share.changed"}
    assert answer.value == pytest.approx(416_000, rel=0.01)


def test_a_true_number_is_kept_with_its_fact(zones_seen: Path) -> None:
    answer, _ = seen(zones_seen, "41.6 ha changed.")
    assert (answer.text, answer.reason) == ("41.6 ha changed.", None)
    assert [f["id"] for f in answer.facts] == ["area.changed"]


def test_what_is_said_of_the_left_out_claims_nothing(zones_seen: Path) -> None:
    from terralapse.ask.verify import Problem

    kinds = ("number", "date", "class", "place", "grade", "name", "direction")
    told = left_out([Problem(k, "x", "y") for k in kinds])
    assert problems(told, [], Book.open(zones_seen), "") == []


@pytest.mark.parametrize(
    ("parser", "text", "value"),
    [
        (parse_text, "<think>42</think> Fine.", None),
        (parse_yes_no, "Yes, it did.", True),
        (parse_yes_no, "**No**, nothing.", False),
        (parse_choice, "Answer: B", ["B"]),
        (parse_json, '```json\n{"answer": "Fine.", "facts": ["area.changed"]}\n```', None),
    ],
)
def test_parsers_read_their_form(parser: Any, text: str, value: Any) -> None:
    found = parser(text)
    assert found is not None
    assert found.value == value
    assert "42" not in found.text


@pytest.mark.parametrize(
    ("parser", "text"),
    [
        (parse_text, "  "),
        (parse_yes_no, "Perhaps yes."),
        (parse_choice, "I would say so"),
        (parse_json, '{"answer": "x"}'),
        (parse_json, '{"answer": "x", "facts": [], "more": 1}'),
        (parse_json, '{"answer": 5, "facts": []}'),
        (parse_json, "[" * 4000),
    ],
)
def test_what_is_not_of_the_form_is_no_answer(parser: Any, text: str) -> None:
    assert parser(text) is None


def test_an_answer_of_another_form_and_a_late_one_are_refused(run: Path) -> None:
    answer, _ = seen(run, "41 ha.", parser="json")
    assert (answer.answered, answer.reason) == (False, "not-parsed")
    model = Scripted("It looks", late=True)
    assert Vlm(model=model).answer("How much?", Book.open(run)).reason == "too-slow"  # pyright: ignore


def test_json_answers_rest_on_the_facts_that_they_name(zones_seen: Path) -> None:
    named, _ = seen(zones_seen, '{"answer": "41.6 ha changed.", "facts": ["area.changed"]}', parser="json")
    assert named.text == "41.6 ha changed."
    other, _ = seen(zones_seen, '{"answer": "41.6 ha changed.", "facts": ["date.before"]}', parser="json")
    assert other.reason == "corrected"


def test_half_a_sentence_is_not_said(zones_seen: Path) -> None:
    model = Scripted("It looks brighter. There are 4", written=300)
    answer = Vlm(model=model).answer("What changed?", Book.open(zones_seen))  # pyright: ignore
    assert answer.text == "It looks brighter."


def test_a_run_without_pictures_is_refused(zones: Path) -> None:
    with pytest.raises(FileMissingError, match="no pictures"):
        seen(zones, "x.")


# --- a real model ----------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("llava"), tiny_llava())


def test_a_model_of_transformers_goes_the_whole_way(
    run: Path, llava: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Random weights say nothing of sense; that they see both pictures shows in what they say."""
    answer = Conversation(run, "vlm", vlm=llava, tokens=6, device="cpu").ask("Has the north changed?")
    assert answer.answerer == "vlm"
    assert problems(answer.text, answer.facts, Book.open(run), "Has the north changed?") == []
    sys.argv = ["terralapse", "ask", str(run), "How much changed?", "--answerer", "vlm", "--vlm", str(llava)]
    with pytest.raises(SystemExit) as done:
        main()
    assert not done.value.code
    assert capsys.readouterr().out.strip()


def test_what_it_writes_depends_on_the_pictures(llava: Path) -> None:
    import torch

    model = ChatModel(llava, sees=True, device="cpu")
    talk = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}]
    grey, red = Image.new("RGB", (28, 28), (90, 90, 90)), Image.new("RGB", (28, 28), (255, 0, 0))
    scores = []
    for picture in (grey, red):
        given = model._inputs(talk, [picture], None)
        with torch.inference_mode():
            scores.append(model._model(**given).logits[0, -1])
    assert (scores[0] - scores[1]).abs().max() > 1e-4
    wrote = model.write(talk, [grey], tokens=5, seconds=60)
    assert (wrote.written, wrote.late) == (5, False)
    assert model.write(talk, [grey], tokens=5, seconds=0.0).late


# --- folders ---------------------------------------------------------------------------------------------
def test_folders_that_are_no_safe_models_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileMissingError, match="is not there"):
        model_folder(tmp_path / "gone")
    with pytest.raises(SettingError, match="pins no commit"):
        model_folder("owner/name@main")
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(UnsafeWeightsError, match="no safetensors"):
        model_folder(tmp_path)


def test_a_model_with_code_of_its_own_is_refused(tmp_path: Path) -> None:
    save(tmp_path, tiny_llama())
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {
        "model_type": "mine",
        "auto_map": {"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model"},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "mine.py").write_text("raise SystemExit('code was run')")
    with pytest.raises(UnsafeWeightsError, match="code of its own"):
        ChatModel(tmp_path, device="cpu")


def test_without_transformers_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(name=name)

    monkeypatch.setattr(chat_models.importlib, "import_module", missing)
    with pytest.raises(MissingExtraError, match=r"terralapse\[language\]"):
        ChatModel(tmp_path)
