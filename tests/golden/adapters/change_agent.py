"""Change-Agent: one BI3 layer, and MCI whole: both branches, written sentences, losses, score of the mask."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from golden.case import Case, NotCoveredError, Result
from terralapse.cards import Card
from terralapse.data.words import END, NULL
from terralapse.models.language import change_agent as m
from terralapse.tasks.captions import balanced, caption_loss
from terralapse.tasks.losses import cross_entropy
from terralapse.tasks.metrics import confusion_matrix, segmentation_scores

LAYER = "encoder_trans_dict.Transformer_aug_CD.0.0."  # where a bare layer stands in a released file


def run(case: Case) -> Result:
    with torch.inference_mode():
        if "network" in case.config:
            return _mci(case)
        if "attention_dim" in case.config:
            return _layer(case)
    raise NotCoveredError(f"the configuration {case.config}")


def _layer(case: Case) -> Result:
    c = case.config
    if c["norm_first"] or len({c["dim_q"], c["dim_kv"], c["attention_dim"]}) > 1:
        raise NotCoveredError("a layer that the network does not have")
    layer = m.InteractionLayer(c["dim_q"], c["heads"], c["hidden_dim"], c["dropout"])
    theirs = {LAYER + name: tensor for name, tensor in case.state_dict().items()}
    prefix = "interaction." + LAYER.partition(".")[2]
    ours = {k.removeprefix(prefix): v for k, v in m.official_names(theirs).items()}
    layer.load_state_dict(ours, strict=True)
    layer.eval()
    one, other = (_map(torch.from_numpy(case.input(n))) for n in ("x1", "x2"))
    dropped = [n for n in case.keys if m.UNREAD.fullmatch(LAYER + n) and not _buffer(n)]
    return Result(
        outputs={"y": layer(one, other).flatten(2).transpose(1, 2)},
        values={
            ("parameters",): _count(layer) + _size(case, dropped),
            ("unused", "parameters_without_gradient"): dropped,
        },
    )


def _mci(case: Case) -> Result:
    c = case.config
    if (c["network"], c["decoder_n_layers"]) != ("segformer-mit_b1", 1):
        raise NotCoveredError(f"{c['network']} with {c['decoder_n_layers']} layers of words")
    size = m.Size(
        m.PAPER.encoder, c["n_layers"], c["n_heads"], m.PAPER.hidden, c["vocab_size"], c["max_length"]
    )
    network = m.MCI(size)
    network.load_state_dict(m.official_names(case.state_dict()), strict=True)
    network.eval()
    system = m.ChangeAgent(_card(), network, None)
    images = torch.stack([torch.from_numpy(case.input(n)) for n in ("A", "B")], dim=1)
    tokens = torch.from_numpy(case.input("token_ids"))
    features = network.look(images)
    mask = network.interaction.detect(*features)
    maps = network.interaction.compare(features[0][3], features[1][3])
    words = network.decoder(network.decoder.memory(maps), tokens, (tokens == NULL) | (tokens == END))
    order = case.spec["outputs"]["caption_logits"]["order"]
    outputs = {
        "mask_logits": mask,
        "caption_map_1": maps[0],
        "caption_map_2": maps[1],
        "caption_logits": words[order],
        "stage4_A": features[0][3],
        "stage4_B": features[1][3],
        "stage1_A": features[0][0],
    }
    label = torch.from_numpy(_draw(case, "mask_labels"))
    losses = caption_loss(words, tokens), cross_entropy(mask, label)
    counts = confusion_matrix(label.numpy(), mask.argmax(dim=1).numpy(), 3)
    scores = segmentation_scores(counts)
    dropped = [n for n in case.keys if m.UNREAD.fullmatch(n) and not _buffer(n)]
    parts = {
        theirs: _count(part) + _size(case, [n for n in dropped if n.startswith(theirs)])
        for theirs, part in zip(
            ("encoder_dict", "encoder_trans_dict", "decoder_dict"),
            (network.encoder, network.interaction, network.decoder),
            strict=True,
        )
    }
    rows = counts.sum(axis=1)
    iou = np.array(scores.iou)
    values: dict[Any, Any] = {
        ("parameters",): {**parts, "total": sum(parts.values())},
        ("unused", "parameters_without_gradient"): dropped,
        ("losses", "caption_cross_entropy"): losses[0].item(),
        ("losses", "mask_cross_entropy"): losses[1].item(),
        ("losses", "joint_balanced"): balanced(*losses).item(),
        ("metrics_on_argmax_mask", "mIoU"): scores.miou,
        ("metrics_on_argmax_mask", "pixel_accuracy"): float(np.trace(counts) / counts.sum()),
        ("metrics_on_argmax_mask", "class_accuracy"): float((np.diag(counts) / rows).mean()),
        ("metrics_on_argmax_mask", "FWIoU"): float((rows / rows.sum() * iou).sum()),
        ("greedy_ids",): [_written(system.write(i[None])) for i in images],
        ("greedy_ids_dates_swapped",): [_written(system.write(i[None].flip(1))) for i in images],
        ("beam3_ids",): [_written(system.write(i[None], beam=3)) for i in images],
    }
    return Result(outputs=outputs, values=values)


def _card() -> Card:
    return m.MCI_CARD


def _map(tokens: Tensor) -> Tensor:
    side = round(tokens.shape[1] ** 0.5)
    return tokens.transpose(1, 2).unflatten(2, (side, side))


def _draw(case: Case, name: str) -> np.ndarray:
    """Labels of 0, 1 and 2, from the seed in the words of the recipe."""
    spec = case.input_spec(name)
    seed = int(spec["recipe"].partition("key=")[2].partition(")")[0])
    return np.random.Generator(np.random.Philox(key=seed)).integers(0, 3, spec["shape"])


def _written(ids: Tensor) -> list[int]:
    return ids[0].tolist()


def _buffer(name: str) -> bool:
    return name.endswith(("running_mean", "running_var", "num_batches_tracked", ".pe"))


def _size(case: Case, names: list[str]) -> int:
    return sum(int(np.prod(case.keys[n]["shape"])) for n in names)


def _count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
