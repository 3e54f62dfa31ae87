"""Trains a detector of change from a recipe.

    python -m terralapse.engine.fit recipes/lapsenet-rgb.yaml --data ROOT --out DIR [--resume]

A recipe is one flat YAML file with the fields of `Recipe`. `DIR` gets `log.jsonl` (one line an epoch),
`last.ckpt` (to resume from), `best.safetensors` (the averaged weights that did best on the validation split),
and at the end `weights.safetensors` (the same as float16) with `calibration.json`: the temperature and the
threshold for the card, both chosen on the validation split. Training needs the extra `train`; the loss and
the calibration do not (`terralapse.tasks`).
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import importlib.util
import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.torch import load_file, save_file
from scipy.special import expit
from torch import Tensor

from terralapse import registry
from terralapse.data.change_mix import ChangeMix, Pools
from terralapse.data.change_pairs import Pair, read_building_masks, read_images, read_revisits
from terralapse.data.mshs_bcd import MshsBcd
from terralapse.errors import FileMissingError, MissingExtraError, SettingError
from terralapse.layers.weights import load_strict, read_tensors
from terralapse.tasks.calibration import fit_scaling
from terralapse.tasks.metrics import expected_calibration_error, reliability


@dataclass(frozen=True)
class Recipe:
    """Everything that a training run depends on, but for the data.

    `encoder` is the file of weights to start the encoder from: a path, or `package:file` for a file that
    an installed package holds. `share_*` are the shares of the kinds of samples (`ChangeMix`).
    """

    model: str
    sensor: str = "gf1"
    encoder: str = ""
    seed: int = 0
    epochs: int = 40
    samples: int = 600  # an epoch
    batch: int = 8
    size: int = 192
    lr: float = 1e-3
    encoder_lr: float = 4e-4
    weight_decay: float = 0.02
    warmup: int = 100  # steps
    ema: float = 0.997
    dice: float = 1.0
    share_real: float = 1.0
    share_unrelated: float = 0.0
    share_remove: float = 0.0
    share_destroy: float = 0.0
    share_revisit: float = 0.0
    on_change: float = 0.5
    paste: float = 0.4
    zoom_low: float = 0.75
    zoom_high: float = 1.5
    shift: float = 2.0
    strength_low: float = 0.1
    strength_high: float = 0.9
    blur: float = 0.4
    jpeg: float = 0.3
    untouched: float = 0.4
    precision: str = "bf16-mixed"
    threads: int = 1

    @staticmethod
    def read(path: Path | str) -> Recipe:
        """A recipe from YAML; unknown, missing and mistyped fields are errors that name the field."""
        path = Path(path)
        if not path.exists():
            raise FileMissingError(path, "is not there", "Give a recipe from the folder `recipes`.")
        stated = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        known = {f.name: type(f.default) for f in fields(Recipe)}
        known["model"] = str
        if unknown := sorted(set(stated) - set(known)):
            raise SettingError(
                f"{path}: {', '.join(unknown)}", "no such field", "See terralapse.engine.fit.Recipe."
            )
        for name, value in stated.items():
            wanted = known[name]
            if not (isinstance(value, wanted) or (wanted is float and isinstance(value, int))):
                raise SettingError(
                    f"{path}: {name}={value!r}", f"is not a {wanted.__name__}", "Correct the recipe."
                )
        if "model" not in stated:
            raise SettingError(f"{path}: model", "is missing", "Name the system to train.")
        return Recipe(**stated)


def encoder_weights(source: str) -> dict[str, Tensor]:
    """The tensors of `Recipe.encoder`; read without running any code of the file."""
    package, colon, inner = source.partition(":")
    path = Path(source)
    if colon and not path.exists():
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise FileMissingError(source, f"no package {package} is installed", f"pip install {package}")
        path = Path(spec.submodule_search_locations[0]) / inner
    if not path.exists():
        raise FileMissingError(path, "is not there", "Correct `encoder` in the recipe.")
    return torch.load(path, map_location="cpu", weights_only=True)


def training_data(
    recipe: Recipe, root: Path
) -> tuple[ChangeMix, list[tuple[Tensor, Tensor]], dict[str, Any]]:
    """The training samples, the whole tiles of the validation split ([2, C, H, W] float32 and uint8 [H, W]),
    and the state (the scene-level stretch) that the detector needs for both."""
    shares = {
        kind: getattr(recipe, f"share_{kind}")
        for kind in ("real", "unrelated", "remove", "destroy", "revisit")
        if getattr(recipe, f"share_{kind}") > 0
    }
    train = MshsBcd(root / "cd_mshs_bcd", "train", recipe.sensor)
    pools = Pools(real=[Pair(t.images, t.label, t.gsd) for t in train])
    if {"unrelated", "remove", "destroy", "revisit"} & set(shares):
        pools.masked = read_building_masks(root / "seg_buildings_multi")
        pools.revisits = read_revisits(root / "trees_naip_multiyear" / "train.zip")
        pools.plain = read_images(root / "det_estonia_20cm" / "images", gsd=0.2)
    mix = ChangeMix(
        pools,
        shares,
        recipe.size,
        recipe.seed,
        recipe.on_change,
        recipe.paste,
        (recipe.zoom_low, recipe.zoom_high),
        recipe.shift,
        (recipe.strength_low, recipe.strength_high),
        recipe.jpeg,
        recipe.blur,
        recipe.untouched,
    )
    tiles = MshsBcd(root / "cd_mshs_bcd", "val", recipe.sensor)
    val = [(torch.from_numpy(t.images).float(), torch.from_numpy(t.label)) for t in tiles]
    low, high = train.percentiles()
    state = {"stretch": {"low": low.tolist(), "high": high.tolist()}} if recipe.sensor == "s2" else {}
    return mix, val, state


def best_threshold(probability: np.ndarray, label: np.ndarray) -> tuple[float, float]:
    """The threshold on a grid of 0.02 with the highest F1 of change over all pixels together, and that F1."""
    thresholds = np.arange(0.04, 0.97, 0.02)
    bins = np.digitize(probability.ravel(), thresholds)
    changed = label.ravel() == 1
    hits = np.bincount(bins[changed], minlength=len(thresholds) + 1)[::-1].cumsum()[::-1][1:]
    calls = np.bincount(bins, minlength=len(thresholds) + 1)[::-1].cumsum()[::-1][1:]
    f1 = 2 * hits / np.maximum(calls + changed.sum(), 1)
    at = int(f1.argmax())
    return float(thresholds[at]), float(f1[at])


def fit(recipe: Recipe, data: Path, out: Path, resume: bool = False) -> Path:
    """Trains, calibrates, and returns the path of the float16 weights."""
    try:
        training = importlib.import_module("terralapse.engine._lightning")
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            "training", f"needs {error.name}", "Install it with: pip install 'terralapse[train]'"
        ) from error
    torch.set_num_threads(recipe.threads)
    torch.manual_seed(recipe.seed)
    detector = registry.build(recipe.model, untrained=True)
    if recipe.encoder:
        detector.start_encoder(encoder_weights(recipe.encoder))
    mix, val, state = training_data(recipe, Path(data))
    best = training.run(recipe, detector, mix, val, state, Path(out), resume)
    return seal(detector, best, val, state)


def seal(detector: Any, best: Path, val: list[tuple[Tensor, Tensor]], state: dict[str, Any]) -> Path:
    """Writes the float16 weights and `calibration.json` beside `best`, and returns the path of the weights.

    The offset of the calibration goes into the weights (the bias of the last layer), its temperature and the
    threshold are for the card. All is measured with the float16 weights, as a user gets them.
    """
    path = best.with_name("weights.safetensors")
    load_strict(detector.network, _halved(load_file(best)), str(best))
    detector.network.eval()
    label = np.stack([tile[1].numpy() for tile in val])
    scores = _logits(detector, val, state)
    temperature, offset = fit_scaling(scores, label)
    detector.shift_logits(offset * temperature)
    save_file(_halved(detector.network.state_dict()), path)
    load_strict(detector.network, read_tensors(path), str(path))
    raw, calibrated = expit(scores), expit(_logits(detector, val, state) / temperature)
    threshold, f1 = best_threshold(calibrated, label)
    found = {
        "temperature": round(temperature, 4),
        "offset": round(offset, 4),
        "threshold": round(threshold, 3),
        "val_f1": round(f1, 4),
        "changed": round(float((label == 1).mean()), 5),
        "mean_probability_before": round(float(raw.mean()), 5),
        "mean_probability_after": round(float(calibrated.mean()), 5),
        "ece_before": round(expected_calibration_error(reliability(raw, label)), 5),
        "ece_after": round(expected_calibration_error(reliability(calibrated, label)), 5),
        "state": state,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    path.with_name("calibration.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return path


def _halved(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors as they are shipped: float16 where they are floating-point."""
    return {k: (v.half() if v.is_floating_point() else v).contiguous() for k, v in tensors.items()}


def _logits(detector: Any, tiles: list[tuple[Tensor, Tensor]], state: dict[str, Any]) -> np.ndarray:
    """Log-odds of whole tiles, float32 [N, H, W]."""
    found = []
    with torch.inference_mode():
        for images, _ in tiles:
            found.append(detector.network(detector.normalise(images[None], None, state))[0].float().numpy())
    return np.stack(found)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m terralapse.engine.fit", description=__doc__)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds the data sets")
    parser.add_argument("--out", type=Path, required=True, help="folder for the log and the weights")
    parser.add_argument("--resume", action="store_true", help="go on from DIR/last.ckpt")
    chosen = parser.parse_args(arguments)
    fit(Recipe.read(chosen.recipe), chosen.data, chosen.out, chosen.resume)


if __name__ == "__main__":
    main()
