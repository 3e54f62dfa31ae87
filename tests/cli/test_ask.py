"""`terralapse ask` and `terralapse chat`, as a shell sees them."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from model_server import lines, says, serve
from product_runs import build_run
from terralapse import ChangeResult
from terralapse.cli import main
from terralapse.errors import EndpointError
from terralapse.products.write import write_products


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = build_run(tmp_path_factory.mktemp("ask") / "run", settings={"pictures": False})
    write_products(made)
    return made.folder


def call(*words: str | Path) -> int:
    sys.argv = ["terralapse", *map(str, words)]
    with pytest.raises(SystemExit) as done:
        main()
    return int(done.value.code or 0)


def test_ask_prints_the_answer(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("ask", run, "How many objects changed?") == 0
    assert capsys.readouterr().out == "3 objects of change, of 14 m² or more each.\n"


def test_json_holds_the_facts_and_their_evidence(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("ask", run, "How much changed?", "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["answerer"] == "rules"
    assert {f["id"] for f in answer["facts"]} == {"area.changed", "share.changed"}
    assert answer["overlay"] == [{"raster": "change.tif", "window": [0, 0, 240, 320]}]
    assert answer["value"] == pytest.approx(4 * 3061, rel=2e-3)


def test_chat_goes_on_from_one_question_to_the_next(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        sys, "stdin", io.StringIO("How much changed?\nand in the north-east?\nin acres?\nQuit\nhow?\n")
    )
    assert call("chat", run) == 0
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 3
    assert "in the north-east" in out[1]
    assert "acres" in out[2]


def test_a_chat_outlives_an_endpoint_that_fails(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(sys, "stdin", io.StringIO("How much changed?\nHow many objects?\n"))
    script = lines(500, says(None, ("count_objects", {})), says("3 objects changed."))
    with serve(script) as model:
        assert call("chat", run, "--answerer", "agent", "--base-url", model.url, "--llm", "m") == 0
    shown = capsys.readouterr()
    assert "HTTP 500" in shown.err
    assert shown.out == "3 objects changed.\n"


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (["--answerer", "vlm"], "needs a vision-language model"),
        (["--answerer", "vlm", "--vlm", "owner/name"], "pins no commit"),
        (["--answerer", "agent", "--llm", "m", "--llm-folder", "f"], "--llm one behind an endpoint"),
        (["--answerer", "agent", "--llm-folder", "no/such/folder"], "is not there"),
        (["--vlm", "f"], "settings of the agent or vlm"),
        (["--answerer", "vlm", "--maps", "m"], "settings of the agent"),
        (["--answerer", "oracle"], "is not known"),
        (["--llm", "m"], "settings of the agent"),
        (["--answerer", "agent", "--llm", "m"], "needs a language model"),
    ],
)
def test_what_cannot_answer_is_refused(
    run: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    fault: str,
) -> None:
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    assert call("ask", run, "How much changed?", *words) == 2
    assert fault in capsys.readouterr().err


def test_a_folder_without_a_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("ask", tmp_path, "How much changed?") == 2
    assert "no finished run" in capsys.readouterr().err


def test_facts_of_version_1_are_answered_as_far_as_they_go(run: Path, tmp_path: Path) -> None:
    record = json.loads((run / "facts.json").read_text())
    new = ("ninth.", "part.", "distance.")
    record |= {"version": 1, "facts": [f for f in record["facts"] if not f["id"].startswith(new)]}
    (tmp_path / "facts.json").write_text(json.dumps(record))
    (tmp_path / "run.json").write_text((run / "run.json").read_text())
    result = ChangeResult(tmp_path)
    assert result.ask("How many objects changed?").value == 3
    assert result.ask("How much changed in the north?").reason == "old-facts"


def test_results_answer_in_python(run: Path) -> None:
    answer = ChangeResult(run).ask("Is there change in the north-east?")
    assert answer.value is True
    with pytest.raises(EndpointError):
        ChangeResult(run).ask(
            "How much?", answerer="agent", base_url="http://127.0.0.1:9/v1", llm="m", cache=None
        )


def test_rules_answer_in_an_instant_and_load_nothing_heavy(run: Path) -> None:
    code = (
        "import sys, time\n"
        "from terralapse.ask import Conversation\n"
        f"talk = Conversation({str(run)!r})\n"
        "talk.ask('How many objects larger than 100 m2 are in the nroth?')\n"
        "print(time.process_time())\n"
        "print(*sorted({m.partition('.')[0] for m in sys.modules}))"
    )
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    for _ in range(2):  # the first one may compile
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env=environment,
            timeout=60,
        )
    seconds, modules = done.stdout.splitlines()
    heavy = {"numpy", "torch", "rasterio", "geopandas", "pandas", "shapely", "scipy", "jsonschema", "httpx"}
    assert set(modules.split()) & heavy == set()
    assert float(seconds) < 0.3


def test_questions_of_any_length_and_kind_do_no_harm(run: Path) -> None:
    result, rng = ChangeResult(run), np.random.default_rng(0)
    start = time.process_time()
    odd = [
        "a" * 900,
        "how much " * 100,
        "\x00\x1b[31m",
        "😀" * 50,
        "<c> <p> <n>",
        "{area.changed}",
        "' OR 1=1",
    ]
    for text in [*odd, *("".join(map(chr, rng.integers(32, 500, 200))) for _ in range(20))]:
        answer = result.ask(text)
        assert answer.text
        assert answer.answered or answer.text.startswith("I cannot tell")
    assert time.process_time() - start < 10
