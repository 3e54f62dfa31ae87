from __future__ import annotations

import torch
from torch import Tensor, nn

from terralapse.layers.map_encoder import KConcat, MapEncoder, MapFusion, mix_candidates


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def ids(classes: int, *shape: int) -> Tensor:
    return torch.randint(0, classes, shape, generator=torch.Generator().manual_seed(2))


def lively(network: nn.Module) -> nn.Module:
    draw = torch.Generator().manual_seed(1)
    for m in network.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.normal_(0, 0.3, generator=draw)
            m.running_var.uniform_(0.5, 1.5, generator=draw)
    return network.eval()


def test_shares_of_classes_in_cells_of_four() -> None:
    """Bilinear to a quarter takes the middle four pixels of each cell of sixteen."""
    known = torch.zeros(1, 4, 8, dtype=torch.long)
    known[0, 1, 1], known[0, 1, 2], known[0, 2, 5] = 1, 255, 2
    found = MapEncoder(3).shares(known)
    assert found.shape == (1, 4, 1, 2)
    assert torch.allclose(found[0, :, 0, 0], torch.tensor([0.5, 0.25, 0.0, 0.25]))
    assert torch.allclose(found[0, :, 0, 1], torch.tensor([0.75, 0.0, 0.25, 0.0]))


def test_renaming_the_classes_with_their_weights_changes_nothing() -> None:
    torch.manual_seed(0)
    encoder = lively(MapEncoder(5, 8))
    known, order = ids(6, 2, 16, 24), torch.tensor([3, 0, 4, 1, 2, 5])
    known[known == 5] = 255
    renamed = torch.where(known == 255, 255, order[known.clamp(max=5)])
    with torch.no_grad():
        wanted = encoder(known)
        weight = encoder.layer1.weight
        weight[:, order] = weight.clone()
        assert torch.allclose(encoder(renamed), wanted, atol=1e-6)
        assert not torch.allclose(encoder(known), wanted, atol=1e-3)


def test_any_value_that_is_no_class_says_nothing() -> None:
    torch.manual_seed(0)
    encoder = lively(MapEncoder(3, 8))
    with torch.no_grad():
        found = [encoder(torch.full((1, 8, 8), v)) for v in (3, 9, 255, -1)]
    assert all(torch.equal(f, found[0]) for f in found)


def test_one_candidate_is_taken_as_it_is() -> None:
    torch.manual_seed(0)
    fusion = MapFusion((6,), 3, width=5, k=1, map_width=4).eval()
    features, about = normal(1, 6, 4, 4), normal(1, 4, 4, 4, seed=1)
    with torch.no_grad():
        wanted = fusion.temporal_fusion_modules[0](torch.cat([features, about], dim=1))
        assert torch.allclose(fusion.level(0, features, about), wanted, atol=1e-6)


def test_weights_of_the_candidates_sum_to_one() -> None:
    scores = 3 * normal(2, 4 * 5, 3, 3)
    ones = mix_candidates(torch.ones(2, 4 * 5, 3, 3), scores, 4)
    assert torch.allclose(ones, torch.ones(2, 5, 3, 3))
    sure = torch.zeros(1, 4 * 5, 1, 1)
    sure[0, 2 * 5 : 3 * 5] = 50  # the third candidate, for all channels
    candidates = normal(1, 4 * 5, 1, 1)
    assert torch.allclose(mix_candidates(candidates, sure, 4), candidates[:, 10:15])


def test_candidates_have_maps_of_their_own() -> None:
    torch.manual_seed(0)
    concat = lively(KConcat(6, 4, 3))
    x = normal(1, 6, 2, 2)
    with torch.no_grad():
        wanted = concat(x)
        concat.conv2.conv.weight[4:8] += 1.0
        changed = (concat(x) - wanted).abs().amax(dim=(0, 2, 3)) > 1e-6
    assert not changed[:4].any()
    assert changed[4:8].any()
    assert not changed[8:].any()
