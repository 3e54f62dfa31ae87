"""Messages send people to options and commands that there are."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from typer.main import get_command

from terralapse.cli.app import app

SOURCE = Path(__file__).resolve().parents[1] / "src/terralapse"
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]+")
COMMAND = re.compile(r"`terralapse ([a-z]+)")
# Of `python -m terralapse.models.new` and `terralapse.engine.fit`, which are no commands of the app.
FOREIGN = {"--data", "--help", "--out", "--root"}


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


def test_options_and_commands_that_messages_name_exist() -> None:
    root = get_command(app)
    commands = root.commands  # type: ignore[attr-defined]
    parameters = [p for c in (root, *commands.values()) for p in c.params]
    options = {o for p in parameters for o in (*p.opts, *p.secondary_opts) if o[:2] == "--"}
    assert {"--model", "--no-coregister"} <= options
    lost = [
        f"{where}: {name}"
        for where, text in texts()
        for name in OPTION.findall(text)
        if name not in options | FOREIGN
    ]
    lost += [
        f"{where}: terralapse {name}"
        for where, text in texts()
        for name in COMMAND.findall(text)
        if name not in commands
    ]
    assert lost == []
