"""A recipe: everything that a training run depends on, but for the data, in one flat YAML file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import yaml

from terralapse.errors import FileMissingError, SettingError

Schedule = Literal["cosine", "constant", "step"]
GROUPS = ("reader", "augment", "mix", "build", "semi")


@dataclass(frozen=True)
class Recipe:
    """The fields of a recipe.

    `data` is a name of the catalogue of data sets, or `change-mix` for real and made pairs (see
    `terralapse.data.change_mix`). `encoder` is the file of weights to start the encoder from: a path, or
    `package:file` for a file that an installed package holds; `start` one to start all of the network from.
    Keys that begin with `reader_`, `augment_`, `mix_` or `build_` go to the reader of the data set, to the
    augmentation, to the mix of made pairs, and to the builder of the system.

    `method` trains binary change with few labelled pairs (see `terralapse.engine.semi`): `supervised`,
    `fixmatch` or `semicd-vl`. `labelled` is the share of the training split whose labels are used, drawn by
    `seed`, or a file with one name a line; `guides` the folder of another model's labels, for `semicd-vl`;
    keys that begin with `semi_` are the settings of `terralapse.engine.semi.SemiStep`.

    `precision` of `auto` is `bf16-mixed` where the device computes bfloat16 in hardware, and `32-true` where
    that would be many times slower.

    A step is one update of the weights, so `accumulate` batches; `samples` of 0 takes each training sample
    once an epoch.
    """

    model: str
    data: str = ""
    train_split: str = "train"
    val_split: str = "val"
    holdout: float = 0.0
    sensor: str = "gf1"
    encoder: str = ""
    start: str = ""
    seed: int = 0
    epochs: int = 40
    samples: int = 0
    batch: int = 8
    size: int = 192
    val_batch: int = 1
    lr: float = 1e-3
    encoder_lr: float = 4e-4
    weight_decay: float = 0.02
    schedule: Schedule = "cosine"
    warmup: int = 100  # steps
    step_every: int = 10_000  # steps, of the schedule `step`
    step_factor: float = 0.5
    clip: float = 1.0  # of the gradient's norm; 0 for none
    accumulate: int = 1
    ema: float = 0.997  # 0 for no averaging of weights
    method: str = ""
    labelled: str = ""
    guides: str = ""
    mixup: float = 0.0
    cutmix: float = 0.0
    checkpointing: bool = False
    precision: str = "auto"
    accelerator: str = "auto"
    devices: int = 1
    workers: int = 0
    threads: int = 1
    reader: Mapping[str, Any] = field(default_factory=dict)
    augment: Mapping[str, Any] = field(default_factory=dict)
    mix: Mapping[str, Any] = field(default_factory=dict)
    build: Mapping[str, Any] = field(default_factory=dict)
    semi: Mapping[str, Any] = field(default_factory=dict)

    @staticmethod
    def read(path: Path | str, overrides: Sequence[str] = ()) -> Recipe:
        """A recipe from YAML, with `key=value` over what it says.

        Raises:
            FileMissingError: there is no such file.
            SettingError: a field is unknown, missing or of another type; names it.
        """
        path = Path(path)
        if not path.exists():
            raise FileMissingError(path, "is not there", "Give a recipe from the folder `recipes`.")
        try:
            stated = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise SettingError(path, f"is no YAML ({str(error).splitlines()[0]})", "Correct it.") from error
        if not isinstance(stated, dict):
            raise SettingError(path, "holds no fields", "Write one `key: value` a line.")
        recipe = _checked(stated, str(path))
        for text in overrides:
            recipe = _checked(settings_of([text]), text, recipe)
        return recipe


def settings_of(texts: Sequence[str]) -> dict[str, Any]:
    """Settings of a command line, `key=value` with the value as YAML.

    Raises:
        SettingError: a text has no equals sign, or its value is no YAML.
    """
    found = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not (key and equals):
            raise SettingError(text, "is no setting", "Write key=value, for example epochs=10.")
        try:
            found[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise SettingError(text, "has no readable value", "Write key=value.") from error
    return found


def _checked(stated: Mapping[str, Any], where: str, base: Recipe | None = None) -> Recipe:
    """The recipe that the fields give, over `base` where there is one."""
    known = {f.name: type(f.default) for f in fields(Recipe) if f.name not in GROUPS}
    known["model"] = str
    plain: dict[str, Any] = {}
    grouped: dict[str, dict[str, Any]] = {g: dict(getattr(base, g)) if base else {} for g in GROUPS}
    for name, value in stated.items():
        group, _, inner = str(name).partition("_")
        if group in GROUPS and inner and name not in known:
            grouped[group][inner] = value
            continue
        if name not in known:
            raise SettingError(f"{where}: {name}", "no such field", "See terralapse.engine.recipe.Recipe.")
        wanted = known[name]
        if wanted is float and isinstance(value, str):
            value = _number(value)  # YAML reads 1e-4, without a dot, as text
        if name == "labelled" and isinstance(value, int | float) and not isinstance(value, bool):
            value = str(value)  # a share
        right = isinstance(value, wanted) and (wanted is bool or not isinstance(value, bool))
        if not (right or (wanted is float and type(value) is int)):
            raise SettingError(
                f"{where}: {name}={value!r}", f"is not a {wanted.__name__}", "Correct the recipe."
            )
        plain[name] = value
    if base is None and "model" not in plain:
        raise SettingError(f"{where}: model", "is missing", "Name the system to train.")
    if plain.get("schedule", "cosine") not in ("cosine", "constant", "step"):
        raise SettingError(f"{where}: schedule", "no such schedule", "Choose cosine, constant or step.")
    for name in ("epochs", "batch", "size", "val_batch", "accumulate", "devices", "threads"):
        if plain.get(name, 1) < 1:
            raise SettingError(f"{where}: {name}={plain[name]}", "is not positive", "Correct the recipe.")
    values: dict[str, Any] = {**plain, **grouped}
    return replace(base, **values) if base else Recipe(**values)


def _number(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text
