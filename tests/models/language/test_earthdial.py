"""EarthDial: bands in threes, the mosaic, tiles and prompts, and a tiny release from file to answer."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from terralapse import registry
from terralapse.data.tiling import plan_tiles
from terralapse.errors import (
    FileMissingError,
    ModelInputError,
    SettingError,
    SystemNotReadyError,
    UnreadableFileError,
    WeightsMismatchError,
)
from terralapse.layers.intern_vit import VitSize, pixel_shuffle, pixel_unshuffle
from terralapse.layers.shards import INDEX, load_folder
from terralapse.models.language import earthdial as m
from tiny_models import MARKS, text_config, tokenizer

TINY = m.Size(VitSize(1024, 1, 4, 64, 56), 32, side=56)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- the connector ---------------------------------------------------------------------------------------
def test_the_connector_has_the_published_size() -> None:
    with torch.device("meta"):
        network = m.Vision(m.Size())
    assert sum(p.numel() for p in network.mlp1.parameters()) == 22_034_432
    assert sum(p.numel() for p in network.vision_model.parameters()) == pytest.approx(304e6, rel=0.005)
    assert m.Size().tokens == 256
    assert m.Size(side=224).tokens == 64


def test_the_pixel_shuffle_has_an_inverse_and_keeps_rows() -> None:
    x = noise(2, 8, 6, 5)
    y = pixel_shuffle(x)
    assert y.shape == (2, 4, 3, 20)
    assert torch.equal(pixel_unshuffle(y), x)
    assert torch.equal(y[:, 1, 2, :5], x[:, 2, 4])
    assert torch.equal(y[:, 1, 2, 5:10], x[:, 2, 5])
    assert torch.equal(pixel_shuffle(x, transposed=True), y.transpose(1, 2))


@pytest.mark.parametrize(
    ("bands", "groups"),
    [
        (1, [[0, 0, 0]]),
        (4, [[0, 1, 2], [3, 3, 3]]),
        (8, [[0, 1, 2], [3, 4, 5], [6, 7, 7]]),
        (10, [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 9, 9]]),
        (12, [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]),
    ],
)
def test_bands_are_seen_in_threes(bands: int, groups: list[list[int]]) -> None:
    assert m.band_groups(bands) == groups
    pooled = m.mosaic([noise(1, 16, 24, seed=k) for k in range(len(groups))])
    assert pooled.shape == (1, 1024, 1024)


def test_the_mosaic_fills_rows_and_leaves_the_rest_zero() -> None:
    ones = [torch.full((1, 7, 5), float(k + 1)) for k in range(3)]
    found = m.mosaic(ones, 9)[0]
    assert found[:5, :5].unique().tolist() == [1.0]
    assert found[:5, 5:].unique().tolist() == [2.0]
    assert found[5:, :5].unique().tolist() == [3.0]
    assert found[5:, 5:].unique().tolist() == [0.0]
    assert torch.equal(m.mosaic([torch.eye(9)[None]], 9)[0], torch.eye(9))


def test_radar_is_one_band_seen_three_times() -> None:
    torch.manual_seed(0)
    network = m.Vision(TINY).eval()
    band = noise(1, 1, 56, 56)
    with torch.inference_mode():
        assert torch.equal(network.pool(band, "average"), network.see(band.expand(-1, 3, -1, -1)))
        assert network(band).shape == (1, 256, 32)
        assert network(noise(1, 3, 56, 56)).shape == (1, 4, 32)
        other = network.pool(noise(1, 4, 56, 56), "sum") / 2
        assert torch.allclose(other, network.pool(noise(1, 4, 56, 56), "average"), atol=1e-5)


def test_a_mosaic_for_another_width_is_refused() -> None:
    network = m.Vision(replace(TINY, vision=VitSize(32, 1, 4, 64, 56)))
    with pytest.raises(ModelInputError, match="gives 1024 channels"):
        network(noise(1, 4, 56, 56))


# --- tiles and prompts -----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("width", "height", "most", "canvas", "tiles"),
    [
        (448, 448, 6, (448, 448), 1),
        (896, 448, 6, (896, 448), 3),
        (1024, 1024, 6, (896, 896), 5),
        (1024, 1024, 12, (1344, 1344), 10),
        (300, 1000, 6, (448, 1344), 4),
    ],
)
def test_tiles_follow_the_shape(
    width: int, height: int, most: int, canvas: tuple[int, int], tiles: int
) -> None:
    plan = plan_tiles(width, height, most=most)
    assert (plan.canvas, plan.tiles) == (canvas, tiles)


def test_tiles_that_make_no_grid_are_refused() -> None:
    with pytest.raises(SettingError, match="make no grid"):
        plan_tiles(10, 10, least=3, most=2)


def test_prompts_of_one_two_and_four_dates() -> None:
    assert (
        m.prompt("classify", "s2_rgb_10", 1, "What is it?") == "[classify] [s2_rgb_10] <image> \n What is it?"
    )
    two = m.prompt("changedet", "hr_rgb_temp_0.5", 2, "What changed?", released=True)
    assert two == "[changedet] [hr_rgb_temp_0.5] <image> <image> \\n What changed?"
    assert m.prompt("changedet", "hr_rgb_temp_0.5", 4, "?").count("<image>") == 4
    text = m.talk(m.prompt("changedet", "hr_rgb_temp_0.5", 2, "?"), [2, 3])
    assert text.startswith("<|system|>\n你是")
    assert text.endswith(
        "<|end|><|user|>\n[changedet] [hr_rgb_temp_0.5] <img><IMG_CONTEXT><IMG_CONTEXT></img> "
        "<img><IMG_CONTEXT><IMG_CONTEXT><IMG_CONTEXT></img> \n ?<|end|><|assistant|>\n"
    )
    assert "<|user|>\n<img><IMG_CONTEXT></img>\nHi<|end|>" in m.talk("Hi", [1])
    with pytest.raises(ModelInputError, match="2 marks"):
        m.talk("<image> <image>", [1])
    with pytest.raises(SettingError, match="task guess"):
        m.prompt("guess", "s2_rgb_10", 1, "?")


def test_scalings_are_by_band_and_refuse_others() -> None:
    assert len(m.SCALINGS["s2_l2a"].mean) == len(m.SCALINGS["s2_l2a"].std) == 12
    assert m.SCALINGS["sar"](torch.full((1, 2, 2), -20.26)).abs().max() == 0
    with pytest.raises(ModelInputError, match="scaled as 12"):
        m.SCALINGS["s2_l2a"](torch.zeros(10, 2, 2))


# --- a release -------------------------------------------------------------------------------------------
VISION = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
    "image_size": 56, "patch_size": 14, "qkv_bias": True, "qk_normalization": False,
    "norm_type": "layer_norm", "layer_norm_eps": 1e-6, "initializer_factor": 0.1,
}  # fmt: skip


def write_release(folder: Path, **more: Any) -> dict[str, Tensor]:
    """A folder as the authors publish it, at a tiny size, in two shards; its tensors."""
    words = tokenizer((*MARKS, *(f"[{t}]" for t in (*m.TASKS, *m.SENSORS))))
    words.save_pretrained(folder)
    llm = text_config(len(words), hidden_size=32) | {
        "model_type": "phi3",
        "architectures": ["Phi3ForCausalLM"],
    }
    config = {
        "model_type": "internvl_chat", "auto_map": {"AutoModel": "modeling_internvl_chat.InternVLChatModel"},
        "vision_config": VISION, "llm_config": llm, "downsample_ratio": 0.5, "ps_version": "v2",
        "select_layer": -1, "force_image_size": 56, "max_dynamic_patch": 6, "use_thumbnail": True,
        "template": "phi3-chat", "torch_dtype": "float32",
    } | more  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    made = m.EarthDial(m.read_size(config), m._language_model(config, torch.float32))
    tensors = {k: v.clone().contiguous() for k, v in made.state_dict().items()}
    names = sorted(tensors)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, own in parts.items():
        save_file({k: tensors[k] for k in own}, folder / file)
    table = {name: file for file, own in parts.items() for name in own}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": table}))
    return tensors


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("earthdial")
    write_release(folder)
    return folder


@pytest.fixture(scope="module")
def system(release: Path) -> m.EarthDialSystem:
    return registry.build("earthdial", weights=release, pooling="average")


def test_names_are_those_of_the_release(system: m.EarthDialSystem) -> None:
    names = set(system.network.state_dict())
    assert {
        "vision_model.embeddings.class_embedding",
        "vision_model.encoder.layers.1.attn.qkv.weight",
        "vision_model.encoder.layers.0.ls1",
        "mlp1.0.weight",
        "mlp1.3.bias",
        "language_model.model.embed_tokens.weight",
        "language_model.lm_head.weight",
    } <= names


def test_a_release_is_loaded_and_answers(system: m.EarthDialSystem) -> None:
    rng = np.random.default_rng(0)
    before, after = rng.uniform(0, 255, (2, 3, 56, 112))
    question = m.prompt("changedet", "hr_rgb_temp_0.5", 2, "What changed?")
    seen = system.look([before, after])
    assert [s.shape for s in seen] == [(3 * 4, 32)] * 2  # two tiles and a thumbnail of 4 tokens
    one = system.answer([before, after], question, tokens=4)
    assert isinstance(one, str)
    assert one == system.answer([before, after], question, tokens=4)


def test_what_it_says_next_depends_on_the_images_and_their_order(system: m.EarthDialSystem) -> None:
    rng = np.random.default_rng(0)
    before, after = rng.uniform(0, 255, (2, 3, 56, 56))
    text = m.talk(m.prompt("changedet", "hr_rgb_temp_0.5", 2, "?"), [4, 4])
    ids = system.tokenizer(text, return_tensors="pt").input_ids
    context = system.tokenizer.convert_tokens_to_ids(m.CONTEXT)

    def scores(*dates: Any) -> Tensor:
        with torch.inference_mode():
            embedded = system.network.embed(ids, context, torch.cat(system.look(dates)))
            return system.network.language_model(inputs_embeds=embedded).logits[0, -1]

    assert (scores(before, after) - scores(after, before)).abs().max() > 1e-5
    assert torch.equal(scores(before, after), scores(before, after))
    with pytest.raises(ModelInputError, match="have 8 marks"):
        system.network.embed(ids, context, torch.zeros(7, 32))


def test_bands_and_radar_are_answered_too(system: m.EarthDialSystem) -> None:
    bands = np.random.default_rng(0).uniform(0, 3000, (12, 40, 40))
    assert system.tiles(bands, "s2_l2a").shape == (1, 12, 56, 56)
    assert [s.shape for s in system.look([bands], "s2_l2a")] == [(4, 32)]
    assert isinstance(system.answer([np.full((1, 40, 40), -15.0)], "Any ships?", "sar", tokens=2), str)
    assert system.boxes("<ref>a</ref><box>[[1, 2, 3, 4, 5]]</box> [1, 2]") == [[1, 2, 3, 4, 5]]


def test_dates_share_the_tiles(system: m.EarthDialSystem) -> None:
    image = np.zeros((3, 224, 224))
    assert len(system.tiles(image)) == 5
    assert [len(s) for s in system.look([image] * 4)] == [4] * 4


# --- what is refused -------------------------------------------------------------------------------------
def test_a_release_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    tensors = write_release(tmp_path)
    first, second = sorted(tmp_path.glob("model-*.safetensors"))
    network = m.EarthDial(
        m.read_size(json.loads((tmp_path / "config.json").read_text())),
        m._language_model(json.loads((tmp_path / "config.json").read_text()), torch.float32),
    )
    load_folder(network, tmp_path)
    assert all(torch.equal(v, tensors[k]) for k, v in network.state_dict().items())
    kept = second.read_bytes()
    second.unlink()
    with pytest.raises(FileMissingError, match="is missing"):
        load_folder(network, tmp_path)
    second.write_bytes(kept[:200])
    with pytest.raises(UnreadableFileError):
        load_folder(network, tmp_path)
    second.write_bytes(kept)
    index = json.loads((tmp_path / INDEX).read_text())
    gone = next(n for n, f in index["weight_map"].items() if f == second.name)
    save_file(
        {k: tensors[k] for k, f in index["weight_map"].items() if f == second.name and k != gone}, second
    )
    with pytest.raises(WeightsMismatchError, match="not what its index says"):
        load_folder(network, tmp_path)
    del index["weight_map"][gone]
    (tmp_path / INDEX).write_text(json.dumps(index))
    with pytest.raises(WeightsMismatchError, match="1 missing"):
        load_folder(network, tmp_path)
    index["weight_map"][gone] = "../elsewhere.safetensors"
    (tmp_path / INDEX).write_text(json.dumps(index))
    with pytest.raises(UnreadableFileError, match="no safetensors beside it"):
        load_folder(network, tmp_path)
    assert first.is_file()


def test_tied_embeddings_may_be_in_a_file_once(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
            self.other.weight = self.one.weight

    save_file({"one.weight": torch.eye(3)}, tmp_path / "model.safetensors")
    network = Tied()
    load_folder(network, tmp_path)
    assert torch.equal(network.other.weight, torch.eye(3))
    save_file({"one.weight": torch.eye(3), "x": torch.eye(3)}, tmp_path / "model.safetensors")
    with pytest.raises(WeightsMismatchError, match="1 unknown: x"):
        load_folder(network, tmp_path)


@pytest.mark.parametrize(
    "more",
    [
        {"vision_config": VISION | {"qk_normalization": True}},
        {"template": "internlm2-chat"},
        {"downsample_ratio": 0},
        {"llm_config": {}},
    ],
)
def test_configs_that_are_no_earthdial_are_refused(more: dict[str, Any]) -> None:
    config = {"vision_config": VISION, "llm_config": {"hidden_size": 32}, "downsample_ratio": 0.5} | more
    with pytest.raises(UnreadableFileError, match="describes no EarthDial"):
        m.read_size(config)


def test_without_weights_or_pooling_it_says_so(release: Path) -> None:
    with pytest.raises(SystemNotReadyError, match="EarthDial_4B_MS"):
        registry.build("earthdial/ms")
    with pytest.raises(SettingError, match="pools nothing"):
        registry.build("earthdial", weights=release, pooling="max")
    with pytest.raises(FileMissingError, match="no released folder"):
        registry.build("earthdial", weights=release.parent)


def test_a_tokenizer_without_the_marks_is_refused(system: m.EarthDialSystem) -> None:
    with pytest.raises(ModelInputError, match="<IMG_CONTEXT>"):
        m.EarthDialSystem(system.card, system.network, tokenizer(("<img>", "</img>")))
