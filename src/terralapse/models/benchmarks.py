"""Published systems that are a data set and its protocol, without a network: cards without builders."""

from __future__ import annotations

from terralapse.cards import Card, Figure, Inputs, Licences, Status, Task

_PROTOCOL = (
    "released benchmark, optical pairs, exact sets of letters, mean of six tasks; a transcription of the "
    "paper's table"
)

_CARDS = (
    Card(
        slug="disasterm3",
        title=(
            "DisasterM3: A Remote Sensing Vision-Language Dataset for Disaster Damage Assessment and Response"
        ),
        task=Task.LANGUAGE,
        status=Status.READER_ONLY,
        summary=(
            "Questions, reports and referring masks on disaster pairs, optical before and optical or SAR "
            "after: `terralapse bench disaster` scores rules, language models and models that see on them."
        ),
        year=2025,
        paper="arXiv:2505.21089",
        repository="https://github.com/Junjue-Wang/DisasterM3",
        inputs=Inputs(dates=2, gsd_range=(0.8, 0.8)),
        licences=Licences(data="CC BY-NC(-SA) 4.0, academic only"),
        checkpoints="none",
        figures=(
            Figure("AVG, Qwen2.5-VL-7B as released", 0.312, "DisasterM3 benchmark", _PROTOCOL, "paper"),
            Figure("AVG, GPT-4.1", 0.423, "DisasterM3 benchmark", _PROTOCOL, "paper"),
        ),
        limits=(
            "The data is non-commercial and given out by a form: no score on it was measured here.",
            "Training code and the fine-tuned models were never released.",
            "The authors published no scorer, no rubric of their judge and no runner for masks: these follow "
            "the paper's definitions, and the file of referring masks has a name of this library's choice.",
            "The wording of the prompts is this library's; their order and images are the official ones.",
        ),
    ),
)

CARDS: dict[str, Card] = {c.slug: c for c in _CARDS}
