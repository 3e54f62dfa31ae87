"""BLIP-2 on captions: a tiny one of random weights in the layout of `transformers`, trained, saved, read by
`transformers`, and scored."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from terralapse import registry
from terralapse.data.shards import ShardWriter
from terralapse.engine.fit import fit
from terralapse.engine.recipe import Recipe
from terralapse.engine.score import score_split
from terralapse.errors import (
    FileMissingError,
    SettingError,
    SystemNotReadyError,
    UnreadableFileError,
    UnsafeWeightsError,
)
from terralapse.tasks.image_captions import ImageCaptionMeasure, ImageCaptionOutput

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 40, 220)}
SIDE = 28  # of the encoder; the shards hold images of 32


def caption(colour: str) -> str:
    return f"The image showcases: A {colour} field lies here."


def image(colour: str, rng: np.random.Generator) -> np.ndarray:
    noise = rng.integers(-20, 20, (32, 32, 3))
    return (np.array(COLOURS[colour]) + noise).clip(0, 255).astype(np.uint8)


def speak(language: Any, tokenizer: Any, end: int) -> None:
    """Teaches a language model to go on with a sentence of the word that it has read four times, since a
    random one says the same whatever it is shown."""
    words = {c: tokenizer.encode(f" {c}", add_special_tokens=False)[0] for c in COLOURS}
    told = [tokenizer.encode(f"A {c} field lies here.", add_special_tokens=False) for c in COLOURS]
    assert len({len(t) for t in told}) == 1
    rows = torch.tensor([[*[w] * 4, 2, *t, end] for w, t in zip(words.values(), told, strict=True)])
    optimiser = torch.optim.AdamW(language.parameters(), 1e-2, weight_decay=0.0)
    loss = torch.tensor(1.0)
    for _ in range(120):
        optimiser.zero_grad()
        loss = language(input_ids=rows, labels=rows.masked_fill(torch.arange(rows.shape[1]) < 5, -100)).loss
        loss.backward()
        optimiser.step()
    assert float(loss.detach()) < 0.05


def make_model(folder: Path) -> Path:
    """OPT with 32 channels behind a transformer of four queries; its end is no token of the tokenizer's own
    choice, as in blip2-opt, whose captions end with a line feed."""
    pieces = tokenizers.Tokenizer(tokenizers.models.BPE())
    pieces.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=True)
    pieces.decoder = tokenizers.decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<image>"]
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    pieces.train_from_iterator([f"A {c} field lies here." for c in COLOURS] * 3, trainer)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=pieces, bos_token="</s>", eos_token="</s>", pad_token="<pad>",
        clean_up_tokenization_spaces=False,
    )  # fmt: skip
    end = pieces.token_to_id("Ċ")  # a line feed
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
              "image_size": SIDE, "patch_size": 14}  # fmt: skip
    asking = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
              "encoder_hidden_size": 32, "vocab_size": 8, "max_position_embeddings": 8}  # fmt: skip
    text = {"model_type": "opt", "hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2,
            "num_attention_heads": 2, "word_embed_proj_dim": 32, "vocab_size": len(tokenizer),
            "max_position_embeddings": 96, "dropout": 0.0, "bos_token_id": 2, "eos_token_id": 2,
            "pad_token_id": 1}  # fmt: skip
    config = transformers.Blip2Config(
        vision_config=vision, qformer_config=asking, text_config=text, num_query_tokens=4,
        image_token_index=3,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.Blip2ForConditionalGeneration(config)
    torch.nn.init.normal_(model.query_tokens, std=0.5)
    torch.nn.init.normal_(model.vision_model.embeddings.patch_embedding.weight, std=0.3)  # it sees colours
    model.generation_config.eos_token_id = end
    speak(model.language_model, tokenizer, end)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    prepared = {"image_mean": [0.48145466, 0.4578275, 0.40821073],
                "image_std": [0.26862954, 0.26130258, 0.27577711],
                "size": {"height": SIDE, "width": SIDE}}  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(prepared))
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("blip2"))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `terralapse captions make` writes them: twelve to learn from, six to be measured on."""
    root, rng = tmp_path_factory.mktemp("made"), np.random.default_rng(0)
    for split, number in (("train", 12), ("val", 6)):
        (root / split).mkdir()
        with ShardWriter(root / split / "captions-00000.tar") as shard:
            for n in range(number):
                colour = list(COLOURS)[n % 3]
                said = [caption(colour), caption(colour)]
                shard.add(f"{n:08d}_{colour}", image(colour, rng), said, {"captions": said})
    return root


RECIPE = Recipe(
    model="gaia/blip2", data="image-text", epochs=3, samples=90, batch=6, val_batch=6, size=32, lr=1e-2,
    warmup=5, weight_decay=0.0, ema=0.0, precision="32-true", accelerator="cpu",
    augment={"hflip": 0.0, "vflip": 0.0, "turn": 0.0},
)  # fmt: skip


