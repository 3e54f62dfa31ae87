"""TCSSM: the text shapes the scan, and nothing else of it; radar has a stem of its own."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from terralapse import registry
from terralapse.cards import Status, Task
from terralapse.data.building_talk import BuildingQuestions
from terralapse.data.questions import hashed_text
from terralapse.errors import ModelInputError, SettingError, SystemNotReadyError, WeightsMismatchError
from terralapse.layers.scan import LowRank, cross_paths, path_scan
from terralapse.layers.vmamba import SS2D
from terralapse.models.language import tcssm as m

NANO = {c.slug.partition("/")[2]: c for c in m.VARIANTS}


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def blocks(system: m.TCSSMSystem) -> list[m.TextConditionedBlock]:
    return [b for b in system.network.modules() if isinstance(b, m.TextConditionedBlock)]


@cache
def nano(questions: str = "damage", method: str = "erm") -> m.TCSSMSystem:
    """With random weights; those of the text are far from their start."""
    torch.manual_seed(0)
    system = m.build(NANO[f"{questions}-nano"], untrained=True, method=method)
    with torch.no_grad():
        for block in blocks(system):
            block.W_t.weight.normal_(0, 0.05)
    return system


def batch(number: int = 3, side: int = 64, seed: int = 0) -> dict[str, Tensor]:
    encoding = nano().encoding
    texts = ("How many intact buildings are there?", "Are there any destroyed buildings?", "Why?")
    places = ("A flood in Libya.", "An earthquake in Turkey.", "")
    return {
        "images": noise(number, 2, 3, side, side, seed=seed),
        "question": torch.from_numpy(np.stack([encoding.words.numbers(texts[i % 3]) for i in range(number)])),
        "description": torch.from_numpy(np.stack([hashed_text(places[i % 3]) for i in range(number)])),
        "sar": torch.zeros(number, dtype=torch.bool),
        "domain": torch.arange(number) % 2,
        "answer": torch.arange(number) % 4,
    }


def logits(system: m.TCSSMSystem, given: dict[str, Tensor], **change: Tensor) -> Tensor:
    given = {**given, **change}
    with torch.inference_mode():
        return system.forward(given["images"], given["question"], given["description"], given["sar"]).logits


# --- the block ---------------------------------------------------------------------------------------------
@pytest.fixture
def block() -> m.TextConditionedBlock:
    torch.manual_seed(1)
    return m.TextConditionedBlock(8, 5, state=4, rank=2, dropout=0.1).eval()


def test_a_block_starts_as_the_plain_scan(block: m.TextConditionedBlock) -> None:
    plain = SS2D(8, state=4, conv_bias=True, gated=True, rank=2)
    plain.load_state_dict(block.scan.state_dict())
    x, t = noise(2, 4, 6, 8), noise(2, 5, seed=1)
    assert torch.allclose(block(x, t), x + plain(block.norm(x)), atol=1e-6)
    with torch.no_grad():
        block.W_t.weight.normal_()
    assert (block(x, t) - x - plain(block.norm(x))).abs().max() > 1e-2
    assert torch.allclose(block(x, torch.zeros(2, 5)), x + plain(block.norm(x)), atol=1e-6), "no text"


@pytest.mark.parametrize("backend", ["reference", "portable", "cpu"])
def test_the_equation(block: m.TextConditionedBlock, backend: str) -> None:
    """[delta, B, C] = W_x u + W_t t at each position and direction, then the recurrence itself."""
    with torch.no_grad():
        block.W_t.weight.normal_(0, 0.5)
    x, t = noise(2, 3, 6, 8), noise(2, 5, seed=1)
    scan = block.scan
    with torch.no_grad():
        u, z = scan.in_proj(block.norm(x)).chunk(2, dim=-1)
        u = torch.nn.functional.silu(scan.conv2d(u.permute(0, 3, 1, 2))).flatten(2)  # [B, D, L]
        of_text = block.W_t(t).view(2, 4, -1, 1)
        parts = torch.einsum("kpd,bdl->bkpl", scan.x_proj_weight, u) + of_text
        delta, b, c = parts.split([2, 4, 4], dim=2)
        y = path_scan(
            u,
            LowRank(delta, scan.dt_projs_weight),
            -scan.A_logs.exp(),
            b,
            c,
            scan.Ds,
            scan.dt_projs_bias.flatten(),
            True,
            paths=cross_paths(3, 6),
            backend=backend,
        )
        y = scan.out_norm(y.transpose(1, 2)).view(2, 3, 6, -1) * torch.nn.functional.silu(z)
        assert torch.allclose(block(x, t), x + scan.out_proj(y), atol=1e-5)


def test_the_text_learns_through_the_scan() -> None:
    system, given = nano(), batch(2)
    text = given["description"].clone().requires_grad_()
    found = system.forward(given["images"], given["question"], text, given["sar"])
    found.logits.square().sum().backward()
    assert text.grad is not None
    assert (text.grad.abs().sum(dim=1) > 0).all()
    found_grads = [b.W_t.weight.grad for b in blocks(system)]
    assert len(found_grads) == 2
    assert all(g is not None and g.any() for g in found_grads)
    system.network.zero_grad()


# --- the network -------------------------------------------------------------------------------------------
def test_what_the_answer_depends_on() -> None:
    system, given = nano(), batch()
    whole = logits(system, given)
    for name, other in {
        "description": given["description"].flip(0),
        "question": given["question"].flip(0),
        "images": given["images"].flip(1),
    }.items():
        changed = (logits(system, given, **{name: other}) - whole).abs().amax(dim=1)
        assert changed[0] > 1e-4, name
    alone = logits(system, {k: v[:1] for k, v in given.items()})
    assert torch.allclose(alone, whole[:1], atol=1e-5), "a sample does not depend on its batch"


def test_radar_goes_through_its_own_stem() -> None:
    system, given = nano(), batch()
    radar = torch.tensor([True, False, False])
    moved = (logits(system, given, sar=radar) - logits(system, given)).abs().amax(dim=1)
    assert moved[0] > 1e-4
    assert moved[1:].max() < 1e-6
    other = given["images"].clone()
    other[0, 1, 1:] = 7.0  # the copies of the one channel
    gap = logits(system, given, sar=radar) - logits(system, given, sar=radar, images=other)
    assert gap.abs().max() < 1e-6


def test_words_that_fill_up_say_nothing() -> None:
    system, given = nano(), batch()
    short = given["question"][:, :12]
    assert torch.allclose(logits(system, given, question=short), logits(system, given), atol=1e-6)
    empty = logits(system, given, question=torch.zeros_like(given["question"]))
    assert empty.isfinite().all()


def test_images_of_another_size_are_taken() -> None:
    assert logits(nano(), batch(side=96)).shape == (3, 21)
    assert logits(nano(), batch(side=40)).isfinite().all()


def test_without_a_text_and_radar() -> None:
    system, given = nano(), batch()
    with torch.inference_mode():
        plain = system.forward(given["images"], given["question"]).logits
    zeros = torch.zeros_like(given["description"])
    assert torch.allclose(plain, logits(system, given, description=zeros), atol=1e-6)


@pytest.mark.parametrize("method", m.METHODS)
def test_a_step_of_training_helps(method: str) -> None:
    torch.manual_seed(2)
    system = m.build(NANO["damage-nano"], untrained=True, method=method)
    network = system.network.train()
    given = batch(4)
    optimizer = torch.optim.AdamW(network.parameters(), 3e-3)
    losses = []
    for _ in range(6):
        parts = system.loss(
            system.forward(given["images"], given["question"], given["description"], given["sar"]), given
        )
        assert set(parts) == {"total", "answer", "align", *(["coral"] if method == "coral" else [])}
        assert parts["total"].item() == pytest.approx(
            sum(float(v.detach()) for k, v in parts.items() if k != "total")
        )
        optimizer.zero_grad()
        parts["total"].backward()
        optimizer.step()
        losses.append(float(parts["answer"].detach()))
    assert losses[-1] < losses[0] - 0.05
    unused = {n for n, p in network.named_parameters() if p.grad is None}
    assert unused == {"encoder.radar.conv.weight", "encoder.radar.conv.bias"} | {
        "encoder.radar.norm.weight",
        "encoder.radar.norm.bias",
    }


# --- the system --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("card", [m.HEAD, *m.VARIANTS], ids=lambda c: c.slug)
def test_cards(card: m.Card) -> None:
    system = m.build(card, untrained=True)
    assert (card.task, card.status) == (Task.VQA, Status.RUNS)
    assert count(system.network) == card.parameters
    known = {"damage-answers": 21, "cdvqa-answers": 19, "building-answers": 22}
    assert len(system.answers) == known[card.classes]
    if not registry.card(card.slug).weights:
        with pytest.raises(SystemNotReadyError):
            registry.build(card.slug)


def test_the_weights_that_come_along_answer_as_on_the_page(shared_data: Path) -> None:
    system = registry.build("tcssm/buildings-small")
    assert isinstance(system, m.TCSSMSystem)
    questions = BuildingQuestions(shared_data / "cd_mshs_bcd", "val")
    tiles: dict[str, list[int]] = {}
    for index, name in enumerate(questions.names):
        tiles.setdefault(name, []).append(index)
    right = 0
    for indices in tiles.values():
        asked = [questions.asked[i][0] for i in indices]
        given = system.ask(questions[indices[0]].images, [a.question for a in asked])
        right += sum(said.text == a.answer for said, a in zip(given, asked, strict=True))
    assert right == 190  # of 330: 57.6 %, as docs/captioner.md says


def test_questions_on_one_pair() -> None:
    system = nano("cdvqa")
    images = np.random.default_rng(0).uniform(0, 255, (2, 3, 80, 90)).astype(np.float32)
    asked = ["Have the areas of trees changed?", "What is the largest change?"]
    both = system.ask(images, asked)
    assert [a.text in system.answers for a in both] == [True, True]
    assert both[0].confidence == max(both[0].probabilities.values())
    assert sum(both[0].probabilities.values()) == pytest.approx(1, abs=1e-5)
    assert system.ask(images, asked[1:])[0].confidence == pytest.approx(both[1].confidence, abs=1e-5)
    with pytest.raises(ModelInputError, match=r"takes images \[2, 3, H, W\]"):
        system.ask(images[:1], asked)
    with pytest.raises(ModelInputError, match="without gaps"):
        system.ask(np.full_like(images, np.nan), asked)
    with pytest.raises(ModelInputError, match="needs a question"):
        system.ask(images, [])


def test_weights_come_back(tmp_path) -> None:
    path = tmp_path / "w.safetensors"
    save_file(nano().network.state_dict(), path)
    again = m.build(NANO["damage-nano"], weights=path)
    assert torch.equal(logits(again, batch()), logits(nano(), batch()))
    with pytest.raises(WeightsMismatchError):
        m.build(NANO["cdvqa-nano"], weights=path)


def test_questions_and_texts_of_another_set(tmp_path) -> None:
    (tmp_path / "words.txt").write_text("is\nthere\nfire\n")
    system = m.build(
        NANO["damage-nano"],
        untrained=True,
        words=tmp_path / "words.txt",
        answers=("yes", "no"),
        describe=lambda text: np.full(7, len(text), np.float32),
        inputs=7,
    )
    assert system.card.classes == ""
    images = np.zeros((2, 3, 64, 64), np.float32)
    assert system.ask(images, ["Is there fire?"], "hills")[0].text in ("yes", "no")
    assert m.build(NANO["damage-nano"], untrained=True, answers="cdvqa-answers").answers[2] == "NVG_surface"
    with pytest.raises(SettingError, match="erm, mixstyle, coral"):
        m.build(NANO["damage-nano"], untrained=True, method="dann")
    with pytest.raises(SettingError, match="needs `describe`"):
        m.build(NANO["damage-nano"], untrained=True, inputs=384)
