"""From a slug to a card, and from a slug to a built system.

Each model file registers its builder with `@register(card)`. `_index.json`, generated from the cards by
`python -m terralapse.registry`, lets all cards be read without importing torch; CI fails when it is stale.
A slug is looked up in that index, and among the cards that this process registered itself (a model in a
file of your own); it is never imported by name or evaluated.

`_trained.json`, written by `benchmarks/compare_change.py` and `benchmarks/captioner.py`, holds what training
here found: files of weights, calibration and scores. It completes the cards when they are registered.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from terralapse.cards import Card, Status, Task, trained_card
from terralapse.errors import SystemNotReadyError, UnknownSystemError

Builder = TypeVar("Builder", bound=Callable[..., Any])

_CARDS: dict[str, Card] = {}
_BUILDERS: dict[str, Callable[..., Any]] = {}

# From the furthest to the least: a system is as far as the furthest of its variants.
_RANK = (Status.REPRODUCED, Status.RUNS, Status.READER_ONLY, Status.PLANNED)


@dataclass(frozen=True)
class System:
    """One published system, or one of the library's own, with all of its variants.

    `cards` holds the card of the system itself, when there is one, and then its variants by slug; there is
    at least one. What the variants have in common is read from the first.
    """

    slug: str
    cards: tuple[Card, ...]

    @property
    def head(self) -> Card:
        """The card that speaks for the system."""
        return self.cards[0]

    @property
    def title(self) -> str:
        return self.head.title

    @property
    def task(self) -> Task:
        return self.head.task

    @property
    def seed(self) -> bool:
        """True for the published systems that the library sets out to hold."""
        return self.head.seed

    @property
    def status(self) -> Status:
        """That of the variant which is furthest."""
        return min((c.status for c in self.cards), key=_RANK.index)

    @property
    def variants(self) -> tuple[Card, ...]:
        """The cards whose slug names a variant."""
        return tuple(c for c in self.cards if c.slug != self.slug)

    def as_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary: the head's card, the system's status, and the variants' cards."""
        return {
            **self.head.as_dict(),
            "slug": self.slug,
            "status": self.status,
            "variants": [c.as_dict() for c in self.variants],
        }


def register(*cards: Card) -> Callable[[Builder], Builder]:
    """Registers a builder for one card or for each of several variants.

    The builder is called as `builder(card, **options)` and returns what the task's contract asks for (for
    change: a `terralapse.tasks.change.ChangeDetector`).

    Raises:
        ValueError: a card of this slug is registered already, or a card says `planned`.
    """

    def add(builder: Builder) -> Builder:
        for card in cards:
            if card.slug in _CARDS:
                raise ValueError(f"two cards are named {card.slug}")
            if card.status is Status.PLANNED:
                raise ValueError(f"{card.slug} has a builder, so its status cannot be `planned`")
            record = _trained().get(card.slug)
            _CARDS[card.slug] = trained_card(card, record) if record else card
            _BUILDERS[card.slug] = builder
        return builder

    return add


@cache
def _trained() -> dict[str, dict[str, Any]]:
    """Slug to what training here found for it."""
    return json.loads(resources.files("terralapse").joinpath("_trained.json").read_text(encoding="utf-8"))


@cache
def index() -> dict[str, dict[str, Any]]:
    """Slug to the JSON form of its card plus `module`; reads the generated file, imports no model."""
    text = resources.files("terralapse").joinpath("_index.json").read_text(encoding="utf-8")
    return json.loads(text)


def card(slug: str) -> Card:
    """The card of `slug`; imports no model.

    Raises:
        UnknownSystemError: no card has this slug.
    """
    if slug in _CARDS:
        return _CARDS[slug]
    if slug in index():
        return _indexed(slug)
    known = [*index(), *_CARDS]
    inside = sorted(s for s in known if s.startswith(f"{slug}/"))
    near = inside or get_close_matches(slug, known, n=3, cutoff=0.5)
    hint = f"Did you mean {' or '.join(near)}?" if near else "See `terralapse systems` for all of them."
    raise UnknownSystemError(slug, "no system has this name", hint)


@cache
def _indexed(slug: str) -> Card:
    return Card.from_dict({k: v for k, v in index()[slug].items() if k != "module"})


def cards() -> list[Card]:
    """All cards, planned and built, by slug; imports no model."""
    return [card(slug) for slug in sorted({*index(), *_CARDS})]


def systems() -> list[System]:
    """All systems by slug, each with its variants; imports no model. The only list of systems there is."""
    grouped: dict[str, list[Card]] = {}
    for c in cards():
        grouped.setdefault(c.system, []).append(c)
    return [
        System(slug, tuple(sorted(group, key=lambda c: (c.slug != slug, c.slug))))
        for slug, group in sorted(grouped.items())
    ]


def build(slug: str, **options: Any) -> Any:
    """Builds a system with its shipped or cached weights; imports the one file that holds it.

    Raises:
        UnknownSystemError: no card has this slug.
        SystemNotReadyError: its card says `planned`, or it has nothing to run (`reader-only`).
    """
    found = card(slug)
    if slug not in _BUILDERS and slug in index() and found.status is not Status.PLANNED:
        importlib.import_module(index()[slug]["module"])
    if slug not in _BUILDERS:
        ready = sorted(c.slug for c in cards() if c.task is found.task and c.status in _RANK[:2])
        raise SystemNotReadyError(
            slug,
            f"this system cannot run: its status is `{found.status}`",
            f"Choose one that does: {', '.join(ready)}." if ready else "See `terralapse systems`.",
        )
    return _BUILDERS[slug](_CARDS[slug], **options)


def generate_index() -> str:
    """The text of `_index.json`, from all cards of `terralapse.models`.

    Raises:
        ValueError: two files hold a card of the same slug (a planned one that was not moved, for example).
    """
    models = importlib.import_module("terralapse.models")
    entries: dict[str, dict[str, Any]] = {}
    for info in pkgutil.walk_packages(models.__path__, "terralapse.models.", onerror=_reraise):
        if info.ispkg:
            continue
        module = importlib.import_module(info.name)
        built = [c for slug, c in _CARDS.items() if _BUILDERS[slug].__module__ == info.name]
        for c in [*built, *getattr(module, "CARDS", {}).values()]:
            if c.slug in entries:
                raise ValueError(f"two cards are named {c.slug}: {entries[c.slug]['module']}, {info.name}")
            entries[c.slug] = {"module": info.name, **c.as_dict()}
    return json.dumps(dict(sorted(entries.items())), indent=1, ensure_ascii=False) + "\n"


def _reraise(_name: str) -> None:
    """`walk_packages` swallows import errors unless it is told not to."""
    raise


if __name__ == "__main__":
    # `-m` runs this file under the name __main__; the cards register in the imported module.
    from terralapse import registry

    Path(__file__).with_name("_index.json").write_text(registry.generate_index(), encoding="utf-8")
