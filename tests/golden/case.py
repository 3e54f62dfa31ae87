"""One golden case: its description, the weights and inputs that it names, and the comparison of a result.

An adapter (`tests/golden/adapters/<system>.py`) has one function:

    def run(case: Case) -> Result

It builds the system that `case.config` describes, loads `case.state_dict()` through the system's own
converter for official checkpoints, runs it on `case.input(name)` and returns what it computed. It sees no
expected number; the comparison is done here, for every output that the case stores.
"""

from __future__ import annotations

import fnmatch
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from golden import fill

if TYPE_CHECKING:
    import torch

DEFAULT_BOUND = 1e-4
ValuePath = tuple[str | int, ...]

# What the recipes of the cases say; everything else is built by the adapter, from the words.
_IMAGE = re.compile(r"fill\.image(\(seed, shape, low, high\))?(, already (standardised|normalised))?")
_IMAGE_RANGE = re.compile(r"fill\.image\(seed, shape, (?P<low>-?[\d.]+), (?P<high>-?[\d.]+)\)( \(.*\))?")
_NORMAL = re.compile(r"Generator\(Philox\(key=seed\)\)\.standard_normal\(shape\) float32")


class CaseError(AssertionError):
    """A case, or an adapter's use of it, that cannot be scored as it stands."""


class NotCoveredError(Exception):
    """Raised by an adapter for a case of a part that the system does not have yet; says which."""


