"""YAML whose keys remember their lines, so that an error can point at one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from terralapse.errors import FileMissingError, SettingError

_MAX_BYTES = 64 << 20


def read_yaml(path: Path) -> Section:
    """The mapping that a file holds.

    Raises:
        FileMissingError: there is no such file.
        SettingError: it is no YAML, no mapping, or names a key twice; with the line.
    """
    if not path.is_file():
        raise FileMissingError(path, "is not there", "Give the path of a plan, a YAML file.")
    if path.stat().st_size > _MAX_BYTES:
        raise SettingError(path, "is larger than 64 MiB", "Keep the list of pairs in a file of its own.")
    try:
        loader = yaml.SafeLoader(path.read_text(encoding="utf-8"))
        node = loader.get_single_node()
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}, line {mark.line + 1}" if mark else str(path)
        fault = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise SettingError(where, f"is no YAML ({fault})", "Correct it.") from error
    if not isinstance(node, yaml.MappingNode):
        raise SettingError(path, "holds no keys", "Write `key: value` lines; see the page on large jobs.")
    return _section(loader, node, path, "")


@dataclass
class Section:
    """A mapping of a plan. Values are taken one by one; `finish` complains of what is left."""

    path: Path
    name: str
    line: int
    values: dict[str, Any]
    lines: dict[str, int] = field(default_factory=dict)

    def error(self, key: str, fault: str, hint: str) -> SettingError:
        """An error about a key, with its line."""
        full = f"{self.name}.{key}" if self.name and key else self.name or key
        return SettingError(f"{self.path}, line {self.lines.get(key, self.line)}: {full}", fault, hint)

    def take(self, key: str, kind: type | tuple[type, ...], default: Any = ...) -> Any:
        """A value of a type, removed from the section; numbers may be written as whole ones."""
        if key not in self.values:
            if default is ...:
                raise self.error(key, "is missing", "Add it to the plan.")
            return default
        value = self.values.pop(key)
        kinds = kind if isinstance(kind, tuple) else (kind,)
        if float in kinds and type(value) is int:
            value = float(value)
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            wanted = " or ".join(_NAMES.get(k, k.__name__) for k in kinds)
            raise self.error(key, f"is {_shown(value)}, not {wanted}", "Correct the plan.")
        return value

    def choice(self, key: str, among: Iterable[str], default: Any = ...) -> Any:
        """One of several words."""
        value, names = self.take(key, str, default), list(among)
        if value not in names:
            raise self.error(key, f"is {value!r}", f"Choose one of: {', '.join(names)}.")
        return value

    def finish(self, known: Iterable[str]) -> None:
        """Complains of a key that nobody took."""
        for key in self.values:
            raise self.error(key, "is no key of a plan here", f"Known here: {', '.join(known)}.")


_NAMES: Mapping[Any, str] = {str: "text", float: "a number", int: "a whole number", list: "a list",
                             Section: "a group of keys", bool: "true or false"}  # fmt: skip


def _shown(value: Any) -> str:
    if isinstance(value, Section):
        return "a group of keys"
    return "a list" if isinstance(value, list) else "empty" if value is None else repr(value)


def _section(loader: Any, node: yaml.MappingNode, path: Path, name: str) -> Section:
    found = Section(path, name, node.start_mark.line + 1, {})
    for key_node, value_node in node.value:
        key, line = str(key_node.value), key_node.start_mark.line + 1
        full = f"{name}.{key}" if name else key
        if key in found.values:
            raise SettingError(f"{path}, line {line}: {full}", "is there twice", "Remove one.")
        found.lines[key] = line
        found.values[key] = _value(loader, value_node, path, full)
    return found


def _value(loader: Any, node: Any, path: Path, name: str) -> Any:
    if isinstance(node, yaml.MappingNode):
        return _section(loader, node, path, name)
    if isinstance(node, yaml.SequenceNode):
        return [_value(loader, n, path, f"{name}[{k}]") for k, n in enumerate(node.value)]
    if node.tag == "tag:yaml.org,2002:timestamp":
        return node.value  # a date is text here
    return loader.construct_object(node)
