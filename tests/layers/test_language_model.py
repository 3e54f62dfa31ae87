"""A frozen language model: what it reads, where the soft tokens stand, and what is taught."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from chat_models import language_model, llama, tokenizer
from terralapse.errors import FileMissingError, SettingError, UnreadableFileError, UnsafeWeightsError
from terralapse.layers.language_model import (
    IGNORED,
    BertTokens,
    LanguageModel,
    OwnTokens,
    Writing,
    filled,
    load_language_model,
)

ASKED = ("please determine how many roads", "please judge whether these two images have changed")
ANSWERS = ("there are 3 new roads", "yes")


def soft(batch: int = 2, seed: int = 0, width: int = 32) -> torch.Tensor:
    return torch.randn(batch, 5, width, generator=torch.Generator().manual_seed(seed))


def test_answers_stand_right_behind_their_instructions() -> None:
    model = language_model()
    found = model.taught(ASKED, ANSWERS)
    first, second = (model.tokenizer.encode(t, add_special_tokens=False) for t in (ASKED[0], ANSWERS[0]))
    assert found.ids[0, : len(first) + len(second) + 2].tolist() == [model.end, *first, *second, model.end]
    assert found.labels[0].tolist() == [IGNORED] * (len(first) + 1) + [*second, model.end]
    assert found.mask.sum(dim=1).tolist() == [12, 11]
    assert found.labels[1].tolist().count(IGNORED) == 10
    assert (found.labels[1] != IGNORED).nonzero().flatten().tolist() == [9, 10]


def test_the_start_is_the_end_as_released_or_that_of_the_tokenizer() -> None:
    own = language_model(start="own")
    assert own.instruction("yes") == [1, *own.tokenizer.encode("yes", add_special_tokens=False)]
    assert language_model().instruction("yes")[0] == own.end == 2
    nameless = tokenizer()
    nameless.bos_token = None
    assert LanguageModel(llama(len(nameless)), nameless, "own").start == []
    with pytest.raises(SettingError, match="begins no text"):
        language_model(start="bos")  # type: ignore[arg-type]
    nameless.eos_token = None
    with pytest.raises(SettingError, match="no token for the end"):
        LanguageModel(llama(len(nameless)), nameless)


def test_instructions_lose_their_beginning_and_answers_their_end() -> None:
    model = language_model()
    numbers = " ".join(str(i % 10) for i in range(300))
    ids = model.tokenizer.encode(numbers, add_special_tokens=False)
    assert model.instruction(numbers) == [model.end, *ids[-127:]]
    assert model.answer(numbers) == ids[:255]
    assert model.answer("yes")[-1] == model.end
    assert OwnTokens(model.tokenizer).ids(numbers) == ids[-128:]


def test_only_the_answers_are_taught() -> None:
    model, given = language_model(), soft()
    texts = model.taught(ASKED, ANSWERS)
    loss = model.loss(given, texts)
    words = model.model.get_input_embeddings()(texts.ids)
    logits = model.model(
        inputs_embeds=torch.cat([given, words], dim=1),
        attention_mask=torch.cat([torch.ones(2, 5, dtype=torch.int64), texts.mask], dim=1),
    ).logits
    total, count = 0.0, 0
    for row in range(2):
        for place in range(texts.ids.shape[1]):
            if texts.labels[row, place] != IGNORED:
                said = logits[row, 5 + place - 1]  # the soft tokens come first, before the start
                total += float(F.cross_entropy(said, texts.ids[row, place]))
                count += 1
    assert count == 6 + 2
    assert float(loss) == pytest.approx(total / count, rel=1e-5)


def test_a_batch_gives_what_its_samples_give_alone() -> None:
    model, given = language_model(), soft()
    counts = [len(model.answer(a)) for a in ANSWERS]
    alone = [
        float(model.loss(given[i : i + 1], model.taught(ASKED[i : i + 1], ANSWERS[i : i + 1])))
        for i in (0, 1)
    ]
    together = float(model.loss(given, model.taught(ASKED, ANSWERS)))
    assert together == pytest.approx(
        sum(a * c for a, c in zip(alone, counts, strict=True)) / sum(counts), rel=1e-5
    )
    how = Writing(longest=8, repetition_penalty=1.0)
    written = model.write(given, ASKED, how)
    assert written == [model.write(given[i : i + 1], ASKED[i : i + 1], how)[0] for i in (0, 1)]
    assert written != model.write(soft(seed=1), ASKED, how)


def test_it_never_learns_and_lets_gradients_through() -> None:
    model, given = language_model(), soft().requires_grad_()
    model.loss(given, model.taught(ASKED, ANSWERS)).backward()
    assert given.grad is not None
    assert (given.grad.abs().sum(dim=(1, 2)) > 0).all()
    assert all(p.grad is None and not p.requires_grad for p in model.model.parameters())
    assert not model.model.training


def test_writing_follows_its_settings() -> None:
    model, given = language_model(), soft()
    free = model.write(given, ASKED, Writing(longest=12, repetition_penalty=1.0))
    assert all(1 <= len(t.split()) <= 12 for t in free)
    punished = model.write(given, ASKED, Writing(longest=12, repetition_penalty=100.0))
    assert len(set(" ".join(punished).split())) >= len(set(" ".join(free).split()))
    assert punished != free
    assert free != model.write(given, ASKED, Writing(beams=4, longest=12, repetition_penalty=1.0))
    for fault in ({"beams": 0}, {"longest": 0}, {"repetition_penalty": 0.0}):
        with pytest.raises(SettingError, match="write nothing"):
            Writing(**fault)  # type: ignore[arg-type]
    assert (Writing().beams, Writing().longest, Writing().repetition_penalty) == (1, 256, 1.5)


def test_models_come_from_folders_of_safetensors(tmp_path: Path) -> None:
    model = language_model()
    folder = tmp_path / "model"
    model.model.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)  # type: ignore[attr-defined]
    again = load_language_model(folder)
    given = soft()
    texts = model.taught(ASKED, ANSWERS)
    assert float(again.loss(given, texts)) == pytest.approx(float(model.loss(given, texts)), rel=1e-6)
    assert load_language_model(folder, dtype="bfloat16").model.dtype is torch.bfloat16
    with pytest.raises(SettingError, match="no such type"):
        load_language_model(folder, dtype="int8")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UnsafeWeightsError, match="holds no safetensors"):
        load_language_model(folder)
    (folder / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(UnreadableFileError, match="cannot be loaded"):
        load_language_model(folder)
    with pytest.raises(FileMissingError, match="is not there"):
        load_language_model(tmp_path / "nowhere")
    for name in ("someone/model", "someone/model@main"):
        with pytest.raises(SettingError, match="pins no commit"):
            load_language_model(name)


def test_words_of_bert(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "road", "##s", "changed"]
    (tmp_path / "vocab.txt").write_text("\n".join(pieces) + "\n")
    for place in (tmp_path, tmp_path / "vocab.txt"):
        read = BertTokens(place)
        assert read.ids("Roads CHANGED") == [2, 5, 6, 7, 3]
        assert read.size == 9  # with the one that BLIP-2 adds
    assert read.ids("road " * 200) == [2, *[5] * 126, 3]
    assert read.ids("changed " + "road " * 126) == [2, *[5] * 126, 3], "the end is kept"
    with pytest.raises(FileMissingError, match="bert-base-uncased"):
        BertTokens(tmp_path / "words.txt")


def test_rows_are_filled_up() -> None:
    ids, mask = filled([[5, 6, 7], [8]])
    assert ids.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert mask.tolist() == [[True] * 3, [True, False, False]]
