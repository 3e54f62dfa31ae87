"""What a model is asked: one turn of text and images.

The order is that of the official runner, the words are ours: of a pair, a label before each image, the
earlier one first, then question and options; of a single image, the image first. Only letters are asked for
where there are options.
"""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from terralapse.data.disaster_words import CAPTION_TAGS, MOST_WORDS
from terralapse.data.disasterm3 import Item, read_picture

Part = dict[str, str]
BEFORE, AFTER = "pre-disaster image:", "post-disaster image:"
_TASK = {
    "pair": "Two images of one place are given, one from before a disaster and one from after it.",
    "single": "One image of a place is given.",
}
_ONE = "Reply with ONLY the capital letter of the correct option, for example: C"
_SOME = (
    "One option or several are correct. Reply with ONLY their capital letters, separated by a comma and a "
    "blank, for example: C, D, H"
)
_ABOUT = {
    "DISASTER": "its kind",
    "BUILDING": "what it did to buildings",
    "ROAD": "what it did to roads",
    "VEGETATION": "what it did to wild vegetation",
    "WATER_BODY": "how rivers, lakes and the sea changed",
    "AGRICULTURE": "what it did to farmland",
    "CONCLUSION": "all of it in one or two sentences",
}
_CAPTION = "Describe the disaster and its damage. Write one line for each of these headings:\n" + "\n".join(
    f"{tag}: [{_ABOUT[tag]}]" for tag in CAPTION_TAGS
)
_ADVICE = (
    "Say what recovery this place needs: its infrastructure, its homes, its land and nature. If nothing is "
    "damaged, say that no recovery is needed because there is no discernible impact. Otherwise write two "
    f"paragraphs of at most {MOST_WORDS} words each, the most urgent things first:\n"
    "IMMEDIATE_RECOVERY: [what to do at once]\n"
    "LONG_TERM_RECOVERY: [what to do in the years after]"
)
_MASK = "Mark in the later image what this describes: {question}"


def request_of(item: Item) -> str:
    """The last text of the prompt."""
    kind = item.subset.kind
    if kind == "caption":
        return _CAPTION
    if kind == "advice":
        return _ADVICE
    if kind == "mask":
        return _MASK.format(question=item.question)
    only = _SOME if kind == "multiple" else _ONE
    return f"Question: {item.question}\nOptions: {item.options_text}\n\n{only}"


def parts_of(item: Item) -> list[Part]:
    """The parts of the user's turn in order: `{"text": ...}` or `{"image": path}`."""
    if len(item.images) == 1:
        lead = f"{_TASK['single']}\n\n"
        return [{"image": str(item.images[0])}, {"text": lead + request_of(item)}]
    before, after = item.images
    return [
        {"text": f"{_TASK['pair']}\n\n{BEFORE}\n"},
        {"image": str(before)},
        {"text": f"\n{AFTER}\n"},
        {"image": str(after)},
        {"text": f"\n{request_of(item)}"},
    ]


def message_of(item: Item, side: int | None = None) -> dict[str, Any]:
    """The turn as the chat-completions protocol takes it, images as PNG in data URIs.

    Args:
        side: of the square that images are resized to; None leaves them as they are.

    Raises:
        FileMissingError, UnreadableFileError: an image cannot be read.
    """
    content: list[dict[str, Any]] = []
    for part in parts_of(item):
        if "text" in part:
            content.append({"type": "text", "text": part["text"]})
        else:
            url = data_url(read_picture(Path(part["image"]), side))
            content.append({"type": "image_url", "image_url": {"url": url}})
    return {"role": "user", "content": content}


def data_url(picture: np.ndarray) -> str:
    """uint8 [H, W, 3] as PNG in a data URI: nothing is lost on the way to the model."""
    sink = io.BytesIO()
    Image.fromarray(picture).save(sink, "PNG")
    return "data:image/png;base64," + base64.b64encode(sink.getvalue()).decode("ascii")
