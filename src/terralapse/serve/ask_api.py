"""`/api/results/ID/talk`: questions about a result, answered as a stream of events."""

from __future__ import annotations

import asyncio
import json
import secrets
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Annotated, Any, Literal

from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from terralapse.ask.answer import Answer
from terralapse.ask.parse import MOST
from terralapse.errors import EndpointError, TerralapseError
from terralapse.serve.guard import Buckets
from terralapse.serve.library import Library, said_of
from terralapse.serve.options import Options
from terralapse.serve.talks import BusyError, Talk, Talks, told_of
from terralapse.serve.writing import Words

SESSION = "terralapse_session"
_BREATH = 5.0  # seconds after which a stream without news says that it is alive
_MOST_WAITING = 16  # questions, for all answerers together
_AT_ONCE = 2  # of one answerer
# Questions a second and at once, of one address: a language model costs somebody something.
RATES = {"rules": (2.0, 20), "agent": (0.1, 6)}
EXAMPLES = {
    "change": (
        "What changed?",
        "Where did it change most?",
        "What is the largest change?",
        "How sure are you?",
    ),
    "series": ("What changed?", "In which year did most of it break?", "What could not be modelled?"),
}


class Question(BaseModel):
    """What is asked of whom."""

    model_config = ConfigDict(extra="forbid")
    question: Annotated[Words, Field(min_length=1, max_length=MOST)]
    answerer: Literal["rules", "agent"] = "rules"


class Answering:
    """The threads that answer, apart from those that draw tiles: a language model may take minutes. The
    server does not wait for them when it ends."""

    def __init__(self, options: Options) -> None:
        self.talks = Talks(options.llm, options.base_url)
        self.waiting = 0
        self.buckets = {name: Buckets(*rate) for name, rate in RATES.items()}
        self._turns = {name: threading.Semaphore(_AT_ONCE) for name in RATES}

    def start(self, talk: Talk, asked: Question, told: Callable[[str], None]) -> asyncio.Future[Answer]:
        """Answers in a thread of its own, when it is its turn."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Answer] = loop.create_future()

        def tell(action: Callable[[Any], None], value: Any) -> None:
            def now() -> None:
                if not future.done():
                    action(value)

            with suppress(RuntimeError):  # the server has ended
                loop.call_soon_threadsafe(now)

        def work() -> None:
            try:
                with self._turns[asked.answerer]:
                    found = talk.ask(asked.question, asked.answerer, told)
            except BaseException as error:  # told to whoever waits
                tell(future.set_exception, error)
            else:
                tell(future.set_result, found)

        def ended(done: asyncio.Future[Answer]) -> None:
            self.waiting -= 1
            if not done.cancelled():
                done.exception()  # nobody may be left to hear of it

        self.waiting += 1
        future.add_done_callback(ended)
        threading.Thread(target=work, name="terralapse-ask", daemon=True).start()
        return future


def router(library: Library, answering: Answering) -> APIRouter:
    """The routes over a library."""
    routes = APIRouter(prefix="/api/results/{result_id}/talk", tags=["questions"])
    talks = answering.talks

    @routes.get("")
    def talk(request: Request, result_id: str) -> dict[str, Any]:
        """Who may be asked, and what this visitor has asked so far."""
        found = library.result(result_id)
        known = talks.known(_session(request), found)
        turns = [] if known is None else known.turns
        return {
            "answerers": [{"name": n, "title": _title(n, talks.llm)} for n in talks.answerers],
            "longest": MOST,
            "examples": EXAMPLES[found.kind],
            "turns": [{"question": q, "answer": told_of(a)} for q, a in turns],
        }

    @routes.delete("")
    def forget(request: Request, result_id: str) -> dict[str, Any]:
        """Ends the talk of this visitor."""
        talks.forget(_session(request), library.result(result_id))
        return {"turns": []}

    @routes.post("", response_class=StreamingResponse)
    async def ask(request: Request, result_id: str, asked: Question) -> StreamingResponse:
        """Server-sent events: `step` while facts are looked up, a `sentence` each, then the `answer` with its
        facts; or `trouble` with a sentence that says what is wrong."""
        found = await asyncio.to_thread(library.result, result_id)
        if asked.answerer not in talks.answerers:
            raise HTTPException(422, "answerer: choose one of those that are offered.")
        client = request.client.host if request.client else ""
        wait = answering.buckets[asked.answerer].take(client)
        if wait:
            seconds = max(1, round(wait))
            said = f"Too many questions; wait {seconds} s."
            raise HTTPException(429, said, {"retry-after": str(seconds)})
        if answering.waiting >= _MOST_WAITING:
            raise HTTPException(503, "Too many questions are waiting; ask again in a moment.")
        session = _session(request)
        fresh = not session
        session = session or secrets.token_urlsafe(18)
        stream = _answer(answering, talks.of(session, found), asked)
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        if fresh:
            secure = "; Secure" if request.url.scheme == "https" else ""
            headers["set-cookie"] = f"{SESSION}={session}; HttpOnly; SameSite=Strict; Path=/{secure}"
        return StreamingResponse(stream, media_type="text/event-stream", headers=headers)

    return routes


async def _answer(answering: Answering, talk: Talk, asked: Question) -> AsyncIterator[str]:
    loop = asyncio.get_running_loop()
    news: asyncio.Queue[str] = asyncio.Queue()

    def told(step: str) -> None:
        with suppress(RuntimeError):  # the server has ended
            loop.call_soon_threadsafe(news.put_nowait, step)

    work = answering.start(talk, asked, told)
    yield ": asked\n\n"
    heard: asyncio.Task[str] = asyncio.ensure_future(news.get())
    try:
        while not work.done():
            done, _ = await asyncio.wait({work, heard}, timeout=_BREATH, return_when=asyncio.FIRST_COMPLETED)
            if heard in done:
                yield _event("step", {"text": heard.result()})
                heard = asyncio.ensure_future(news.get())
            elif not done:
                yield ": still here\n\n"
        answer = told_of(work.result())
    except BusyError:
        yield _event("trouble", {"text": "The question before has no answer yet."})
        return
    except EndpointError as error:
        # Where the endpoint is is the operator's business.
        yield _event("trouble", {"text": f"The language model {error.fault}. Ask again, or ask the rules."})
        return
    except TerralapseError as error:
        yield _event("trouble", {"text": said_of(error)})
        return
    finally:
        heard.cancel()
    for sentence in answer["sentences"]:
        yield _event("sentence", {"text": sentence})
    yield _event("answer", answer)


def _event(name: str, data: dict[str, Any]) -> str:
    return f"event: {name}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n"


def _session(request: Request) -> str:
    given = request.cookies.get(SESSION, "")
    return given if len(given) == 24 and given.replace("-", "").replace("_", "").isalnum() else ""


def _title(name: str, llm: str | None) -> str:
    return "Rules, offline" if name == "rules" else f"Language model {llm}"
