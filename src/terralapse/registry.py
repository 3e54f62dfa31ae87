"""From a slug to a card, and from a slug to a built system.

Each model file registers its builder with `@register(card)`. `_index.json`, generated from the cards by
`python -m terralapse.registry`, lets the list of systems be read without importing torch; CI fails when it
is stale. A slug is looked up in that index and nowhere else; it is never imported or evaluated.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from difflib import get_close_matches
from functools import cache
from importlib import resources
from typing import Any, TypeVar

from terralapse.cards import Card, Status
from terralapse.errors import SystemNotReadyError, UnknownSystemError

Builder = TypeVar("Builder", bound=Callable[..., Any])

_CARDS: dict[str, Card] = {}
_BUILDERS: dict[str, Callable[..., Any]] = {}


def register(*cards: Card) -> Callable[[Builder], Builder]:
    """Registers a builder for one card or for each of several variants.

    The builder is called as `builder(card, **options)` and returns what the task's contract asks for (for
    change: a `terralapse.tasks.change.ChangeDetector`).
    """

    def add(builder: Builder) -> Builder:
        for card in cards:
            if card.slug in _CARDS:
                raise ValueError(f"two cards are named {card.slug}")
            _CARDS[card.slug] = card
            _BUILDERS[card.slug] = builder
        return builder

    return add


@cache
def index() -> dict[str, dict[str, Any]]:
    """Slug to the JSON form of its card plus `module`; reads the generated file, imports no model."""
    text = resources.files("terralapse").joinpath("_index.json").read_text(encoding="utf-8")
    return json.loads(text)


def card(slug: str) -> Card:
    """The card of `slug`; imports the file that holds it.

    Raises:
        UnknownSystemError: no card has this slug.
    """
    entry = index().get(slug)
    if entry is None:
        near = get_close_matches(slug, index(), n=3, cutoff=0.5)
        hint = f"Did you mean {' or '.join(near)}?" if near else "See `terralapse systems` for all of them."
        raise UnknownSystemError(slug, "no system has this name", hint)
    module = importlib.import_module(entry["module"])
    return _CARDS[slug] if slug in _CARDS else module.CARDS[slug]


def build(slug: str, **options: Any) -> Any:
    """Builds a system with its shipped or cached weights.

    Raises:
        UnknownSystemError: no card has this slug.
        SystemNotReadyError: its card says `planned`.
    """
    found = card(slug)
    if found.status is Status.PLANNED or slug not in _BUILDERS:
        raise SystemNotReadyError(
            slug, "this system is planned and cannot run yet", "Choose one whose status is `runs`."
        )
    return _BUILDERS[slug](found, **options)


def generate_index() -> str:
    """The text of `_index.json`, from all cards of `terralapse.models`."""
    import pkgutil

    models = importlib.import_module("terralapse.models")

    entries: dict[str, dict[str, Any]] = {}
    for info in pkgutil.walk_packages(models.__path__, "terralapse.models."):
        if info.ispkg:
            continue
        module = importlib.import_module(info.name)
        own = [c for slug, c in _CARDS.items() if _BUILDERS[slug].__module__ == info.name]
        for c in [*own, *getattr(module, "CARDS", {}).values()]:
            entries[c.slug] = {"module": info.name, **c.as_dict()}
    return json.dumps(dict(sorted(entries.items())), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    from pathlib import Path

    # `-m` runs this file under the name __main__; the cards register in the imported module.
    from terralapse import registry

    Path(__file__).with_name("_index.json").write_text(registry.generate_index(), encoding="utf-8")
