"""CLIP: a vision transformer and a text transformer whose outputs are compared, under the names of OpenCLIP.

Source: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021
(arXiv:2103.00020). Weights of OpenAI, of OpenCLIP and of `transformers` (`CLIPModel`) load strictly through
`from_released`. OpenAI's were trained with x sigmoid(1.702 x) in place of GELU, most of OpenCLIP's with GELU;
nothing in a file says which.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from terralapse.errors import WeightsMismatchError

TEMPERATURE = 2.6592600369327779  # log(1 / 0.07), where its training starts
HIGHEST = 4.6051701859880914  # log(100), above which the scale is not let


@dataclass(frozen=True)
class ClipSize:
    """Side of the images and of a patch in pixels; width, layers and heads of both towers; width of the
    embedding; words and places of the text."""

    image: int = 224
    patch: int = 32
    width: int = 768
    layers: int = 12
    heads: int = 12
    text_width: int = 512
    text_layers: int = 12
    text_heads: int = 8
    embed: int = 512
    vocabulary: int = 49408
    places: int = 77


VIT_B_32 = ClipSize()
VIT_B_16 = ClipSize(patch=16)
VIT_L_14 = ClipSize(patch=14, width=1024, layers=24, heads=16, text_width=768, text_heads=12, embed=768)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)), of [B, N, C]."""

    def __init__(self, width: int, heads: int, quick: bool) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ln_1 = nn.LayerNorm(width)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, 4 * width), "c_proj": nn.Linear(4 * width, width)})
        self.ln_2 = nn.LayerNorm(width)
        self.quick = quick

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=mask)[0]
        y = self.mlp["c_fc"](self.ln_2(x))
        y = y * torch.sigmoid(1.702 * y) if self.quick else F.gelu(y)
        return x + self.mlp["c_proj"](y)


class Blocks(nn.Module):
    """Blocks one after the other."""

    def __init__(self, width: int, layers: int, heads: int, quick: bool) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(Block(width, heads, quick) for _ in range(layers))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        for block in self.resblocks:
            x = block(x, mask)
        return x


class Vision(nn.Module):
    """Images [B, 3, image, image] to [B, embed]."""

    def __init__(self, size: ClipSize, quick: bool) -> None:
        super().__init__()
        scale = size.width**-0.5
        self.conv1 = nn.Conv2d(3, size.width, size.patch, size.patch, bias=False)
        self.class_embedding = nn.Parameter(scale * torch.randn(size.width))
        grid = (size.image // size.patch) ** 2
        self.positional_embedding = nn.Parameter(scale * torch.randn(grid + 1, size.width))
        self.ln_pre = nn.LayerNorm(size.width)
        self.transformer = Blocks(size.width, size.layers, size.heads, quick)
        self.ln_post = nn.LayerNorm(size.width)
        self.proj = nn.Parameter(scale * torch.randn(size.width, size.embed))

    def forward(self, images: Tensor) -> Tensor:
        x = self.conv1(images).flatten(2).transpose(1, 2)  # [B, N, C]
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], dim=1) + self.positional_embedding
        return self.ln_post(self.transformer(self.ln_pre(x))[:, 0]) @ self.proj


class Clip(nn.Module):
    """Both towers. `quick` is the activation of OpenAI's weights."""

    def __init__(self, size: ClipSize, quick: bool = True) -> None:
        super().__init__()
        self.size = size
        self.visual = Vision(size, quick)
        self.transformer = Blocks(size.text_width, size.text_layers, size.text_heads, quick)
        self.token_embedding = nn.Embedding(size.vocabulary, size.text_width)
        self.positional_embedding = nn.Parameter(0.01 * torch.randn(size.places, size.text_width))
        self.ln_final = nn.LayerNorm(size.text_width)
        self.text_projection = nn.Parameter(size.text_width**-0.5 * torch.randn(size.text_width, size.embed))
        self.logit_scale = nn.Parameter(torch.tensor(TEMPERATURE))
        nn.init.normal_(self.token_embedding.weight, std=0.02)

    def encode_image(self, images: Tensor) -> Tensor:
        """[B, embed] of normalised images of any size, which are resized."""
        side = self.size.image
        if images.shape[-2:] != (side, side):
            images = F.interpolate(images, (side, side), mode="bicubic", antialias=True)
        return self.visual(images)

    def encode_text(self, tokens: Tensor) -> Tensor:
        """[B, embed] of ids int64 [B, L], L at most `places`, 0 after the end, whose id is the largest."""
        places = tokens.shape[1]
        x = self.token_embedding(tokens) + self.positional_embedding[:places]
        later = torch.full((places, places), float("-inf"), device=tokens.device).triu(1)
        x = self.ln_final(self.transformer(x, later))
        return x[torch.arange(len(x)), tokens.argmax(dim=1)] @ self.text_projection


# --- released files --------------------------------------------------------------------------------------
_INNER = {
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
_OUTER = {
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm": "visual.ln_pre",
    "vision_model.post_layernorm": "visual.ln_post",
    "text_model.embeddings.token_embedding": "token_embedding",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm": "ln_final",
}
_TOWER = {"vision": "visual.transformer", "text": "transformer"}
# Numbers of places and sizes that the files hold beside their weights.
_NO_WEIGHTS = re.compile(r"(.*\.)?(position_ids|attn_mask|input_resolution|context_length|vocab_size)$")


def from_released(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a released file under the names of `Clip`; those of `Clip` stay as they are.

    Raises:
        WeightsMismatchError: query, key and value of a block are not all there.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        name = name.removeprefix("module.")
        if _NO_WEIGHTS.fullmatch(name):
            continue
        if layer := re.fullmatch(r"(vision|text)_model\.encoder\.layers\.(\d+)\.(.+)", name):
            head = f"{_TOWER[layer[1]]}.resblocks.{layer[2]}"
            inner = layer[3]
            if re.match(r"self_attn\.[qkv]_proj", inner):
                if inner.startswith("self_attn.q_proj"):
                    kind = inner.rpartition(".")[2]
                    found[f"{head}.attn.in_proj_{kind}"] = _joined(tensors, name)
                continue
            base, _, kind = inner.rpartition(".")
            found[f"{head}.{_INNER.get(base, base)}.{kind}"] = tensor
        elif name in ("visual_projection.weight", "text_projection.weight"):
            found["visual.proj" if name.startswith("visual") else "text_projection"] = tensor.T.contiguous()
        elif name in _OUTER:
            found[_OUTER[name]] = tensor
        else:
            base, _, kind = name.rpartition(".")
            found[f"{_OUTER[base]}.{kind}" if base in _OUTER else name] = tensor
    return found


def _joined(tensors: dict[str, Tensor], query: str) -> Tensor:
    names = [query.replace(".q_proj.", f".{part}_proj.") for part in "qkv"]
    if lost := [n for n in names if n not in tensors]:
        raise WeightsMismatchError(lost[0], "is missing beside its query", "Get the file of weights again.")
    return torch.cat([tensors[n] for n in names])
