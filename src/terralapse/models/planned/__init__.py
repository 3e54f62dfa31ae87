"""The cards of the published systems that are not built yet: what each will take, give and be licensed under.

A system moves out of here when it is built: its card goes, as it is, into `models/<task>/<slug>.py`, gets a
better status there and is registered with its builder; `python -m terralapse.registry` renews the index.
"""

from __future__ import annotations

from terralapse.cards import Card
from terralapse.models.planned import change, evidence, imagery, language, pretraining

CARDS: dict[str, Card] = {
    **change.CARDS,
    **evidence.CARDS,
    **imagery.CARDS,
    **language.CARDS,
    **pretraining.CARDS,
}
