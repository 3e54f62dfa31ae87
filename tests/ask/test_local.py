"""The agent with a model on this machine, and the tools that go back to the images."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ask_hostile import HOSTILE
from product_runs import build_run
from terralapse.ask import Conversation
from terralapse.ask.agent import Agent
from terralapse.ask.book import Book
from terralapse.ask.local import LocalBrain, as_text, read_reply
from terralapse.ask.tools import ToolError, call
from terralapse.ask.tools_look import Kit
from terralapse.ask.verify import problems
from terralapse.errors import EndpointError, ModelInputError
from terralapse.layers.chat_models import ChatModel, Written
from terralapse.products.write import write_products
from tiny_models import save, tiny_llama


class Scripted:
    """A model that writes fixed texts, the last one again and again."""

    name, device = "scripted", "cpu"

    def __init__(self, *texts: str, late: bool = False) -> None:
        self.texts, self.late = list(texts), late
        self.talks: list[list[dict[str, str]]] = []

    def write(self, messages: Sequence[Any], **_limits: Any) -> Written:
        self.talks.append([dict(m) for m in messages])
        text = self.texts.pop(0) if len(self.texts) > 1 else self.texts[0]
        return Written(text, 100, 10, self.late)


def asked(
    folder: Path, *texts: str, question: str = "How much changed?", **more: Any
) -> tuple[Any, Scripted]:
    model = Scripted(*texts)
    agent = Agent(brain=LocalBrain(model), **more)  # pyright: ignore
    return agent.answer(question, Book.open(folder)), model


AREA = '{"name": "changed_area", "arguments": {}}'


def test_calls_in_texts_run_tools_and_their_facts_are_cited(zones: Path) -> None:
    answer, model = asked(zones, f"Let me see.\n{AREA}", "41.6 ha changed.")
    assert answer.text == "41.6 ha changed."
    assert [f["id"] for f in answer.facts] == ["area.changed"]
    first, second = model.talks
    assert [m["role"] for m in first] == ["user"]
    assert '"name": "count_objects"' in first[0]["content"]
    assert [m["role"] for m in second] == ["user", "assistant", "user"]
    assert second[1]["content"] == f"Let me see.\n{AREA}"
    assert '"id": "area.changed"' in second[2]["content"]


@pytest.mark.parametrize("name", sorted(HOSTILE))
def test_a_hostile_model_here_says_nothing_of_its_own_either(zones: Path, name: str) -> None:
    reads = "\n".join(
        f'{{"name": "{tool}", "arguments": {{}}}}'
        for tool in ("summary", "changed_area", "objects", "where", "dates")
    )
    answer, _ = asked(zones, reads, HOSTILE[name], question="Has anything changed, how much and where?")
    assert (answer.answered, answer.reason) == (False, "not-supported"), answer.text


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "changed_area"}',
        '{"name": "changed_area", "arguments": "{}"}',
        '{"name": 5, "arguments": {}}',
        '{"name": "changed_area", "arguments": {}, "more": 1}',
        '{"name": "changed_area", "name": "summary", "arguments": {}}',
        '{"name": "count_objects", "arguments": {"least_area": NaN}}',
        '{"name": "changed_area", "arguments": {}',
        "<tool_call>changed_area()</tool_call>",
        "{" * 3000,
    ],
)
def test_a_call_that_is_not_exactly_one_is_told_so(zones: Path, text: str) -> None:
    assert read_reply(text)[1] == [{}]
    answer, model = asked(zones, text, "I cannot tell from this.")
    assert "That was no call of a tool" in model.talks[1][-1]["content"]
    assert answer.reason == "model-cannot-tell"


def test_calls_are_read_with_marks_in_fences_and_over_lines() -> None:
    wanted = {"name": "changed_area", "arguments": '{"place": "north"}'}
    bare = json.dumps({"name": "changed_area", "arguments": {"place": "north"}}, indent=1)
    for text in (
        bare,
        f"```json\n{bare}\n```",
        f"First.\n<tool_call>\n{bare}\n</tool_call>",
        f"<think>x</think>{bare}",
    ):
        said, calls = read_reply(text)
        assert [c["function"] for c in calls] == [wanted], text
        assert said in ("", "First.")
    assert len(read_reply("\n".join([AREA] * 20))[1]) == 6
    assert read_reply("41.6 ha changed.") == ("41.6 ha changed.", [])


def test_texts_of_the_talk_take_turns() -> None:
    roles = [{"role": r, "content": r} for r in ("system", "user", "user", "assistant", "user")]
    assert [m["role"] for m in as_text(roles, [])] == ["user", "assistant", "user"]


def test_limits_of_steps_and_time_hold(zones: Path) -> None:
    answer, model = asked(zones, AREA, steps=3)
    assert (len(model.talks), answer.reason) == (3, "model-gave-up")
    slow = Agent(brain=LocalBrain(Scripted("x", late=True)))  # pyright: ignore
    with pytest.raises(EndpointError, match="did not answer in"):
        slow.answer("How much?", Book.open(zones))


def test_a_model_of_transformers_goes_the_whole_way(zones: Path, tmp_path: Path) -> None:
    folder = save(tmp_path, tiny_llama())
    talk = Conversation(zones, "agent", llm_folder=folder, device="cpu", steps=1)
    talk._model.brain._tokens = 8  # pyright: ignore
    answer = talk.ask("How much changed?")
    assert answer.answerer == "agent"
    assert problems(answer.text, answer.facts, talk.book, "How much changed?") == []


def test_a_talk_that_is_too_long_is_refused(zones: Path) -> None:
    model = ChatModel.of(*tiny_llama(max_position_embeddings=64))
    with pytest.raises(ModelInputError, match="reads and writes 64 tokens"):
        Agent(brain=LocalBrain(model)).answer("How much changed?", Book.open(zones))


# --- tools that go back to the images --------------------------------------------------------------------
@pytest.fixture(scope="module")
def joplin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped pair, coarse, with pictures."""
    from terralapse import change

    pair = Path(__file__).resolve().parents[2] / "examples/joplin"
    out = tmp_path_factory.mktemp("look") / "joplin"
    change(pair / "before", pair / "after", out, model="cva", grid=6.0)
    return out


