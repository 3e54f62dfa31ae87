"""Weights of a released folder: one safetensors file, or several with an index, loaded strictly."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from terralapse.errors import FileMissingError, UnreadableFileError, WeightsMismatchError
from terralapse.layers.weights import read_tensors

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def shard_files(folder: Path) -> dict[str, tuple[str, ...]]:
    """The files of a folder with the names that its index gives to each; of a single file no names.

    Raises:
        FileMissingError: no weights, or a file of the index is missing.
        UnreadableFileError: the index is none, or names files outside of the folder.
    """
    index = folder / INDEX
    if not index.is_file():
        if not (folder / SINGLE).is_file():
            raise FileMissingError(folder, f"holds neither {SINGLE} nor {INDEX}", "Get the whole folder.")
        return {SINGLE: ()}
    try:
        table = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        by_file: dict[str, list[str]] = {}
        for name, file in table.items():
            by_file.setdefault(str(file), []).append(str(name))
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise UnreadableFileError(index, "is no index of weights", "Get the file again.") from error
    for file in by_file:
        if Path(file).name != file or not file.endswith(".safetensors"):
            raise UnreadableFileError(index, f"names {file!r}, no safetensors beside it", "Get it again.")
        if not (folder / file).is_file():
            raise FileMissingError(folder / file, "is missing", "Get the whole folder.")
    return {k: tuple(v) for k, v in by_file.items()}


def load_folder(network: nn.Module, folder: Path, rename: Callable[[str], str] = str) -> None:
    """Fills a network from a folder, a file at a time; every name of both must be in the other, once.

    Names that are one tensor in the network (tied embeddings) may be in the files once.

    Raises:
        WeightsMismatchError: says which names are missing, unknown, doubled or of another shape.
        And what `shard_files` and `terralapse.layers.weights.read_tensors` raise.
    """
    own = network.state_dict(keep_vars=True)
    faults: dict[str, list[str]] = {k: [] for k in ("missing", "unknown", "twice", "of another shape")}
    seen: set[str] = set()
    for file, names in shard_files(folder).items():
        tensors = read_tensors(folder / file)
        if names and set(names) != set(tensors):
            odd = sorted(set(names) ^ set(tensors))[:5]
            raise WeightsMismatchError(
                folder / file, f"is not what its index says: {', '.join(odd)}", "Get it again."
            )
        for theirs, tensor in tensors.items():
            name = rename(theirs)
            if name not in own:
                faults["unknown"].append(theirs)
            elif name in seen:
                faults["twice"].append(theirs)
            elif own[name].shape != tensor.shape:
                faults["of another shape"].append(theirs)
            else:
                with torch.no_grad():
                    own[name].copy_(tensor)
            seen.add(name)
    filled = {own[n].data_ptr() for n in seen & set(own)}
    faults["missing"] = [n for n, t in own.items() if n not in seen and t.data_ptr() not in filled]
    if any(faults.values()):
        said = "; ".join(f"{len(n)} {kind}: {', '.join(n[:5])}" for kind, n in faults.items() if n)
        raise WeightsMismatchError(folder, said, f"These are not weights of {type(network).__name__}.")
