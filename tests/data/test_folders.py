"""One reader for the many names that folders of pairs have."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data_trees import MASK, coloured, pairs, picture, rows, save
from terralapse.data.folders import BiTemporal, SemanticBiTemporal
from terralapse.data.pairs import IGNORE
from terralapse.errors import FileMissingError, SettingError, UnreadableFileError
from terralapse.labels import LANDSAT_SCD, SECOND_MAMBA, SECOND_SCANNET
from terralapse.sensors import Unit

WHITE, GREY, DARK_GREEN, GREEN = (255, 255, 255), (128, 128, 128), (0, 128, 0), (0, 255, 0)
BLUE, DARK_RED, RED = (0, 0, 255), (128, 0, 0), (255, 0, 0)


@pytest.mark.parametrize(
    ("dates", "label"),
    [
        (("A", "B"), "label"),
        (("A", "B"), "OUT"),
        (("T1", "T2"), "GT"),
        (("T1", "T2"), "GT_CD"),
        (("time1", "time2"), "label"),
        (("im1", "im2"), "label"),
        (("image1", "image2"), "label"),
        (("pre", "post"), "mask"),
        (("before", "after"), "change"),
        (("t1", "t2"), "mask"),
    ],
)
def test_names_of_folders(tmp_path: Path, dates: tuple[str, str], label: str) -> None:
    pairs(tmp_path, ["2", "1"], dates, {label: MASK})
    found = BiTemporal(tmp_path, gsd=0.5, title="set")
    assert [p.name for p in found] == found.names == ["1", "2"]
    pair = found[0]
    assert pair.images.shape == (2, 3, 8, 8)
    assert pair.images.dtype == np.float32
    assert pair.images[:, :, 0, 0].tolist() == [[10, 20, 30], [11, 21, 31]]
    assert pair.label[:, 0].tolist() == [1, 1, 0, 0, 0, 0, 0, 0]
    assert (pair.gsd, pair.bands, pair.unit) == (0.5, ("red", "green", "blue"), Unit.RGB255)
    assert found.title == "set"


@pytest.mark.parametrize("suffix", [".jpg", ".tif", ".png"])
def test_formats(tmp_path: Path, suffix: str) -> None:
    pairs(tmp_path, ["a"], labels={"label": MASK}, suffix=suffix)
    assert BiTemporal(tmp_path)[0].images.shape == (2, 3, 8, 8)


def test_a_split_is_a_folder(tmp_path: Path) -> None:
    pairs(tmp_path / "train", ["a"], labels={"label": MASK})
    pairs(tmp_path / "test", ["b", "c"], labels={"label": MASK})
    assert BiTemporal(tmp_path, "train").names == ["a"]
    found = BiTemporal(tmp_path, "test", title="set")
    assert (found.names, found.title) == (["b", "c"], "set test")
    with pytest.raises(FileMissingError, match=r"val.*list/val\.txt"):
        BiTemporal(tmp_path, "val")


@pytest.mark.parametrize("place", ["list/val.txt", "val_list.txt", "val.txt"])
def test_a_split_is_a_list(tmp_path: Path, place: str) -> None:
    pairs(tmp_path, ["a", "b", "c.d"], labels={"label": MASK})
    path = tmp_path / place
    path.parent.mkdir(exist_ok=True)
    path.write_text("c.d\n\na.png", encoding="utf-8")
    assert BiTemporal(tmp_path, "val").names == ["a", "c.d"]
    path.write_text("a\nz\n", encoding="utf-8")
    with pytest.raises(FileMissingError, match=r"z.*is in val"):
        BiTemporal(tmp_path, "val")
    path.write_text("\n", encoding="utf-8")
    with pytest.raises(FileMissingError, match="names no file"):
        BiTemporal(tmp_path, "val")


def test_a_list_chooses_within_the_folder_of_the_split(tmp_path: Path) -> None:
    pairs(tmp_path / "train", ["a", "b"], ("T1", "T2"), {"GT": MASK})
    (tmp_path / "train_list.txt").write_text("b.png", encoding="utf-8")
    assert BiTemporal(tmp_path, "train").names == ["b"]


def test_pairs_without_a_label_are_told(tmp_path: Path) -> None:
    pairs(tmp_path, ["a", "b"], labels={"label": MASK})
    (tmp_path / "label/a.png").unlink()
    found = BiTemporal(tmp_path)
    assert (found.names, found.unlabelled) == (["b"], ["a"])


@pytest.mark.parametrize(
    ("stored", "read"),
    [
        (rows(0, 1, 1, 0, 0, 0, 0, 0), [0, 1, 1, 0, 0, 0, 0, 0]),
        (rows(0, 255, 255, 0, 0, 0, 0, 0), [0, 1, 1, 0, 0, 0, 0, 0]),
        (rows(0, 1, 255, 0, 0, 0, 0, 0), [0, 1, IGNORE, 0, 0, 0, 0, 0]),
        (rows(0, 255, 0, 0, 0, 0, 0, 0) > 0, [0, 1, 0, 0, 0, 0, 0, 0]),
        (np.repeat(rows(0, 255, 0, 0, 0, 0, 0, 0)[..., None], 3, 2), [0, 1, 0, 0, 0, 0, 0, 0]),
    ],
    ids=["0-1", "0-255", "0-1-255", "one-bit", "grey-as-rgb"],
)
def test_binary_labels(tmp_path: Path, stored: np.ndarray, read: list[int]) -> None:
    pairs(tmp_path, ["a"], labels={"label": stored})
    assert BiTemporal(tmp_path)[0].label[:, 3].tolist() == read


def test_a_label_that_is_no_mask(tmp_path: Path) -> None:
    pairs(tmp_path, ["a"], labels={"label": rows(0, 3, 200, 255, 0, 0, 0, 0)})
    with pytest.raises(UnreadableFileError, match=r"a\.png: holds 0, 3, 200, 255.*threshold"):
        BiTemporal(tmp_path)[0]
    assert BiTemporal(tmp_path, threshold=127)[0].label[:, 0].tolist() == [0, 0, 1, 1, 0, 0, 0, 0]
    save(tmp_path / "label/a.png", picture(0))
    with pytest.raises(UnreadableFileError, match="coloured"):
        BiTemporal(tmp_path)[0]


def test_trees_that_are_not_whole(tmp_path: Path) -> None:
    with pytest.raises(FileMissingError, match="nowhere"):
        BiTemporal(tmp_path / "nowhere")
    with pytest.raises(FileMissingError, match="T1 and T2"):
        BiTemporal(tmp_path)
    (tmp_path / "A").mkdir()
    with pytest.raises(FileMissingError, match=r"B: is not there, only its partner"):
        BiTemporal(tmp_path)
    pairs(tmp_path, ["a", "b"])
    with pytest.raises(FileMissingError, match=r"label.*any other folder"):
        BiTemporal(tmp_path)
    pairs(tmp_path, ["a", "b"], labels={"label": MASK})
    (tmp_path / "B/b.png").unlink()
    with pytest.raises(FileMissingError, match=r"B/b\.png.*other date only"):
        BiTemporal(tmp_path)
    (tmp_path / "B/a.png").unlink()
    with pytest.raises(FileMissingError, match=r"as 2 files in all: a\.png, b\.png"):
        BiTemporal(tmp_path)


def test_trees_that_are_ambiguous(tmp_path: Path) -> None:
    pairs(tmp_path, ["a"], labels={"label": MASK, "GT": MASK})
    with pytest.raises(SettingError, match="label, GT"):
        BiTemporal(tmp_path)
    pairs(tmp_path, ["a"], ("T1", "T2"))
    with pytest.raises(SettingError, match="A and B; T1 and T2"):
        BiTemporal(tmp_path)


def test_two_files_of_one_name(tmp_path: Path) -> None:
    pairs(tmp_path, ["a"], labels={"label": MASK})
    save(tmp_path / "A/a.jpg", picture(0))
    with pytest.raises(UnreadableFileError, match=r"a\.png.*same name as a\.jpg"):
        BiTemporal(tmp_path)


def test_sizes_and_bytes(tmp_path: Path) -> None:
    pairs(tmp_path, ["a"], labels={"label": MASK[:4]})
    with pytest.raises(UnreadableFileError, match=r"a\.png: is \(4, 8\), its images are \(8, 8\)"):
        BiTemporal(tmp_path)[0]
    (tmp_path / "A/a.png").write_bytes(b"no image at all")
    with pytest.raises(UnreadableFileError, match=r"A/a\.png: is no image"):
        BiTemporal(tmp_path)[0]
    save(tmp_path / "A/a.png", np.zeros((8, 8), np.uint16))
    with pytest.raises(UnreadableFileError, match="8 bits"):
        BiTemporal(tmp_path)[0]


def write_tif(path: Path, bands: np.ndarray, **options: str) -> None:
    """A TIFF [C, H, W] as GDAL writes it."""
    import rasterio

    count, height, width = bands.shape
    options = {"driver": "GTiff", "dtype": str(bands.dtype)} | options
    with rasterio.open(path, "w", count=count, height=height, width=width, **options) as file:
        file.write(bands)


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
@pytest.mark.parametrize("photometric", ["RGB", "MINISBLACK"])
@pytest.mark.parametrize("count", [3, 4, 5])
def test_tiff_of_several_bands(tmp_path: Path, count: int, photometric: str) -> None:
    pairs(tmp_path, ["a"], labels={"label": MASK}, suffix=".tif")
    bands = np.arange(count * 64, dtype=np.uint8).reshape(count, 8, 8)
    write_tif(tmp_path / "A/a.tif", bands, photometric=photometric)
    assert np.array_equal(BiTemporal(tmp_path)[0].images[0], bands[:3])


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning", "ignore:Corrupt EXIF data")
def test_tiff_that_is_not_of_8_bits(tmp_path: Path) -> None:
    pairs(tmp_path, ["a"], labels={"label": MASK}, suffix=".tif")
    write_tif(tmp_path / "A/a.tif", np.zeros((3, 8, 8), np.uint16))
    with pytest.raises(UnreadableFileError, match=r"A/a\.tif: has values of type uint16"):
        BiTemporal(tmp_path)[0]
    (tmp_path / "A/a.tif").write_bytes(b"II*\0 and then nothing")
    with pytest.raises(UnreadableFileError, match=r"A/a\.tif: cannot be read"):
        BiTemporal(tmp_path)[0]


def test_second_in_colours(tmp_path: Path) -> None:
    before = coloured(WHITE, DARK_GREEN, GREY, GREEN, BLUE, DARK_RED, RED, WHITE)
    after = coloured(WHITE, GREY, BLUE, RED, GREEN, GREY, DARK_RED, WHITE)
    pairs(tmp_path / "train", ["1"], ("im1", "im2"), {"label1": before, "label2": after})
    mamba = SemanticBiTemporal(tmp_path, "train", SECOND_MAMBA)[0]
    assert mamba.before[:, 0].tolist() == [0, 1, 2, 3, 4, 5, 6, 0]
    assert mamba.after[:, 5].tolist() == [0, 2, 4, 6, 3, 2, 5, 0]
    assert mamba.label[:, 0].tolist() == [0, 1, 1, 1, 1, 1, 1, 0]
    scannet = SemanticBiTemporal(tmp_path, "train", SECOND_SCANNET)[0]
    assert scannet.before[:, 0].tolist() == [0, 3, 2, 4, 1, 5, 6, 0]


def test_second_as_ids_of_changemamba(tmp_path: Path) -> None:
    before, after = rows(0, 1, 2, 3, 4, 5, 6, 255), rows(0, 6, 5, 4, 3, 2, 1, 255)
    labels = {"GT_T1": before, "GT_T2": after, "GT_CD": MASK}
    pairs(tmp_path / "test", ["1"], ("T1", "T2"), labels)
    pair = SemanticBiTemporal(tmp_path, "test", SECOND_MAMBA)[0]
    assert pair.before[:, 0].tolist() == [0, 1, 2, 3, 4, 5, 6, IGNORE]
    assert pair.after[:, 0].tolist() == [0, 6, 5, 4, 3, 2, 1, IGNORE]


def test_landsat_scd(tmp_path: Path) -> None:
    pairs(tmp_path, ["1", "2"], labels={"labelA": rows(*range(5), 0, 0, 0), "labelB": rows(*[0] * 8)})
    (tmp_path / "val_list.txt").write_text("2.png\n", encoding="utf-8")
    found = SemanticBiTemporal(tmp_path, "val", LANDSAT_SCD)
    assert found.names == ["2"]
    assert found[0].before[:, 0].tolist() == [0, 1, 2, 3, 4, 0, 0, 0]


def test_a_palette_with_the_colours_of_the_scheme_counts_by_colour(tmp_path: Path) -> None:
    from PIL import Image

    pairs(tmp_path, ["1"], labels={"labelA": rows(*[0] * 8), "labelB": rows(*[0] * 8)})
    label = Image.fromarray(rows(0, 1, 1, 0, 0, 0, 0, 0), mode="P")
    label.putpalette([255, 255, 255, 0, 0, 255])  # 0 unchanged; 1 in the colour of water, which is 4
    label.save(tmp_path / "labelA/1.png")
    assert SemanticBiTemporal(tmp_path, None, SECOND_MAMBA)[0].before[:, 0].tolist() == [
        0,
        4,
        4,
        0,
        0,
        0,
        0,
        0,
    ]
    label.putpalette([1, 2, 3, 4, 5, 6])  # colours of nothing: ids
    label.save(tmp_path / "labelA/1.png")
    assert SemanticBiTemporal(tmp_path, None, SECOND_MAMBA)[0].before[:, 0].tolist() == [
        0,
        1,
        1,
        0,
        0,
        0,
        0,
        0,
    ]


def test_classes_that_the_scheme_does_not_have(tmp_path: Path) -> None:
    pairs(tmp_path, ["1"], labels={"label1": rows(*[0] * 7, 9), "label2": rows(*[0] * 8)})
    with pytest.raises(
        UnreadableFileError,
        match=r"label1/1\.png: holds 9, which is no class of second-mamba \(9 on 8 pixels\)",
    ):
        SemanticBiTemporal(tmp_path, None, SECOND_MAMBA)[0]
    save(tmp_path / "label1/1.png", coloured(*[WHITE] * 7, (0, 128, 1)))
    with pytest.raises(
        UnreadableFileError,
        match=r"label1/1\.png: holds colours that no class has: \(0, 128, 1\) on 8 pixels",
    ):
        SemanticBiTemporal(tmp_path, None, SECOND_MAMBA)[0]
    (tmp_path / "label2/1.png").unlink()
    with pytest.raises(FileMissingError, match=r"label2/1\.png"):
        SemanticBiTemporal(tmp_path, None, SECOND_MAMBA)


def test_samples_of_levir_and_dsifn(shared_data: Path) -> None:
    levir = BiTemporal(shared_data / "cd_vhr_samples/levir")
    assert (len(levir), levir.unlabelled) == (8, ["test_113_0256"])
    dsifn = BiTemporal(shared_data / "cd_vhr_samples/dsifn")
    assert len(dsifn) == 7
    assert {p.images.shape for p in dsifn} == {(2, 3, 256, 256)}
    assert set().union(*(np.unique(p.label).tolist() for p in dsifn)) == {0, 1}
