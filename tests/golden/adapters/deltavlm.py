"""DeltaVLM: the vision transformer, CSRM with the Q-Former and the projector, and the side branch for
masks."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from golden.case import Case, NotCoveredError, Result
from terralapse.layers.change_mask_decoder import ChangeMaskDecoder
from terralapse.layers.eva_vit import EvaSize
from terralapse.layers.qformer import QFormerSize
from terralapse.layers.weights import load_strict
from terralapse.models.language import deltavlm as m

TINY = EvaSize(28, 14, 8, 1, 1, 8)


def run(case: Case) -> Result:
    with torch.inference_mode():
        if "qformer" in case.config:
            return _csrm(case)
        if "embed_dim" in case.config:
            return _vit(case)
        if "n_stages" in case.config:
            return _mask(case)
    raise NotCoveredError(f"the configuration {case.config}")


def _vit(case: Case) -> Result:
    c = case.config
    if c["use_mean_pooling"] or not c["qkv_bias"] or c["layer_norm_eps"] != 1e-6:
        raise NotCoveredError("a vision transformer that the network does not have")
    size = EvaSize(
        c["img_size"], c["patch_size"], c["embed_dim"], c["depth"], c["num_heads"], c["mlp_hidden"]
    )
    vit = m.EvaVit(size).eval()
    theirs = {f"visual_encoder.{name}": tensor for name, tensor in case.state_dict().items()}
    load_strict(vit, _under("visual_encoder.", m.official_names(theirs)), case.name)
    return Result(
        outputs={"tokens": vit(torch.from_numpy(case.input("image")))},
        values={("parameters",): _count(vit), ("unused", "parameters_without_gradient"): []},
    )


def _csrm(case: Case) -> Result:
    c, q = case.config, case.config["qformer"]
    if (q["layer_norm_eps"], q["encoder_width"]) != (1e-12, c["vision_width"]):
        raise NotCoveredError("a Q-Former that the network does not have")
    size = m.Size(
        EvaSize(TINY.side, TINY.patch, c["vision_width"], 1, 1, TINY.hidden),
        QFormerSize(
            q["hidden_size"],
            q["num_hidden_layers"],
            q["num_attention_heads"],
            q["intermediate_size"],
            q["vocab_size"],
            q["encoder_width"],
            q["query_length"],
            q["cross_attention_freq"],
            q["max_position_embeddings"],
        ),
    )
    network = m.DeltaNetwork(size, c["llm_width"]).eval()
    whole = m.official_names(case.state_dict())
    whole |= {k: v for k, v in network.state_dict().items() if k.startswith("visual_encoder.")}
    load_strict(network, whole, case.name)
    before, after = (
        network.ln_vision(torch.from_numpy(case.input(name))) for name in ("F_before", "F_after")
    )
    related = network.relate(before, after)
    ids, mask = (torch.tensor(case.input_spec(n)["values"]) for n in ("instruction_ids", "instruction_mask"))
    every = network.ask(related, ids, mask.bool())
    soft = network.llm_proj(every[:, : q["query_length"]])
    dropped = {n: int(np.prod(case.keys[n]["shape"])) for n in case.keys if m.UNREAD.fullmatch(n)}
    parts = {name: _count(getattr(network, name)) for name in m.TAUGHT if name != "qformer"}
    parts |= {"Qformer": _count(network.qformer), "temp": dropped["temp"]}
    parts["query_tokens"] = network.query_tokens.numel()
    for name in ("vision_proj", "text_proj"):
        parts[name] = sum(n for key, n in dropped.items() if key.startswith(name))
    return Result(
        outputs={"difference": after - before, "csrm": related, "qformer_all": every, "soft_tokens": soft},
        values={("parameters",): {**parts, "total": sum(parts.values())}},
    )


def _mask(case: Case) -> Result:
    c = case.config
    decoder = ChangeMaskDecoder(c["hid"], c["out_sz"], c["n_stages"], c["use_attn"]).eval()
    theirs = {f"mask_decoder.{name}": tensor for name, tensor in case.state_dict().items()}
    load_strict(decoder, _under("mask_decoder.", m.official_names(theirs)), case.name)
    features = torch.from_numpy(case.input("features"))
    odds = decoder(features)
    return Result(
        outputs={"mask": odds.sigmoid(), "lfu": decoder.lfu(decoder.maps(features))},
        values={
            ("parameters",): _count(decoder),
            ("unused", "parameters_without_gradient"): [],
            ("losses", "bce_positive_weight_2"): m.mask_loss(odds, _target(case)).item(),
        },
    )


def _target(case: Case) -> Tensor:
    spec = case.input_spec("target")
    seed = int(spec["recipe"].partition("key=")[2].partition(")")[0])
    drawn = np.random.Generator(np.random.Philox(key=seed)).integers(0, 2, spec["shape"])
    return torch.from_numpy(drawn)[:, 0]


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}


def _count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
