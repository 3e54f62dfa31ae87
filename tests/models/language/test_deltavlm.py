"""DeltaVLM: CSRM on both paths, what learns and what does not, published names, and eight pairs by heart."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from chat_models import TEXTS, language_model
from terralapse import registry
from terralapse.cards import Status, Task
from terralapse.data.chat import ChatEncoding, plain_text
from terralapse.errors import ModelInputError, SettingError, SystemNotReadyError, WeightsMismatchError
from terralapse.layers.eva_vit import EvaSize, EvaVit
from terralapse.layers.language_model import OwnTokens, Writing
from terralapse.layers.qformer import QFormerSize
from terralapse.models.language import deltavlm as m

VISION = EvaSize(28, 14, 64, 4, 4, 128)
TINY = m.Size(VISION, QFormerSize(32, 2, 4, 64, 60, 64, 6, dropout=0.0))
ASKED = ["please judge whether these two images have changed", "please determine how many roads"]
ANSWERS = ["yes", "there are 3 new roads and no new buildings"]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@cache
def network() -> m.DeltaNetwork:
    torch.manual_seed(0)
    return m.DeltaNetwork(TINY, 32).eval()


def system(masks: bool = False, goal: str = "answers", side: int = 28, **options: Any) -> m.DeltaVLM:
    """The tiny size before a tiny language model."""
    torch.manual_seed(0)
    spoken = language_model(**options)
    tokens = OwnTokens(spoken.tokenizer)
    size = replace(TINY, vision=replace(VISION, side=side), asking=replace(TINY.asking, words=tokens.size))
    made = m.DeltaNetwork(size, spoken.width, masks)
    made.teach(goal)
    found = m.DeltaVLM(m.NANO_CARD, made.eval(), spoken, tokens, ChatEncoding(side))
    found.goal, found.writing = goal, Writing(longest=10, repetition_penalty=1.0)
    return found


# --- CSRM --------------------------------------------------------------------------------------------------
def test_csrm_of_the_paper_has_its_parameters() -> None:
    with torch.device("meta"):
        whole = m.DeltaNetwork(m.PAPER, 4096)
    parts = ("context1", "context2", "gate1", "gate2", "context3")
    assert sum(count(getattr(whole, p)) for p in parts) == 13_881_472
    assert count(whole.llm_proj) == 3_149_824
    assert count(whole.visual_encoder.blocks[0]) == 25_248_768
    assert count(whole) == m.PAPER_CARD.parameters == 1_188_613_376
    assert whole.visual_encoder.size.tokens == 257


def test_csrm_is_the_equation() -> None:
    net = network()
    before, after = noise(2, 5, 64), noise(2, 5, 64, seed=1)
    with torch.inference_mode():
        found = net.relate(before, after)
        assert found.shape == (2, 10, 64)
        d = after - before
        for half, f in zip(found.chunk(2, dim=1), (before, after), strict=True):
            c = torch.tanh(d @ net.context1.weight.T + f @ net.context2.weight.T + net.context2.bias)
            g = torch.sigmoid(d @ net.gate1.weight.T + f @ net.gate2.weight.T + net.gate2.bias)
            e = torch.cat([f, d, g * c], dim=2) @ net.context3.weight.T + net.context3.bias
            assert torch.allclose(half, e, atol=1e-5)


def test_dates_that_are_alike_and_dates_that_are_swapped() -> None:
    net = network()
    images = noise(2, 2, 3, 28, 28)
    with torch.inference_mode():
        same = net.look(images[:, :1].expand(-1, 2, -1, -1, -1))
        assert torch.equal(*same)
        one, other = net.relate(*same).chunk(2, dim=1)
        assert torch.equal(one, other)
        before, after = net.look(images)
        assert before.shape == (2, 5, 64), "the class token is one of them"
        back, forth = net.look(images.flip(1))
        assert torch.allclose(back, after, atol=1e-5)
        assert torch.allclose(back - forth, after - before, atol=1e-5)
        assert (net.relate(before, after) - net.relate(after, before)).abs().max() > 1e-2
        mean = before.mean(dim=2)
        assert mean.abs().max() < 1e-5, "the norm comes before the difference"


def test_csrm_is_on_both_paths_and_its_dropout_in_training_alone() -> None:
    found = system()
    images = noise(2, 2, 3, 28, 28)
    shown = found.soft_tokens(images, ASKED)
    assert shown.shape == (2, 6, 32)
    assert torch.equal(shown, found.soft_tokens(images, ASKED))
    found.network.train()
    assert not torch.allclose(shown, found.soft_tokens(images, ASKED), atol=1e-4)
    output = found.forward(images, ASKED, ANSWERS)
    assert output.loss is not None
    output.loss.backward()
    for name in ("context1", "context2", "gate1", "gate2", "context3"):
        assert getattr(found.network, name).weight.grad.abs().max() > 0, name


# --- what learns -------------------------------------------------------------------------------------------
def test_what_gets_gradients() -> None:
    found = system()
    language = found.language.model
    kept = {k: v.clone() for k, v in language.state_dict().items()}
    net = found.network.train()
    assert not net.visual_encoder.training, "in evaluation while its last blocks learn"
    assert not any(x.training for x in net.visual_encoder.modules())
    optimizer = torch.optim.AdamW(net.parameters(), 1e-2)
    for _ in range(2):
        loss = found.loss(found.forward(noise(2, 2, 3, 28, 28), ASKED, ANSWERS), {})["total"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    learned = {n for n, p in net.named_parameters() if p.grad is not None}
    assert {n.split(".")[0] for n in learned} == {"visual_encoder", "query_tokens", *m.TAUGHT}
    assert {n.split(".")[2] for n in learned if n.startswith("visual_encoder")} == {"2", "3"}
    last = f"qformer.encoder.layer.{TINY.asking.layers - 1}."
    unread = {n for n, p in net.named_parameters() if p.requires_grad} - learned
    assert unread == {n for n in unread if n.startswith((last + "intermediate.", last + "output."))}
    assert all(p.grad is None for p in language.parameters())
    assert all(torch.equal(v, kept[k]) for k, v in language.state_dict().items())
    assert not any(n.startswith("language") for n in net.state_dict()), "it is not saved either"


def test_the_answer_depends_on_images_and_instruction() -> None:
    found = system()
    images = noise(2, 2, 3, 28, 28)
    with torch.inference_mode():
        shown = found.soft_tokens(images, ASKED)
        assert (shown - found.soft_tokens(images.flip(1), ASKED)).abs().amax(dim=(1, 2)).min() > 1e-4
        assert (shown - found.soft_tokens(images, ASKED[::-1])).abs().amax(dim=(1, 2)).min() > 1e-4
        alone = found.soft_tokens(images[1:], ASKED[1:])
        assert torch.allclose(alone, shown[1:], atol=1e-5), "a sample does not depend on its batch"
        losses = [found.forward(images[i : i + 1], ASKED[i : i + 1], ANSWERS[i : i + 1]).loss for i in (0, 1)]
        whole = found.forward(images, ASKED, ANSWERS).loss
        counts = [len(found.language.answer(a)) for a in ANSWERS]
        assert float(whole) == pytest.approx(
            sum(float(x) * c for x, c in zip(losses, counts, strict=True)) / sum(counts), rel=1e-4
        )


# --- eight pairs by heart ----------------------------------------------------------------------------------
def learn(found: m.DeltaVLM, images: Tensor, asked: list[str], answers: list[str], steps: int) -> None:
    """All of the network, until it knows the answers by heart."""
    net = found.network
    net.dropout.p = 0.0
    net.visual_encoder.blocks.requires_grad_(True)
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    net.train()
    for _ in range(steps):
        loss = found.forward(images, asked, answers).loss
        assert loss is not None
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        if float(loss.detach()) < 0.02:
            break
    net.eval()
    found.writing = Writing(longest=12, repetition_penalty=1.0)


def test_four_pairs_by_heart() -> None:
    found = system(spread=0.5)
    images, answers = noise(4, 2, 3, 28, 28, seed=5), ["yes", "no", "yes", "no"]
    asked = [plain_text(TEXTS[0])] * 4
    before = [p.clone() for p in found.language.model.parameters()]
    assert found.forward(images, asked).texts != answers
    learn(found, images, asked, answers, 80)
    assert found.forward(images, asked).texts == answers
    assert all(torch.equal(a, b) for a, b in zip(before, found.language.model.parameters(), strict=True))


@pytest.mark.slow
def test_eight_questions_by_heart() -> None:
    """Exact answers yes and no, and counts, before a language model that stays as it was."""
    found = system(spread=0.5, width=64)
    pairs = noise(4, 2, 3, 28, 28, seed=5).repeat_interleave(2, dim=0)
    asked = [plain_text(t) for t in TEXTS[:2]] * 4
    answers = [
        "yes",
        "there are 2 new roads and 5 new buildings",
        "no",
        "no new roads and no new buildings",
        "yes",
        "there are 7 new roads and no new buildings",
        "no",
        "there are 1 new roads and 3 new buildings",
    ]
    before = [p.clone() for p in found.language.model.parameters()]
    learn(found, pairs, asked, answers, 500)
    assert found.forward(pairs, asked).texts == answers
    assert all(torch.equal(a, b) for a, b in zip(before, found.language.model.parameters(), strict=True))


# --- masks -------------------------------------------------------------------------------------------------
def test_the_branch_for_masks_learns_by_itself() -> None:
    found = system(masks=True, goal="masks", side=56)
    net = found.network.train()
    assert net.mask_decoder is not None
    assert net.mask_decoder.training
    assert not net.dropout.training
    label = torch.zeros(1, 40, 40, dtype=torch.int64)
    label[:, :20] = 1
    output = found.forward(noise(1, 2, 3, 56, 56))
    assert (output.texts, output.loss) == (None, None)
    parts = found.loss(output, {"label": label})
    assert set(parts) == {"total", "mask"}
    parts["total"].backward()
    learned = {n.split(".")[0] for n, p in net.named_parameters() if p.grad is not None}
    assert learned == {"mask_decoder"}
    net.eval()
    shown = found.mask(torch.rand(1, 2, 3, 50, 60) * 255)
    assert shown.shape == (1, 50, 60)
    assert 0 <= shown.min() <= shown.max() <= 1
    with pytest.raises(SettingError, match="masks=True"):
        system().mask(torch.zeros(1, 2, 3, 28, 28))


def test_a_changed_pixel_weighs_twice() -> None:
    odds = torch.zeros(1, 1, 1, 2)
    found = m.mask_loss(odds, torch.tensor([[[1, 0]]]))
    assert float(found) == pytest.approx(np.log(2) * (2 + 1) / 2)


# --- published names ---------------------------------------------------------------------------------------
def theirs(net: m.DeltaNetwork) -> dict[str, Tensor]:
    """A released checkpoint: what learns, under its names, with what nothing reads."""
    own = {k: v for k, v in net.state_dict().items() if not k.startswith("visual_encoder")}
    own |= {
        k: v
        for k, v in net.state_dict().items()
        if k.startswith(("visual_encoder.blocks.2", "visual_encoder.blocks.3"))
    }
    named = {k.replace("qformer.", "Qformer.bert.", 1): v for k, v in own.items()}
    return named | {
        "temp": torch.tensor(0.07),
        "vision_proj.weight": torch.zeros(256, 32),
        "text_proj.bias": torch.zeros(256),
        "Qformer.bert.embeddings.position_ids": torch.arange(512)[None],
    }


def test_released_files_together_are_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(m, "NANO", TINY)
    spoken = language_model()
    source = m.build(m.NANO_CARD, untrained=True, language=spoken).network
    eva = {
        k.removeprefix("visual_encoder."): v
        for k, v in source.state_dict().items()
        if k.startswith("visual_encoder.")
    }
    eva |= {
        "blocks.39.norm1.weight": torch.zeros(64),
        "head.weight": torch.zeros(1),
        "norm.bias": torch.zeros(64),
    }
    torch.save({"model": theirs(source), "epoch": 3}, tmp_path / "checkpoint_best.pth")
    torch.save(eva, tmp_path / "eva_vit_g.pth")
    with pytest.raises(WeightsMismatchError, match=r"missing: visual_encoder\.cls_token"):
        m.build(m.NANO_CARD, tmp_path / "checkpoint_best.pth", language=spoken)
    files = {"weights": tmp_path / "checkpoint_best.pth", "vision": tmp_path / "eva_vit_g.pth"}
    again = m.build(m.NANO_CARD, language=spoken, **files).network
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in source.state_dict().items())
    save_file(source.state_dict(), tmp_path / "ours.safetensors")
    assert m.build(m.NANO_CARD, tmp_path / "ours.safetensors", language=spoken).network is not None

    # The start of training: all of InstructBLIP is there, and CSRM is new.
    base = {k: v for k, v in theirs(source).items() if not m.NEW.fullmatch(k) and "visual" not in k}
    torch.save({"model": base}, tmp_path / "base.pth")
    start = {"untrained": True, "language": spoken, "vision": files["vision"], "base": tmp_path / "base.pth"}
    torch.manual_seed(7)
    begun = m.build(m.NANO_CARD, **start).network
    assert torch.equal(
        begun.qformer.embeddings.word_embeddings.weight, source.qformer.embeddings.word_embeddings.weight
    )
    assert not torch.equal(begun.context1.weight, source.context1.weight)
    del base["llm_proj.bias"]
    torch.save({"model": base}, tmp_path / "base.pth")
    with pytest.raises(WeightsMismatchError, match=r"missing: llm_proj\.bias"):
        m.build(m.NANO_CARD, **start)


def test_instructblip_of_transformers_is_the_same_network() -> None:
    """Its vision transformer and Q-Former, an implementation of their own, give the same soft tokens for one
    image."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.InstructBlipConfig(
        vision_config={
            "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4,
            "image_size": 28, "patch_size": 14, "layer_norm_eps": 1e-6, "initializer_range": 0.2,
        },
        qformer_config={
            "vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4,
            "intermediate_size": 64, "encoder_hidden_size": 64, "cross_attention_frequency": 2,
            "initializer_range": 0.2,
        },
        text_config={
            "model_type": "llama", "vocab_size": 50, "hidden_size": 16, "intermediate_size": 32,
            "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2,
        },
        num_query_tokens=6,
    )  # fmt: skip
    theirs = transformers.InstructBlipForConditionalGeneration(config).eval()
    with torch.no_grad():
        for tensor in theirs.parameters():
            tensor.normal_(0, 0.2)
    size = m.Size(EvaSize(28, 14, 64, 3, 4, 128), QFormerSize(32, 4, 4, 64, 60, 64, 6))
    ours = m.DeltaNetwork(size, 16).eval()
    ours.ln_vision.eps = 1e-6
    found = m.DeltaVLM(
        m.NANO_CARD, ours, language_model(), OwnTokens(language_model().tokenizer), ChatEncoding(28)
    )
    tensors = dict(theirs.state_dict())
    for name in list(tensors):
        if name.endswith("self_attn.qkv.bias"):
            tensors[name][64:128] = 0  # the published keys have no bias
    theirs.load_state_dict(tensors)
    found.start_encoder(tensors)
    parts = theirs.model if hasattr(theirs, "model") else theirs
    image, ids = noise(2, 3, 28, 28), torch.tensor([[5, 6, 7], [8, 9, 0]])
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    with torch.inference_mode():
        seen = parts.vision_model(pixel_values=image).last_hidden_state
        assert torch.allclose(ours.ln_vision(ours.visual_encoder(image)), seen, atol=1e-4)
        queries = parts.query_tokens.expand(2, -1, -1)
        asked = parts.qformer(
            input_ids=ids,
            attention_mask=torch.cat([torch.ones(2, 6, dtype=torch.int64), mask], dim=1),
            query_embeds=queries,
            encoder_hidden_states=seen,
            encoder_attention_mask=torch.ones(seen.shape[:2], dtype=torch.int64),
        ).last_hidden_state[:, :6]
        assert torch.allclose(ours.ask(seen, ids, mask.bool())[:, :6], asked, atol=1e-4)
        assert torch.allclose(ours.llm_proj(asked), parts.language_projection(asked), atol=1e-5)


