"""Zero-shot multi-spectral: golden pixels, the order of what is sent, how replies are read, the baselines."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from terralapse import registry
from terralapse.errors import BandError, SettingError, UnreadableFileError
from terralapse.models.language import zeroshot_ms as z


def tile(ndvi: float = 0.0, ndwi: float = 0.0, ndmi: float = 0.0) -> dict[str, np.ndarray]:
    """Bands 1 x 1 whose indices have these values; NDWI follows NIR that is 0.2 and green."""
    nir, nir08 = 0.2, 0.2
    return {
        "blue": np.full((1, 1), 0.1),
        "green": np.full((1, 1), nir * (1 + ndwi) / (1 - ndwi)),
        "red": np.full((1, 1), nir * (1 - ndvi) / (1 + ndvi)),
        "nir": np.full((1, 1), nir),
        "nir08": np.full((1, 1), nir08),
        "swir16": np.full((1, 1), nir08 * (1 - ndmi) / (1 + ndmi)),
        "swir22": np.full((1, 1), 0.1),
    }


def test_colours_are_those_of_matplotlib() -> None:
    matplotlib = pytest.importorskip("matplotlib")
    x = np.linspace(-0.2, 1.2, 3001)[None]
    theirs = (matplotlib.colormaps["RdYlGn"](x) * 255).astype(np.uint8)[..., :3]
    assert (z.coloured(x, z.ramp(z._RDYLGN)) == theirs).all()


@pytest.mark.parametrize(
    ("picture", "value", "colour"),
    [
        ("ndvi", 0.0, (165, 0, 38)),
        ("ndwi", 0.0, (254, 254, 255)),
        ("ndwi", 0.4, (126, 126, 255)),
        ("ndmi_b11", 0.0, (0, 254, 1)),
    ],
)
def test_golden_pixels(picture: str, value: float, colour: tuple[int, ...]) -> None:
    bands = tile(**{picture.removesuffix("_b11"): value})
    found = z.pictures(bands)[picture][0, 0].astype(int)
    assert np.abs(found - colour).max() <= 2  # a value may fall on either side of a step


def test_whole_numbers_do_not_wrap_and_nothing_divides_by_zero() -> None:
    bands = {b: np.array([[0, 900]], np.uint16) for b in z.BANDS} | {"nir": np.array([[0, 100]], np.uint16)}
    as_float = {b: v.astype(float) for b, v in bands.items()}
    for name, picture in z.pictures(bands, top=3000).items():
        assert (picture == z.pictures(as_float, top=3000)[name]).all()
    assert z.indices(bands)["ndvi"].tolist() == [[0.0, -0.8]]


def test_bands_are_taken_by_name_whatever_their_order() -> None:
    rng = np.random.default_rng(0)
    bands = {b: rng.random((4, 5)) for b in z.BANDS}
    turned = dict(reversed(bands.items()))
    assert all((z.pictures(turned)[n] == p).all() for n, p in z.pictures(bands).items())
    with pytest.raises(BandError, match=r"nir08 \(B8A\)"):
        z.pictures({k: v for k, v in bands.items() if k != "nir08"})


def test_the_prompt_says_how_each_picture_was_made() -> None:
    text = z.prompt(["Forest", "River"])
    lines = text.split("\n")
    assert lines[-2:] == ["(1) Forest", "(2) River"]
    assert [line.split(":")[0] for line in lines if line.startswith("Image ")] == [
        f"Image {n}" for n in range(1, 7)
    ]
    assert "from -1 (red)" in z.prompt(["a", "b"], ndvi="rescaled")
    assert "(1),(3)" in z.prompt(["a", "b"], several=True)
    with pytest.raises(SettingError):
        z.prompt(["Forest"])


@pytest.mark.parametrize(
    ("reply", "several", "numbers"),
    [("(2)", False, [2]), ("(1),(3)", True, [1, 3]), ("(1),(3)", False, [1]), ("Answer (11)", False, []),
     ("none", True, []), ("(3) (3) (1)", True, [3, 1])],
)  # fmt: skip
def test_replies_are_read_strictly(reply: str, several: bool, numbers: list[int]) -> None:
    assert z.parse(reply, 5, several) == numbers


def test_a_model_gets_six_pictures_and_then_the_text() -> None:
    asked: list[list[dict]] = []

    def chat(messages: list[dict]) -> str:
        asked.append(messages)
        return "It is (2)."

    system = registry.build("zeroshot-ms", chat=chat, least=16)
    reply = system.answer(tile(), ["Forest", "Water"])
    assert reply.numbers == (2,)
    assert [p["type"] for p in asked[0][0]["content"]] == ["image_url"] * 6 + ["text"]
    assert asked[0][0]["content"][6]["text"] == z.prompt(["Forest", "Water"])


def test_rules_know_water_from_forest() -> None:
    system = registry.build("zeroshot-ms")
    water = {
        b: np.full((2, 2), v)
        for b, v in zip(z.BANDS, (0.06, 0.06, 0.03, 0.02, 0.02, 0.01, 0.01), strict=True)
    }
    forest = {
        b: np.full((2, 2), v) for b, v in zip(z.BANDS, (0.02, 0.04, 0.03, 0.3, 0.32, 0.15, 0.06), strict=True)
    }
    options = ["Industrial", "SeaLake", "Forest"]
    assert system.answer(water, options).text == "(2)"
    assert system.answer(forest, options).text == "(3)"
    with pytest.raises(SettingError, match="name no ground"):
        system.answer(water, ["A", "B"])


def test_prototypes_keep_what_they_learned(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    found = np.concatenate([rng.normal(0, 0.1, (20, 8)), rng.normal(1, 0.1, (20, 8))])
    fitted = z.Prototypes.fit(found, ["low"] * 20 + ["high"] * 20)
    fitted.save(tmp_path / "p.json")
    read = z.Prototypes.read(tmp_path / "p.json")
    assert read.answer(np.full(8, 0.9), ["low", "high"]).numbers == (2,)
    with pytest.raises(SettingError, match="has no prototype"):
        read.answer(np.zeros(8), ["low", "other"])
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(UnreadableFileError):
        z.Prototypes.read(tmp_path / "bad.json")
