"""Tensors from files into networks: found, checked, and matched name by name.

A file of weights can come from the package, from the Hugging Face hub at a pinned revision, or from the
user. What a card names is compared with its sha256 before anything is read from it. No loader here runs
code that a file brings along, and none accepts a partial match.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import zipfile
from collections.abc import Callable
from importlib import resources
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from terralapse.cards import Card, Weights
from terralapse.errors import (
    FileMissingError,
    SettingError,
    SystemNotReadyError,
    UnreadableFileError,
    UnsafeWeightsError,
    WeightsMismatchError,
)

PICKLED = (".pth", ".pt", ".ckpt", ".bin", ".tar")  # `.pth.tar` is no archive


def load_weights(
    network: nn.Module,
    card: Card,
    path: Path | str | None = None,
    convert: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None = None,
) -> None:
    """Fills a network from a user's file, or from the first weights that its card names.

    Floating-point tensors are converted to the type of the network's own (weights are shipped as float16).
    `path` may also be the name of a file that the authors released. `convert` brings the names of their files
    to those of the network, and leaves the latter alone.

    Raises:
        SystemNotReadyError: no path is given and the card names no weights.
        FileMissingError, UnreadableFileError: the file is not there, or is no file of weights.
        UnsafeWeightsError: the hash is not the card's, or loading would run code.
        WeightsMismatchError: names or shapes are not those of the network.
    """
    if path is None:
        if not card.weights:
            known = ", ".join(r.file for r in card.released)
            raise SystemNotReadyError(
                card.slug,
                "no weights come with it",
                "Give a file of weights with --weights"
                + (f"; its authors released {known} ({card.checkpoints})." if known else "."),
            )
        path = locate(card.weights[0])
    else:
        from terralapse.layers.released import find

        path = find(card, path)
    tensors = read_tensors(path)
    load_strict(network, convert(tensors) if convert else tensors, source=str(path))


def locate(weights: Weights) -> Path:
    """The file that a card names, in the package or in the hub's cache, after its hash has been checked."""
    path = _own(weights.file) if weights.hub is None else _from_hub(weights)
    check_hash(path, weights.sha256)
    return path


def _own(file: str) -> Path:
    """A file of the library's own weights: the default ones are in the package, the others in the folder
    `weights` of the repository or of the cache."""
    package = Path(str(resources.files("terralapse")))
    repository = package.parents[1]
    places = [package / "weights" / file, cache() / "weights" / file]
    if (repository / "pyproject.toml").is_file():
        places.insert(1, repository / "weights" / file)
    for path in places:
        if path.is_file():
            return path
    raise FileMissingError(
        file,
        "did not come with this installation",
        f"Copy it from the folder `weights` of the repository to {places[-1].parent}, or give its path.",
    )


def cache() -> Path:
    """Where fetched files are kept: `TERRALAPSE_CACHE`, or the user's cache folder."""
    if stated := os.environ.get("TERRALAPSE_CACHE"):
        return Path(stated)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "terralapse"


def _from_hub(weights: Weights) -> Path:
    """Downloads, or finds in the cache, one file at one revision."""
    if not weights.revision:
        raise SettingError(
            f"{weights.hub}", "its card pins no revision", "Report this as a defect of the card."
        )
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    assert weights.hub is not None
    try:
        return Path(hf_hub_download(weights.hub, weights.file, revision=weights.revision))
    except (LocalEntryNotFoundError, EntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise FileMissingError(
            f"{weights.hub}/{weights.file}",
            f"could not be had from the hub at revision {weights.revision[:12]} ({type(error).__name__})",
            "Check the connection, or download the file elsewhere and give its path.",
        ) from error


def check_hash(path: Path, expected: str, kind: str = "sha256") -> None:
    """Compares the hash of a file, sha256 or another of `hashlib`, with the one that is expected.

    Raises:
        UnsafeWeightsError: they differ.
    """
    with path.open("rb") as file:
        found = hashlib.file_digest(file, kind).hexdigest()
    if found != expected:
        raise UnsafeWeightsError(
            path,
            f"its {kind} is {found[:12]}... and should be {expected[:12]}...",
            "The file was changed or damaged; get it again.",
        )


def read_tensors(path: Path | str) -> dict[str, Tensor]:
    """The tensors of a `.safetensors` file, or of a pickled checkpoint that holds nothing but tensors.

    A checkpoint may hold its tensors under the key `state_dict` or `model`, or in several tables, whose keys
    then come first in the names: `encoder.weight` for the `weight` of the table `encoder`.

    Raises:
        FileMissingError, UnreadableFileError, UnsafeWeightsError.
    """
    path = Path(path)
    if not path.is_file():
        raise FileMissingError(path, "is not there", "Give the path of a .safetensors file.")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError, ValueError) as error:
            raise UnreadableFileError(
                path, f"is no safetensors file ({error})", "Get the file again."
            ) from error
    if path.suffix not in PICKLED:
        raise UnreadableFileError(path, "is no known kind of weights", "Give a .safetensors file.")
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (EOFError, zipfile.BadZipFile, OSError) as error:
        raise UnreadableFileError(path, "is no PyTorch checkpoint", "Get the file again.") from error
    except (pickle.UnpicklingError, RuntimeError) as error:
        raise UnsafeWeightsError(
            path,
            "holds something other than tensors, and loading it could run code",
            "Convert it to .safetensors where it was made.",
        ) from error
    if isinstance(loaded, dict):
        loaded = next((loaded[k] for k in ("state_dict", "model") if isinstance(loaded.get(k), dict)), loaded)
        if loaded and all(isinstance(table, dict) for table in loaded.values()):
            loaded = {f"{key}.{name}": v for key, table in loaded.items() for name, v in table.items()}
    if not isinstance(loaded, dict) or not all(isinstance(v, Tensor) for v in loaded.values()):
        raise UnreadableFileError(path, "holds no table of tensors", "Save `model.state_dict()` instead.")
    return loaded


def load_strict(network: nn.Module, tensors: dict[str, Tensor], source: str) -> None:
    """Copies tensors into a network whose names and shapes must be the same.

    Raises:
        WeightsMismatchError: says which names are missing, unknown, or of another shape.
    """
    own = network.state_dict()
    faults = {
        "missing": [k for k in own if k not in tensors],
        "unknown": [k for k in tensors if k not in own],
        "of another shape": [k for k in own if k in tensors and own[k].shape != tensors[k].shape],
    }
    if any(faults.values()):
        said = "; ".join(f"{len(names)} {kind}: {_some(names)}" for kind, names in faults.items() if names)
        raise WeightsMismatchError(source, said, f"These are not weights of {type(network).__name__}.")
    network.load_state_dict({k: v.to(own[k].dtype) for k, v in tensors.items()})


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
