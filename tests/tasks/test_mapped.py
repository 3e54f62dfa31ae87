from __future__ import annotations

import pytest
import torch
from torch import Tensor

from terralapse.tasks.losses import cross_entropy
from terralapse.tasks.mapped import MapContrast, map_contrast, padded_label


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def total(parts: dict[str, Tensor]) -> float:
    return float(sum(parts.values()))


def test_images_that_look_like_the_map_cost_minus_one() -> None:
    g = normal(2, 8, 4, 4)
    found = map_contrast(MapContrast(g, g, g), torch.zeros(2, 16, 16, dtype=torch.long))
    assert float(found["before_alike"]) == pytest.approx(-0.5, abs=1e-5)
    assert float(found["after_alike"]) == pytest.approx(-0.5, abs=1e-5)
    assert total(found) == pytest.approx(-1.0, abs=1e-5)
    alone = map_contrast(MapContrast(g, None, g), torch.zeros(2, 16, 16, dtype=torch.long))
    assert total(alone) == pytest.approx(-1.0, abs=1e-5)


def test_changed_places_are_pushed_away() -> None:
    g = normal(1, 8, 2, 2)
    label = torch.zeros(1, 8, 8, dtype=torch.long)
    label[:, :4, :4] = 1  # one of four
    found = map_contrast(MapContrast(g, g, g), label)
    assert float(found["after_unlike"]) == pytest.approx(1.0, abs=1e-5)
    assert float(found["after_alike"]) == pytest.approx(-3 / 7, abs=1e-5)
    assert float(found["before_alike"]) == pytest.approx(-4 / 7, abs=1e-5)
    plain = map_contrast(MapContrast(g, g, g), label, balanced=False)
    assert float(plain["after_unlike"]) == pytest.approx(1 / 8, abs=1e-5)
    away = map_contrast(MapContrast(g, g, -g), label)
    assert float(away["after_unlike"]) == 0.0


def test_it_trains_the_images_and_not_the_map() -> None:
    parts = MapContrast(*(normal(1, 4, 2, 2, seed=s).requires_grad_() for s in range(3)))
    sum(map_contrast(parts, torch.zeros(1, 8, 8, dtype=torch.long)).values()).backward()  # pyright: ignore
    assert parts.about.grad is None
    assert parts.before is not None
    assert all(x.grad is not None and x.grad.abs().sum() > 0 for x in (parts.before, parts.after))


def test_ignored_pixels_count_nowhere_unless_asked() -> None:
    g, z = normal(1, 8, 2, 4), normal(1, 8, 2, 4, seed=1)
    label = torch.zeros(1, 8, 16, dtype=torch.long)
    label[..., 8:] = 255
    half = MapContrast(g[..., :2], z[..., :2], z[..., :2])
    found = map_contrast(MapContrast(g, z, z), label)
    assert total(found) == pytest.approx(total(map_contrast(half, label[..., :8])), abs=1e-5)
    theirs = map_contrast(MapContrast(g, z, z), label, faithful=True)
    assert total(theirs) == pytest.approx(
        total(map_contrast(MapContrast(g, z, z), torch.zeros_like(label))), abs=1e-5
    )
    nothing = map_contrast(MapContrast(g, z, z), torch.full_like(label, 255))
    assert total(nothing) == 0.0


def test_the_published_entropy_divides_by_all_pixels() -> None:
    logits, label = normal(1, 2, 4, 4), torch.zeros(1, 4, 4, dtype=torch.long)
    label[:, :1] = 255
    assert torch.allclose(cross_entropy(logits, label, over_all=True), 0.75 * cross_entropy(logits, label))


def test_the_padding_of_a_label_is_unknown() -> None:
    found = padded_label(torch.ones(1, 5, 32, dtype=torch.long), 32)
    assert found.shape == (1, 32, 32)
    assert (found[:, 5:] == 255).all()
    assert (found[:, :5] == 1).all()