def used(folder: Path, kit: Kit, name: str, **given: Any) -> list[dict[str, Any]]:
    return call(name, json.dumps(given), Book.open(folder), kit.tools())


def test_dates_are_compared_by_their_bands(joplin: Path) -> None:
    found = {f["id"]: f for f in used(joplin, Kit(), "compare_dates", place="north")}
    assert {"date.before", "ninth.north.index.red.before", "ninth.north.index.blue.net"} <= set(found)
    red = [found[f"ninth.north.index.red.{k}"]["value"] for k in ("before", "after", "net")]
    assert red[1] - red[0] == pytest.approx(red[2])
    whole = {f["id"]: f for f in used(joplin, Kit(), "compare_dates")}
    import rasterio

    with rasterio.open(joplin / "valid.tif") as file:
        valid = file.read(1) == 0
    from terralapse.workflows.reopen import reopened

    with reopened(joplin) as pair:
        images = pair.preview(1024)[0].images
    assert whole["index.red.before"]["value"] == pytest.approx(images[0, 0][valid].mean(), rel=1e-3)


def test_an_index_needs_its_bands_and_its_name(joplin: Path) -> None:
    with pytest.raises(ToolError, match="has no band 'nir'"):
        used(joplin, Kit(), "spectral_index", index="ndvi")
    with pytest.raises(ToolError, match="do not fit"):
        used(joplin, Kit(), "spectral_index", index="ndvi; rm")
    book = Book.open(joplin)
    facts = used(joplin, Kit(), "compare_dates")
    mean = next(f for f in facts if f["id"] == "index.red.before")["display"]
    assert problems(f"The mean of the red band was {mean}.", facts, book) == []
    assert problems(f"The mean of the blue band was {mean}.", facts, book) != []
    assert problems(f"I am sure by {mean}.", facts, book) != []
    fell = next(f for f in facts if f["id"] == "index.red.net")["value"] < 0
    assert bool(problems("The red band decreased.", facts, book)) is not fell
    assert problems("The changed area decreased.", facts, book) != []


def test_an_index_is_that_of_the_images(tmp_path: Path) -> None:
    from fixtures_eo import write_tif
    from terralapse import change

    rng = np.random.default_rng(0)
    for name, nir in (("before", 0.4), ("after", 0.2)):
        data = np.stack(
            [np.full((64, 64), v) + rng.normal(0, 0.004, (64, 64)) for v in (0.05, 0.08, 0.1, nir)]
        )
        write_tif(
            tmp_path / f"{name}.tif",
            data.astype(np.float32),
            descriptions=("blue", "green", "red", "nir"),
            nodata=np.nan,
        )
    change(tmp_path / "before.tif", tmp_path / "after.tif", tmp_path / "out", model="cva", pictures=False)
    found = {f["id"]: f["value"] for f in used(tmp_path / "out", Kit(), "spectral_index", index="ndvi")}
    assert found["index.ndvi.before"] == pytest.approx(0.6, abs=0.01)
    assert found["index.ndvi.after"] == pytest.approx(1 / 3, abs=0.02)
    assert found["index.ndvi.net"] == pytest.approx(-0.267, abs=0.02)


