"""GAIA: the schema, the split by cells, captions by rules, and two towers that learn pairs by heart."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from terralapse import registry
from terralapse.data.bpe import Bpe
from terralapse.errors import SettingError, UnreadableFileError
from terralapse.layers.clip import Clip, ClipSize, from_released
from terralapse.layers.two_towers import TwoTowers, hashed_words
from terralapse.models.language import gaia as g
from terralapse.tasks.made_text import Item, faults

ABOUT = {"tag": "river;crop", "satellite": "Sentinel-2", "sensor": "MSI", "modality": "Optical", "gsd": 10,
         "location": "Novi Sad, Serbia", "lat": 45.2, "lon": 19.8}  # fmt: skip


def item(seed: int = 0, **about: object) -> Item:
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (4, 4, 3), np.uint8)
    return Item(f"i{seed}", blocks.repeat(16, axis=0).repeat(16, axis=1), about={**ABOUT, **about})


def test_five_captions_by_rules_fill_the_schema_and_hold() -> None:
    maker = registry.build("gaia")
    for seed in range(20):
        statistics = maker.statistics(item(seed))
        captions = maker.write(statistics, seed)
        record = maker.record(statistics, captions)
        assert g.record_faults(record) == []
        assert not [f for c in captions for f in faults(c, maker.sheet(statistics))]
        assert record["resolution"] == "High"
        assert "Novi Sad, Serbia" in captions[0]


def test_a_broken_record_is_told() -> None:
    maker = registry.build("gaia")
    statistics = maker.statistics(item())
    good = maker.record(statistics, maker.write(statistics, 0))
    assert "five" not in g.record_faults(good)
    assert any("list of 5" in f for f in g.record_faults({**good, "captions": good["captions"][:4]}))
    assert any("resolution" in f for f in g.record_faults({**good, "resolution": "Medium"}))
    assert any("same" in f for f in g.record_faults({**good, "captions": [good["captions"][0]] * 5}))
    assert any(
        "begin" in f for f in g.record_faults({**good, "captions": ["A field", *good["captions"][1:]]})
    )
    with pytest.raises(UnreadableFileError, match="no number"):
        maker.statistics(item(lat="north"))


def test_no_cell_of_place_and_month_is_in_two_splits() -> None:
    rng = np.random.default_rng(0)
    places = np.stack([rng.uniform(-60, 60, 4000), rng.uniform(-180, 180, 4000)], axis=1)
    splits = [g.split_of(lat, lon, "2020-05-01") for lat, lon in places]
    by_cell: dict[tuple[int, ...], set[str]] = {}
    for (lat, lon), split in zip(places, splits, strict=True):
        by_cell.setdefault((int(np.floor(lat)), int(np.floor(lon))), set()).add(split)
    assert {len(s) for s in by_cell.values()} == {1}
    assert abs(splits.count("train") / 4000 - 0.7) < 0.05
    assert g.split_of(1.2, 3.4, "2020-05-01") == g.split_of(1.9, 3.1, "2020-05-30")


def test_a_reply_is_read_only_in_its_form() -> None:
    maker = registry.build("gaia")
    said = [f"The image showcases: Field {n}." for n in range(5)]
    assert maker.read("```json\n" + json.dumps({"captions": said}) + "\n```") == said
    assert maker.read(json.dumps({"captions": said[:4]})) == []
    assert maker.read(json.dumps({"captions": ["A field."] * 5})) == []
    assert maker.read("I am sorry.") == []


def test_a_name_that_is_not_known_is_found() -> None:
    maker = registry.build("gaia")
    sheet = maker.sheet(maker.statistics(item()))
    assert {f.kind for f in faults("The image showcases: A field seen by Landsat-8.", sheet)} >= {"number"}
    assert {f.kind for f in faults("The image showcases: A field near Belgrade.", sheet)} == {"name"}
    assert faults("The image showcases: River scene of Sentinel-2 at 10 m.", sheet) == []


def test_small_towers_learn_pairs_by_heart() -> None:
    torch.manual_seed(0)
    system = g.GaiaClip(g.NANO, TwoTowers(64, 64, 16), lambda t: hashed_words(t, 16))
    images = torch.randint(0, 256, (32, 1, 3, 4, 4)).float().repeat_interleave(4, -1).repeat_interleave(4, -2)
    texts = system.tokens_of([f"The image showcases: word{chr(97 + n)} {n}" for n in range(32)])
    batch = {"images": images, "tokens": torch.from_numpy(texts)}
    optimiser = torch.optim.AdamW(system.network.parameters(), 2e-3)
    for _ in range(60):
        output = system.respond(batch, {})
        optimiser.zero_grad()
        system.loss(output, batch)["total"].backward()
        optimiser.step()
    output = system.respond(batch, {})
    cosines = output.images @ output.texts.T
    assert cosines.argmax(dim=1).tolist() == list(range(32))
    assert cosines.argmax(dim=0).tolist() == list(range(32))


TINY = ClipSize(32, 8, 64, 2, 2, 64, 2, 2, 32, 514, 16)


def merges(path: Path) -> Path:
    (path / "merges.txt").write_text("#version: 0.2\nl o\nlo w</w>\n", encoding="utf-8")
    return path


def test_tokens_of_clip(tmp_path: Path) -> None:
    bpe = Bpe(merges(tmp_path))
    assert bpe.size == 516
    row = bpe.encode("Low  lo", 8)
    assert row[[0, 1]].tolist() == [514, 513]  # start, and the merge of lo and w</w>
    # "lo" is l and o</w>: there is no merge for it
    assert row.tolist()[2:] == [ord("l") - 33, 256 + ord("o") - 33, 515, 0, 0, 0]
    assert bpe.encode("low " * 20, 8)[-1] == bpe.end
    (tmp_path / "other.txt").write_text("a b c\nd e f\n")
    with pytest.raises(UnreadableFileError, match="merges"):
        Bpe(tmp_path / "other.txt")


def test_weights_under_the_names_of_transformers_give_the_same_outputs() -> None:
    transformers = pytest.importorskip("transformers")
    t, v = TINY, {"hidden_act": "quick_gelu"}
    config = transformers.CLIPConfig(
        text_config={"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "vocab_size": 514,
                     "num_attention_heads": 2, "max_position_embeddings": 16, "eos_token_id": 513, **v},
        vision_config={"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "image_size": 32,
                       "num_attention_heads": 2, "patch_size": 8, **v},
        projection_dim=32,
    )  # fmt: skip
    torch.manual_seed(0)
    theirs = transformers.CLIPModel(config).eval()
    ours = Clip(t).eval()
    ours.load_state_dict(from_released(theirs.state_dict()), strict=True)
    images, tokens = torch.randn(2, 3, 32, 32), torch.tensor([[512, 7, 9, 513, 0], [512, 3, 513, 0, 0]])
    with torch.inference_mode():
        mask = (tokens != 0).long()
        out = theirs(input_ids=tokens, pixel_values=images, attention_mask=mask)
        for mine, other in (
            (ours.encode_image(images), out.image_embeds),
            (ours.encode_text(tokens), out.text_embeds),
        ):
            torch.testing.assert_close(
                torch.nn.functional.normalize(mine, dim=1), other, rtol=1e-4, atol=1e-5
            )


def test_clip_without_merges_is_refused() -> None:
    with pytest.raises(SettingError, match="merges"):
        registry.build("gaia/clip-b32", untrained=True)
