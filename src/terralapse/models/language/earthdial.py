"""EarthDial: talk about images of one or several dates and of any bands, by a language model.

Source: Soni et al., "EarthDial: Turning Multi-sensory Earth Observations to Interactive Dialogues", CVPR 2025
(arXiv:2412.15190), and its released code, whose names its parameters have. An InternViT sees tiles; a pixel
shuffle and two linear maps make them tokens, which stand in the prompt where its marks of images are. Images
that are not of three bands are seen three bands at a time, and what is seen is pooled. Differs from the
released code in: the language model is any causal one of `transformers`, built from the configuration of the
checkpoint; images of several dates are put in the place of their own mark, as in its training, where its
method for a talk puts all into the first; pooling by maximum, which does not run there, is not here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from terralapse.cards import Card, Figure, Inputs, Licences, Status, Task
from terralapse.data.tiling import cut_tiles, plan_tiles
from terralapse.errors import (
    FileMissingError,
    ModelInputError,
    SettingError,
    SystemNotReadyError,
    UnreadableFileError,
)
from terralapse.layers.chat_models import library, read_config
from terralapse.layers.intern_vit import InternViT, VitSize, pixel_shuffle
from terralapse.layers.shards import load_folder
from terralapse.registry import register
from terralapse.tasks.rotated_boxes import Box, parse_boxes

Pooling = Literal["bilinear", "average", "sum"]

MOSAIC = 1024  # pixels of a side of the bilinear pooling, and its tokens and channels
GROUP = 3  # bands that the encoder sees at once
START, CONTEXT, END = "<img>", "<IMG_CONTEXT>", "</img>"
IMAGE = "<image>"  # stands in a question for a date
# The message that the base of its checkpoints (InternVL2-4B) was tuned with.
SYSTEM = (
    "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，"
    "英文名叫InternVL, 是一个有用无害的人工智能助手。"
)
TASKS = (
    "grounding", "refer", "identify", "classify", "changedet", "caption", "treeclassify", "uhi",
)  # fmt: skip
SENSORS = (
    "s2_rgb_10", "l8_rgb_30", "hr_rgb_0.5", "hr_rgb_temp_0.5", "hr_rgbi_0.5", "s1_vh_10", "s1_vh_1",
    "s1_vh_temp_10", "s2_ms_10", "l8_ms_30", "hyper_rgb_3",
)  # fmt: skip


# --- what goes in ----------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Scaling:
    """x' = (x - mean) / std by band; one number stands for all bands."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, image: Tensor) -> Tensor:
        """Of an image [C, H, W]."""
        bands = len(image)
        if len(self.mean) not in (1, bands):
            raise ModelInputError(
                f"{bands} bands", f"are scaled as {len(self.mean)}", "Choose the scaling of their source."
            )
        mean, std = (torch.tensor(v, dtype=torch.float32)[:, None, None] for v in (self.mean, self.std))
        return (image.float() - mean) / std


SCALINGS: dict[str, Scaling] = {
    "rgb": Scaling((0.485 * 255, 0.456 * 255, 0.406 * 255), (0.229 * 255, 0.224 * 255, 0.225 * 255)),
    "s2_l2a": Scaling(
        (756.4, 889.6, 1151.7, 1307.6, 1637.6, 2212.6, 2442.0, 2538.9, 2602.9, 2666.8, 2388.8, 1821.5),
        (1111.4, 1159.1, 1188.1, 1375.2, 1376.6, 1358.6, 1418.4, 1476.4, 1439.9, 1582.1, 1460.7, 1352.2),
    ),
    "lcz": Scaling((0.0,), (1.0,)),
    "rgbi": Scaling((0.0,), (255.0,)),
    "methane": Scaling((0.0,), (255.0,)),
    "l8_uhi": Scaling(
        (1685.92, 2576.61, 3412.41, 4061.92, 4908.37, 4252.26, 4252.26, 4252.26),
        (359.73, 418.77, 568.26, 626.04, 978.89, 866.68, 866.68, 866.68),
    ),
    "sar": Scaling((-20.26,), (5.91,)),
}


