"""LENet: the whole network and its intermediate maps, the sliding inference, and the losses."""

from __future__ import annotations

import re

import numpy as np
import torch
from torch import Tensor

from golden import fill
from golden.case import Case, NotCoveredError, Result
from terralapse.layers.decoding import up_to
from terralapse.models.change import lenet


def run(case: Case) -> Result:
    config = case.config
    if config["encoder"] != "timm swinv2_base_window8_256" or config["fpn_out"] != lenet.BASE.width:
        raise NotCoveredError(f"another size: {config}")
    slide = config["slide"]
    if slide != {"crop": [lenet.BASE.side] * 2, "stride": [lenet.BASE.stride] * 2}:
        raise NotCoveredError(f"another sliding window: {slide}")
    system = lenet.build(lenet.HEAD, untrained=True)
    system.network.load_state_dict(lenet.official_names(case.state_dict()), strict=True)
    with torch.inference_mode():
        return Result(outputs=outputs(case, system), values=losses(case.spec["losses"]))


def outputs(case: Case, system: lenet.LENetDetector) -> dict[str, Tensor]:
    network = system.network
    before, after = torch.from_numpy(case.input("img")).split(3, dim=1)
    weighted = network.weighted(before, after)
    levels = weighted[1:]
    pyramid, _ = network.pyramids([p[0] for p in levels], [p[1] for p in levels])
    maps = network.change_maps(before, after)
    main, aux0, aux1 = network.heads(maps)
    large = case.spec["extra"]["slide_logits"]
    scene = torch.from_numpy(fill.image(large["seed"], tuple(large["shape"]), large["low"], large["high"]))
    slid = system.forward(scene.unflatten(1, (2, 3))).classes
    assert slid is not None
    return {
        "logits": main,
        "logits_full": up_to(main, before.shape),
        "aux0": aux0,
        "aux1": aux1,
        "slide_logits": slid,
        **{f"map{i}": m for i, m in enumerate(maps)},
        **{f"csdw{i}_{d}": m for i, p in enumerate(weighted) for d, m in zip("AB", p, strict=True)},
        **{f"fpnA_{i}": m for i, m in enumerate(pyramid)},
    }


def losses(spec: dict[str, str]) -> dict[tuple[str | int, ...], float]:
    """The values of the case, from logits and labels drawn as its recipe says."""
    drawn = [
        torch.from_numpy(draw(seed).standard_normal(shape).astype("float32"))
        for shape, seed in re.findall(r"standard_normal\(\(([\d,]+)\)\) seed (\d+)", spec["recipe"])
        for shape, seed in [(whole(shape), int(seed))]
    ]
    label, hidden = (
        torch.from_numpy(draw(int(seed)).integers(int(low), int(high), whole(shape)))
        for low, high, shape, seed in re.findall(
            r"integers\((\d+),(\d+),\(([\d,]+)\)\) seed (\d+)", spec["recipe"]
        )
    )
    found = lenet.change_losses(drawn[0], drawn[1:], label.masked_fill(hidden == 0, 255), over_all=True)
    return {("losses", name): value.item() for name, value in found.items()}


def draw(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=seed))


def whole(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in text.split(","))
