"""Golden cases of Mamba-FCS: the network with its intermediate maps, and the published loss."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import torch
from torch import Tensor

from golden.case import Case, NotCoveredError, Result
from terralapse.layers.vmamba import official_names
from terralapse.models.semantic_change.mamba_fcs import SECOND, MambaFCS, MambaFCSDetector
from terralapse.tasks.losses import cross_entropy, lovasz_softmax, similarity
from terralapse.tasks.sek_loss import sek_loss
from terralapse.tasks.semantic_change import SemanticChangeOutput


def run(case: Case) -> Result:
    config = case.config
    wanted = {"forward_type": "v3noz", "norm_layer": "ln", "ssm_d_state": 1, "output_cd": 2}
    for key, value in wanted.items():
        if config.get(key, value) != value:
            raise NotCoveredError(f"{key} {config[key]}")
    with torch.device("meta"):
        network = MambaFCS(config["output_clf"], dims_of(config["dims"]), tuple(config["depths"]))
    network.to_empty(device="cpu").eval()
    network.load_state_dict(official_names(case.state_dict()), strict=True)
    parameters = sum(p.numel() for p in network.parameters())
    values: dict[tuple[str | int, ...], Any] = {("parameter_count",): parameters}
    if "losses" in case.spec:
        values |= {("losses", name): float(x) for name, x in losses(case).items()}
    return Result(outputs=outputs(network, case), values=values)


def dims_of(dims: int | list[int]) -> tuple[int, int, int, int]:
    """Four widths; one number is that of the first stage, doubled from stage to stage."""
    first, second, third, fourth = [dims * 2**i for i in range(4)] if isinstance(dims, int) else dims
    return first, second, third, fourth


def outputs(network: MambaFCS, case: Case) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}

    def keep(name: str, pick: Any = lambda x: x) -> Any:
        return lambda _module, _inputs, output: found.__setitem__(name, pick(output))

    network.encoder.register_forward_hook(keep("pre_stage3", lambda features: features[3].chunk(2)[0]))
    for level in range(1, 5):
        network.decoder_bcd.get_submodule(f"fuse_layer_{level}").register_forward_hook(keep(f"jsf_{level}"))
        network.decoder_bcd.register_forward_hook(keep(f"att_{level}", lambda x, i=level - 1: x[1][i]))
    network.decoder_bcd.register_forward_hook(keep("decoder_bcd", lambda x: x[0]))
    for date in ("T1", "T2"):
        network.get_submodule(f"decoder_{date}").register_forward_hook(keep(f"decoder_{date}"))
    with torch.inference_mode():
        logits = network(*(torch.from_numpy(case.input(name)) for name in ("pre", "post")))
    found |= dict(zip(("change", "semantic_t1", "semantic_t2"), logits, strict=True))
    return {k: v for k, v in found.items() if k in case.stored}


# --- the loss ------------------------------------------------------------------------------------------
def losses(case: Case) -> dict[str, Tensor]:
    recipe = case.spec["losses"]["recipe"]
    change = torch.from_numpy(drawn(recipe["change_label"]))
    shape, numbers = recipe["semantic_label_t1"], recipe["semantic_logits_t1"]
    labels = [drawn(shape, seed(text)) * change.numpy() for text in (shape, recipe["semantic_label_t2"])]
    noise = [drawn(numbers, seed(text)) for text in (numbers, recipe["semantic_logits_t2"])]
    sure, weak = (
        float(re.search(pattern, text)[1])  # pyright: ignore[reportOptionalSubscript]
        for pattern, text in ((r"plus ([\d.]+) at", numbers), (r"plus ([\d.]+) instead", recipe["then"]))
    )
    before, after = (torch.from_numpy(x) for x in labels)

    def semantic(up: float) -> list[Tensor]:
        classes = noise[0].shape[1]
        hot = [np.moveaxis(np.eye(classes)[y], -1, 1) for y in labels]
        return [torch.from_numpy(n + up * h).float() for n, h in zip(noise, hot, strict=True)]

    first, second = semantic(sure)
    classes = torch.from_numpy(drawn(recipe["change_logits"])).float()
    seen = [torch.where(y == 0, 255, y) for y in (before, after)]
    system = MambaFCSDetector(SECOND, MambaFCS(7, (16, 16, 16, 16), (1, 1, 1, 1)))
    target = {"before": before, "after": after}
    total = system.loss(SemanticChangeOutput(classes, first, second), target)["total"]
    sek = (before, after, change)
    return {
        "ce_change": cross_entropy(classes, change),
        "ce_t1": cross_entropy(first, seen[0]),
        "ce_t2": cross_entropy(second, seen[1]),
        "lovasz_change": lovasz_softmax(classes, change),
        "lovasz_t1": lovasz_softmax(first, seen[0]),
        "lovasz_t2": lovasz_softmax(second, seen[1]),
        "similarity": similarity(first, second, before == 0),
        "sek_first_call": sek_loss(first, second, *sek, faithful=True, first_call=True),
        "sek_later_calls": sek_loss(first, second, *sek, faithful=True),
        "total_first_call": total,
        "sek_first_call_weak_predictions": sek_loss(*semantic(weak), *sek, faithful=True, first_call=True),
    }


def seed(text: str) -> int:
    """The seed that a recipe names."""
    found = re.search(r"seed (\d+)", text)
    assert found is not None, text
    return int(found[1])


def drawn(text: str, number: int | None = None) -> np.ndarray:
    """What a recipe like `integers(0,2,(2,12,10)), seed 703` draws."""
    rng = np.random.Generator(np.random.Philox(key=seed(text) if number is None else number))
    if found := re.match(r"integers\((\d+),(\d+),\(([\d,]+)\)\)", text):
        return rng.integers(int(found[1]), int(found[2]), tuple(map(int, found[3].split(","))))
    found = re.match(r"standard_normal\(\(([\d,]+)\)\)", text)
    assert found is not None, text
    return rng.standard_normal(tuple(map(int, found[1].split(","))))