def test_images_that_are_gone_are_told(tmp_path: Path) -> None:
    made = build_run(tmp_path / "run", settings={"before": "gone.tif", "after": "b.tif", "pictures": False})
    write_products(made)
    with pytest.raises(ToolError, match=r"gone\.tif"):
        used(made.folder, Kit(), "compare_dates")
    with pytest.raises(ToolError, match="there is no tool 'look'"):
        used(made.folder, Kit(), "look", question="What is there?")


class Seer:
    """A vision-language model that says one thing."""

    def __init__(self, text: str) -> None:
        self.text, self.pictures = text, []

    def write(self, messages: Sequence[Any], pictures: Sequence[Any], **_limits: Any) -> Written:
        self.pictures.append(list(pictures))
        return Written(self.text, 1, 1, False)


def test_a_look_is_held_against_the_facts_and_proves_nothing(joplin: Path) -> None:
    kit = Kit(looker=Seer("It looks darker after. About 999 ha burnt."))  # pyright: ignore
    found = used(joplin, kit, "look", question="What do you see?", place="north")
    looks = [f for f in found if f["id"].startswith("look.")]
    assert looks[0]["sentence"] == "It looks darker after."
    assert "999" not in json.dumps(found)
    assert len(kit.looker.pictures[0]) == 4  # pyright: ignore
    assert kit.looker.pictures[0][2].size[0] < kit.looker.pictures[0][0].size[0]  # pyright: ignore
    tools = kit.tools()
    book = Book.open(joplin)
    for _ in range(4):
        call("look", '{"question": "What do you see?"}', book, tools)
    with pytest.raises(ToolError, match="enough looks"):
        call("look", '{"question": "What do you see?"}', book, tools)


def test_a_caption_that_names_the_unsupported_is_none(joplin: Path) -> None:
    seen: list[Any] = []

    def says(text: str) -> Any:
        return lambda before, after: (seen.append((before, after)), text)[1]

    found = used(joplin, Kit(describer=says("the scene looks rather different")), "caption", object=1)
    assert found[0]["sentence"] == "The scene looks rather different."
    assert seen[0][0].shape == seen[0][1].shape
    with pytest.raises(ToolError, match="no fact of this run supports"):
        used(joplin, Kit(describer=says("twelve houses are built near a hospital")), "caption")
    with pytest.raises(ToolError, match="not both"):
        used(joplin, Kit(describer=says("x")), "caption", object=1, place="north")


def test_maps_are_written_where_they_may_be_and_no_more_than_eight(joplin: Path, tmp_path: Path) -> None:
    kit = Kit(maps=tmp_path / "maps")
    found = used(joplin, kit, "write_map", place="north")
    assert found[0]["value"] == "map_ninth_north.png"
    drawn = Image.open(tmp_path / "maps" / "map_ninth_north.png")
    assert drawn.size[0] < Image.open(joplin / "map.png").size[0]
    used(joplin, kit, "write_map")
    whole = np.asarray(Image.open(tmp_path / "maps" / "map_all.png")).astype(int)
    import rasterio

    with rasterio.open(joplin / "after.tif") as file:
        after = np.moveaxis(file.read(), 0, -1).astype(int)
        known = file.dataset_mask() > 0
    with rasterio.open(joplin / "change.tif") as file:
        changed = file.read(1, out_shape=after.shape[:2]) == 1
    moved = np.abs(whole - after).max(axis=2) > 20
    assert moved[changed].mean() > 0.9
    assert moved[~changed & known].mean() < 0.01
    for n in range(6):
        (tmp_path / "maps" / f"map_{n}.png").touch()
    with pytest.raises(ToolError, match="maps enough"):
        used(joplin, kit, "write_map", place="south")


def test_the_agent_offers_what_its_kit_has(zones: Path) -> None:
    _, model = asked(zones, "I cannot tell from this.", kit=Kit())
    told = model.talks[0][0]["content"]
    assert '"name": "spectral_index"' in told
    assert '"name": "write_map"' not in told
    assert '"name": "look"' not in told