# --- the system --------------------------------------------------------------------------------------------
def test_cards() -> None:
    assert [c.slug for c in m.MODELS] == ["deltavlm", "deltavlm/vicuna-7b", "deltavlm/nano"]
    assert {c.task for c in m.MODELS} == {Task.LANGUAGE}
    assert [c.status for c in m.MODELS] == [Status.REPRODUCED, Status.REPRODUCED, Status.RUNS]


def test_what_has_to_be_brought_along() -> None:
    with pytest.raises(SystemNotReadyError, match=r"no weights come with it.*hlwu/DeltaVLM"):
        registry.build("deltavlm")
    with pytest.raises(SystemNotReadyError, match="no language model comes with it"):
        registry.build("deltavlm/nano", untrained=True)
    spoken = language_model()
    with pytest.raises(SystemNotReadyError, match=r"vocab\.txt of bert-base-uncased"):
        registry.build("deltavlm", untrained=True, language=spoken)
    for options in ({"goal": "both"}, {"goal": "everything", "masks": True}):
        with pytest.raises(SettingError, match="answers, masks, both"):
            registry.build("deltavlm/nano", untrained=True, language=spoken, **options)
    built = registry.build("deltavlm/nano", untrained=True, language=spoken, beams=3, longest=9)
    assert (built.writing.beams, built.writing.longest, built.writing.repetition_penalty) == (3, 9, 1.5)
    assert all(p.requires_grad for p in built.network.visual_encoder.parameters()), "nano learns all of it"