def prompt(task: str, sensor: str, dates: int, question: str, released: bool = False) -> str:
    """A question as the system was trained on it: the marks of task and sensor, one of an image for each
    date, a line break, the question.

    Args:
        released: with a backslash and an n in place of the line break, as its evaluation files have it.

    Raises:
        SettingError: no such task or sensor, or no date.
    """
    for kind, name, known in (("task", task, TASKS), ("sensor", sensor, SENSORS)):
        if name not in known:
            raise SettingError(f"{kind} {name}", "is not known", f"Choose one of {', '.join(known)}.")
    if dates < 1:
        raise SettingError(f"dates {dates}", "is nothing to look at", "Give one or more.")
    marks = " ".join([IMAGE] * dates)
    return f"[{task}] [{sensor}] {marks} {chr(92) + 'n' if released else chr(10)} {question}"


def talk(question: str, tokens: Sequence[int], history: Sequence[tuple[str, str]] = ()) -> str:
    """The whole text in the form of phi3-chat, with every mark of an image replaced by its tokens.

    Args:
        question: with a mark for each of `tokens`; those that it or the talk lacks are put before the first.
        tokens: of each date.
        history: questions and answers before.

    Raises:
        ModelInputError: more marks than images.
    """
    turns = [*history, (question, "")]
    asked = [q for q, _ in turns]
    lack = len(tokens) - sum(q.count(IMAGE) for q in asked)
    if lack < 0:
        raise ModelInputError(
            f"{len(tokens)} images", f"have {len(tokens) - lack} marks in the text", "Give an image for each."
        )
    asked[0] = f"{IMAGE}\n" * lack + asked[0]
    text = f"<|system|>\n{SYSTEM}<|end|>"
    for said, (_, answer) in zip(asked, turns, strict=True):
        text += f"<|user|>\n{said}<|end|><|assistant|>\n" + (f"{answer}<|end|>" if answer else "")
    for number in tokens:
        text = text.replace(IMAGE, START + CONTEXT * number + END, 1)
    return text


def band_groups(bands: int) -> list[list[int]]:
    """Numbers of the bands that are seen together: three at a time in order, the last one repeated to fill
    the last group, so that a single band (radar) is seen three times."""
    return [[min(k, bands - 1) for k in range(first, first + GROUP)] for first in range(0, bands, GROUP)]


