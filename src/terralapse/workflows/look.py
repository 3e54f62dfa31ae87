"""A scene of Sentinel-2 as six pictures and a text, and an answer to a closed question about it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from terralapse import registry
from terralapse._version import __version__
from terralapse.engine.output import OutputFolder
from terralapse.errors import BandError, ModelInputError, NoValidDataError, SettingError
from terralapse.grid.open import open_scene
from terralapse.grid.sources import hash_sources
from terralapse.grid.warp import read_onto
from terralapse.sensors import Unit

MOST = 4096  # pixels on a side: what a model would be shown is far smaller
SYSTEM = "zeroshot-ms"


def look(
    image: Path | str,
    output: Path | str,
    *,
    classes: Sequence[str],
    question: str | None = None,
    several: bool = False,
    ndvi: str = "notebook",
    span: float = 0.8,
    least: int = 0,
    prototypes: Path | str | None = None,
    chat: Callable[[list[dict[str, Any]]], str] | None = None,
    chat_name: str = "",
    overwrite: bool = False,
) -> dict[str, Any]:
    """Writes `1_rgb.png` to `6_ndmi_b12.png`, `prompt.txt`, `messages.json` and `run.json`.

    Args:
        image: anything that `open_scene` takes, of Sentinel-2, in reflectance; on the grid of its 10 m bands.
        output: the folder to create.
        classes: the options, in order.
        question: in place of the usual one.
        several: whether more than one class may be right.
        ndvi, span, least: see `terralapse.models.language.zeroshot_ms`.
        prototypes: a file of prototypes, for an answer without a language model; None for the rules.
        chat: a language model that sees; `chat_name` is for the record.
        overwrite: replace a result that is there.

    Returns:
        the content of `run.json`; `answer` holds the text, the numbers and the names of the classes.

    Raises:
        BandError, ModelInputError: a band is missing, or the values are no reflectance.
        NoValidDataError: no pixel has data.
        SettingError: the scene is too large for one look, or the classes are none.
        EndpointError, and others of the reader.
    """
    given = {} if prototypes is None else {"prototypes": prototypes}
    system = registry.build(SYSTEM, chat=chat, least=least, **given)
    wanted = system.card.inputs.bands
    with (
        open_scene(image) as scene,
        OutputFolder(Path(output), overwrite=overwrite) as folder,
    ):
        info = scene.info
        if info.unit is not Unit.REFLECTANCE:
            raise ModelInputError(
                image,
                f"is in {info.unit}, and the pictures are of reflectance",
                "Give an L1C or L2A product.",
            )
        height, width = info.geobox.shape.y, info.geobox.shape.x
        if max(height, width) > MOST:
            raise SettingError(image, f"has {height} x {width} pixels", f"Cut it to {MOST} at most.")
        if missing := [b for b in wanted if b not in [x.name for x in info.bands]]:
            raise BandError(
                image, f"lacks {', '.join(missing)}", f"The six pictures need {', '.join(wanted)}."
            )
        block = read_onto(scene, info.geobox, wanted)
        if np.isnan(block.data).all():
            raise NoValidDataError(image, "has no pixel with data", "Give another part of it.")
        bands = {name: np.nan_to_num(plane) for name, plane in zip(wanted, block.data, strict=True)}
        how: dict[str, Any] = {"several": several, "ndvi": ndvi, "span": span}
        if question:
            how["question"] = question
        shown = system.look(bands, ndvi=ndvi, span=span)
        text = system.prompt(list(classes), **how)
        answer = system.answer(bands, list(classes), **how)
        for number, (name, picture) in enumerate(shown.items(), start=1):
            Image.fromarray(picture).save(folder.staging / f"{number}_{name}.png")
        (folder.staging / "prompt.txt").write_text(text + "\n", encoding="utf-8")
        request = json.dumps(system.request(bands, list(classes), **how))
        (folder.staging / "messages.json").write_text(request + "\n", encoding="utf-8")
        result = {
            "made_by": {"terralapse": __version__, "system": SYSTEM, "paper": system.card.paper},
            "sources": [{"path": s.path, "sha256": s.sha256, "etag": s.etag} for s in hash_sources(info)],
            "size": [height, width],
            "pictures": {"ndvi": ndvi, "span": span, "enlarged_to": least},
            "classes": list(classes),
            "answer": {
                "text": answer.text,
                "numbers": list(answer.numbers),
                "classes": [classes[n - 1] for n in answer.numbers],
                "answerer": chat_name or answer.answerer,
            },
        }
        (folder.staging / "run.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        folder.publish()
    return result
