"""`terralapse captions make` and `check`, as a shell sees them."""

from __future__ import annotations

import io
import json
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from model_server import Reply, says, serve
from terralapse.cli import main
from terralapse.data.shards import read_shard
from terralapse.grid.sources import sha256_of


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))


@pytest.fixture
def maps(tmp_path: Path) -> Path:
    """Two maps of wheat (1, left three quarters) and maize (2), and one without a class."""
    folder = tmp_path / "maps"
    folder.mkdir()
    label = np.ones((64, 64), np.uint8)
    label[:, 48:] = 2
    for n in range(3):
        Image.fromarray(label if n != 1 else np.full_like(label, 255)).save(folder / f"m{n}.png")
    return folder


@pytest.fixture
def images(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for n, kind in enumerate(("Forest", "Sea Lake", "Forest")):
        path = tmp_path / "images" / kind / f"f{n}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8).repeat(8, 0).repeat(8, 1)).save(path)
    return tmp_path / "images"


Shell = Callable[..., tuple[int, str, str]]


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str]) -> Shell:
    def call(*words: str | Path) -> tuple[int, str, str]:
        sys.argv = ["terralapse", "captions", *map(str, words)]
        with pytest.raises(SystemExit) as done:
            main()
        out, err = capsys.readouterr()
        return int(done.value.code or 0), out, err

    return call


FIELDS = ("--kind", "chatearthnet", "--scheme", "1=Wheat,2=Maize")


def samples(folder: Path) -> list[dict[str, Any]]:
    return [s for path in sorted(folder.glob("*.tar")) for s in read_shard(path)]


# --- make ------------------------------------------------------------------------------------------------
def test_maps_become_captions_of_what_is_on_them(maps: Path, tmp_path: Path, shell: Shell) -> None:
    out = tmp_path / "out"
    code, said, _ = shell("make", maps, "-o", out, *FIELDS, "--licence", "CC0", "--shard", "1")
    assert code == 0
    assert said.splitlines()[-1] == f"2 samples (1 nothing to say, 2 written by rules) in {out}"
    made = samples(out)
    assert [s["key"] for s in made] == ["00000000_m0", "00000002_m2"]
    for sample in made:
        assert sample["key"] in said
        (caption,) = sample["captions"]
        assert f"  {caption}\n" in said
        assert "wheat" in caption.lower()
        assert "maize" in caption.lower()
        assert sample["record"]["provenance"]["licence"] == "CC0"
    assert sorted(p.name for p in out.iterdir()) == ["captions-00000.tar", "captions-00002.tar", "run.json"]


def test_quiet_says_nothing_and_json_is_the_record(images: Path, tmp_path: Path, shell: Shell) -> None:
    words = ("--kind", "gaia", "--folder-tag", "--about", "gsd=10", "--about", "satellite=Sentinel-2")
    assert shell("make", images, "-o", tmp_path / "a", *words, "-q") == (0, "", "")
    code, said, _ = shell("make", images, "-o", tmp_path / "b", *words, "--json")
    record = json.loads(said)
    assert (code, record["samples"], record["kind"]) == (0, 3, "gaia")
    assert record == json.loads((tmp_path / "b/run.json").read_text())
    assert record["files"] == json.loads((tmp_path / "a/run.json").read_text())["files"]
    about = [s["captions"][0] for s in samples(tmp_path / "a")]
    assert all("Sentinel-2" in caption for caption in about)
    assert [("sea lake" in c.lower()) for c in about] == [
        s["key"].endswith("f1") for s in samples(tmp_path / "a")
    ]


def test_the_seed_changes_words_and_parquet_holds_the_same(maps: Path, tmp_path: Path, shell: Shell) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    for seed in ("0", "0", "5"):
        name = tmp_path / f"s{seed}"
        done = shell("make", maps, "-o", name, *FIELDS, "--seed", seed, "--parquet", "--overwrite", "-q")
        assert done == (0, "", "")
    first, other = samples(tmp_path / "s0"), samples(tmp_path / "s5")
    assert [s["captions"] for s in first] != [s["captions"] for s in other]
    table = parquet.read_table(tmp_path / "s0/captions-00000.parquet").to_pylist()
    assert [r["captions"] for r in table] == [s["captions"] for s in first]
    assert [json.loads(r["record"]) for r in table] == [s["record"] for s in first]


