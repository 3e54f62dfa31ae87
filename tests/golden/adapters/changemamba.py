"""ChangeMamba: the three networks, their losses, the scan blocks by themselves, and the bare scan."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import torch
from torch import Tensor

from golden.case import Case, NotCoveredError, Result
from terralapse.layers.scan import selective_scan
from terralapse.layers.vmamba import SS2D, VSSBlock, official_names
from terralapse.models.change.changemamba import (
    MambaBCD,
    MambaBDA,
    MambaSCD,
    TwoDates,
    change_losses,
    damage_losses,
    semantic_change_losses,
)

Network = type[MambaBCD] | type[MambaSCD] | type[MambaBDA]
BUILT = {"norm_layer": "ln", "ssm_conv": 3, "patch_size": 4, "ssm_act_layer": "silu", "mlp_act_layer": "gelu"}


def run(case: Case) -> Result:
    kind = case.spec["source"]["class"]
    with torch.inference_mode():
        match kind:
            case "STMambaBCD":
                return _bcd(case)
            case "STMambaSCD":
                return _scd(case)
            case "STMambaBDA":
                return _bda(case)
        if any("block" in c for c in case.config.values() if isinstance(c, dict)):
            return Result(outputs=_blocks(case) | _scans(case))
    raise NotCoveredError(f"{kind} is not one of the networks")


def draw(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=seed))


# --- networks --------------------------------------------------------------------------------------------
def network(case: Case, kind: Network, **more: Any) -> Any:
    """The network of a case's configuration, with the weights of the case."""
    config = case.config
    for name, value in BUILT.items():
        if config.get(name, value) != value:
            raise NotCoveredError(f"{name}={config[name]}")
    dims = config["dims"]
    dims = tuple(dims) if isinstance(dims, list) else tuple(dims * 2**i for i in range(len(config["depths"])))
    built = kind(
        dims,
        tuple(config["depths"]),
        0.0,
        **more,
        bands=config["in_chans"],
        **options(config, config["ssm_d_state"], config["ssm_dt_rank"]),
        mlp_ratio=config["mlp_ratio"],
    )
    built.load_state_dict(official_names(case.state_dict()), strict=True)
    return built.eval()


def options(config: dict[str, Any], state: int, rank: Any) -> dict[str, Any]:
    return {
        "state": state,
        "ratio": config["ssm_ratio"],
        "conv_bias": config["ssm_conv_bias"],
        "gated": not config["forward_type"].endswith("noz"),
        "rank": rank if isinstance(rank, int) else "auto",
    }


def dates(case: Case) -> tuple[Tensor, Tensor]:
    before, after = (torch.from_numpy(case.input(n)) for n in ("pre", "post"))
    return before, after


def stages(built: TwoDates, before: Tensor, after: Tensor, names: list[str]) -> dict[str, Tensor]:
    """Those of the encoder's maps that a case stores, named `pre_stage0` and so on."""
    maps = dict(zip(("pre", "post"), built.pyramids(before, after), strict=True))
    found = {f"{date}_stage{i}": m for date, levels in maps.items() for i, m in enumerate(levels)}
    return {n: found[n] for n in names if n in found}


def _bcd(case: Case) -> Result:
    built = network(case, MambaBCD)
    before, after = dates(case)
    outputs = {
        "logits": built(before, after),
        "decoder": built.decoder(*built.pyramids(before, after)),
        **stages(built, before, after, list(case.stored)),
    }
    return Result(outputs=stored(case, outputs), values=losses(case, _bcd_losses))


def _scd(case: Case) -> Result:
    built = network(case, MambaSCD, classes=case.config["output_clf"])
    before, after = dates(case)
    first, second = built.pyramids(before, after)
    change, sem1, sem2 = built(before, after)
    outputs = {
        "change": change,
        "semantic_t1": sem1,
        "semantic_t2": sem2,
        "decoder_bcd": built.decoder_bcd(first, second),
        "decoder_T1": built.decoder_T1(first),
        "decoder_T2": built.decoder_T2(second),
        **stages(built, before, after, list(case.stored)),
    }
    return Result(outputs=stored(case, outputs), values=losses(case, _scd_losses))


def _bda(case: Case) -> Result:
    built = network(case, MambaBDA, classes=case.config["output_damage"])
    before, after = dates(case)
    first, second = built.pyramids(before, after)
    building, damage = built(before, after)
    outputs = {
        "building": building,
        "damage": damage,
        "decoder_building": built.decoder_building(first),
        "decoder_damage": built.decoder_damage(first, second),
        **stages(built, before, after, list(case.stored)),
    }
    return Result(outputs=stored(case, outputs), values=losses(case, _bda_losses))


