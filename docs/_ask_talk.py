"""Writes the talk of the page about questions, as it really runs, between the marks in `ask.md`.

terralapse demo -o result
python docs/_ask_talk.py result
"""

from __future__ import annotations

import sys
from pathlib import Path

from terralapse.ask import Conversation

PAGE = Path(__file__).parent / "ask.md"
BEGIN, END = "<!-- talk: begin -->", "<!-- talk: end -->"
QUESTIONS = (
    "What changed?",
    "How much is that in acres?",
    "Where did it change?",
    "How much changed in the north?",
    "and in the south?",
    "How many objects larger than 1 ha are there?",
    "What is the largest change?",
    "How sure are you of it?",
    "How far is it from the second largest?",
    "Were any buildings destroyed?",
)


def talk(folder: Path) -> str:
    """The questions and their answers, with the facts that each rests on."""
    conversation = Conversation(folder)
    turns = []
    for number, question in enumerate(QUESTIONS, start=1):
        answer = conversation.ask(question)
        facts = ", ".join(f"`{f['id']}`" for f in answer.facts)
        turns.append(f"{number}. **{question}**\n\n    {answer.text}\n")
        if facts:
            turns.append(f"    <small>{facts}</small>\n")
    return "\n".join(turns)


def main(folder: Path) -> None:
    """Renews the page."""
    text = PAGE.read_text(encoding="utf-8")
    head, rest = text.split(BEGIN)
    tail = rest.split(END)[1]
    PAGE.write_text(f"{head}{BEGIN}\n\n{talk(folder)}\n{END}{tail}", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