def built(model: Path, **more: Any) -> Any:
    return registry.build("gaia/blip2", untrained=True, folder=model, longest=24, length=16, **more)


def theirs(folder: Path, images: torch.Tensor) -> tuple[list[list[int]], list[str]]:
    """What `transformers` by itself writes about prepared images [B, 3, SIDE, SIDE], as ids and as texts."""
    loaded = transformers.Blip2ForConditionalGeneration.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    with torch.inference_mode():
        ids = loaded.generate(pixel_values=images, max_new_tokens=16, min_new_tokens=1, do_sample=False)
    texts = [str(tokenizer.decode(row, skip_special_tokens=True)).strip() for row in ids]
    return ids.tolist(), texts


# --- one model, two programs -----------------------------------------------------------------------------
def test_loss_and_captions_are_those_of_transformers(model: Path) -> None:
    """Also of captions of several lengths, whose ends fill up."""
    system = built(model)
    torch.manual_seed(1)
    images = torch.randn(3, 3, SIDE, SIDE)
    texts = ["The image showcases: A red field lies here.", "blue", "green green green"]
    with torch.inference_mode():
        ours = system.forward(images[:, None], torch.from_numpy(system.tokens_of(texts))).loss
        said = system.forward(images[:, None]).texts
    loaded = transformers.Blip2ForConditionalGeneration.from_pretrained(model).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    end = loaded.generation_config.eos_token_id
    rows = [
        [*tokenizer.encode(t, add_special_tokens=False), end] for t in ("A red field lies here.", *texts[1:])
    ]
    total, count = 0.0, 0
    for one, row in zip(images, rows, strict=True):
        ids = torch.tensor([[3] * 4 + [2, *row]])
        with torch.inference_mode():
            logits = loaded(pixel_values=one[None], input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        follows = logits[0, 4:-1]
        total += float(torch.nn.functional.cross_entropy(follows, torch.tensor(row), reduction="sum"))
        count += len(row)
    assert float(ours) == pytest.approx(total / count, rel=1e-5)
    assert said == theirs(model, images)[1]


def test_images_of_any_size_are_brought_to_the_encoder(model: Path) -> None:
    system = built(model)
    flat = torch.full((1, 3, 90, 60), 100.0)
    assert system.caption(flat) == system.caption(torch.full((1, 3, SIDE, SIDE), 100.0))


def test_what_is_taught_ends_and_is_cut(model: Path) -> None:
    system = built(model)
    language = system.blip.language
    assert language.start == [2]
    assert language.tokenizer.decode([language.end], skip_special_tokens=False) == "\n"
    rows = system.tokens_of([caption("red"), "A red field lies here.", "green " * 40])
    assert rows.shape == (3, 24)
    assert rows[0].tolist() == rows[1].tolist()
    assert rows[0][rows[0] > 0][-1] == language.end + 1
    assert (rows[2] > 0).sum() == 23  # the start counts
    assert rows[2][22] != language.end + 1
    assert system.cut == 1


# --- training --------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def trained(model: Path, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from dataclasses import replace

    recipe = replace(RECIPE, build={"folder": str(model), "longest": 24, "length": 16})
    return fit(recipe, shards, tmp_path_factory.mktemp("runs") / "run").parent


def test_it_learns_and_says_what_it_was_taught(trained: Path) -> None:
    losses = [json.loads(line)["loss"] for line in (trained / "log.jsonl").read_text().splitlines()]
    assert losses[-1] < 0.2 * losses[0]
    found = json.loads((trained / "result.json").read_text())["validation"]["captions"]
    assert found["images"] == 6
    assert found["bleu4"] > 0.9
    assert found["empty"] == 0


def test_only_the_queries_have_changed(trained: Path, model: Path) -> None:
    before, after = (load_file(f / "model.safetensors") for f in (model, trained / "transformers"))
    assert before.keys() == after.keys()
    assert all(after[n].dtype == t.dtype for n, t in before.items())
    moved = {n for n in before if not torch.equal(before[n], after[n])}
    assert moved
    assert {n.split(".")[0] for n in moved} == {"query_tokens", "qformer", "language_projection"}
    kept = load_file(trained / "weights.safetensors")
    assert {n.split(".")[0] for n in kept} == {"query_tokens", "qformer", "language_projection"}
    assert all(torch.equal(kept[n].float(), after[n].float()) for n in kept)


def test_the_saved_folder_is_a_model_of_transformers(trained: Path, model: Path) -> None:
    folder = trained / "transformers"
    assert not list(trained.glob("*.part"))
    name = "preprocessor_config.json"
    assert (folder / name).read_bytes() == (model / name).read_bytes()
    system = registry.build("gaia/blip2", weights=trained / "weights.safetensors", folder=model, length=16)
    rng = np.random.default_rng(9)
    pixels = torch.from_numpy(np.stack([image(c, rng) for c in COLOURS])).permute(0, 3, 1, 2).float()
    ours = system.caption(pixels)
    assert ours == [f"A {c} field lies here." for c in COLOURS]
    normal = system.normalise(pixels[:, None], None, {})[:, 0]
    small = torch.nn.functional.interpolate(
        normal, (SIDE, SIDE), mode="bicubic", antialias=True, align_corners=False
    )
    ids, texts = theirs(folder, small)
    assert texts == ours
    assert all(system.blip.language.end in row for row in ids), "it stops by itself"
    again = built(folder)
    assert again.caption(pixels) == ours


def test_a_split_is_scored_from_the_weights(trained: Path, model: Path, shards: Path) -> None:
    build = {"folder": str(model), "longest": 24, "length": 16}
    weights = trained / "weights.safetensors"
    report = score_split("gaia/blip2", "image-text", shards, "val", build=build, weights=weights)
    mode = report.modes["whole"]
    assert (list(report.modes), mode.samples, mode.main) == (["whole"], 6, "captions.bleu4")
    known = json.loads((trained / "result.json").read_text())["validation"]["captions"]
    assert mode.scores["captions"]["bleu4"] == pytest.approx(known["bleu4"], abs=1e-9)
    json.dumps(report.as_dict(), allow_nan=False)


# --- counting --------------------------------------------------------------------------------------------
def counted(texts: Sequence[str], references: list[list[str]]) -> ImageCaptionMeasure:
    measure = ImageCaptionMeasure()
    measure.update(ImageCaptionOutput(texts=list(texts), references=references), {})
    return measure


def test_captions_are_counted_without_loss() -> None:
    references = [["A größer field of wheat", "wheat"], ["Water lies in the middle"]]
    measure = counted(["a größer field of wheat", ""], references)
    assert measure.said(measure.counts()["stream"]) == [
        ["a größer field of wheat", *references[0]],
        ["", *references[1]],
    ]
    one, two = counted(["a"], [["a"]]), counted(["b c"], [["b", "c d"]])
    both = measure.said(one.joined([one.counts(), two.counts()])["stream"])
    assert both == [["a", "a"], ["b c", "b", "c d"]]
    found = measure.compute()["captions"]
    assert (found["images"], found["empty"]) == (2, 0.5)
    right = counted([r[0] for r in references], references).compute()["captions"]
    assert right["bleu4"] == pytest.approx(1.0, abs=1e-6)
    assert found["bleu4"] < 0.9


# --- what is refused -------------------------------------------------------------------------------------
def test_without_a_model_or_weights_it_is_not_built(model: Path) -> None:
    with pytest.raises(SystemNotReadyError, match="Give the folder of a BLIP-2"):
        registry.build("gaia/blip2", untrained=True)
    with pytest.raises(SystemNotReadyError, match="untrained=true"):
        registry.build("gaia/blip2", folder=model)
    with pytest.raises(SettingError, match="leaves no room"):
        registry.build("gaia/blip2", untrained=True, folder=model, longest=2)
    with pytest.raises(SettingError, match="no such type"):
        built(model, dtype="int8")


def copied(model: Path, folder: Path) -> Path:
    folder.mkdir()
    for path in model.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_folders_that_are_no_such_model_are_one_error(model: Path, tmp_path: Path) -> None:
    with pytest.raises(FileMissingError, match="is not there"):
        built(tmp_path / "nowhere")
    other = copied(model, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "model_type": "blip"}))
    with pytest.raises(SettingError, match="holds a model of the kind 'blip'"):
        built(other)
    (other / "config.json").write_text(json.dumps({**config, "use_decoder_only_language_model": False}))
    with pytest.raises(SettingError, match="an encoder of its own"):
        built(other)


def test_a_model_that_lacks_weights_or_is_no_safetensors_is_refused(model: Path, tmp_path: Path) -> None:
    part = copied(model, tmp_path / "part")
    tensors = load_file(part / "model.safetensors")
    save_file({k: v for k, v in tensors.items() if k != "query_tokens"}, part / "model.safetensors",
              metadata={"format": "pt"})  # fmt: skip
    with pytest.raises(UnreadableFileError, match="lacks 1 tensors, query_tokens"):
        built(part)
    (part / "model.safetensors").rename(part / "pytorch_model.bin")
    with pytest.raises(UnsafeWeightsError, match="no safetensors"):
        built(part)


def test_a_model_that_sees_other_colours_is_refused(model: Path, tmp_path: Path) -> None:
    other = copied(model, tmp_path / "other")
    (other / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5, 0.5, 0.5]}))
    with pytest.raises(SettingError, match="normalises images by image_mean"):
        built(other)


def test_systems_of_pairs_do_not_take_single_images(shards: Path) -> None:
    with pytest.raises(SettingError, match=r"captions no single images.*gaia/blip2"):
        score_split("change-agent/nano", "image-text", shards, "val", build={"untrained": True})
