"""What an answerer gives: a text, and what every number in it rests on."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

Fact = dict[str, Any]


@dataclass(frozen=True)
class Answer:
    """One answer.

    Attributes:
        text: sentences; every number in them is that of a fact in `facts`.
        facts: the facts cited, as in `facts.json`. Those that were worked out from others have ids that
            begin with `derived.`, and `sources` and `formula` beside the usual fields.
        overlay: what to show on a map: a list of evidence (polygons, raster windows), the same form as the
            evidence of facts.
        confidence: `understood` (0..1, how sure the answerer is of the question; None where it cannot tell),
            `evidence` (0..1, the calibrated probability behind the change that is spoken of; None where
            there is none) and `statement`.
        answerer: its name.
        answered: False where the facts do not hold the answer; `reason` then says why in one word.
        kind: which question was understood.
        value: the answer for programs: true or false, a number, a name, a list of names, or None.
        unit: of a number.
    """

    text: str
    facts: tuple[Fact, ...] = ()
    overlay: tuple[dict[str, Any], ...] = ()
    confidence: dict[str, Any] = field(default_factory=dict)
    answerer: str = "rules"
    answered: bool = True
    reason: str | None = None
    kind: str = ""
    value: Any = None
    unit: str = ""

    def as_dict(self) -> dict[str, Any]:
        """What `--json` prints."""
        return asdict(self)

    def __str__(self) -> str:
        return self.text
