"""Change-Agent: the published counts and layout, what each branch reads, and that the small one learns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from data_trees import levir_mci
from terralapse import registry
from terralapse.cards import DateOrder, Status, Task
from terralapse.data.catalogue import open_dataset
from terralapse.data.words import END, NULL, START, Vocabulary
from terralapse.engine.fit import fit
from terralapse.engine.recipe import Recipe
from terralapse.engine.score import score_split
from terralapse.errors import SettingError, SystemNotReadyError, WeightsMismatchError
from terralapse.grid.pair import ArrayPair
from terralapse.models.language import change_agent as m
from terralapse.sensors import Unit

UNUSED = 12_747_776
SHEET = {"encoder": 13_151_424, "interaction": 109_686_659, "decoder": 7_664_596}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def lively(network: nn.Module) -> None:
    """Normalisations that have seen something."""
    draw = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.3, generator=draw)
            module.running_var.uniform_(0.5, 1.5, generator=draw)


def system(**options: Any) -> m.ChangeAgent:
    torch.manual_seed(0)
    found = m.build(m.NANO_CARD, untrained=True, **options)
    lively(found.network)
    return found


def sentences(*lengths: int) -> Tensor:
    rows = torch.full((len(lengths), 41), NULL)
    draw = torch.Generator().manual_seed(1)
    for row, length in zip(rows, lengths, strict=True):
        row[: length + 2] = torch.tensor(
            [START, *torch.randint(4, 431, (length,), generator=draw).tolist(), END]
        )
    return rows


# --- the published layout --------------------------------------------------------------------------------
def unread_names() -> dict[str, int]:
    """What a released file holds beside, with its size, from the sheet."""
    dim, found = 512, {}
    for neck in ("Dynamic_DIF_aware_TR", "Transformer_aug_CD"):
        for i in range(3):
            for j in range(2):
                at = f"encoder_trans_dict.{neck}.{i}.{j}"
                for norm in ("Q_LN", "K_LN", "V_LN"):
                    found |= {f"{at}.att.{norm}.{p}": dim for p in ("weight", "bias")}
                found |= {f"{at}.att.fuse_conv2.0.weight": 2 * dim * dim, f"{at}.att.fuse_conv2.0.bias": dim}
                found |= {f"{at}.att.fuse_conv2.1.{p}": dim for p in ("weight", "bias")}
                found |= {f"{at}.PCM.0.weight": 9 * dim, f"{at}.PCM.3.weight": dim * dim}
                found |= {f"{at}.PCM.{k}.bias": dim for k in (0, 1, 3)} | {f"{at}.PCM.1.weight": dim}
            if neck == "Dynamic_DIF_aware_TR":
                found |= {f"encoder_trans_dict.{neck}.{i}.2.weight": 2 * dim * dim}
                found |= {f"encoder_trans_dict.{neck}.{i}.2.bias": dim}
    for k in (1, 2, 3):
        at = f"decoder_dict.transformer.layers.0.fc_alpha{k}"
        found |= {f"{at}.weight": 2 * dim * dim, f"{at}.bias": dim}
    return found | {"decoder_dict.position_encoding.embedding_1D.weight": 52 * dim}


def test_counts_are_those_of_the_sheet_without_what_nothing_reads() -> None:
    with torch.device("meta"):
        network = m.MCI(m.PAPER)
    unread = unread_names()
    assert sum(unread.values()) == UNUSED
    assert not m.official_names({name: torch.zeros(1) for name in unread})
    theirs = {"encoder": "encoder_dict", "interaction": "encoder_trans_dict", "decoder": "decoder_dict"}
    for part, wanted in SHEET.items():
        left = sum(size for name, size in unread.items() if name.startswith(theirs[part] + "."))
        assert count(network.get_submodule(part)) + left == wanted
    assert count(network) == m.MCI_CARD.parameters == sum(SHEET.values()) - UNUSED
    parts = {n: count(p) for n, p in network.interaction.named_children()}
    assert parts["conv_dif"] == 388_096
    assert parts["conv_fuse"] == 22_339_584
    assert parts["to_fused"] == 15_441_024
    assert parts["to_seg"] == 131_331
    with torch.device("meta"):
        assert count(m.MCI(m.NANO)) == m.NANO_CARD.parameters


def test_a_released_file_loads_and_another_does_not(tmp_path: Path) -> None:
    wanted = system()
    tables: dict[str, dict[str, Tensor]] = {"encoder_dict": {}, "encoder_trans_dict": {}, "decoder_dict": {}}
    for name, tensor in wanted.network.state_dict().items():
        for theirs, here in m.PREFIXES.items():
            if name.startswith(here):
                table, _, rest = f"{theirs}{name.removeprefix(here)}".partition(".")
                tables[table][rest] = tensor
    tables["decoder_dict"]["position_encoding.pe"] = torch.zeros(41, 1, 64)
    tables["encoder_trans_dict"]["Transformer_aug_CD.0.0.PCM.0.bias"] = torch.zeros(64)
    torch.save(tables, tmp_path / "MCI_model.pth")
    found = m.build(m.NANO_CARD, weights=tmp_path / "MCI_model.pth")
    own = found.network.state_dict()
    assert all(torch.equal(v, own[k]) for k, v in wanted.network.state_dict().items())
    tables["decoder_dict"]["more"] = torch.zeros(1)
    torch.save(tables, tmp_path / "other.pth")
    with pytest.raises(WeightsMismatchError, match=r"1 unknown: decoder\.more"):
        m.build(m.NANO_CARD, weights=tmp_path / "other.pth")
    save_file(own, tmp_path / "ours.safetensors")
    assert m.build(m.NANO_CARD, weights=tmp_path / "ours.safetensors").vocabulary == Vocabulary.own()
    with pytest.raises(SystemNotReadyError, match="no weights"):
        m.build(m.MCI_CARD)


def test_the_cards() -> None:
    assert {c.slug for c in m.MODELS} == {"change-agent", "change-agent/mci", "change-agent/nano"}
    for card in m.MODELS:
        assert card.task is Task.LANGUAGE
        assert card.date_order is DateOrder.ORDERED
        assert card.status is (Status.RUNS if card.slug.endswith("nano") else Status.REPRODUCED)
        assert card.inputs.normalisation is not None
        assert card.inputs.normalisation.mean[0] == pytest.approx(99.636, abs=1e-3)


# --- what each part reads --------------------------------------------------------------------------------
def test_shapes() -> None:
    network = system().network
    with torch.inference_mode():
        features = network.look(normal(2, 2, 3, 64, 96))
        assert [tuple(f.shape[1:]) for f in features[1]] == [
            (16, 16, 24),
            (32, 8, 12),
            (48, 4, 6),
            (64, 2, 3),
        ]
        assert network.interaction.detect(*features).shape == (2, 3, 64, 96)
        memory = network.remember(features)
        assert memory.shape == (6, 2, 64)
        assert network.decoder(memory, sentences(3, 5)).shape == (2, 41, 431)


def test_without_a_difference_attention_is_even() -> None:
    """What is fused set to nothing, keys and values are their biases, the same at every place."""
    layer = m.InteractionLayer(64, 4, 128).eval()
    norm = layer.att.fuse_conv[1]
    assert isinstance(norm, nn.BatchNorm2d)
    nn.init.zeros_(norm.weight)
    nn.init.normal_(layer.att.to_v.bias)
    with torch.inference_mode():
        found = layer.att(normal(1, 64, 4, 4), normal(1, 64, 4, 4, seed=1))
        assert torch.allclose(found, layer.att.to_out(layer.att.to_v.bias).expand_as(found), atol=1e-5)


def test_the_difference_counts_where_the_first_date_is() -> None:
    """Keys are made of the first map times the difference: both have a say, and their order does."""
    layer = m.InteractionLayer(64, 4, 128).eval()
    one, other = normal(1, 64, 4, 4), normal(1, 64, 4, 4, seed=1)
    with torch.inference_mode():
        assert not torch.allclose(layer(one, other), layer(other, one), atol=0.1)
        assert not torch.allclose(layer(one, other), layer(one, one), atol=1e-3)


def test_the_neck_of_the_sentence_is_even_handed_and_that_of_the_mask_is_not() -> None:
    """With both layers of a pair the same, exchanged dates exchange the maps of the one, not of the other."""
    neck = system().network.interaction
    for necks in (neck.Dynamic_DIF_aware_TR, neck.Transformer_aug_CD):
        for pair in necks.children():
            one, other = pair.children()
            other.load_state_dict(one.state_dict())
    before, after = normal(1, 64, 4, 4), normal(1, 64, 4, 4, seed=1)
    with torch.inference_mode():
        forth, back = neck.compare(before, after), neck.compare(after, before)
        assert torch.allclose(forth[0], back[1], atol=1e-6)
        assert torch.allclose(forth[1], back[0], atol=1e-6)
        forth, back = neck._locate(before, after), neck._locate(after, before)
        assert (forth[1] - back[0]).abs().max() > 0.1


def test_rows_and_columns_are_looked_up_in_each_others_table() -> None:
    neck = system().network.interaction
    with torch.inference_mode():
        code, _ = neck._placed(
            torch.zeros(1, 64, 2, 3), torch.zeros(1, 64, 2, 3), neck.h_embedding, neck.w_embedding
        )
    assert torch.equal(code[0, :32, 0, 2], neck.h_embedding.weight[2])
    assert torch.equal(code[0, :32, 1, 2], neck.h_embedding.weight[2])
    assert torch.equal(code[0, 32:, 1, 0], neck.w_embedding.weight[1])


def test_a_momentum_of_0_19_is_two_updates_of_0_1() -> None:
    """The published layer normalises the other date twice a step."""
    once, twice = nn.BatchNorm2d(4, momentum=1 - 0.9**2), nn.BatchNorm2d(4)
    x = normal(3, 4, 5, 5)
    once(x)
    twice(x)
    twice(x)
    assert once.running_mean is not None
    assert once.running_var is not None
    assert torch.allclose(once.running_mean, twice.running_mean)
    assert torch.allclose(once.running_var, twice.running_var)


def test_words_do_not_see_what_follows_nor_what_is_hidden() -> None:
    decoder = system().network.decoder
    memory, ids = normal(4, 1, 64), sentences(9)
    other = ids.clone()
    other[0, 6:] = 7
    with torch.inference_mode():
        assert torch.allclose(decoder(memory, ids)[:, :6], decoder(memory, other)[:, :6], atol=1e-5)
        hidden = torch.zeros_like(ids, dtype=torch.bool)
        hidden[0, 2] = True
        other = ids.clone()
        other[0, 2] = 9
        one, two = decoder(memory, ids, hidden), decoder(memory, other, hidden)
        assert torch.allclose(one[:, 3:], two[:, 3:], atol=1e-5)
        assert not torch.allclose(decoder(memory, ids)[:, 3:], decoder(memory, other)[:, 3:], atol=1e-4)


def test_what_is_written_follows_from_what_is_taught() -> None:
    """Each greedy word is the likeliest after the words before it, read as training reads them."""
    agent = system()
    images = normal(2, 2, 3, 64, 64)
    with torch.inference_mode():
        ids = agent.write(images)[:, :41]
        words = agent.forward(images, tokens=ids).words
        alone = agent.write(images[1:])[:, :41]
    assert words is not None
    for row, said in zip(ids, words.argmax(dim=2), strict=True):
        end = row.tolist().index(END) if END in row else len(row) - 1
        assert end > 0
        assert row[1 : end + 1].tolist() == said[:end].tolist()
    assert ids[1, : alone.shape[1]].tolist() == alone[0].tolist()


# --- the system --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("size", [(5, 7), (33, 70), (300, 40)])
def test_images_of_any_size(size: tuple[int, int]) -> None:
    agent = system()
    images = 127 + 40 * normal(1, 2, 3, *size)
    with torch.inference_mode():
        assert agent.forward(images).change().logits.shape == (1, *size)
    assert len(agent.caption(images)) == 1
    assert len(agent.caption(images, beam=2)) == 1
    with pytest.raises(SettingError, match="beam=0"):
        agent.caption(images, beam=0)


def test_it_answers_for_change_as_detectors_do() -> None:
    agent = system()
    pair = ArrayPair(
        np.random.default_rng(0).uniform(0, 255, (2, 3, 40, 50)).astype(np.float32),
        bands=("red", "green", "blue"),
        unit=Unit.RGB255,
        gsd=0.5,
    )
    state = agent.fit(pair.sample())
    images = torch.from_numpy(pair.sample().pair.read(pair.sample().windows[0]).images)[None]
    probability = agent.predict(images, torch.ones(1, 2, 40, 50, dtype=torch.bool), state)
    with torch.inference_mode():
        mask = agent.forward(agent.normalise(images, None, state)).mask
    assert mask is not None
    assert torch.allclose(probability, 1 - mask.softmax(dim=1)[:, 0], atol=1e-5)


def test_without_a_vocabulary_there_are_no_words(tmp_path: Path) -> None:
    agent = system()
    agent.vocabulary = None
    with pytest.raises(SettingError, match=r"vocabulary=vocab\.json"):
        agent.caption(normal(1, 2, 3, 32, 32))
    words = {w: i for i, w in enumerate(["<NULL>", "<UNK>", "<START>", "<END>", "road"])}
    (tmp_path / "vocab.json").write_text(json.dumps(words))
    known = m.build(m.NANO_CARD, untrained=True, vocabulary=tmp_path / "vocab.json")
    assert known.network.decoder.wdc.out_features == 5
    assert known.sentences(torch.tensor([[START, 4, 4, END]])) == ["road road"]
    with pytest.raises(SettingError, match="goal=words"):
        m.build(m.NANO_CARD, untrained=True, goal="words")


# --- learning ----------------------------------------------------------------------------------------------
def step(agent: m.ChangeAgent) -> dict[str, Tensor]:
    agent.network.train()
    batch = {
        "images": 127 + 40 * normal(2, 2, 3, 64, 64),
        "tokens": sentences(4, 8),
        "label": torch.randint(0, 3, (2, 64, 64), generator=torch.Generator().manual_seed(3)),
    }
    parts = agent.loss(agent.respond(batch, {}), batch)
    parts["total"].backward()
    return parts


def test_both_losses_are_one_and_reach_every_parameter() -> None:
    agent = system()
    parts = step(agent)
    assert float(parts["total"].detach()) == pytest.approx(2, abs=1e-6)
    assert {"mask", "captions"} < parts.keys()
    assert all(p.grad is not None for p in agent.network.parameters())


@pytest.mark.parametrize(
    ("goal", "taught"),
    [
        ("captions", ("decoder.", "interaction.h_embedding.", "interaction.w_embedding.", "interaction.Dyn")),
        (
            "mask",
            (
                "interaction.conv_",
                "interaction.to_",
                "interaction.Transformer_aug_CD.",
                "interaction.h_embedding_CD",
                "interaction.w_embedding_CD",
            ),
        ),
    ],
)
def test_one_branch_is_taught_behind_an_encoder_that_stays(goal: str, taught: tuple[str, ...]) -> None:
    agent = system(goal=goal)
    before = {k: v.clone() for k, v in agent.network.state_dict().items()}
    parts = step(agent)
    assert parts.keys() == {"total", goal}
    with_gradient = {n for n, p in agent.network.named_parameters() if p.grad is not None}
    assert with_gradient == {n for n, _ in agent.network.named_parameters() if n.startswith(taught)}
    moved = {k for k, v in agent.network.state_dict().items() if not torch.equal(v, before[k])}
    assert moved  # running statistics of what is taught
    assert all(k.startswith(taught) for k in moved)


def test_masks_alone_teach_no_sentences() -> None:
    agent = system(goal="captions")
    with pytest.raises(SettingError, match="nothing to learn"):
        agent.loss(agent.forward(normal(1, 2, 3, 32, 32)), {"label": torch.zeros(1, 32, 32)})


RECIPE = {
    "model": "change-agent/nano",
    "data": "levir-mci",
    "val_split": "train",
    "epochs": 3,
    "samples": 160,
    "batch": 4,
    "val_batch": 4,
    "size": 32,
    "lr": 3e-3,
    "weight_decay": 0.0,
    "warmup": 5,
    "ema": 0.0,
    "schedule": "constant",
    "precision": "32-true",
    "accelerator": "cpu",
    "augment": {"hflip": 0, "vflip": 0, "turn": 0},
}


def test_four_pairs_are_learned_by_heart(tmp_path: Path) -> None:
    """Through the engine: masks and sentences of two pairs with a change and two without."""
    data = levir_mci(tmp_path / "data", {"train": 4})
    stated = json.loads((data / "LevirCCcaptions.json").read_text())
    for entry in stated["images"]:  # one sentence a pair, so that there is one right answer
        entry["sentences"] = entry["sentences"][2:3]
    (data / "LevirCCcaptions.json").write_text(json.dumps(stated))
    path = fit(Recipe(**RECIPE), data, tmp_path / "run")
    found = json.loads((tmp_path / "run" / "result.json").read_text())["validation"]
    assert found["segmentation"]["miou"] > 0.95
    assert found["captions"]["bleu4"] == pytest.approx(1)
    assert found["captions"]["change_or_not"] == 1
    report = score_split("change-agent/nano", "levir-mci", data, "train", weights=path)
    whole = report.modes["whole"]
    assert list(report.modes) == ["whole"]
    assert whole.scores["captions"]["bleu4"] == pytest.approx(1)
    assert whole.interval is None
    json.dumps(report.as_dict(), allow_nan=False)
    agent = registry.build("change-agent/nano", weights=path)
    images = torch.from_numpy(open_dataset("levir-mci", data, "train")[0].images)[None]
    for beam in (1, 3):
        assert agent.caption(images, beam) == ["two houses appear at the edge of the scene"]
