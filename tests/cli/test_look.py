"""`terralapse look`, as a shell sees it: pictures that are those of the bands, answers, and bad input."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rasterio.transform import from_origin

from fixtures_eo import make_safe, write_tif
from model_server import Reply, says, serve
from terralapse.cli import main
from terralapse.models.language import zeroshot_ms

NAMES = ("1_rgb", "2_false_color", "3_ndvi", "4_ndwi", "5_ndmi_b11", "6_ndmi_b12")
# Reflectance of leaves, in the order of the bands that the pictures need.
IDS = ("B02", "B03", "B04", "B08", "B8A", "B11", "B12")
FOREST = (0.02, 0.04, 0.03, 0.3, 0.32, 0.15, 0.06)


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def safe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_safe(tmp_path_factory.mktemp("safe"), size=60).path


def forest(folder: Path, names: tuple[str, ...] = IDS, **more: Any) -> Path:
    """Leaves on the left, and twice as bright on the right."""
    data = np.array(FOREST[: len(names)], np.float32)[:, None, None] * np.ones((1, 12, 16), np.float32)
    data[:, :, 8:] *= 2
    path = folder / "S2A_20210601_forest.tif"
    place = {"descriptions": names, "transform": from_origin(500000, 5000000, 10, 10)}
    return write_tif(path, data, **place, **more)


def call(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, str, str]:
    sys.argv = ["terralapse", "look", *map(str, words)]
    with pytest.raises(SystemExit) as done:
        main()
    out, err = capsys.readouterr()
    return int(done.value.code or 0), out, err


def test_pictures_text_and_answer_of_a_product(
    safe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    code, said, err = call(capsys, safe, "-o", out, "--classes", "Forest, Water")
    assert (code, err) == (0, "")
    assert said in (f"{name}  (by rules)\nPictures  {out}\n" for name in ("Forest", "Water"))
    files = sorted(p.name for p in out.iterdir())
    assert files == sorted([*(f"{n}.png" for n in NAMES), "messages.json", "prompt.txt", "run.json"])
    assert all(np.asarray(Image.open(out / f"{n}.png")).shape == (60, 60, 3) for n in NAMES)
    record = json.loads((out / "run.json").read_text())
    assert record["size"] == [60, 60]
    assert record["answer"]["classes"] == [said.partition(" ")[0]]
    text = (out / "prompt.txt").read_text()
    assert text.endswith("(1) Forest\n(2) Water\n")
    content = json.loads((out / "messages.json").read_text())[0]["content"]
    assert content[-1]["text"] == text.rstrip("\n")
    assert len(content) == 7


def test_the_pictures_are_those_of_the_bands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    asked = ("--classes", "Sea,Broadleaf forest", "--ndvi", "rescaled", "--span", "0.5", "--json")
    code, said, _ = call(capsys, forest(tmp_path), "-o", out, *asked)
    assert code == 0
    record = json.loads(said)
    assert record == json.loads((out / "run.json").read_text())
    assert record["answer"] == {
        "text": "(2)", "numbers": [2], "classes": ["Broadleaf forest"], "answerer": "rules",
    }  # fmt: skip
    assert record["pictures"] == {"ndvi": "rescaled", "span": 0.5, "enlarged_to": 0}
    planes = np.array(FOREST)[:, None, None] * np.ones((1, 12, 16)) * np.where(np.arange(16) < 8, 1, 2)
    bands = dict(zip(zeroshot_ms.BANDS, planes, strict=True))
    expected = zeroshot_ms.pictures(bands, ndvi="rescaled", span=0.5)
    for name in NAMES:
        found = np.asarray(Image.open(out / f"{name}.png")).astype(int)
        assert np.abs(found - expected[name[2:]]).max() <= 2, name  # float32 may fall to the next step
    left, right = np.asarray(Image.open(out / "1_rgb.png"))[0, [0, 15]]
    assert left.tolist() == pytest.approx([25, 34, 17], abs=1)
    assert right.tolist() == pytest.approx([51, 68, 34], abs=1)


def test_a_model_behind_an_endpoint_sees_and_answers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image, out = forest(tmp_path), tmp_path / "out"
    asked = ("--classes", "Forest,Water,Snow", "--several", "--question", "What lies here?", "--least", "30")
    with serve(lambda _body: says("(3), (1)")) as model:
        code, said, _ = call(capsys, image, "-o", out, *asked, "--base-url", model.url, "--llm", "tiny")
    assert (code, said) == (0, f"Snow, Forest  (by tiny)\nPictures  {out}\n")
    content = model.requests[0]["messages"][0]["content"]
    assert [p["type"] for p in content] == ["image_url"] * 6 + ["text"]
    assert "What lies here?\n(1) Forest" in content[-1]["text"]
    assert model.requests[0]["max_tokens"] == 100
    assert json.loads((out / "messages.json").read_text()) == model.requests[0]["messages"]
    assert Image.open(out / "1_rgb.png").size == (16, 12)  # the model alone gets them larger


def test_a_reply_that_names_no_class_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serve(lambda _body: says("A forest, I think (7).")) as model:
        code, said, _ = call(
            capsys, forest(tmp_path), "-o", tmp_path / "out", "--classes", "a,b",
            "--base-url", model.url, "--llm", "tiny",
        )  # fmt: skip
    assert code == 0
    assert said.startswith("no class in the reply 'A forest, I think (7).'  (by tiny)")


@pytest.mark.parametrize("reply", [500, b"no JSON"])
def test_an_endpoint_that_fails_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], reply: Reply
) -> None:
    image = forest(tmp_path)
    with serve(lambda _body: reply) as model:
        code, said, err = call(
            capsys, image, "-o", tmp_path / "out", "--classes", "a,b",
            "--base-url", model.url, "--llm", "tiny",
        )  # fmt: skip
    assert (code, said) == (2, "")
    assert err.startswith("terralapse: the endpoint 127.0.0.1:")
    assert [p.name for p in tmp_path.iterdir()] == [image.name]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--classes", "Forest"), "classes: are fewer than two, or one is named twice"),
        (("--classes", "Forest,Forest"), "classes: are fewer than two, or one is named twice"),
        (("--classes", "Forest,,Water"), "classes: are fewer than two"),
        (("--classes", "A,B"), "classes: name no ground that the rules know"),
        (("--classes", "Sea,Forest", "--ndvi", "green"), "ndvi=green: is no way to show it"),
        (("--classes", "Sea,Forest", "--span", "0"), "span=0: "),
        (("--classes", "Sea,Forest", "--span", "-0.8"), "span=-0.8: "),
        (("--classes", "Sea,Forest", "--span", "nan"), "span=nan: "),
        (("--classes", "Sea,Forest", "--least", "-1"), "least=-1: "),
        (("--classes", "Sea,Forest", "--least", "1000000"), "least=1000000: "),
        (("--classes", "Sea,Forest", "--prototypes", "none.json"), "none.json: is not there"),
        (("--classes", "Sea,Forest", "--llm", "tiny"), "base-url: is not given"),
        (("--classes", "Sea,Forest", "--base-url", "http://127.0.0.1:9/v1"), "llm: is not given"),
    ],
)
def test_bad_options_are_one_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], said: str
) -> None:
    image = forest(tmp_path)
    code, out, err = call(capsys, image, "-o", tmp_path / "out", *words)
    assert (code, out) == (2, "")
    assert err.startswith(f"terralapse: {said}"), err
    assert err.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == [image.name]


def missing(folder: Path) -> Path:
    return folder / "nowhere.tif"


def no_swir(folder: Path) -> Path:
    return forest(folder, IDS[:5])


def numbers(folder: Path) -> Path:
    data = np.full((3, 12, 16), 120, np.uint8)
    return write_tif(folder / "rgb.tif", data, transform=from_origin(500000, 5000000, 10, 10))


def empty(folder: Path) -> Path:
    data = np.full((7, 12, 16), np.nan, np.float32)
    place = {"descriptions": IDS, "transform": from_origin(500000, 5000000, 10, 10)}
    return write_tif(folder / "S2A_20210601_empty.tif", data, nodata=np.nan, **place)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (missing, "nowhere.tif: "),
        (no_swir, "lacks swir16, swir22"),
        (numbers, "and the pictures are of reflectance"),
        (empty, "has no pixel with data"),
    ],
)
def test_images_that_cannot_be_shown_are_one_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], make: Any, said: str
) -> None:
    code, out, err = call(capsys, make(tmp_path), "-o", tmp_path / "out", "--classes", "Sea,Forest")
    assert (code, out) == (2, "")
    assert said in err
    assert not list(tmp_path.glob("out*"))


def test_a_result_is_replaced_only_when_that_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (forest(tmp_path), "-o", tmp_path / "out", "--classes", "Sea,Forest")
    assert call(capsys, *words)[0] == 0
    code, _, err = call(capsys, *words)
    assert (code, "already holds a result" in err) == (2, True)
    assert call(capsys, *words, "--overwrite", "--question", "Again?")[0] == 0
    assert "Again?" in (tmp_path / "out/prompt.txt").read_text()
