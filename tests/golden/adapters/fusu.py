"""Golden case of FUSU: the network in both readings of a batch, its loss and the released scores."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from golden.case import Case, NotCoveredError, Result
from terralapse.models.semantic_change.fusu import PSP, SIZES, FusuDetector, FusuNet, official_names
from terralapse.tasks.measures import fusu_release_scores
from terralapse.tasks.metrics import confusion_matrix
from terralapse.tasks.semantic_change import FullMapsOutput

SIZE = SIZES["psp-w18"]


def run(case: Case) -> Result:
    config = case.config
    if (config["backbone"], config["nclass"], config["lightweight"]) != ("hrnet_w18", 17, False):
        raise NotCoveredError(str(config))
    with torch.device("meta"):
        network = FusuNet(SIZE, series_bands=config["series_bands"], norm_sees_padding=True)
    network.to_empty(device="cpu").eval()
    published = weights(case)
    network.load_state_dict(official_names(published), strict=True)
    with torch.inference_mode():
        outputs, released, apart = run_network(network, case)
    values: dict[tuple[str | int, ...], Any] = {
        ("parameters",): sum(p.numel() for p in network.parameters()) + left_out(published)
    }
    values |= losses(network, case, released, apart) | scores()
    return Result(outputs={k: v for k, v in outputs.items() if k in case.stored}, values=values)


def weights(case: Case) -> dict[str, Tensor]:
    """The fill, with the two rules that the case states in words."""
    tensors = case.state_dict()
    for name, tensor in tensors.items():
        if name.endswith("temporal_encoder.attention_heads.Q"):
            tensors[name] = tensor * 3
        elif name.startswith("backbone.") and name.endswith("weight") and tensor.ndim == 1:
            tensors[name] = tensor * 0.75
    return tensors


def left_out(published: dict[str, Tensor]) -> int:
    """Parameters of the U-TAE that never runs."""
    kept = official_names(published)
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    gone = [k for k in published if k not in kept and not k.endswith(buffers)]
    assert all(k.startswith("head_bin.conv5.0.fusion.") for k in gone)
    return sum(published[k].numel() for k in gone)


def run_network(network: FusuNet, case: Case) -> tuple[dict[str, Tensor], list[Tensor], list[Tensor]]:
    """All stored outputs; the four maps of the released batch, and those of each sample by itself."""
    found: dict[str, Tensor] = {}
    before, after, series = (torch.from_numpy(case.input(name)) for name in ("im1", "im2", "series"))
    series[1, 3] = 0.0  # a padded date
    names = ("change", "out1", "out2", "out3")

    def maps(module: Any, _inputs: Any, output: Any) -> None:
        found.update({f"series_map{i}": x for i, x in enumerate(output[0])}, attention=output[1])

    def keep(name: str) -> Any:
        return lambda _module, _inputs, output: found.__setitem__(name, output)

    hooks = [
        network.fusion.register_forward_hook(maps),
        network.fm_utae_featmap_cropped.register_forward_hook(keep("cropped")),
    ]
    apart = list(network(before, after, series))
    for hook in hooks:
        hook.remove()
    found["vhr1"], found["vhr2"] = network.features(before, after)

    def first_for_all(_module: Any, _inputs: Any, output: Tensor) -> Tensor:
        found["collapsed"] = output[0].flatten()
        return output[:1].expand_as(output)

    hook = network.fm_utae_featmap_collapsed.register_forward_hook(first_for_all)
    released = list(network(before, after, series))
    hook.remove()
    for end, maps_of in (("", released), ("_per_sample", apart)):
        found |= {
            f"{n}{end}": x.sigmoid() if n == "change" else x for n, x in zip(names, maps_of, strict=True)
        }
    return found, released, apart


def losses(
    network: FusuNet, case: Case, released: list[Tensor], apart: list[Tensor]
) -> dict[tuple[str | int, ...], float]:
    rng = np.random.Generator(np.random.Philox(key=80))
    shape = (2, 192, 192)
    first, second = (torch.from_numpy(rng.integers(0, 17, shape)) + 1 for _ in range(2))
    target = {"before": first, "after": second, "label": torch.from_numpy(rng.integers(0, 2, shape))}
    system = FusuDetector(PSP, network, first_date_only=True)
    found: dict[tuple[str | int, ...], float] = {}
    for name, (change, before, after, series) in (
        ("repaired_without_clamp", released),
        ("per_sample_without_clamp", apart),
    ):
        two = torch.stack([torch.zeros_like(change), change], dim=1)
        parts = system.loss(FullMapsOutput(two, before, after, series), target)
        stated = {"total": "total", "change_bce": "change", "ce3": "series"}
        found |= {("losses", name, theirs): float(parts[ours]) for theirs, ours in stated.items()}
        stored = case.spec["losses"][name]
        assert abs(float(parts["semantic"]) - stored["ce1"] - stored["ce2"]) < 1e-3
    return found


def scores() -> dict[tuple[str | int, ...], Any]:
    rng = np.random.Generator(np.random.Philox(key=90))
    shape = (3, 40, 40)
    truth = rng.integers(0, 18, shape)
    guess = np.where(rng.random(shape) < 0.6, truth, rng.integers(1, 18, shape))
    found = fusu_release_scores(confusion_matrix(truth, guess, 18))
    names = {
        "score": "score",
        "miou_binary": "miou_binary",
        "sek": "sek",
        "per_class_iou_1_to_17": "iou",
        "mean_iou_1_to_17": "miou",
    }
    return {("metrics", theirs): found[ours] for theirs, ours in names.items()}