@dataclass(frozen=True)
class Result:
    """What an adapter computed.

    `outputs`: name of an output in `out.npz` to the whole array (numpy or torch).
    `values`: place of a number (or list, text, truth) in `case.json`, as a path of keys, to what was computed
    for it: `{("losses", "total"): 2.07}`.
    `omitted`: name of an intermediate output that the implementation has no such place for, to the reason.
    `bounds`: name of an output, or a value's path joined by dots (or `*` patterns of either), to a relative
    bound. Only read where `case.json` states its bound in words.
    """

    outputs: Mapping[str, Any] = field(default_factory=dict)
    values: Mapping[ValuePath, Any] = field(default_factory=dict)
    omitted: Mapping[str, str] = field(default_factory=dict)
    bounds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """A folder `<root>/<system>/<case>/`: `case.json` and, where there are any, `keys.json` and `out.npz`."""

    folder: Path

    @property
    def system(self) -> str:
        return self.folder.parent.name

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def id(self) -> str:
        return f"{self.system}/{self.name}"

    @cached_property
    def spec(self) -> dict[str, Any]:
        """`case.json`."""
        return json.loads((self.folder / "case.json").read_text(encoding="utf-8"))

    @property
    def config(self) -> dict[str, Any]:
        """The configuration of the published implementation in this case."""
        return self.spec.get("config", {})

    @cached_property
    def keys(self) -> dict[str, dict[str, Any]]:
        """Every name of the published state dict with its shape and dtype, in order."""
        path = self.folder / "keys.json"
        if not path.is_file():
            raise CaseError(f"{self.id} has no keys.json: it needs no weights")
        return json.loads(path.read_text(encoding="utf-8"))

    @cached_property
    def stored(self) -> dict[str, dict[str, np.ndarray]]:
        """Output name to its `sample`, `index`, `shape` and `stats`; empty when the case stores no arrays."""
        path = self.folder / "out.npz"
        if not path.is_file():
            return {}
        with np.load(path) as arrays:
            names = [k.removesuffix("_sample") for k in arrays.files if k.endswith("_sample")]
            return {n: {p: arrays[f"{n}_{p}"] for p in ("sample", "index", "shape", "stats")} for n in names}

    # --- what goes in ----------------------------------------------------------------------------------
    def arrays(self, keep: Iterable[str] = ()) -> dict[str, np.ndarray]:
        """The weights that the published implementation ran with, by their published names.

        Left out are the buffers that a model computes for itself: those under `kept_buffers` in the case,
        and those that match one of the patterns `keep` (for cases that say so in words).
        """
        weights = self.spec.get("weights") or {}
        kept = [*keep, *self.spec.get("kept_buffers", []), *weights.get("kept_buffers", [])]
        arrays = {k: _typed(v, self.keys[k]) for k, v in fill.state_dict(self.keys).items()}
        rules = (self.spec.get("fill") or {}).get("then", [])
        if rules and sum(_multiply(arrays, rule) for rule in rules) == 0:
            raise CaseError(f"{self.id}: the rules of fill.then touch no tensor: {rules}")
        return {k: v for k, v in arrays.items() if not any(fnmatch.fnmatchcase(k, p) for p in kept)}

    def state_dict(self, keep: Iterable[str] = ()) -> dict[str, torch.Tensor]:
        """`arrays` as tensors, ready for the system's converter."""
        import torch

        return {k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in self.arrays(keep).items()}

    def input_spec(self, name: str) -> dict[str, Any]:
        """The entry of an input; `name` may leave out a remark in brackets (`series` for `series (B,T,C)`).

        Raises:
            CaseError: no input, or more than one, has this name.
        """
        inputs = self.spec.get("inputs") or []
        if isinstance(inputs, dict):
            inputs = [{"name": k, **(v if isinstance(v, dict) else {"recipe": v})} for k, v in inputs.items()]
        found = [i for i in inputs if i["name"] == name] or [
            i for i in inputs if i["name"].partition(" (")[0] == name
        ]
        if len(found) != 1:
            raise CaseError(f"{self.id} has {len(found)} inputs named {name}: {[i['name'] for i in inputs]}")
        return found[0]

    def input(self, name: str) -> np.ndarray:
        """An input rebuilt from its recipe (float32), or its stated values (float32 or int64).

        Raises:
            CaseError: the recipe is one in words, for the adapter to follow with `input_spec`.
        """
        entry = self.input_spec(name)
        for key in ("values", "value"):
            if key in entry:
                values = np.asarray(entry[key])
                return values.astype("float32") if values.dtype.kind == "f" else values
        recipe = str(entry.get("recipe", ""))
        shape = tuple(entry["shape"]) if isinstance(entry.get("shape"), list) else None
        if shape and _IMAGE.fullmatch(recipe) and {"low", "high"} <= entry.keys():
            return fill.image(entry["seed"], shape, entry["low"], entry["high"])
        if shape and (ranged := _IMAGE_RANGE.fullmatch(recipe)):
            return fill.image(entry["seed"], shape, float(ranged["low"]), float(ranged["high"]))
        if shape and _NORMAL.fullmatch(recipe):
            rng = np.random.Generator(np.random.Philox(key=entry["seed"]))
            return rng.standard_normal(shape).astype("float32")
        raise CaseError(f"{self.id}: the adapter must build the input {name} itself: {recipe}")

    # --- what comes out --------------------------------------------------------------------------------
    def bound(self, name: str, stated: Mapping[str, float]) -> float:
        """The relative bound for an output or a value: that of `case.json` where it is a number, else
        (in words) the adapter's, else 1e-4."""
        bound: Any = self.spec.get("tolerance", DEFAULT_BOUND)
        if isinstance(bound, dict):
            listed: dict[str, Any] = {k.strip(): v for keys, v in bound.items() for k in keys.split(",")}
            bound = listed.get(name, listed.get("default", DEFAULT_BOUND))
        if isinstance(bound, int | float):
            return float(bound)
        for pattern, number in stated.items():
            if fnmatch.fnmatchcase(name, pattern):
                return number
        raise CaseError(f"{self.id}: state a bound for {name}; case.json has it in words: {bound}")

    def check(self, result: Result) -> None:
        """Compares a result with what the case stores, and lists everything that is wrong.

        Raises:
            CaseError: an output is missing, unknown, of another shape or too far off; or none was compared.
        """
        faults = [*self._coverage(result)]
        for name, array in result.outputs.items():
            if name in self.stored:
                faults += self._compare(name, array, self.bound(name, result.bounds))
        for path, value in result.values.items():
            name = ".".join(map(str, path))
            faults += _differences(name, value, self._at(path), self.bound(name, result.bounds))
        if faults:
            raise CaseError("\n".join([f"{self.id}:", *faults]))

    def _coverage(self, result: Result) -> Iterable[str]:
        final = set(self.spec.get("final_outputs", []))
        for name in sorted(self.stored.keys() - result.outputs.keys()):
            if name in final or name not in result.omitted:
                yield f"  {name}: not returned"
        for name in sorted(result.outputs.keys() - self.stored.keys()):
            yield f"  {name}: returned, but the case stores no such output"
        for name in sorted(result.omitted.keys() & result.outputs.keys()):
            yield f"  {name}: both returned and omitted"
        if not result.outputs.keys() & self.stored.keys() and not result.values:
            yield "  nothing was compared"

    def _compare(self, name: str, array: Any, bound: float) -> Iterable[str]:
        ours = np.asarray(array.detach().cpu() if hasattr(array, "detach") else array)
        stored = self.stored[name]
        if tuple(ours.shape) != tuple(stored["shape"]):
            yield f"  {name}: shape {tuple(ours.shape)}, stored {tuple(stored['shape'])}"
            return
        flat = ours.reshape(-1).astype("float64")
        sample, reference = flat[stored["index"]], stored["sample"].astype("float64")
        if stored["sample"].dtype.kind in "iub" and bound <= DEFAULT_BOUND:
            if (wrong := int((sample != reference).sum())) > 0:
                yield f"  {name}: {wrong} of {sample.size} whole numbers differ"
        elif not (error := relative_error(sample, reference)) <= bound:
            at = int(np.nanargmax(np.abs(sample - reference))) if np.isfinite(sample).any() else 0
            where = tuple(int(i) for i in np.unravel_index(stored["index"][at], ours.shape))
            yield (
                f"  {name}: relative error {error:.3g} over {bound:g}; "
                f"worst at {where}: {sample[at]:.6g}, stored {reference[at]:.6g}"
            )
        mean, std = (float(s) for s in stored["stats"])
        spread = abs(mean) + std
        if not abs(flat.mean() - mean) <= bound * spread or not abs(flat.std() - std) <= bound * spread:
            yield f"  {name}: mean {flat.mean():.6g} std {flat.std():.6g}, stored {mean:.6g} {std:.6g}"

    def _at(self, path: ValuePath) -> Any:
        found: Any = self.spec
        for key in path:
            try:
                found = found[key]
            except (KeyError, IndexError, TypeError):
                raise CaseError(f"{self.id}: case.json has nothing at {path}") from None
        return found


