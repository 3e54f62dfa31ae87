"""A network behind its task: what scoring, training, export and the scene engine need of every one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from terralapse.cards import Card, Stretch
from terralapse.errors import ModelInputError, NoValidDataError
from terralapse.grid.pair import PairSample
from terralapse.layers.padding import pad_to_multiple
from terralapse.sensors import Unit
from terralapse.tasks.change import ChangeDetector, ChangeOutput
from terralapse.tasks.class_maps import ClassRule, rule_of

Target = Mapping[str, Tensor]


class NetworkSystem(ABC):
    """A card, its network, and what stands between them and physical units.

    A system implements `forward` (normalised images to the output type of its task) and `loss`. Keys of a
    target, all batched:

    - change: `label` [B, H, W] of 0, 1, 255;
    - semantic change: `before`, `after` [B, H, W] of 0 (unchanged), 1..K, 255;
    - damage: `building` [B, H, W] of 0, 1, 255 and `damage` [B, H, W] of 0..4, 255;
    - segmentation: `label` [B, H, W] of 0..K-1, 255;
    - classification: `label` [B] of class ids, or float [B, K] of shares that sum to one.

    `extras` names what a batch may hold beside `images` and the network can take: `forward` gets each by
    keyword, in the form that it has in the batch, or not at all where the batch has none. `map` is a map of
    the earlier date, int64 [B, H, W] of class ids and 255 where it says nothing.
    """

    extras: tuple[str, ...] = ()

    def __init__(self, card: Card, network: nn.Module) -> None:
        normalisation = card.inputs.normalisation
        if normalisation is None or card.inputs.bands is None:
            raise ValueError(f"the card of {card.slug} states no bands or no normalisation")
        self.card, self.network = card, network
        self.bands = card.inputs.bands
        self.halo, self.multiple = card.inputs.halo, card.inputs.size_multiple
        self._mean, self._std = torch.tensor(normalisation.mean), torch.tensor(normalisation.std)
        # Training sees 0..255 (RGB) or the stretched 0..1; what a stretched scene is brought to.
        self._always_stretch = normalisation.stretch is Stretch.SCENE_PERCENTILE
        self._top = 1.0 if self._always_stretch else 255.0

    @abstractmethod
    def forward(self, images: Tensor) -> Any:
        """The output of the task for normalised images float [B, T, C, H, W], at their size, whatever that
        is (see `padded`)."""

    @abstractmethod
    def loss(self, output: Any, target: Target) -> dict[str, Tensor]:
        """Scalars: `total`, which is minimised, and the parts that it is made of."""

    def start_encoder(self, published: dict[str, Tensor]) -> None:
        """Starts the encoder from published tensors of another task (ImageNet, for example).

        Raises:
            ModelInputError: the system knows no such start.
        """
        raise ModelInputError(
            self.card.slug, "cannot start from the weights of another task", "Leave out `encoder`."
        )

    def shift_logits(self, by: float) -> None:
        """Adds to the log-odds of change of every pixel, in the weights; for calibration.

        Raises:
            ModelInputError: the system has no place for it.
        """
        raise ModelInputError(self.card.slug, "cannot be shifted", "Calibrate by temperature alone.")

    def padded(self, images: Tensor) -> Tensor:
        """Images with sides that the network takes; cut what it returns back to the size of `images`."""
        return pad_to_multiple(images, self.multiple)

    def normalise(self, images: Tensor, usable: Tensor | None, state: Mapping[str, Any]) -> Tensor:
        """Images [B, T, C, H, W] in physical units, in the card's band order, as the network takes them;
        zero where `usable` [B, H, W] is False, at all dates. None stands for usable everywhere."""
        column = (-1, 1, 1)
        if "stretch" in state:
            low, high = (images.new_tensor(state["stretch"][end]) for end in ("low", "high"))
            images = self.stretched(images, low, high)
        mean, std = (x.to(images).view(column) for x in (self._mean, self._std))
        normal = (images - mean) / std
        return normal if usable is None else normal.masked_fill(~usable[:, None, None], 0.0)

    def stretched(self, images: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """Images [..., C, H, W] on the scale of the training data: `low` [C] becomes its bottom and `high`
        [C] its top."""
        low, high = low.view(-1, 1, 1), high.view(-1, 1, 1)
        return ((images - low) / (high - low)).clamp(-0.5, 2.0) * self._top

    @property
    def always_stretches(self) -> bool:
        """Whether the card wants the percentiles of the scene, whatever the unit of the images."""
        return self._always_stretch

    def respond(
        self, batch: Mapping[str, Tensor], state: Mapping[str, Any], usable: Tensor | None = None
    ) -> Any:
        """The output for a batch of a data set: `images` in physical units, and `extras`; `usable` as in
        `normalise`."""
        given = {name: batch[name] for name in self.extras if name in batch}
        return self.forward(self.normalise(batch["images"], usable, state), **given)

    def to(self, device: torch.device | str) -> Any:
        """Moves the network."""
        self.network.to(device)
        return self


class PairOutput(Protocol):
    """What any task on two dates returns."""

    def change(self) -> ChangeOutput: ...


class NetworkDetector(NetworkSystem, ChangeDetector):
    """A network on two dates whose output says where something changed, as a detector for scenes.

    `exact` is False unless a system says otherwise: these networks see a whole tile.
    """

    exact = False

    def fit(self, sample: PairSample) -> dict[str, Any]:
        """Which of the pair's bands to take, and the stretch of the scene where one is needed.

        RGB of 0..255 is taken as it is. Anything else is brought to the scale of the training data with the
        2nd and 98th percentile of each band over both dates.

        Raises:
            ModelInputError: the pair lacks a band.
            NoValidDataError: there is no pixel to take percentiles of.
        """
        names = [b.name for b in sample.pair.bands]
        missing = [b for b in self.bands if b not in names]
        if missing:
            raise ModelInputError(
                self.card.slug,
                f"needs the bands {', '.join(self.bands)} at both dates, and {', '.join(missing)} is missing",
                "Choose another model with `--model`, for example ir-mad, which takes any bands.",
            )
        picked = [names.index(b) for b in self.bands]
        state: dict[str, Any] = {"bands": picked, "temperature": self.card.temperature}
        if self._always_stretch or sample.pair.unit is not Unit.RGB255:
            state["stretch"] = percentiles(sample, picked)
        return state

    def predict(self, images: Tensor, valid: Tensor, state: dict[str, Any]) -> Tensor:
        """Calibrated probability of change, float32 [B, H, W]; see `ChangeDetector.predict`."""
        return self._predicted(images, valid, state, 0)[0]

    @property
    def class_maps(self) -> ClassRule | None:
        """That of the card."""
        return rule_of(self.card)

    def predict_classes(self, images: Tensor, valid: Tensor, state: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Change and the planes of the classes; see `ChangeDetector.predict_classes`."""
        rule = self.class_maps
        return self._predicted(images, valid, state, 0 if rule is None else rule.planes)

    def _predicted(
        self, images: Tensor, valid: Tensor, state: dict[str, Any], count: int
    ) -> tuple[Tensor, Tensor]:
        """The probability of change, and `count` planes of classes; zero where the network did not look."""
        with torch.inference_mode():
            picked = images[:, :, state["bands"]]
            usable = valid.all(dim=1) & ~picked.isnan().any(dim=(1, 2))
            found = images.new_zeros(usable.shape, dtype=torch.float32)
            planes = images.new_zeros((len(found), count, *found.shape[1:]), dtype=torch.float32)
            if not usable.any():
                return found, planes
            # A network that sees a whole tile must not be shown the void around a scene.
            area = _bounds(usable)
            picked, usable = picked[..., *area], usable[:, *area]
            normal = self.normalise(picked, None if usable.all() else usable, state)
            given = self.extras_of(images[..., *area], state)
            output = self.forward(normal, **given)
            found[:, *area] = output.change().probability(state["temperature"])
            if count:
                planes[:, :, *area] = output.class_probabilities()
            return found, planes

    def traced(self, normal: Tensor, usable: Tensor, **extras: Tensor) -> Tensor:
        """Calibrated probability [B, H, W] of normalised images whose sides are multiples of `multiple`,
        with no step that depends on what is in them: what an exported graph holds of `predict`. `extras` as
        for `forward`."""
        return self.forward(normal, **extras).change().probability(self.card.temperature)

    @property
    def window(self) -> int | None:
        """Pixels of the windows that the network itself cuts an image into, where its size is fixed."""
        return None

    def extras_of(self, images: Tensor, state: Mapping[str, Any]) -> dict[str, Tensor]:
        """What `forward` gets beside the images, from the bands of the pair [B, 2, C, H, W] that are no
        image; nothing unless a system says otherwise."""
        return {}


