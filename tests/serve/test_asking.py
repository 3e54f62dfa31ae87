"""Questions over HTTP: streamed, remembered for one visitor, bounded, and never more than is known."""

from __future__ import annotations

import json
from typing import Any

import pytest
from fastapi.testclient import TestClient

import model_server
from model_server import lines, says
from terralapse.errors import SettingError
from terralapse.serve import ask_api, talks


@pytest.fixture
def visitor(serve: Any) -> TestClient:
    return serve()


@pytest.fixture
def talk(ids: dict[str, str]) -> str:
    return f"/api/results/{ids['Blobs']}/talk"


def ask(client: TestClient, talk: str, question: str, answerer: str = "rules") -> list[tuple[str, dict]]:
    """The events of an answer."""
    answer = client.post(talk, json={"question": question, "answerer": answerer})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = []
    for block in answer.text.split("\n\n"):
        if block.startswith("event: "):
            name, _, data = block.partition("\n")
            events.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return events


def test_an_answer_comes_sentence_by_sentence_with_its_facts(visitor, talk):
    events = ask(visitor, talk, "What is the largest change?")
    assert [name for name, _ in events][-1] == "answer"
    answer = events[-1][1]
    assert [data["text"] for name, data in events if name == "sentence"] == answer["sentences"]
    assert answer["answered"]
    assert answer["answerer"] == "rules"
    assert answer["confidence"]["understood"] > 0.5
    cited = {f["id"]: f for f in answer["facts"]}
    assert cited["object.1.area"]["polygons"] == [1]
    assert cited["object.1.area"]["display"] in answer["sentences"][0]


def test_a_talk_goes_on_and_is_one_visitor_s(visitor, talk, serve):
    ask(visitor, talk, "What is the largest change?")
    told = visitor.cookies[ask_api.SESSION]
    assert len(told) == 24
    follow = ask(visitor, talk, "How sure are you of it?")[-1][1]
    assert any(f["id"] == "object.1.probability" for f in follow["facts"])
    turns = visitor.get(talk).json()["turns"]
    assert [t["question"] for t in turns] == ["What is the largest change?", "How sure are you of it?"]
    assert turns[1]["answer"] == follow
    stranger = TestClient(visitor.app, base_url="http://127.0.0.1:8800")
    assert stranger.get(talk).json()["turns"] == []
    assert visitor.delete(talk).status_code == 200
    assert visitor.get(talk).json()["turns"] == []


def test_the_cookie_is_seen_by_no_script(visitor, talk):
    answer = visitor.post(talk, json={"question": "What changed?"})
    assert {"HttpOnly", "SameSite=Strict"} <= set(answer.headers["set-cookie"].split("; "))


def test_what_the_facts_do_not_hold_is_said_to_be_unknown(visitor, talk):
    answer = ask(visitor, talk, "Were any buildings destroyed?")[-1][1]
    assert not answer["answered"]
    assert answer["sentences"][0].startswith("I cannot tell")
    assert answer["reason"]


def test_a_series_answers_too(visitor, ids):
    talk = f"/api/results/{ids['clearing']}/talk"
    assert "year" in " ".join(visitor.get(talk).json()["examples"])
    assert ask(visitor, talk, "In which year did most of it break?")[-1][1]["answered"]


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        ({"question": ""}, 422),
        ({"question": "x" * 1001}, 422),
        ({"question": "What?", "answerer": "agent"}, 422),
        ({"question": "What?", "answerer": "oracle"}, 422),
        ({"question": "What?", "model": "x"}, 422),
    ],
)
def test_only_questions_are_taken(visitor, talk, wrong, code):
    assert visitor.post(talk, json=wrong).status_code == code
    assert visitor.post(talk.replace("blobs", "nothing"), json={"question": "What?"}).status_code == 404


def test_too_many_questions_have_to_wait(visitor, talk):
    codes = [visitor.post(talk, json={"question": "What changed?"}).status_code for _ in range(26)]
    assert codes[0] == 200
    assert 429 in codes


def test_talks_and_turns_are_bounded(visitor, talk, monkeypatch):
    monkeypatch.setattr(talks, "MOST_TURNS", 2)
    for question in ("What changed?", "Where?", "How sure are you?"):
        ask(visitor, talk, question)
    assert [t["question"] for t in visitor.get(talk).json()["turns"]] == ["Where?", "How sure are you?"]
    monkeypatch.setattr(talks, "MOST_TALKS", 1)
    other = TestClient(visitor.app, base_url="http://127.0.0.1:8800")
    ask(other, talk, "What changed?")
    assert visitor.get(talk).json()["turns"] == []


# --- a language model --------------------------------------------------------------------------------
def test_the_model_of_the_operator_answers_and_is_followed(serve, talk, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    script = lines(says(None, ("objects", {})), says("The largest object is in the north."))
    with model_server.serve(script) as model, serve(llm="small", base_url=model.url) as client:
        names = [a["name"] for a in client.get(talk).json()["answerers"]]
        assert names == ["rules", "agent"]
        events = ask(client, talk, "What should I look at first?", "agent")
        assert events[-1][0] == "answer"
        assert events[-1][1]["answerer"] == "agent"
        ask(client, talk, "What changed?", "rules")
        assert len(client.get(talk).json()["turns"]) == 2
        assert model.url not in json.dumps(events)


def test_a_model_that_is_down_is_said_to_be_and_where_it_is_is_not(serve, talk, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with model_server.serve(lambda _body: 500) as model, serve(llm="small", base_url=model.url) as client:
        ((name, data),) = ask(client, talk, "What changed?", "agent")
        assert name == "trouble"
        assert "language model" in data["text"]
        assert model.url.split("/")[2] not in data["text"]
        assert ask(client, talk, "What changed?")[-1][0] == "answer"


def test_a_model_without_an_endpoint_is_an_error_at_the_start(serve, monkeypatch):
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with pytest.raises(SettingError, match="base-url"):
        serve(llm="small")
    with pytest.raises(SettingError, match="Give --llm"):
        serve(base_url="http://127.0.0.1:1/v1")