def stored(case: Case, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without the intermediate maps that a case does not store."""
    return {n: t for n, t in outputs.items() if n in case.stored or n in case.spec["final_outputs"]}


# --- losses ----------------------------------------------------------------------------------------------
def losses(case: Case, compute: Any) -> dict[tuple[str, ...], float]:
    """The values under `losses` of the case, where it has any."""
    listed = case.spec.get("losses")
    if not listed:
        return {}
    found = compute(listed["recipe"])
    return {("losses", n): float(found[n]) for n in listed if n != "recipe"}


def drawn(recipe: dict[str, str], name: str) -> Tensor:
    """`2*standard_normal((2,7,12,10)), seed 201` or `integers(0,2,(2,12,10)), seed 203`, with what follows
    left to the caller; `same with seed 205` refers to the entry before."""
    text = recipe[name]
    if text.startswith("same"):
        names = list(recipe)
        text = re.sub(r"seed \d+", text.split("with ")[1], recipe[names[names.index(name) - 1]], count=1)
    parsed = re.match(
        r"(?P<scale>\d+)\*standard_normal\(\((?P<shape>[\d,]+)\)\)(?: float32)?, seed (?P<seed>\d+)"
        r"|integers\((?P<low>\d+),(?P<high>\d+),\((?P<ishape>[\d,]+)\)\), seed (?P<iseed>\d+)",
        text,
    )
    if parsed is None:
        raise NotCoveredError(f"a recipe that says {text}")
    p = parsed.groupdict()
    if p["scale"]:
        values = draw(int(p["seed"])).standard_normal(_shape(p["shape"]))
        return torch.from_numpy((float(p["scale"]) * values).astype("float32"))
    return torch.from_numpy(
        draw(int(p["iseed"])).integers(int(p["low"]), int(p["high"]), _shape(p["ishape"]))
    )


def _shape(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in text.split(","))


def _bcd_losses(recipe: dict[str, str]) -> dict[str, Tensor]:
    label = drawn(recipe, "label")
    if mask := re.search(
        r"set to 255 where integers\((.+?),\((.+?)\)\) with seed (\d+) is 0", recipe["label"]
    ):
        low, high = (int(n) for n in mask[1].split(","))
        hidden = draw(int(mask[3])).integers(low, high, _shape(mask[2])) == 0
        label = label.masked_fill(torch.from_numpy(hidden), 255)
    return change_losses(drawn(recipe, "logits"), label)


def _scd_losses(recipe: dict[str, str]) -> dict[str, Tensor]:
    label = drawn(recipe, "change_label")
    classes = [drawn(recipe, f"semantic_label_t{i}") * label for i in (1, 2)]
    logits = [drawn(recipe, n) for n in ("change_logits", "semantic_logits_t1", "semantic_logits_t2")]
    return semantic_change_losses(*logits, label, *classes)


def _bda_losses(recipe: dict[str, str]) -> dict[str, Tensor]:
    standing = drawn(recipe, "building_label")
    grade = drawn(recipe, "damage_label").masked_fill(standing == 0, 255)
    return damage_losses(drawn(recipe, "building_logits"), drawn(recipe, "damage_logits"), standing, grade)


# --- blocks and scans ------------------------------------------------------------------------------------
def _blocks(case: Case) -> dict[str, Tensor]:
    tensors = official_names(case.state_dict())
    outputs = {}
    for name, config in case.config.items():
        kind = SS2D if config["block"].startswith("SS2D") else VSSBlock
        block = kind(config["dim"], **options(config, config["d_state"], config["dt_rank"])).eval()
        own = {k.removeprefix(f"{name}."): v for k, v in tensors.items() if k.startswith(f"{name}.")}
        block.load_state_dict(own, strict=True)
        outputs[name] = block(torch.from_numpy(case.input(name)).permute(0, 2, 3, 1))
    return outputs


def _scans(case: Case) -> dict[str, Tensor]:
    outputs = {}
    for scan in (case.spec.get("scans") or {}).get("cases", []):
        batch, groups, state, length = (scan[n] for n in ("batch", "groups", "d_state", "length"))
        channels = groups * scan["channels_per_group"]

        def normal(key: str, *shape: int, scan: dict[str, Any] = scan) -> Tensor | None:
            if scan[key] is None:
                return None
            seed = int(re.search(r"seed (\d+)", scan[key])[1])  # pyright: ignore[reportOptionalSubscript]
            return torch.from_numpy(draw(seed).standard_normal(shape).astype("float32"))

        u, delta = normal("u", batch, channels, length), normal("delta", batch, channels, length)
        a, b, c = normal("A", channels, state), *(normal(k, batch, groups, state, length) for k in "BC")
        assert u is not None and delta is not None and a is not None and b is not None and c is not None  # noqa: PT018
        if "0.1*abs" in scan["delta"]:
            delta = 0.1 * delta.abs()
        y = selective_scan(
            u,
            delta,
            -(0.5 * a).exp(),
            b,
            c,
            normal("D", channels),
            delta_bias=normal("delta_bias", channels),
            delta_softplus=scan["delta_softplus"],
        )
        assert isinstance(y, Tensor)
        outputs[scan["name"]] = y
    return outputs
