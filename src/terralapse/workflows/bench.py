"""Comparing detectors of change on a labelled data set, from the command line or from Python."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from terralapse.engine.bench import BenchSettings, run_bench
from terralapse.engine.bench_log import RunLog, faults
from terralapse.engine.output import OutputFolder
from terralapse.errors import FileMissingError
from terralapse.products.bench_page import write_bench


def bench_change(
    output: Path | str,
    *,
    overwrite: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
    say: Callable[[str], None] | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Runs a benchmark and publishes its folder: `bench.json`, `bench.md`, `index.html`, plots, `log.jsonl`.

    Args:
        output: the folder to create; it appears whole or not at all.
        overwrite: replace a result that is there.
        progress, say: as in `run_bench`.
        settings: of `BenchSettings`.

    Returns:
        The content of `bench.json`.

    Raises:
        OutputExistsError, OutputLockedError, OutputNotWritableError: before anything is opened.
        others: of `run_bench`.
    """
    chosen = BenchSettings(**settings)
    with OutputFolder(Path(output), overwrite=overwrite) as folder:
        log = RunLog(folder.staging / "log.jsonl")
        result = run_bench(chosen, log, progress=progress, say=say)
        text = json.dumps(result, indent=1, allow_nan=False) + "\n"
        (folder.staging / "bench.json").write_text(text, encoding="utf-8")
        write_bench(result, folder.staging)
        log.add("finished", bench_json_sha256=hashlib.sha256(text.encode()).hexdigest())
        folder.publish()
    return result


def verify_bench(folder: Path | str) -> list[str]:
    """What is wrong with a published benchmark: its log's chain and protocol, and whether `bench.json` is the
    one that the log names. Empty when nothing is.

    Raises:
        FileMissingError: it holds no log or no result.
    """
    folder = Path(folder)
    for name in ("log.jsonl", "bench.json"):
        if not (folder / name).is_file():
            raise FileMissingError(folder / name, "is not there", "Give the folder of a benchmark.")
    found = faults(folder / "log.jsonl")
    if found:
        return found
    last = json.loads((folder / "log.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    if hashlib.sha256((folder / "bench.json").read_bytes()).hexdigest() != last["bench_json_sha256"]:
        return ["bench.json is not the one that the log names"]
    return []
