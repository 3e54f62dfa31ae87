"""CDMaskFormer: the network stage by stage, its score, and the loss of its queries."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from golden.case import Case, NotCoveredError, Result
from terralapse.models.change.cdmaskformer import (
    SIZES,
    CDMaskFormer,
    change_score,
    official_names,
    stretched,
)
from terralapse.tasks.set_loss import changed_object, costs, match, set_loss

CONFIG = {
    "channels": [64, 128, 192, 256],
    "num_classes": 1,
    "num_queries": 5,
    "dec_layers": 14,
    "backbone": "SeaFormer-L",
}


def run(case: Case) -> Result:
    if case.config != CONFIG:
        raise NotCoveredError(f"the configuration {case.config}")
    network = CDMaskFormer(SIZES[""]).eval()
    network.load_state_dict(official_names(case.state_dict()), strict=True)
    before, after = (torch.from_numpy(case.input(n)) for n in ("xA", "xB"))
    with torch.inference_mode():
        first, second = network.pyramids(before, after)
        changes = network.changes(first, second)
        pyramid, positions, features = network.pixel_decoder(changes)
        classes, masks = network.predictor(pyramid, positions, features)
        outputs = {
            "score": stretched(change_score(classes[-1], masks[-1], before.shape))[:, None],
            "pred_logits": classes[-1],
            "pred_masks": masks[-1],
            "mask_features": features,
        }
    outputs |= {f"aux{i}_logits": classes[i] for i in range(len(classes) - 1)}
    outputs |= {f"aux{i}_masks": masks[i] for i in range(len(masks) - 1)}
    outputs |= {f"backboneA_{i}": m for i, m in enumerate(first)}
    outputs |= {f"tff{i}": m for i, m in enumerate(changes, start=1)}
    outputs |= {f"pixel_decoder_{i}": m for i, m in enumerate(pyramid)}
    return Result(
        outputs={n: t for n, t in outputs.items() if n in case.stored},
        values=losses() if case.spec.get("losses") else {},
    )


def draw(seed: int, *shape: int) -> Tensor:
    rng = np.random.Generator(np.random.Philox(key=seed))
    return torch.from_numpy(rng.standard_normal(shape).astype("float32"))


def losses() -> dict[tuple[str | int, ...], object]:
    """As the recipe of the case says in words; the final prediction is its first one."""
    classes = torch.stack([draw(600 + 2 * k, 2, 5, 2) for k in range(3)])
    masks = torch.stack([3 * draw(601 + 2 * k, 2, 5, 6, 8) for k in range(3)])
    label = torch.from_numpy(np.random.Generator(np.random.Philox(key=650)).integers(0, 2, (2, 24, 32)))
    objects = changed_object(label)
    upper = label.clone()
    upper[:, 4:] = 0
    found = {
        "final_only": set_loss(classes[:1], masks[:1], objects),
        "final_and_two_auxiliary": set_loss(classes, masks, objects),
        "final_and_two_auxiliary_target_rows_4_and_below_set_to_0": set_loss(
            classes, masks, changed_object(upper)
        ),
    }
    matched = match(costs(classes[0], masks[0], objects), objects.there)[:, 0]
    return {
        **{("losses", name): float(parts["total"]) for name, parts in found.items()},
        ("losses", "matched_query_of_each_image_for_the_final_prediction"): matched.tolist(),
    }
