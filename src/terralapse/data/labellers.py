"""Models of single images that stand in for a vision-language model: an image in, scores of prompts out.

The paper's model (APE) needs an environment of its own. What is asked of it is little: scores [6, H, W] of
`PROMPTS` and instances of buildings. Three things give that here: a segmenter of this library, land cover
that lies in files, and a zero-shot segmenter of `transformers`, where that and its weights are installed.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from terralapse.data.change_events import BUILDING, DOUBT, PROMPTS, Instance
from terralapse.errors import FileMissingError, MissingExtraError, SettingError

GROUND = 3  # the prompt that stands for "no building" where a model knows nothing finer


@dataclass(frozen=True)
class Labels:
    """What a labeller says of an image: `scores` float32 [6, H, W] of 0 to 1, `instances` of buildings."""

    scores: np.ndarray
    instances: list[Instance]


class Labeller(Protocol):
    """Takes an image float32 [C, H, W] in physical units; `name` is for those that look things up."""

    def __call__(self, image: np.ndarray, name: str = "") -> Labels: ...


class Segmenter(Protocol):
    """What a labeller needs of a segmentation system of this library."""

    @property
    def bands(self) -> tuple[str, ...]: ...

    def respond(self, batch: Mapping[str, Tensor], state: Mapping[str, Any]) -> Any: ...


def parts(mask: np.ndarray, least: int = 4, scores: np.ndarray | None = None) -> list[Instance]:
    """The connected parts (by sides and corners) of a mask of buildings, of at least `least` pixels."""
    numbered, _ = ndimage.label(mask, structure=np.ones((3, 3)))  # pyright: ignore[reportGeneralTypeIssues]
    sizes = np.bincount(numbered.ravel())
    found = []
    for number in np.flatnonzero(sizes >= least):
        if number > 0:
            own = numbered == number
            score = 1.0 if scores is None else float(scores[own].mean())
            found.append(Instance(own, BUILDING[1], score))
    return found


class SegmenterLabeller:
    """Buildings by a trained segmenter of two classes (ground, building).

    The score of "building" is 0.5 at `cut` and linear to 0 and 1 on both sides of it in the log-odds over
    `spread`; that of the ground is one minus it. With `DOUBT` as in the paper that leaves out what is near
    the cut.

    Args:
        system: a segmentation system with a `respond`, in evaluation.
        zoom: how many times an image is enlarged before (bilinear), to the pixel size that it was trained on.
        cut: log-odds of a building from which on there is one.
        spread: log-odds on either side over which the score grows.
        least: pixels of the smallest instance.
    """

    def __init__(
        self, system: Segmenter, zoom: float = 1.0, cut: float = 0.0, spread: float = 2.0, least: int = 4
    ) -> None:
        if zoom <= 0 or spread <= 0:
            raise SettingError(
                f"zoom={zoom:g}, spread={spread:g}", "are not positive", "Give numbers above 0."
            )
        self.system, self.zoom, self.cut, self.spread, self.least = system, zoom, cut, spread, least

    def log_odds(self, image: np.ndarray) -> np.ndarray:
        """Of a building, float32 [H, W] at the size of the image."""
        given = torch.from_numpy(np.nan_to_num(image).astype(np.float32))[None]
        size = given.shape[-2:]
        wanted = [max(1, round(side * self.zoom)) for side in size]
        larger = F.interpolate(given, size=wanted, mode="bilinear", align_corners=False)
        with torch.inference_mode():
            logits = self.system.respond({"images": larger[:, None]}, {}).logits.float()
            odds = (logits[:, 1] - logits[:, 0])[:, None]
            return F.interpolate(odds, size=size, mode="bilinear", align_corners=False)[0, 0].numpy()

    def __call__(self, image: np.ndarray, name: str = "") -> Labels:
        del name
        odds = self.log_odds(image)
        building = np.clip(0.5 + 0.5 * (odds - self.cut) / self.spread, 0, 1).astype(np.float32)
        scores = np.zeros((len(PROMPTS), *odds.shape), np.float32)
        scores[BUILDING[1]], scores[GROUND] = building, 1 - building
        return Labels(scores, parts(building > 0.5, self.least, building))


class LandCoverLabeller:
    """Land cover that lies in files, one PNG of class ids a date: `<folder>/<name>.png`.

    Args:
        folder: of the maps.
        prompts: class id to an index of `PROMPTS`; pixels of any other class are left to doubt.
    """

    def __init__(self, folder: Path | str, prompts: Mapping[int, int]) -> None:
        self.folder, self.prompts = Path(folder), dict(prompts)

    def __call__(self, image: np.ndarray, name: str = "") -> Labels:
        from terralapse.data.pictures import read_values

        path = self.folder / f"{name}.png"
        if not path.is_file():
            raise FileMissingError(path, "is not there", "Give a folder with a map for each image.")
        ids = read_values(path)
        if ids.shape != image.shape[1:]:
            raise SettingError(
                path, f"is {ids.shape} and the image {image.shape[1:]}", "Give maps of its size."
            )
        scores = np.zeros((len(PROMPTS), *ids.shape), np.float32)
        for own, prompt in self.prompts.items():
            scores[prompt][ids == own] = 1.0
        return Labels(scores, parts(scores[list(BUILDING)].max(axis=0) >= DOUBT))


class ZeroShotLabeller:
    """A segmenter that is asked in words: CLIPSeg (Lüddecke and Ecker 2022) through `transformers`.

    Any model with the same call will do. Instances are the connected parts where a prompt of `BUILDING` wins,
    since CLIPSeg gives none.

    Args:
        model: a name of the hub, or a folder that holds one; nothing is fetched unless it is a name.
        least: pixels of the smallest instance.
        loaded: a processor and a model, in place of loading them.

    Raises:
        MissingExtraError: `transformers` is not installed.
        FileMissingError: the model is not there and cannot be had.
    """

    def __init__(
        self,
        model: str = "CIDAS/clipseg-rd64-refined",
        least: int = 4,
        loaded: tuple[Callable[..., Any], Callable[..., Any]] | None = None,
    ) -> None:
        self.least = least
        if loaded is None:
            try:
                library = importlib.import_module("transformers")
            except ModuleNotFoundError as error:
                raise MissingExtraError(
                    "zero-shot labels", "need transformers", "Install it with: pip install transformers"
                ) from error
            try:
                processor = library.AutoProcessor.from_pretrained(model)
                network = library.CLIPSegForImageSegmentation.from_pretrained(model).eval()
            except OSError as error:
                raise FileMissingError(
                    model, "could not be loaded", "Check the connection, or give the folder of a copy."
                ) from error
            loaded = (processor, network)
        self._processor, self._network = loaded

    def __call__(self, image: np.ndarray, name: str = "") -> Labels:
        del name
        seen = np.nan_to_num(image).clip(0, 255).astype(np.uint8).transpose(1, 2, 0)
        inputs = self._processor(
            text=list(PROMPTS), images=[seen] * len(PROMPTS), padding=True, return_tensors="pt"
        )
        with torch.inference_mode():
            logits = self._network(**inputs).logits.float()
            logits = logits.reshape(len(PROMPTS), 1, *logits.shape[-2:])
            found = F.interpolate(logits, size=seen.shape[:2], mode="bilinear", align_corners=False)
        scores = found[:, 0].sigmoid().numpy()
        return Labels(scores, parts(np.isin(scores.argmax(axis=0), BUILDING), self.least))


def both_dates(
    labeller: Labeller, images: np.ndarray, names: Sequence[str] = ("", "")
) -> tuple[Labels, Labels]:
    """What a labeller says of both dates of a pair [2, C, H, W]."""
    return labeller(images[0], names[0]), labeller(images[1], names[1])
