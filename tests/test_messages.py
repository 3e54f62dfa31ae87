"""Messages send people to options and commands that there are."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from typer.main import get_command

from terralapse.cli.app import app

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src/terralapse"
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]+")
COMMAND = re.compile(r"`terralapse ([a-z]+)")
# Of the commands of Dask and SLURM, and of `benchmarks/plan_job.py`, on the page about large jobs.
DASK = {"--nthreads", "--gres", "--stragglers", "--faults"}
# Of `python -m terralapse.models.new`, which is no command of the app.
FOREIGN = {"--help", "--root", "--files", *DASK}


def texts() -> list[tuple[str, str]]:
    """Every string of the package that is no docstring, with where it stands."""
    found = []
    for path in sorted(SOURCE.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        docstrings = {
            id(node.body[0].value)
            for node in ast.walk(tree)
            if isinstance(node, documented) and node.body and isinstance(node.body[0], ast.Expr)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
                found.append((f"{path.relative_to(SOURCE)}:{node.lineno}", node.value))
    return found


def lost(said: list[tuple[str, str]], foreign: set[str]) -> list[str]:
    """The options and commands that texts name and the command line does not have."""
    root = get_command(app)
    commands = root.commands  # type: ignore[attr-defined]
    inner = [c for group in commands.values() for c in getattr(group, "commands", {}).values()]
    parameters = [p for c in (root, *commands.values(), *inner) for p in c.params]
    options = {o for p in parameters for o in (*p.opts, *p.secondary_opts) if o[:2] == "--"}
    assert {"--model", "--no-coregister"} <= options
    named = [(where, name, options | foreign) for where, text in said for name in OPTION.findall(text)]
    named += [(where, name, set(commands)) for where, text in said for name in COMMAND.findall(text)]
    return [f"{where}: {name}" for where, name, known in named if name not in known]


def test_options_and_commands_that_messages_name_exist() -> None:
    assert lost(texts(), FOREIGN) == []


def test_options_and_commands_that_the_documentation_names_exist() -> None:
    pages = [ROOT / "README.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").rglob("*.md"))]
    said = [(str(p.relative_to(ROOT)), p.read_text(encoding="utf-8")) for p in pages]
    assert lost(said, FOREIGN) == []