def _bounds(usable: Tensor) -> tuple[slice, slice]:
    """Rows and columns that hold everything usable in any of the masks [B, H, W]."""
    rows, columns = usable.any(dim=2).any(dim=0).nonzero(), usable.any(dim=1).any(dim=0).nonzero()
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def percentiles(sample: PairSample, bands: list[int], most: int = 4_000_000) -> dict[str, list[float]]:
    """The 2nd and 98th percentile of each band over the valid pixels of both dates.

    Raises:
        NoValidDataError: there is no such pixel.
    """
    total = sum(int(block.valid.sum()) for block in sample)
    if total == 0:
        raise NoValidDataError(
            sample.pair.before.name, "no pixel is usable at both dates", "Check the overlap and the masks."
        )
    step = max(1, -(-total // most))
    pixels = [block.images[:, bands][:, :, block.valid][:, :, ::step] for block in sample]  # [2, C, n] each
    values = np.concatenate([p.swapaxes(0, 1).reshape(len(bands), -1) for p in pixels], axis=1)
    low, high = np.percentile(values, (2.0, 98.0), axis=1)
    flat = high - low < 1e-6 * np.maximum(1.0, np.abs(high))  # a constant band: any width will do
    return {"low": low.tolist(), "high": np.where(flat, low + 1.0, high).tolist()}


def crop_like(logits: Tensor, images: Tensor) -> Tensor:
    """Logits [B, K, h, w] of padded images, cut to the size of `images` [..., H, W]."""
    return logits[..., : images.shape[-2], : images.shape[-1]]
