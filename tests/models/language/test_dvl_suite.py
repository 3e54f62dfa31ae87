"""DVLChat: sets of LoRA weights, images in texts, masks from a token, learning, and files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

pytest.importorskip("transformers")

from terralapse import registry
from terralapse.data.dvl import DvlSuite, message
from terralapse.data.dvl_made import made_scene, write_made
from terralapse.errors import ModelInputError, SettingError, SystemNotReadyError, WeightsMismatchError
from terralapse.layers.chat_tokens import _SAM, Bytes, official_sam
from terralapse.layers.lora import Chosen, LoraLinear
from terralapse.models.language import dvl_suite as m

MASK = np.zeros((48, 48), bool)
MASK[12:30, 18:36] = True


def made(**options: object) -> m.DVLChatSystem:
    torch.manual_seed(0)
    return registry.build("dvl-suite/dvlchat-nano", untrained=True, **options)


@pytest.fixture(scope="module")
def system() -> m.DVLChatSystem:
    return made()


def pictures(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (count, 3, 48, 48)).astype(np.float32)


def changed() -> np.ndarray:
    both = np.full((2, 3, 48, 48), 60, np.float32)
    both[1][:, MASK] = 220
    return both


BATCH = (
    m.Taught(pictures(3), "<image><image><image>Which?", "B"),
    m.Taught(changed(), "<image><image>Where?", "[SEG].", MASK),
)


# --- LoRA ------------------------------------------------------------------------------------------------
def test_each_row_uses_its_own_set() -> None:
    torch.manual_seed(0)
    base, chosen = nn.Linear(6, 4), Chosen()
    layer = LoraLinear(base, m.Size(2, 4.0, (), 1), chosen)
    x = torch.randn(2, 5, 6)
    with chosen.use(torch.tensor([0, 1])):
        assert torch.equal(layer(x), base(x))  # B starts at zero
        layer.B.data.normal_()
        y = layer(x)
    for row in range(2):
        wanted = base(x[row]) + 2.0 * x[row] @ layer.A[row].T @ layer.B[row].T
        assert torch.allclose(y[row], wanted, atol=1e-6)
    assert torch.equal(layer(x), base(x))  # nobody chose
    with chosen.use(torch.tensor([0])), pytest.raises(ValueError, match="1 rows"):
        layer(x)


def test_only_what_is_new_is_taught(system: m.DVLChatSystem) -> None:
    network = system.network
    system.loss(BATCH)["total"].backward()
    learnt = {n for n, p in network.named_parameters() if p.requires_grad}
    assert not any(n.startswith("sam.vision_encoder") or ".base." in n for n in learnt)
    assert any(n.startswith("sam.mask_decoder") for n in learnt)
    B = next(p for n, p in network.named_parameters() if n.endswith("q_proj.B"))
    assert B.grad is not None
    assert B.grad[0].abs().sum() > 0
    assert B.grad[1].abs().sum() > 0
    network.zero_grad()


def test_a_batch_of_answers_alone_leaves_the_set_for_masks_alone() -> None:
    system = made()
    system.loss(BATCH[:1])["total"].backward()
    B = next(p for n, p in system.network.named_parameters() if n.endswith("q_proj.B"))
    assert B.grad is not None
    assert B.grad[0].abs().sum() > 0
    assert B.grad[1].abs().sum() == 0


# --- texts -----------------------------------------------------------------------------------------------
def test_bytes_there_and_back() -> None:
    bytes_ = Bytes()
    ids = bytes_.encode("[SE]é <image>x[SEG].")
    assert ids[0] == bytes_.id_of("[SE]")
    assert ids.count(bytes_.id_of("[SEG]")) == 1
    assert bytes_.decode(ids) == "[SE]é <image>x[SEG]."
    assert len(bytes_) == 261


def test_images_stand_where_the_text_has_them(system: m.DVLChatSystem) -> None:
    network, bytes_ = system.network, Bytes()
    seen = torch.arange(3 * 16 * 64, dtype=torch.float32).reshape(3, 16, 64)
    rows = [torch.tensor(bytes_.encode(t)) for t in ("a<image>b<image>", "<image>")]
    embedded, there, names = network.embed(rows, seen)
    assert there.sum(dim=1).tolist() == [1 + 16 + 1 + 16, 16]
    assert names[0, [0, 17]].tolist() == [97, 98]
    assert (names[0] == -1).sum() == 32
    assert torch.equal(embedded[0, 1:17], seen[0])
    assert torch.equal(embedded[0, 18:34], seen[1])
    assert torch.equal(embedded[1, :16], seen[2])
    with pytest.raises(ValueError, match="places for 1"):
        network.embed(rows[1:], seen)


def test_what_follows_the_end_of_a_row_changes_nothing(system: m.DVLChatSystem) -> None:
    alone = m.Taught(pictures(1), "<image>?", "B")
    long = m.Taught(pictures(1), "<image>" + 40 * "long " + "?", "B")
    one, two = (float(system.loss((t,))["text"].detach()) for t in (alone, long))
    both = float(system.loss((alone, long))["text"].detach())
    assert both == pytest.approx((one + two) / 2, rel=1e-5)  # both answers are as long


def test_the_pair_starts_as_its_later_date() -> None:
    fuse = m.PairFusion(4)
    before, after = torch.randn(2, 1, 4, 3, 3)
    assert torch.equal(fuse(before, after), after)


# --- learning --------------------------------------------------------------------------------------------
def test_it_learns_an_answer_and_a_mask() -> None:
    system = made()
    network = system.network.train()
    optimiser = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], 4e-3)
    for _ in range(40):
        loss = system.loss(BATCH)
        optimiser.zero_grad()
        loss["total"].backward()
        optimiser.step()
    answer = system.say(list(BATCH[0].images), BATCH[0].text)
    assert (answer.text, answer.mask) == ("B", None)
    found = system.say(list(BATCH[1].images), BATCH[1].text, masked=True)
    assert found.text == "[SEG]."
    assert found.mask is not None
    assert found.mask.shape == MASK.shape
    assert (found.mask & MASK).sum() / (found.mask | MASK).sum() > 0.6


def test_what_cannot_be_asked_is_said(system: m.DVLChatSystem) -> None:
    with pytest.raises(ModelInputError, match="1 images and a text with 2"):
        system.say([pictures(1)[0]], "<image><image>")
    with pytest.raises(ModelInputError, match="two dates"):
        system.say([pictures(1)[0]], "<image>", masked=True)
    with pytest.raises(ModelInputError, match="no or several"):
        system.loss([m.Taught(changed(), "<image><image>", "none", MASK)])


def test_a_question_of_the_benchmark_is_a_sample_and_is_answered(
    system: m.DVLChatSystem, tmp_path: Path
) -> None:
    write_made(tmp_path, [made_scene("a/b", (2005, 2008, 2010, 2015, 2020), np.random.default_rng(4))])
    for code, masked in (("CSE-QA", False), ("RCD", True)):
        question = DvlSuite(tmp_path, tasks=(code,))[0]
        taught = system.taught(question)
        assert taught.text.count("<image>") == len(taught.images) == (2 if masked else 5)
        assert (taught.mask is not None) == masked
        assert torch.isfinite(system.loss([taught])["total"])
    parts = message(question)
    assert isinstance(system(question, parts).text, str)


# --- files -----------------------------------------------------------------------------------------------
def test_weights_hold_what_is_taught_and_nothing_else(tmp_path: Path) -> None:
    one, other = made(), made()
    for p in one.network.parameters():
        if p.requires_grad:
            p.data.normal_()
    path = tmp_path / "w.safetensors"
    save_file(one.network.trained(), path)
    m.load_trained(other.network, path)
    assert all(torch.equal(v, other.network.state_dict()[k]) for k, v in one.network.trained().items())
    kept = dict(list(one.network.trained().items())[1:])
    save_file(kept, path)
    with pytest.raises(WeightsMismatchError, match="1 missing"):
        m.load_trained(other.network, path)


def test_names_of_a_file_of_sam(system: m.DVLChatSystem) -> None:
    own = system.network.sam.state_dict()
    theirs = {}
    for name, tensor in own.items():
        if name == "shared_image_embedding.positional_embedding":
            continue
        old = name
        head, at, rest = old.partition("output_hypernetworks_mlps.")
        if at:
            for ours, old_layer in (
                ("proj_in", "layers.0"),
                ("layers.0", "layers.1"),
                ("proj_out", "layers.2"),
            ):
                if f".{ours}." in rest:
                    old = head + at + rest.replace(f".{ours}.", f".{old_layer}.")
                    break
        for old_part, new_part in reversed(_SAM):
            if old_part.startswith("iou") and "iou_prediction_head" in old and new_part in old:
                old = old.replace(new_part, old_part)
                break
            if not old_part.startswith("iou") and not (old_part == ".blocks." and "vision" not in name):
                old = old.replace(new_part, old_part)
        theirs[f"model.visual_model.{old}"] = tensor
    assert "model.visual_model.image_encoder.blocks.0.attn.qkv.weight" in theirs
    assert "model.visual_model.mask_decoder.output_upscaling.1.weight" in theirs
    found = official_sam(theirs)
    assert found.keys() == own.keys()
    assert official_sam(own).keys() == own.keys()


def test_what_must_be_given_is_named() -> None:
    with pytest.raises(SystemNotReadyError, match="language model"):
        registry.build("dvl-suite", untrained=True)
    with pytest.raises(SystemNotReadyError, match="no weights"):
        registry.build("dvl-suite/dvlchat-nano")
    with pytest.raises(SettingError, match="not in the language model"):
        made(layers=("nowhere",))


def test_a_folder_of_a_language_model_is_read(tmp_path: Path) -> None:
    """Saved and read as `transformers` does, with a tokenizer that the five tokens are added to."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.WordLevel({"<unk>": 0, "which": 1, "B": 2, "?": 3}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>").save_pretrained(tmp_path / "lm")
    m.tiny_language(4).save_pretrained(tmp_path / "lm")
    m.tiny_sam().save_pretrained(tmp_path / "sam")
    found = registry.build("dvl-suite", untrained=True, language=tmp_path / "lm", sam=tmp_path / "sam")
    ids = found.tokenizer.encode("[QA]B[SEG]")
    assert (ids[0], ids[-1]) == (found.tokenizer.id_of("[QA]"), found.tokenizer.id_of("[SEG]"))
    said = found.say([pictures(1)[0]], "<image>which?", longest=3)
    assert isinstance(said.text, str)
    assert torch.isfinite(found.loss([m.Taught(pictures(1), "<image>which?", "B")])["total"])
