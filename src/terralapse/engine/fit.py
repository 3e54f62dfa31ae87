"""Trains a system of any task that can be scored, from a recipe.

The folder of a run gets `recipe.json`, `log.jsonl` (one line an epoch), the same as CSV and for TensorBoard
under `logs/`, `last.ckpt` (to resume from), `best.safetensors` (the averaged weights that did best on the
validation split), and at the end `weights.safetensors` (the same as float16) with `result.json`: what they
score on the validation split and, for binary change, the temperature and the threshold for the card, both
chosen there. A captioner of images writes the whole model too, as a folder of `transformers`. Training needs
the extra `train`; losses and metrics do not (`terralapse.tasks`).
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from scipy.special import expit
from torch import Tensor
from torch.utils.data import DataLoader

from terralapse import registry
from terralapse.cards import Task
from terralapse.engine.recipe import Recipe
from terralapse.engine.sources import Sources, sources
from terralapse.errors import FileMissingError, MissingExtraError, OutputExistsError, SettingError
from terralapse.layers.weights import load_strict, read_tensors
from terralapse.tasks.calibration import fit_scaling
from terralapse.tasks.image_captions import ImageCaptioner
from terralapse.tasks.measures import measure_for
from terralapse.tasks.metrics import expected_calibration_error, reliability
from terralapse.tasks.network import NetworkSystem


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
    return read_tensors(path)


def fit(recipe: Recipe, data: Path | str, out: Path | str, resume: bool = False) -> Path:
    """Trains, calibrates, and returns the path of the float16 weights.

    Args:
        recipe: what to do.
        data: the folder of the data set (for `change-mix`, the one that holds all sets).
        out: the folder of the run.
        resume: go on from `last.ckpt` in `out`.

    Raises:
        MissingExtraError: training is not installed.
        OutputExistsError: `out` holds a run and `resume` is not set.
        FileMissingError, SettingError, BandError: from recipe and data.
    """
    try:
        training = importlib.import_module("terralapse.engine._lightning")
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            "training", f"needs {error.name}", "Install it with: pip install 'terralapse[train]'"
        ) from error
    out = Path(out)
    if not resume and (out / "log.jsonl").exists():
        raise OutputExistsError(out, "holds a training run", "Go on with --resume, or name another folder.")
    torch.set_num_threads(recipe.threads)
    torch.manual_seed(recipe.seed)
    system = registry.build(recipe.model, untrained=True, **recipe.build)
    if not isinstance(system, NetworkSystem):
        raise SettingError(f"model={recipe.model}", "has nothing to train", "Choose a network.")
    if recipe.checkpointing:
        system.network.checkpointing = True  # pyright: ignore[reportArgumentType]
    if recipe.start:
        load_strict(system.network, encoder_weights(recipe.start), recipe.start)
    elif recipe.encoder:
        system.start_encoder(encoder_weights(recipe.encoder))
    source = sources(recipe, Path(data), system)
    out.mkdir(parents=True, exist_ok=True)
    (out / "recipe.json").write_text(json.dumps(asdict(recipe), indent=1) + "\n", encoding="utf-8")
    best = training.run(recipe, system, source, out, resume)
    return seal(system, best, source, recipe.val_batch)


def seal(system: NetworkSystem, best: Path, source: Sources, batch: int = 1) -> Path:
    """Writes the float16 weights and `result.json` beside `best`, and returns the path of the weights.

    Everything is measured with the float16 weights, as a user gets them. For binary change the offset of the
    calibration goes into the weights (`shift_logits`); temperature and threshold are for the card.
    """
    path = best.with_name("weights.safetensors")
    load_strict(system.network, _halved(load_file(best)), str(best))
    system.to("cpu")
    system.network.eval()
    found: dict[str, Any] = {}
    temperature = 1.0
    if system.card.task is Task.CHANGE:
        scores, label = _logits(system, source, batch)
        temperature, offset = fit_scaling(scores, label)
        system.shift_logits(offset * temperature)
        found["calibration"] = {
            "temperature": round(temperature, 4),
            "offset": round(offset, 4),
            **_reliable(scores, label, ""),
        }
    save_file(_halved(system.network.state_dict()), path)
    load_strict(system.network, read_tensors(path), str(path))
    if "calibration" in found:
        scores, label = _logits(system, source, batch)
        found["calibration"] |= _reliable(scores / temperature, label, "_after")
    measure = source.measure
    if measure is None:
        measure = measure_for(system.card.task, source.classes, temperature=temperature)
    measure.to("cpu").reset()
    with torch.inference_mode():
        for batched in DataLoader(source.val, batch_size=batch):
            measure.update(system.respond(batched, source.state), batched)
    found |= {
        "validation": measure.scores(measure.counts()),
        "state": source.state,
        "bytes": path.stat().st_size,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    text = json.dumps(found, indent=1, default=float)
    if isinstance(system, ImageCaptioner):
        system.keep(path.parent)
    path.with_name("result.json").write_text(text + "\n", encoding="utf-8")
    return path


def _halved(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors as they are shipped: float16 where they are floating-point."""
    return {k: (v.half() if v.is_floating_point() else v).contiguous() for k, v in tensors.items()}


def _logits(system: NetworkSystem, source: Sources, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Log-odds and labels of all pixels of the validation samples, flat."""
    scores, labels = [], []
    with torch.inference_mode():
        for batched in DataLoader(source.val, batch_size=batch):
            output = system.respond(batched, source.state)
            scores.append(output.change().logits.float().numpy().ravel())
            labels.append(batched["label"].numpy().ravel())
    return np.concatenate(scores), np.concatenate(labels)


def _reliable(scores: np.ndarray, label: np.ndarray, when: str) -> dict[str, float]:
    probability = expit(scores)
    return {
        f"changed{when}": round(float((label == 1).mean()), 5),
        f"mean_probability{when}": round(float(probability.mean()), 5),
        f"ece{when}": round(expected_calibration_error(reliability(probability, label)), 5),
    }
