from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from terralapse.layers.seaformer import LARGE, Positions, SeaFormer, SqueezeAttention, Stage

SMALL = (
    Stage(((3, 1, 8, 1), (3, 2, 12, 2))),
    Stage(((5, 3, 16, 2),)),
    Stage(((3, 3, 24, 2),), depth=2, key=4),
    Stage(((3, 3, 32, 2),), depth=1, key=6, ratio=3),
)
CLASSIFIER = 320 * 1000 + 1000  # of the released network, which ends in one


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def lively(module: nn.Module) -> Any:
    """In evaluation, with normalisations that have seen something and no scale of zero."""
    draw = torch.Generator().manual_seed(1)
    for m in module.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.uniform_(m.weight, 0.5, 1.5, generator=draw)
            m.running_mean.normal_(0, 0.3, generator=draw)  # pyright: ignore[reportOptionalMemberAccess]
    return module.eval()


def test_the_number_of_parameters() -> None:
    with torch.device("meta"):
        network = SeaFormer(LARGE)
    assert sum(p.numel() for p in network.parameters()) + CLASSIFIER == 14_046_504
    names = {n.partition(".")[0] for n in network.state_dict()}
    assert names == {"smb1", "smb2", "smb3", "smb4", "smb5", "trans1", "trans2", "trans3"}


def test_the_strides_and_channels() -> None:
    network = lively(SeaFormer(SMALL, stem=8, heads=2, bands=5))
    with torch.no_grad():
        maps = network(normal(2, 5, 64, 96))
    assert [tuple(m.shape) for m in maps] == [(2, 12, 16, 24), (2, 16, 8, 12), (2, 24, 4, 6), (2, 32, 2, 3)]


def test_stochastic_depth_grows_within_a_stage() -> None:
    network: Any = SeaFormer(SMALL, stem=8, heads=2, drop_path=0.3)
    rates = [[b.drop_path.rate for b in t.transformer_blocks] for t in (network.trans1, network.trans2)]
    assert rates[0] == [0.0, torch.tensor(0.3).item()]
    assert rates[1] == [0.0]


def test_positions_follow_the_length_of_the_line() -> None:
    layer = Positions(3)
    line = normal(2, 3, 16)
    assert torch.allclose(layer(line), line + layer.pos_embed)
    halves = (layer.pos_embed[..., ::2] + layer.pos_embed[..., 1::2]) / 2
    assert torch.allclose(layer(torch.zeros(1, 3, 8)), halves, atol=1e-6)


def test_attention_is_among_the_means_of_rows_and_of_columns() -> None:
    """Written out, one row after the other, for a single head."""
    layer = lively(SqueezeAttention(6, heads=1, key=4))
    x = normal(1, 6, 3, 5)
    with torch.no_grad():
        q, k, v = layer.to_q(x), layer.to_k(x), layer.to_v(x)
        detail = layer.pwconv(F.relu6(layer.dwconv(torch.cat([q, k, v], dim=1))))
        both = v.clone()
        for line, mean in (("row", 3), ("column", 2)):
            a = layer.get_submodule(f"pos_emb_{line}q")(q.mean(mean))[0]
            b = layer.get_submodule(f"pos_emb_{line}k")(k.mean(mean))[0]
            c = v.mean(mean)[0]
            found = torch.stack(
                [
                    torch.stack([w * c[:, j] for j, w in enumerate((a[:, i] @ b / 2).softmax(0))]).sum(0)
                    for i in range(a.shape[1])
                ],
                dim=1,
            )
            encoded = layer.get_submodule(f"proj_encode_{line}")(found[None, :, :, None])
            both = both + (encoded if line == "row" else encoded.transpose(2, 3))
        wanted = F.relu6(layer.proj(both) + 3) / 6 * detail
        assert torch.allclose(layer(x), wanted, atol=1e-5)