def test_a_model_rewrites_and_is_held_to_the_map(maps: Path, tmp_path: Path, shell: Shell) -> None:
    with serve(lambda _body: says("Wheat is dominant. An airport lies in the middle.")) as model:
        code, said, _ = shell(
            "make", maps, "-o", tmp_path / "out", *FIELDS, "--base-url", model.url, "--llm", "tiny"
        )
    assert code == 0
    assert "airport" not in said
    assert "2 written by model" in said
    assert {r["model"] for r in model.requests} == {"tiny"}
    assert [s["captions"] for s in samples(tmp_path / "out")] == [["Wheat is dominant."]] * 2
    assert json.loads((tmp_path / "out/run.json").read_text())["writer"] == "tiny"


@pytest.mark.parametrize("reply", [401, b"<html>"])
def test_a_model_that_fails_leaves_nothing(maps: Path, tmp_path: Path, shell: Shell, reply: Reply) -> None:
    with serve(lambda _body: reply) as model:
        code, said, err = shell(
            "make", maps, "-o", tmp_path / "out", *FIELDS, "--base-url", model.url, "--llm", "tiny"
        )
    assert (code, said) == (2, "")
    assert err.startswith("terralapse: the endpoint 127.0.0.1:")
    assert not list(tmp_path.glob("out*"))


def test_it_goes_on_after_a_model_that_failed(maps: Path, tmp_path: Path, shell: Shell) -> None:
    """What came before is neither asked nor written again."""
    words = ("make", maps, "-o", tmp_path / "out", *FIELDS, "--shard", "1", "--llm", "tiny", "--resume", "-q")
    said: list[Any] = [says("Wheat is dominant."), 500]
    with serve(lambda _body: said.pop(0) if said else says("Maize is on the right.")) as model:
        code, _, err = shell(*words, "--base-url", model.url)
        assert (code, "HTTP 500" in err) == (2, True)
        assert shell(*words, "--base-url", model.url) == (0, "", "")
        assert len(model.requests) == 3
    assert [s["captions"] for s in samples(tmp_path / "out")] == [
        ["Wheat is dominant."],
        ["Maize is on the right."],
    ]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--kind", "haiku"), "kind=haiku: makes no captions. Choose chatearthnet or gaia."),
        (("--kind", "chatearthnet"), "needs --scheme, what the values of the map mean"),
        (("--kind", "chatearthnet", "--scheme", "wheat"), "scheme=wheat: is no class scheme"),
        (("--kind", "chatearthnet", "--scheme", "1=A,1=B"), "numbers or names a class twice"),
        ((*FIELDS, "--tile", "4"), "shard=512, tile=4: is too small"),
        ((*FIELDS, "--shard", "0"), "shard=0, tile=256: is too small"),
        ((*FIELDS, "--variant", "5"), "variant=5: is not published"),
        (
            (*FIELDS, "--variant", "4v", "--llm", "tiny", "--base-url", "http://127.0.0.1:9/v1"),
            "Give a map of worldcover or chatearthnet",
        ),
        ((*FIELDS, "--about", "gsd"), "gsd: is no setting"),
        ((*FIELDS, "--about", "gsd=10"), "is a map, and metadata are of images"),
        ((*FIELDS, "--image", "nowhere"), "nowhere"),
        ((*FIELDS, "--llm", "tiny"), "base-url: is not given"),
        ((*FIELDS, "--base-url", "http://127.0.0.1:9/v1"), "llm: is not given"),
        (("--kind", "gaia", "--variant", "4v"), "gaia: takes no variant"),
        (("--kind", "gaia", "--metadata", "none.csv"), "none.csv"),
    ],
)
def test_bad_options_are_one_error(
    maps: Path, tmp_path: Path, shell: Shell, words: tuple[str, ...], said: str
) -> None:
    code, out, err = shell("make", maps, "-o", tmp_path / "out", *words)
    assert (code, out) == (2, "")
    assert err.startswith("terralapse: ")
    assert said in err
    assert err.count("\n") == 1
    assert not list(tmp_path.glob("out*"))


