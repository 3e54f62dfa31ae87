"""A model that only writes: what is sent, what comes back, what is kept, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from model_server import Reply, lines, says, serve
from terralapse.ask.writer import Writer
from terralapse.errors import EndpointError, SettingError

MESSAGES: list[dict[str, Any]] = [
    {"role": "system", "content": "Rewrite."},
    {"role": "user", "content": [{"type": "text", "text": "Wald: 40 %, größer"}]},
]


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No endpoint, key or cache of the person who runs the tests."""
    for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))


def test_messages_go_as_they_are_and_the_text_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "key-of-the-user")
    with serve(lambda _body: says("\n Forest covers 40%. \n")) as model:
        assert Writer(model.url, "tiny", tokens=77)(MESSAGES) == "Forest covers 40%."
    assert model.requests == [
        {"model": "tiny", "messages": MESSAGES, "temperature": 0, "max_tokens": 77},
    ]
    assert model.headers[0]["Authorization"] == "Bearer key-of-the-user"


def test_no_tools_are_offered_and_no_key_is_made_up() -> None:
    with serve(lambda _body: says("x")) as model:
        Writer(model.url, "tiny")(MESSAGES)
    assert "tools" not in model.requests[0]
    assert "Authorization" not in model.headers[0]


def test_the_address_may_stand_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(lambda _body: says("here")) as model:
        monkeypatch.setenv("OPENAI_BASE_URL", model.url)
        assert Writer(llm="tiny")(MESSAGES) == "here"


@pytest.mark.parametrize("said", [None, "", "  \n"])
def test_a_model_that_says_nothing_gives_an_empty_text(said: str | None) -> None:
    with serve(lambda _body: says(said)) as model:
        assert Writer(model.url, "tiny")(MESSAGES) == ""


# --- the replies that are kept ---------------------------------------------------------------------------
def test_the_same_question_is_asked_once_also_by_the_next_process(tmp_path: Path) -> None:
    with serve(lines(says("first"), says("second"))) as model:
        for _ in range(2):
            assert Writer(model.url, "tiny")(MESSAGES) == "first"
        assert len(model.requests) == 1
        assert Writer(model.url, "tiny")([*MESSAGES, {"role": "user", "content": "and?"}]) == "second"
        assert Writer(model.url, "other")(MESSAGES) == "second"
        assert Writer(model.url, "tiny", tokens=1)(MESSAGES) == "second"
        assert len(model.requests) == 4
    assert len(list((tmp_path / "home/terralapse/ask").glob("*.json"))) == 4


def test_a_folder_of_ones_own_or_none(tmp_path: Path) -> None:
    with serve(lines(says("first"), says("second"), says("third"))) as model:
        own = tmp_path / "own"
        assert [Writer(model.url, "tiny", cache=own)(MESSAGES) for _ in range(2)] == ["first", "first"]
        assert len(list(own.glob("*.json"))) == 1
        assert [Writer(model.url, "tiny", cache=None)(MESSAGES) for _ in range(2)] == ["second", "third"]
    assert not (tmp_path / "home").exists()


def test_a_fault_is_not_kept() -> None:
    with serve(lines(503, says("now"))) as model:
        writer = Writer(model.url, "tiny")
        with pytest.raises(EndpointError, match="HTTP 503"):
            writer(MESSAGES)
        assert writer(MESSAGES) == "now"


# --- what is refused -------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("url", "llm", "says_"),
    [
        ("http://127.0.0.1:9/v1", None, "llm: is not given, and --base-url needs the name of a model"),
        ("http://127.0.0.1:9/v1", "", "llm: is not given"),
        (None, "tiny", "base-url: is not given"),
        ("ftp://127.0.0.1/v1", "tiny", "is no address of http or https"),
        ("http://me:secret@127.0.0.1/v1", "tiny", "holds a name or a password"),
    ],
)
def test_what_is_missing_is_said_before_anything_is_asked(
    url: str | None, llm: str | None, says_: str
) -> None:
    with pytest.raises(SettingError, match=says_) as caught:
        Writer(url, llm)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("reply", "says_"),
    [
        (401, "refuses the key"),
        (404, "has no such path or model"),
        (429, "is over its limit"),
        (b"<html>", "does not answer in JSON"),
        (b'{"choices": []}', "not as a language model does"),
        (b'{"choices": [{"message": {"content": 7}}]}', "not as a language model does"),
        (1.0, "did not answer in 0 seconds"),
    ],
)
def test_an_endpoint_that_is_none_is_one_error(reply: Reply, says_: str) -> None:
    with serve(lambda _body: reply) as model:
        with pytest.raises(EndpointError, match=says_) as caught:
            Writer(model.url, "tiny", timeout=0.3)(MESSAGES)
        assert str(caught.value).startswith("the endpoint 127.0.0.1:")