def mosaic(maps: Sequence[Tensor], side: int = MOSAIC) -> Tensor:
    """Matrices [B, T, C] (tokens by channels) as pictures in a grid of ceil(sqrt(G)) rows: [B, side, side].

    Each is resized bilinearly to its place, the first rows and columns taking the pixels that are left over;
    places without a matrix are 0. Tokens and channels are mixed by it: that is what the checkpoints saw.
    """
    rows = math.ceil(math.sqrt(len(maps)))
    columns = math.ceil(len(maps) / rows)
    heights, widths = ([side // n + (k < side % n) for k in range(n)] for n in (rows, columns))
    lines = []
    for r in range(rows):
        line = []
        for c in range(columns):
            size = heights[r], widths[c]
            k = r * columns + c
            if k < len(maps):
                picture = F.interpolate(maps[k][:, None], size, mode="bilinear", align_corners=False)[:, 0]
            else:
                picture = maps[0].new_zeros(len(maps[0]), *size)
            line.append(picture)
        lines.append(torch.cat(line, dim=2))
    return torch.cat(lines, dim=1)


# --- the network -----------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Size:
    """Of the stack beside the language model. `side` is the size of a tile."""

    vision: VitSize = field(default_factory=VitSize)
    width: int = 3072  # of the language model
    factor: int = 2  # of the pixel shuffle
    transposed: bool = False  # version v1 of it
    select: int = -1  # the layer that is read
    side: int = 448
    most_tiles: int = 6
    thumbnail: bool = True

    @property
    def tokens(self) -> int:
        """Of a tile."""
        return (self.side // self.vision.patch // self.factor) ** 2


class Vision(nn.Module):
    """Encoder and connector: images to tokens of the language model."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        if size.select != -1:
            raise SettingError(
                f"select_layer={size.select}", "is not built", "The released ones read the last."
            )
        self.size = size
        self.vision_model = InternViT(size.vision)
        wide = size.vision.width * size.factor**2
        self.mlp1 = nn.Sequential(
            nn.LayerNorm(wide), nn.Linear(wide, size.width), nn.GELU(), nn.Linear(size.width, size.width)
        )

    @property
    def weight(self) -> Tensor:
        """One of the connector, for its type and device."""
        return self.mlp1.get_parameter("1.weight")

    def see(self, images: Tensor) -> Tensor:
        """Patch tokens [B, T, C] of images [B, 3, H, W]; the class token is dropped."""
        return self.vision_model(images)[:, 1:]

    def connect(self, seen: Tensor) -> Tensor:
        """Tokens [B, T / f^2, D] of the language model from patch tokens [B, T, C] of a square."""
        side = math.isqrt(seen.shape[1])
        square = seen.unflatten(1, (side, side))  # [B, h, w, C]
        return self.mlp1(pixel_shuffle(square, self.size.factor, self.size.transposed).flatten(1, 2))

    def pool(self, image: Tensor, pooling: Pooling = "bilinear") -> Tensor:
        """Patch tokens of images [B, C, H, W] of any bands, seen three at a time without gradient: [B, T, C]
        by average or sum, [B, 1024, 1024] by the bilinear mosaic."""
        with torch.no_grad():
            maps = [self.see(image[:, g]) for g in band_groups(image.shape[1])]
        if pooling == "bilinear":
            return mosaic(maps)
        total = torch.stack(maps).sum(dim=0)
        return total / len(maps) if pooling == "average" else total

    def forward(self, images: Tensor, pooling: Pooling = "bilinear") -> Tensor:
        """Tokens [B, N, D] of normalised images [B, C, H, W] of the encoder's size."""
        seen = self.see(images) if images.shape[1] == GROUP else self.pool(images, pooling)
        if seen.shape[2] != self.size.vision.width:
            raise ModelInputError(
                "bilinear pooling",
                f"gives {seen.shape[2]} channels, and the connector takes {self.size.vision.width}",
                "Use average with an encoder of another width.",
            )
        return self.connect(seen)


class EarthDial(Vision):
    """With its language model."""

    def __init__(self, size: Size, language_model: nn.Module) -> None:
        super().__init__(size)
        self.language_model: Any = language_model

    def embed(self, ids: Tensor, context: int, visual: Tensor) -> Tensor:
        """Embeddings [1, L, D] of a text int64 [1, L] whose marks of context are `visual` [N, D].

        Raises:
            ModelInputError: there are more or fewer marks than tokens.
        """
        found: Tensor = self.language_model.get_input_embeddings()(ids).clone()
        here = ids == context
        if int(here.sum()) != len(visual):
            raise ModelInputError(
                f"{len(visual)} visual tokens", f"have {int(here.sum())} marks in the text", "Report this."
            )
        found[here] = visual.to(found.dtype)
        return found


# --- the system ------------------------------------------------------------------------------------------
class EarthDialSystem:
    """Answers questions on images. Not trained here.

    `tokenizer` knows the marks of the release; `pooling` is that of the checkpoint.
    """

    def __init__(self, card: Card, network: EarthDial, tokenizer: Any, pooling: Pooling = "bilinear") -> None:
        self.card, self.network, self.tokenizer, self.pooling = card, network.eval(), tokenizer, pooling
        self._marks = {m: tokenizer.convert_tokens_to_ids(m) for m in (START, CONTEXT, END, "<|end|>")}
        lost = [m for m, i in self._marks.items() if i is None or i == tokenizer.unk_token_id]
        if lost:
            raise ModelInputError(
                "the tokenizer", f"does not know {', '.join(lost)}", "Use the one that came with the weights."
            )

    def tiles(self, image: np.ndarray | Tensor, scaling: str = "rgb", most: int | None = None) -> Tensor:
        """Normalised inputs [n, C, side, side] of one date [C, H, W].

        An image of three bands in 0 to 255 is cut into tiles; any other is resized as a whole, its bands in
        the order and units of their source.

        Raises:
            SettingError: no such scaling. ModelInputError: its bands are others.
        """
        if scaling not in SCALINGS:
            raise SettingError(f"scaling {scaling}", "is not known", f"Choose one of {', '.join(SCALINGS)}.")
        scale, side = SCALINGS[scaling], self.network.size.side
        given = torch.as_tensor(np.asarray(image))
        if given.ndim != 3:
            raise ModelInputError(f"an image of {given.ndim} axes", "is not [C, H, W]", "Give one date.")
        if len(given) != GROUP:
            whole = scale(given)[None]
            return F.interpolate(whole, (side, side), mode="bilinear", align_corners=False)
        size = self.network.size
        picture = Image.fromarray(given.clamp(0, 255).permute(1, 2, 0).to(torch.uint8).numpy())
        plan = plan_tiles(*picture.size, side, 1, most or size.most_tiles, size.thumbnail)
        return torch.stack([scale(torch.from_numpy(t).permute(2, 0, 1)) for t in cut_tiles(picture, plan)])

    def look(self, dates: Sequence[np.ndarray | Tensor], scaling: str = "rgb") -> list[Tensor]:
        """Visual tokens [N, D] of each date; the dates share the number of tiles."""
        most = max(1, self.network.size.most_tiles // max(1, len(dates)))
        weight = self.network.weight
        with torch.inference_mode():
            return [
                self.network(self.tiles(d, scaling, most).to(weight), self.pooling).flatten(0, 1)
                for d in dates
            ]

    def answer(
        self,
        dates: Sequence[np.ndarray | Tensor],
        question: str,
        scaling: str = "rgb",
        history: Sequence[tuple[str, str]] = (),
        tokens: int = 200,
    ) -> str:
        """The likeliest answer to a question (see `prompt`) on images [C, H, W], one a date, in order."""
        seen = self.look(dates, scaling)
        text = talk(question, [len(s) for s in seen], history)
        device = seen[0].device if seen else self.network.weight.device
        ids = self.tokenizer(text, return_tensors="pt", add_special_tokens=True).input_ids.to(device)
        with torch.inference_mode():
            visual = torch.cat(seen) if seen else self.network.weight.new_zeros(0, self.network.size.width)
            embedded = self.network.embed(ids, self._marks[CONTEXT], visual)
            wrote = self.network.language_model.generate(
                inputs_embeds=embedded,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=tokens,
                eos_token_id=self._marks["<|end|>"],
                pad_token_id=self._marks["<|end|>"],
            )[0]
        return self.tokenizer.decode(wrote, skip_special_tokens=True).strip()

    def boxes(self, answer: str) -> list[Box]:
        """The boxes in an answer: x1, y1, x2, y2 in hundredths of the image, and degrees."""
        return [b for b in parse_boxes(answer) if len(b) == 5]


# --- released folders ------------------------------------------------------------------------------------
def read_size(config: dict[str, Any]) -> Size:
    """Of the `config.json` of a released folder.

    Raises:
        UnreadableFileError: it lacks something, or describes what no released checkpoint is.
    """
    try:
        v = config["vision_config"]
        if v.get("qk_normalization") or v.get("norm_type", "layer_norm") != "layer_norm":
            raise ValueError("an encoder with other norms")
        if config.get("template", "phi3-chat") != "phi3-chat":
            raise ValueError(f"the template {config['template']}")
        vision = VitSize(
            v["hidden_size"],
            v["num_hidden_layers"],
            v["num_attention_heads"],
            v["intermediate_size"],
            v["image_size"],
            v["patch_size"],
            v.get("qkv_bias", True),
            v.get("layer_norm_eps", 1e-6),
            v.get("initializer_factor", 0.1),
        )
        return Size(
            vision,
            config["llm_config"]["hidden_size"],
            round(1 / config["downsample_ratio"]),
            config.get("ps_version", "v1") == "v1",
            config.get("select_layer", -1),
            config.get("force_image_size") or v["image_size"],
            config.get("max_dynamic_patch", 6),
            config.get("use_thumbnail", True),
        )
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise UnreadableFileError(
            "config.json", f"describes no EarthDial ({error})", "Use a released folder."
        ) from error


def _language_model(config: dict[str, Any], dtype: torch.dtype) -> nn.Module:
    known = library()
    told = {k: v for k, v in config["llm_config"].items() if k not in ("auto_map", "_name_or_path")}
    try:
        made = known.AutoConfig.for_model(told.pop("model_type"), **told)
        made._attn_implementation = "sdpa"
        return known.AutoModelForCausalLM.from_config(made, dtype=dtype, trust_remote_code=False)
    except (KeyError, ValueError, TypeError) as error:
        said = " ".join(str(error).split())[:200]
        raise UnreadableFileError(
            "llm_config", f"is of no language model that is known here ({said})", "Renew transformers."
        ) from error


def load(card: Card, folder: Path, pooling: Pooling = "bilinear", device: str = "cpu") -> EarthDialSystem:
    """A released folder: `config.json`, a tokenizer, and safetensors in one file or several with an index.

    Raises:
        FileMissingError, UnreadableFileError, WeightsMismatchError: it is not whole, or no EarthDial.
        MissingExtraError: `transformers` is not installed.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise FileMissingError(path, "is missing, so this is no released folder", "Give the whole folder.")
    config = read_config(path)
    size = read_size(config)
    dtype = getattr(torch, str(config.get("torch_dtype", config.get("dtype", "float32"))), torch.float32)
    tokenizer = _tokenizer(folder)
    network = EarthDial(size, _language_model(config, dtype)).to(dtype)
    load_folder(network, folder)
    return EarthDialSystem(card, network.to(device), tokenizer, pooling)


def _tokenizer(folder: Path) -> Any:
    try:
        return library().AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        said = " ".join(str(error).split())[:200]
        raise UnreadableFileError(
            folder, f"has no usable tokenizer ({said})", "Get the whole folder."
        ) from error


# --- cards -----------------------------------------------------------------------------------------------
TITLE = "EarthDial: Turning Multi-sensory Earth Observations to Interactive Dialogues"
RELEASED = {
    "earthdial": ("", "optical images in natural colours, one to four dates"),
    "earthdial/ms": (": multispectral and radar", "multispectral, radar and tree images"),
    "earthdial/methane-uhi": (": methane and heat", "methane plumes and urban heat"),
}
HUBS = {"earthdial": "RGB", "earthdial/ms": "MS", "earthdial/methane-uhi": "Methane_UHI"}


def _card(slug: str) -> Card:
    more, what = RELEASED[slug]
    return Card(
        slug=slug,
        title=TITLE + more,
        task=Task.LANGUAGE,
        status=Status.REPRODUCED,
        summary=f"Answers questions, describes and points out by rotated boxes: {what}.",
        year=2024,
        paper="arXiv:2412.15190",
        repository="https://github.com/hiyamdebary/EarthDial",
        inputs=Inputs(dates=0),
        licences=Licences(code="MIT"),
        figures=(
            Figure(
                "largest relative error of outputs",
                1e-4,
                "golden cases earthdial/connector, earthdial/metrics and earthdial/tiling",
                "bound of the comparison with the published encoder, connector, pooling, tiling and scores "
                "on a CPU, at reduced width and without the language model",
                "golden",
            ),
        ),
        quirks=(
            "Bands beyond three are seen three at a time, and their tokens and channels resized as one "
            "picture of 1024 x 1024: both axes are subsampled and mixed.",
            "Pooling by maximum does not run in the released code, and is not here.",
            "Its accuracy is a recall of words, and its precision of boxes matches a true box many times.",
        ),
        limits=(
            "Needs a folder of released weights (about 9 GB) and transformers; no released weights have been "
            "run here, only the stack at reduced size against the published code.",
            "The largest settings of a checkpoint are read from its config: tiles are 448 or 224 pixels.",
            "What it says is not held against facts: ask a finished run for answers that are.",
        ),
        checkpoints=f"Hugging Face akshaydudhane/EarthDial_4B_{HUBS[slug]}",
    )


MODELS = tuple(_card(slug) for slug in RELEASED)


@register(*MODELS)
def build(
    card: Card, weights: Path | str | None = None, *, pooling: str = "bilinear", device: str = "cpu"
) -> EarthDialSystem:
    """The system of a card from a released folder.

    Args:
        card: one of `MODELS`.
        weights: the folder.
        pooling: of bands beyond three: `bilinear` (as trained), `average` or `sum`.
        device: where it runs.

    Raises:
        SystemNotReadyError: no folder is given; none comes with it.
        SettingError: no such pooling. And what `load` raises.
    """
    if pooling not in get_args(Pooling):
        raise SettingError(f"pooling={pooling}", "pools nothing", f"Choose {', '.join(get_args(Pooling))}.")
    if weights is None:
        raise SystemNotReadyError(
            card.slug,
            "no weights come with it",
            f"Give the folder of a release with --weights: {card.checkpoints}.",
        )
    return load(card, Path(weights), pooling, device)  # pyright: ignore[reportArgumentType]