def test_a_source_that_is_not_there_or_says_nothing(tmp_path: Path, shell: Shell) -> None:
    code, _, err = shell("make", tmp_path / "nowhere", "-o", tmp_path / "out", *FIELDS)
    assert (code, "nowhere: is not there" in err) == (2, True)
    (tmp_path / "empty").mkdir()
    code, _, err = shell("make", tmp_path / "empty", "-o", tmp_path / "out", *FIELDS)
    assert (code, "terralapse: " in err) == (2, True)
    Image.fromarray(np.full((32, 32), 255, np.uint8)).save(tmp_path / "empty/a.png")
    code, _, err = shell("make", tmp_path / "empty", "-o", tmp_path / "out", *FIELDS)
    assert (code, "nothing that a caption could say" in err) == (2, True)
    assert not list(tmp_path.glob("out*"))


# --- check -----------------------------------------------------------------------------------------------
@pytest.fixture
def made(maps: Path, tmp_path: Path, shell: Shell) -> Path:
    assert shell("make", maps, "-o", tmp_path / "made", *FIELDS, "-q") == (0, "", "")
    return tmp_path / "made"


def rewritten(folder: Path, change: Callable[[str, bytes], bytes]) -> None:
    """The shard with other contents, and its new hash in the record: somebody who knows the format."""
    path = folder / "captions-00000.tar"
    with tarfile.open(path) as tar:
        held = [(m, change(m.name, tar.extractfile(m).read())) for m in tar.getmembers()]  # type: ignore[union-attr]
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for entry, content in held:
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    record = json.loads((folder / "run.json").read_text())
    record["files"][0]["sha256"] = sha256_of(path)
    (folder / "run.json").write_text(json.dumps(record))


def test_what_was_made_holds(made: Path, shell: Shell) -> None:
    code, said, err = shell("check", made)
    assert (code, err) == (0, "")
    assert said.endswith(" sentences of 2 samples hold.\n")
    code, said, _ = shell("check", made, "--json")
    found = json.loads(said)
    assert (code, found["samples"], found["faults"]) == (0, 2, [])
    assert found["sentences"] > 2


def test_a_file_that_changed_is_named(made: Path, shell: Shell) -> None:
    path = made / "captions-00000.tar"
    path.write_bytes(path.read_bytes() + b"\0")
    fault = "captions-00000.tar is missing or not the file that run.json names\n"
    assert shell("check", made) == (2, fault, "")
    path.unlink()
    code, said, _ = shell("check", made, "--json")
    assert (code, json.loads(said)["faults"]) == (2, [fault.strip()])


def test_a_sentence_that_does_not_hold_is_found_though_the_hash_is_right(made: Path, shell: Shell) -> None:
    lie = b"Maize covers 90%. An airport lies in the middle.\n"
    rewritten(made, lambda name, content: lie if name == "00000002_m2.txt" else content)
    code, said, err = shell("check", made)
    assert (code, err) == (2, "")
    assert said.splitlines()
    assert all(line.startswith("00000002_m2: ") for line in said.splitlines())
    assert "'90%'" in said
    assert "'airport'" in said


def test_a_shard_without_its_statistics_is_one_error(made: Path, shell: Shell) -> None:
    rewritten(made, lambda name, content: b"{}" if name.endswith(".json") else content)
    code, said, err = shell("check", made)
    assert (code, said) == (2, "")
    assert err.startswith(f"terralapse: {made / 'captions-00000.tar'}: ")
    assert "00000000_m0" in err


@pytest.mark.parametrize(
    "record",
    [
        "no json", "[]", '{"kind": "chatearthnet"}',
        '{"kind": "chatearthnet", "build": {}, "files": [1]}',
        '{"kind": "chatearthnet", "build": {}, "files": [{"file": "a.tar"}]}',
        '{"kind": "chatearthnet", "build": {}, "files": {"file": "a.tar"}}',
        '{"kind": "chatearthnet", "build": {"colour": 1}, "files": []}',
        '{"kind": ["chatearthnet"], "build": {}, "files": []}',
    ],
)  # fmt: skip
def test_a_record_that_is_none_is_one_error(made: Path, shell: Shell, record: str) -> None:
    (made / "run.json").write_text(record)
    code, said, err = shell("check", made)
    assert (code, said) == (2, "")
    assert err.startswith("terralapse: ")
    assert err.count("\n") == 1


def test_a_folder_that_holds_no_captions_is_one_error(tmp_path: Path, shell: Shell) -> None:
    code, said, err = shell("check", tmp_path)
    assert (code, said) == (2, "")
    assert err == f"terralapse: {tmp_path / 'run.json'}: is not there. Give a folder of captions.\n"
