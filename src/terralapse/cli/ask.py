"""`terralapse ask` and `terralapse chat`: questions about a finished run."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

Output = Annotated[Path, typer.Argument(help="The folder that a run has written.")]
Answerer = Annotated[
    str,
    typer.Option(help="Who answers: rules (no model), agent (a language model), vlm (one that sees)."),
]
BaseUrl = Annotated[
    str | None,
    typer.Option("--base-url", help="For agent: an OpenAI-compatible endpoint; else OPENAI_BASE_URL."),
]
Llm = Annotated[str | None, typer.Option("--llm", help="For agent: the name of the model.")]
LlmFolder = Annotated[
    str | None,
    typer.Option(
        "--llm-folder",
        help="For agent: a model of transformers on this machine, a folder or OWNER/NAME@COMMIT.",
    ),
]
VlmModel = Annotated[
    str | None,
    typer.Option(
        "--vlm", help="For vlm, and for agent to look with: a folder or OWNER/NAME@COMMIT of transformers."
    ),
]
VlmInputs = Annotated[
    str | None,
    typer.Option(
        "--vlm-inputs", help="For vlm: before-first (as it is), after-first or joined (one picture)."
    ),
]
VlmParser = Annotated[
    str | None, typer.Option("--vlm-parser", help="For vlm: text (as it is), yes-no, choice or json.")
]
CaptionWeights = Annotated[
    Path | None,
    typer.Option(
        "--caption-weights",
        help="For agent: weights of change-agent/mci, to describe places with, or own for the small "
        "captioner that comes along.",
    ),
]
CaptionWords = Annotated[
    Path | None, typer.Option("--caption-vocabulary", help="For agent: the vocabulary of those weights.")
]
Maps = Annotated[Path | None, typer.Option("--maps", help="For agent: a folder that it may draw maps into.")]
Device = Annotated[
    str | None, typer.Option("--device", help="For models on this machine: auto (as it is), cpu or cuda.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print answers as JSON, with the facts they cite.")]


_ENDS = ("", "quit", "exit", "bye")  # a talk


def ask(
    output: Output,
    question: Annotated[str, typer.Argument(help="In English: what, where, how much, how many, how sure.")],
    answerer: Answerer = "rules",
    base_url: BaseUrl = None,
    llm: Llm = None,
    llm_folder: LlmFolder = None,
    vlm: VlmModel = None,
    vlm_inputs: VlmInputs = None,
    vlm_parser: VlmParser = None,
    caption_weights: CaptionWeights = None,
    caption_vocabulary: CaptionWords = None,
    maps: Maps = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Answer a question about a run; every number is that of a fact of it."""
    from terralapse.ask import Conversation

    talk = Conversation(
        output,
        answerer,
        base_url=base_url,
        llm=llm,
        llm_folder=llm_folder,
        vlm=vlm,
        inputs=vlm_inputs,
        parser=vlm_parser,
        caption_weights=caption_weights,
        caption_vocabulary=caption_vocabulary,
        maps=maps,
        device=device,
    )
    answer = talk.ask(question)
    _print(answer, as_json=as_json)


def chat(
    output: Output,
    answerer: Answerer = "rules",
    base_url: BaseUrl = None,
    llm: Llm = None,
    llm_folder: LlmFolder = None,
    vlm: VlmModel = None,
    vlm_inputs: VlmInputs = None,
    vlm_parser: VlmParser = None,
    caption_weights: CaptionWeights = None,
    caption_vocabulary: CaptionWords = None,
    maps: Maps = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Talk about a run: a question a line, which may go on from the last ("and in the north?")."""
    from terralapse.ask import Conversation
    from terralapse.errors import EndpointError

    talk = Conversation(
        output,
        answerer,
        base_url=base_url,
        llm=llm,
        llm_folder=llm_folder,
        vlm=vlm,
        inputs=vlm_inputs,
        parser=vlm_parser,
        caption_weights=caption_weights,
        caption_vocabulary=caption_vocabulary,
        maps=maps,
        device=device,
    )
    shown = sys.stdin.isatty()
    if shown:
        typer.echo("Ask about this run; an empty line, `quit` or Ctrl-D ends. Try: what changed?", err=True)
    while True:
        if shown:
            typer.echo("> ", nl=False, err=True)
        line = sys.stdin.readline()
        if line.strip().lower() in _ENDS:
            return
        try:
            _print(talk.ask(line.strip()), as_json=as_json)
        except EndpointError as error:  # the talk goes on; the next question may get through
            typer.echo(f"terralapse: {error}", err=True)
        sys.stdout.flush()


def _print(answer: Any, *, as_json: bool) -> None:
    typer.echo(json.dumps(answer.as_dict(), ensure_ascii=False) if as_json else answer.text)