def test_instructions_and_talks_on_one_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    found = system()
    images = np.random.default_rng(0).uniform(0, 255, (2, 3, 40, 50)).astype(np.float32)
    both = found.ask(images, ["Yes or No?", "please determine how many roads"])
    assert len(both) == 2
    assert both[1:] == found.ask(images, ["PLEASE determine how many roads."])
    told: list[str] = []
    real = found.language.write

    def write(soft: Tensor, instructions: list[str], how: Writing) -> list[str]:
        told.extend(instructions)
        return [["yes", "3 new roads"][len(told) - 1]] if len(told) < 3 else real(soft, instructions, how)

    monkeypatch.setattr(found.language, "write", write)
    assert found.converse(images, ["Have they changed?", "How many?"]) == ["yes", "3 new roads"]
    assert told == ["q have they changed?", "q have they changed? a yes q how many?"]
    with pytest.raises(ModelInputError, match=r"takes images \[2, 3, H, W\]"):
        found.ask(images[:1], ["yes"])
    with pytest.raises(ModelInputError, match="needs an instruction"):
        found.ask(images, ["..."])
    with pytest.raises(ModelInputError, match="without gaps"):
        found.ask(np.full_like(images, np.nan), ["yes"])
    with pytest.raises(ModelInputError, match="3 x 28 x 28"):
        found.forward(torch.zeros(1, 2, 3, 30, 30), ["yes"])


def test_the_vision_transformer_divides() -> None:
    with pytest.raises(ValueError, match="does not divide"):
        EvaVit(EvaSize(30, 14, 8, 1, 1, 8))
    again = EvaVit(VISION)
    plain = again(noise(1, 3, 28, 28))
    again.checkpointing = True
    assert torch.allclose(again(noise(1, 3, 28, 28)), plain, atol=1e-6)
