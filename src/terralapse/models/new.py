"""Begins a system: one file with its card and a detector that works, and the test that it must outgrow.

    python -m terralapse.models.new change my-detector

What it writes is the plain difference under the new name: the tests over all systems pass on it, and each
part is then replaced by the paper's.
"""

from __future__ import annotations

import argparse
import re
import sys
import textwrap
from pathlib import Path
from string import Template

from terralapse import registry
from terralapse.cards import Card, Status, Task
from terralapse.errors import OutputExistsError, SettingError

_WIDTH = 110  # of a line, as in pyproject.toml
_SLUG = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")

_MODEL = Template('''"""$slug: what it does, in one sentence.

Source: AUTHORS, TITLE, VENUE YEAR. Differs from the paper in: WHAT. Licence of the original: WHICH.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from terralapse.cards import Card, DateOrder, Inputs, Licences, Status, Task
from terralapse.grid.pair import PairSample
from terralapse.registry import register
from terralapse.tasks.change import ChangeDetector

CARD = Card(
    slug="$slug",
    title=$quoted_title,
    task=Task.CHANGE,
    status=Status.RUNS,
    date_order=DateOrder.SYMMETRIC,
    summary=$quoted_summary,
    year=$year,
    paper="$paper",
    repository="$repository",
    seed=$seed,
    inputs=Inputs(dates=2),
    licences=Licences(),
)


class $name(ChangeDetector):
    """Probability of change from two dates; a pixel depends on nothing but itself."""

    def __init__(self, card: Card) -> None:
        self.card = card
        self.halo = card.inputs.halo

    def fit(self, sample: PairSample) -> dict[str, Any]:
        """The largest difference of the sample, in the pair's unit."""
        largest = 0.0
        for block in sample:
            difference = torch.from_numpy(block.images[1] - block.images[0]).abs().nan_to_num().mean(dim=0)
            largest = max(largest, float(difference.max()))
        return {"largest": largest}

    def predict(self, images: Tensor, valid: Tensor, state: dict[str, Any]) -> Tensor:
        """Mean absolute difference over the bands as a share of the largest: [B, H, W] in 0..1."""
        difference = (images[:, 1] - images[:, 0]).abs().nan_to_num().mean(dim=1)
        return (difference / max(state["largest"], 1e-12)).clamp(0, 1)


@register(CARD)
def build(card: Card) -> $name:
    """The detector of `card`."""
    return $name(card)
''')

_TEST = Template('''"""What the paper says that $slug does; the contract is tested elsewhere."""

from __future__ import annotations

import numpy as np
import torch

from terralapse import registry
from terralapse.grid.pair import ArrayPair, PairSample
from terralapse.grid.scene import Window


def test_a_changed_square_stands_out() -> None:
    images = np.random.default_rng(0).uniform(0.2, 0.3, (2, 4, 32, 32)).astype("float32")
    images[1, :, 8:16, 8:16] += 0.5
    pair = ArrayPair(images)
    detector = registry.build("$slug")
    state = detector.fit(PairSample(pair, [Window(0, 0, 32, 32)], 1.0))
    block = pair.read(Window(0, 0, 32, 32))
    valid = torch.from_numpy(np.stack([block.valid, block.valid]))[None]
    found = detector.predict(torch.from_numpy(block.images)[None], valid, state)[0].numpy()
    assert found[8:16, 8:16].min() > found[20:, 20:].max()
''')


def write(root: Path, task: str, slug: str) -> list[Path]:
    """Writes the files of a new system under the root of a checkout and returns them.

    A system that is planned gives its title, paper and repository to the new card.

    Raises:
        SettingError: the task has no contract yet, or the slug is not one.
        OutputExistsError: a file is there already, or a system of this name runs already.
    """
    if task != Task.CHANGE:
        raise SettingError(
            f"task {task}", "has no contract yet", "Write terralapse/tasks/ for it first; `change` has one."
        )
    if not _SLUG.fullmatch(slug):
        raise SettingError(f"slug {slug!r}", "is not lower case words joined by dashes", "Write my-detector.")
    card = next((c for c in registry.cards() if c.slug == slug), None)
    if card is not None and card.status is not Status.PLANNED:
        raise OutputExistsError(slug, f"is a system already, with status `{card.status}`", "Choose another.")
    module = slug.replace("-", "_")
    files = {
        root / f"src/terralapse/models/{task}/{module}.py": _MODEL,
        root / f"tests/models/{task}/test_{module}.py": _TEST,
    }
    for path in files:
        if path.exists():
            raise OutputExistsError(path, "is there already", "Choose another slug, or remove the file.")
    for path, template in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(template.substitute(_words(slug, card)), encoding="utf-8")
    return list(files)


def _words(slug: str, card: Card | None) -> dict[str, object]:
    """What the templates say of a system: of its planned card, or of a new one."""
    name = "".join(part.capitalize() for part in slug.split("-"))
    card = card or Card(slug, name, Task.CHANGE, Status.PLANNED, summary="What it does.", seed=False)
    return {
        "slug": slug,
        "name": f"{name}Detector",
        "quoted_title": _quoted("title", card.title),
        "quoted_summary": _quoted("summary", card.summary),
        "year": card.year,
        "paper": card.paper,
        "repository": card.repository,
        "seed": card.seed,
    }


def _quoted(name: str, text: str) -> str:
    """The string of a card's field as the formatter wants it: in brackets and pieces where it is long."""
    text = text.replace("\\", "").replace('"', "'")
    if len(f'    {name}="{text}",') <= _WIDTH:
        return f'"{text}"'
    fits = len(f'        "{text}"') <= _WIDTH
    lines = [text] if fits else textwrap.wrap(text, _WIDTH - 14, drop_whitespace=False)
    return "(\n" + "".join(f'        "{line}"\n' for line in lines) + "    )"


def main(arguments: list[str] | None = None) -> int:
    """The command: writes the files and says what comes next."""
    parser = argparse.ArgumentParser(prog="python -m terralapse.models.new", description=__doc__)
    parser.add_argument("task")
    parser.add_argument("slug")
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parents[3])
    given = parser.parse_args(arguments)
    try:
        written = write(given.root, given.task, given.slug)
    except (SettingError, OutputExistsError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    planned = any(c.slug == given.slug for c in registry.cards())
    steps = [
        *(f"wrote {path.relative_to(given.root)}" for path in written),
        "Next:",
        *(["  - take its card out of src/terralapse/models/planned/"] if planned else []),
        "  - fill in the card: source, licences, inputs, limits",
        "  - python -m terralapse.registry",
        "  - python docs/_generate.py",
        "  - pytest tests/models, then put the paper in",
    ]
    sys.stdout.write("\n".join(steps) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