def relative_error(ours: np.ndarray, reference: np.ndarray) -> float:
    """||ours - reference|| / ||reference||; not a number unless NaN is exactly where the reference has it."""
    gaps = np.isnan(reference)
    if (np.isnan(ours) != gaps).any():
        return math.nan
    ours, reference = ours[~gaps], reference[~gaps]
    norm = float(np.linalg.norm(reference))
    distance = float(np.linalg.norm(ours - reference))
    return distance if norm == 0 else distance / norm


def _differences(name: str, ours: Any, stored: Any, bound: float) -> Iterable[str]:
    if isinstance(stored, dict) and isinstance(ours, Mapping):
        if ours.keys() != stored.keys():
            yield f"  {name}: keys {sorted(ours)}, stored {sorted(stored)}"
        for key in stored.keys() & ours.keys():
            yield from _differences(f"{name}.{key}", ours[key], stored[key], bound)
        return
    ours = ours.tolist() if hasattr(ours, "tolist") else ours
    if isinstance(stored, list) and isinstance(ours, list | tuple):
        if len(ours) != len(stored):
            yield f"  {name}: {len(ours)} values, stored {len(stored)}"
        for i, (a, b) in enumerate(zip(ours, stored, strict=False)):
            yield from _differences(f"{name}.{i}", a, b, bound)
        return
    numbers = isinstance(stored, float) and isinstance(ours, int | float) and not isinstance(ours, bool)
    if numbers:
        same = math.isclose(ours, stored, rel_tol=bound, abs_tol=1e-12) or (ours != ours and stored != stored)
    else:
        same = type(ours) is type(stored) and ours == stored
    if not same:
        yield f"  {name}: {ours!r}, stored {stored!r}"


def _typed(array: np.ndarray, key: Mapping[str, Any]) -> np.ndarray:
    """The fill divides in double precision under numpy 2; the published models held the stated type."""
    wanted = "float64" if key.get("dtype") == "float64" else "float32"
    array = np.asarray(array)
    return array.astype(wanted) if array.dtype.kind == "f" else array


def _multiply(arrays: dict[str, np.ndarray], rule: Mapping[str, Any]) -> int:
    """Applies one rule of `fill.then`, the tensors that meet all of its conditions times its factor, and
    says how many they were (some rules are written for a family of cases and meet none of this one)."""
    unknown = rule.keys() - {"name_ends_with", "name_contains", "ndim", "factor"}
    if unknown:
        raise CaseError(f"a rule of fill.then has unknown conditions: {sorted(unknown)}")
    touched = [
        name
        for name, array in arrays.items()
        if name.endswith(rule.get("name_ends_with", ""))
        and rule.get("name_contains", "") in name
        and rule.get("ndim", array.ndim) == array.ndim
    ]
    for name in touched:
        arrays[name] = arrays[name] * np.float32(rule["factor"])
    return len(touched)


def find_cases(root: Path) -> list[Case]:
    """Every case under `root`, in order of its id."""
    return [Case(p.parent) for p in sorted(root.glob("*/*/case.json"))]
