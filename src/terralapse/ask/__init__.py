"""Questions and dialogue over the products of a run, every statement with its evidence.

>>> from terralapse.ask import ask
>>> ask("out", "How much changed in the north?").text  # doctest: +SKIP
"""

from terralapse.ask.answer import Answer
from terralapse.ask.talk import Conversation, ask

__all__ = ["Answer", "Conversation", "ask"]
