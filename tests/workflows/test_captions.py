"""Making captions: shards and their record, going on, a language model held to the facts, bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from terralapse.data.catalogue import open_dataset
from terralapse.data.shards import read_shard
from terralapse.errors import NoValidDataError, ResumeMismatchError, SettingError, UnreadableFileError
from terralapse.workflows.captions import check_captions, make_captions


@pytest.fixture
def maps(tmp_path: Path) -> Path:
    folder = tmp_path / "maps"
    folder.mkdir()
    for n in range(5):
        label = np.full((64, 64), 3, np.uint8)
        label[:, 32:] = 6 if n % 2 else 1
        Image.fromarray(label if n != 2 else np.zeros_like(label)).save(folder / f"m{n}.png")
    return folder


@pytest.fixture
def images(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for n in range(6):
        path = tmp_path / "images" / ("Sea Lake" if n % 2 else "Forest") / f"f{n}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        blocks = rng.integers(0, 256, (4, 4, 3), np.uint8)
        Image.fromarray(blocks.repeat(8, axis=0).repeat(8, axis=1)).save(path)
    return tmp_path / "images"


def make(source: Path, out: Path, **more: Any) -> dict[str, Any]:
    return make_captions(
        source, out, **{"kind": "chatearthnet", "scheme": "chatearthnet", "shard": 2, **more}
    )


def test_shards_record_and_check(maps: Path, tmp_path: Path) -> None:
    found = make(maps, tmp_path / "out", licence="CC0", parquet=True)
    assert found["samples"] == 4
    assert found["counts"]["nothing to say"] == 1
    assert len([f for f in found["files"] if f["file"].endswith(".tar")]) == 3
    samples = [s for f in sorted((tmp_path / "out").glob("*.tar")) for s in read_shard(f)]
    about = samples[0]["record"]["provenance"]
    assert about["procedure"] == "chatearthnet-1"
    assert about["licence"] == "CC0"
    assert len(about["sha256"]) == 64
    assert check_captions(tmp_path / "out") == {"samples": 4, "sentences": 28, "faults": []}
    assert not list((tmp_path / "out").glob("*.tmp"))


def test_the_same_source_gives_the_same_bytes(maps: Path, tmp_path: Path) -> None:
    files = [make(maps, tmp_path / name)["files"] for name in ("a", "b")]
    assert files[0] == files[1]


def test_a_changed_word_is_found(maps: Path, tmp_path: Path) -> None:
    make(maps, tmp_path / "out")
    path = tmp_path / "out" / "captions-00000.tar"
    path.write_bytes(path.read_bytes().replace(b"mostly tree", b"mostly snow"))
    assert "not the file" in check_captions(tmp_path / "out")["faults"][0]


def test_it_goes_on_where_it_stopped(maps: Path, tmp_path: Path) -> None:
    whole = make(maps, tmp_path / "whole")
    asked: list[int] = []

    def stop(_stage: str, done: int, _total: int) -> None:
        asked.append(done)
        if len(asked) == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(maps, tmp_path / "out", resume=True, progress=stop)
    with pytest.raises(ResumeMismatchError):
        make(maps, tmp_path / "out", resume=True, seed=1)
    again: list[int] = []
    found = make(maps, tmp_path / "out", resume=True, progress=lambda _s, d, _t: again.append(d))
    assert found["files"] == whole["files"]
    assert again.count(1) == 0  # the first shard was not made again


def test_a_model_is_held_to_the_statistics(maps: Path, tmp_path: Path) -> None:
    said: list[str] = []

    def chat(messages: list[dict[str, Any]]) -> str:
        said.append(messages[-1]["content"])
        return "Forest dominates the top left. An airport lies in the middle. Snow covers 40%."

    found = make(maps, tmp_path / "out", chat=chat, chat_name="liar")
    sample = next(read_shard(tmp_path / "out" / "captions-00000.tar"))
    assert sample["captions"] == ["Forest dominates the top left."]
    assert sample["record"]["provenance"]["sentences_left_out"] == 2
    assert "thing 'airport'" in said[1]
    assert found["counts"]["written by model"] == 4
    assert check_captions(tmp_path / "out")["faults"] == []


def test_captions_of_images_are_read_for_training(images: Path, tmp_path: Path) -> None:
    about = {"satellite": "Sentinel-2", "gsd": 10}
    found = make_captions(images, tmp_path / "out" / "train", kind="gaia", folder_tag=True, about=about)
    assert found["samples"] == 6
    data = open_dataset("image-text", tmp_path / "out", "train")
    assert len(data) == 6
    assert len(data[0].captions) == 5
    assert data[0].image.shape == (3, 32, 32)
    assert any("sea lake scene" in c.lower() for c in data[5].captions)


@pytest.mark.parametrize(
    ("more", "error"),
    [
        ({"scheme": None}, SettingError),
        ({"kind": "change-agent/nano"}, SettingError),
        ({"kind": "nothing"}, SettingError),
        ({"scheme": "wheat"}, SettingError),
        ({"scheme": "landsat-scd"}, UnreadableFileError),
        ({"metadata": "x.csv"}, SettingError),
        ({"shard": 0}, SettingError),
    ],
)
def test_bad_input_gets_one_error(maps: Path, tmp_path: Path, more: dict[str, Any], error: type) -> None:
    with pytest.raises(error):
        make(maps, tmp_path / "out", **more)
    assert not (tmp_path / "out").exists()


def test_nothing_to_say_is_an_error(tmp_path: Path) -> None:
    folder = tmp_path / "maps"
    folder.mkdir()
    Image.fromarray(np.zeros((32, 32), np.uint8)).save(folder / "a.png")
    with pytest.raises(NoValidDataError):
        make(folder, tmp_path / "out")


def test_polygons_on_an_image(shared_data: Path, tmp_path: Path) -> None:
    place = shared_data / "geo_s2_landcover"
    found = make_captions(
        place / "rcr/rcr_landcover.shp",
        tmp_path / "out",
        kind="chatearthnet",
        image=place,
        column="Classname",
        tile=128,
    )
    assert found["samples"] == 9
    sample = next(read_shard(tmp_path / "out" / "captions-00000.tar"))
    assert "forested wetland" in sample["captions"][0]
    assert json.dumps(sample["record"]["provenance"]["bounds"])
    assert sample["image"] is not None
