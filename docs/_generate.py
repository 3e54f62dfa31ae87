"""The parts of the documentation that are made from the code, so that they cannot be stale.

As a hook of mkdocs it adds whole pages (systems, contributing, golden cases, security, changes) and fills the
places in pages that say `<!-- generated: WHAT -->`. Run by itself it renews the systems in README.md:

    python docs/_generate.py
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from terralapse import registry
from terralapse.cards import Card, Status
from terralapse.registry import System

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- systems: begin (docs/_generate.py) -->\n", "<!-- systems: end -->\n"
STATUSES = """`reproduced`: meets a published or golden number. `runs`: complete and tested, without a
published number to meet, or not meeting it yet. `reader-only`: only its data or its metrics are here.
`planned`: a card and nothing else; `terralapse change --model` refuses it."""
MARK = "<!-- generated: "
# Page to the file at the root, or elsewhere in the repository, that it is.
COPIED = {
    "contributing.md": "CONTRIBUTING.md",
    "golden.md": "tests/golden/README.md",
    "security.md": "SECURITY.md",
    "changes.md": "CHANGELOG.md",
}


# --- systems -------------------------------------------------------------------------------------------
def ordered() -> list[System]:
    """Systems that run first, then by task and slug."""
    rank = list(Status)
    return sorted(registry.systems(), key=lambda s: (rank.index(s.status), s.task, s.slug))


def paper_link(card: Card) -> str:
    """The paper of a card in Markdown, linked where its identifier allows it."""
    kind, _, number = card.paper.partition(":")
    if kind == "arXiv" and number:
        return f"[{card.paper}](https://arxiv.org/abs/{number})"
    if kind == "doi" and number:
        return f"[{card.paper}](https://doi.org/{number})"
    return card.paper


def systems_table() -> str:
    """Every system, with its variants, in one Markdown table."""
    rows = ["| system | status | task | title |", "| --- | --- | --- | --- |"]
    rows += [f"| `{c.slug}` | {c.status} | {c.task} | {c.title} |" for s in ordered() for c in s.cards]
    return "\n".join(rows) + "\n"


def counts() -> str:
    """How many systems there are of each status, in a sentence."""
    seed = [s for s in registry.systems() if s.seed]
    own = [s for s in registry.systems() if not s.seed]
    planned = sum(s.status is Status.PLANNED for s in seed)
    return (
        f"{len(seed)} published systems are listed, of which {len(seed) - planned} run and {planned} are "
        f"planned; {len(own)} more are the library's own or classical methods."
    )


def card_text(card: Card) -> Iterable[str]:
    """One card as a Markdown list."""
    i = card.inputs
    yield f"- **Status**: {card.status}"
    if card.paper:
        yield f"- **Paper**: {paper_link(card)}" + (f" ({card.year})" if card.year else "")
    if card.repository:
        yield f"- **Official code**: <{card.repository}>"
    facts = [
        f"{i.dates} dates" if i.dates > 1 else {0: "", 1: "one image"}[i.dates],
        f"bands {', '.join(i.bands)}" if i.bands else "",
        f"in {' or '.join(i.units)}" if i.units else "",
        f"{i.gsd_range[0]:g} to {i.gsd_range[1]:g} m" if i.gsd_range else "",
        f"from {', '.join(i.sensors)}" if i.sensors else "",
    ]
    if any(facts):
        yield f"- **Takes**: {'; '.join(f for f in facts if f)}"
    licences = {"code": card.licences.code, "weights": card.licences.weights, "data": card.licences.data}
    if any(licences.values()):
        yield "- **Licences**: " + "; ".join(f"{k} {v}" for k, v in licences.items() if v)
    if card.checkpoints:
        yield f"- **Official checkpoints**: {card.checkpoints}"
    for w in card.weights:
        yield f"- **Weights**: `{w.file}`" + (f" of `{w.hub}`" if w.hub else ", in the package")
    for f in card.figures:
        interval = f" ({f.interval[0]:.3f} to {f.interval[1]:.3f})" if f.interval else ""
        yield f"- **{f.metric}** {f.value:.3f}{interval} on {f.dataset}; {f.protocol} ({f.source})"
    for quirk in card.quirks:
        yield f"- **Quirk**: {quirk}"
    for limit in card.limits:
        yield f"- **Limit**: {limit}"


def systems_page() -> str:
    """The page of all systems."""
    lines = ["# Systems", "", counts(), "", STATUSES, "", systems_table()]
    for s in ordered():
        lines += [f"## {s.slug}", "", f"*{s.title}.*", ""]
        for c in s.cards:
            if len(s.cards) > 1:
                lines += [f"### {c.slug}", ""]
            lines += [c.summary, "", *card_text(c), ""]
    return "\n".join(lines)


# --- places in pages -----------------------------------------------------------------------------------
def options(*command: str) -> str:
    """The arguments and options of a command, or of one inside another, as a table."""
    from typer.main import get_command

    from terralapse.cli.app import app

    found: Any = get_command(app)
    for name in command:
        found = found.commands[name]
    rows = ["| option | what it does | default |", "| --- | --- | --- |"]
    for p in found.params:
        names = ", ".join([*p.opts, *p.secondary_opts]) if p.opts[0].startswith("-") else p.name.upper()
        default = "" if isinstance(p.default, bool | None) or p.required else f"`{p.default}`"
        rows.append(f"| `{names}` | {(getattr(p, 'help', '') or '').replace('|', '/')} | {default} |")
    return "\n".join(rows)


def errors() -> str:
    """Every class of error with what it means."""
    from terralapse import errors as module

    rows = ["| error | raised for |", "| --- | --- |"]
    for name, kind in vars(module).items():
        if (
            isinstance(kind, type)
            and kind is not module.TerralapseError
            and kind.__module__ == module.__name__
        ):
            rows.append(f"| `{name}` | {inspect.getdoc(kind)} |")
    return "\n".join(rows)


def classes(scheme: str) -> str:
    """Value, name and meaning of the classes of a scheme."""
    from terralapse import labels

    rows = ["| value | name | meaning |", "| --- | --- | --- |"]
    rows += [f"| {c.value} | `{c.name}` | {c.title} |" for c in getattr(labels, scheme).classes]
    return "\n".join(rows)


def bad_inputs() -> str:
    """Every bad input of the tests with the message that it gets, run now."""
    tests = str(ROOT / "tests")
    sys.path.insert(0, tests)
    try:
        with warnings.catch_warnings(action="ignore"):
            table = importlib.import_module("bad_inputs").table()
    finally:
        sys.path.remove(tests)
    # Outside of code, marks of Markdown and HTML are meant as they stand.
    parts = table.split("`")
    return "`".join(re.sub(r"([*_<])", r"\\\1", p) if i % 2 == 0 else p for i, p in enumerate(parts))


def documented(target: str) -> str:
    """Signature and docstring of `module:object`."""
    module, _, name = target.partition(":")
    found = getattr(importlib.import_module(module), name)
    head = f"{name}{inspect.signature(found)}" if callable(found) else name
    return f"```text\n{head}\n\n{inspect.getdoc(found)}\n```"


def cards(task: str) -> str:
    """The cards of all systems of a task that run."""
    lines: list[str] = []
    for c in registry.cards():
        if c.task == task and c.status in (Status.RUNS, Status.REPRODUCED):
            lines += [f"### `{c.slug}`: {c.title}", "", c.summary, "", *card_text(c), ""]
    return "\n".join(lines)


def datasets() -> str:
    """Every data set of the catalogue with its splits, licence, options of its reader, and notes."""
    from terralapse.data.catalogue import DATASETS

    rows = ["| name | task | splits | licence | options | notes |", "| --- | --- | --- | --- | --- | --- |"]
    for name, e in sorted(DATASETS.items(), key=lambda item: (item[1].task, item[0])):
        splits = ", ".join([f"`{s}`" for s in e.splits] + ["the folder itself"] * e.whole)
        options = ", ".join(f"`{o}`" for o in e.options)
        rows.append(
            f"| `{name}` | {e.task} | {splits} | {e.licence} | {options} | **{e.title}.** {e.notes} |"
        )
    return "\n".join(rows)


MAKERS = {
    "bad-inputs": bad_inputs,
    "cards": cards,
    "classes": classes,
    "datasets": datasets,
    "doc": documented,
    "errors": errors,
    "options": options,
    "systems": systems_table,
}


def fill(text: str) -> str:
    """`text` with every `<!-- generated: WHAT ARGUMENT -->` replaced."""
    parts = text.split(MARK)
    done = [parts[0]]
    for part in parts[1:]:
        call, _, rest = part.partition(" -->")
        what, *arguments = call.split()
        done += [MAKERS[what](*arguments), rest]
    return "".join(done)


# --- doors ---------------------------------------------------------------------------------------------
def on_files(files: Any, config: Any) -> Any:
    """Hook of mkdocs: adds the pages that are no files of this folder."""
    from mkdocs.structure.files import File

    pages = {"systems.md": systems_page()}
    pages |= {page: (ROOT / source).read_text(encoding="utf-8") for page, source in COPIED.items()}
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Hook of mkdocs: fills the places in a page."""
    return fill(markdown)


def readme(text: str) -> str:
    """README.md with its table of systems renewed."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError("README.md has lost the marks of its table of systems")
    return f"{before}{BEGIN}\n{counts()}\n\n{systems_table()}\n{END}{after}"


def main() -> int:
    path = ROOT / "README.md"
    path.write_text(readme(path.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
