"""Maps of classes from the pass that finds change: as a whole image gives them, however a scene is cut."""

from __future__ import annotations

import hashlib
import json
import tracemalloc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import rasterio
import torch

from small_classes import RandomClasses
from stand_ins import FirstBand
from terralapse import registry
from terralapse.cards import Status, Task
from terralapse.engine import plan as planning
from terralapse.engine.parts import CLASS_LAYERS, LAYERS
from terralapse.engine.plan import ScenePlan, Seams, digest, plan_scene
from terralapse.engine.prepare import identity_of
from terralapse.engine.runtimes import runner_of
from terralapse.engine.scene import predict_scene
from terralapse.engine.stitch import ramp
from terralapse.engine.stitch_classes import BlendClasses
from terralapse.errors import SettingError
from terralapse.grid.pair import ArrayPair
from terralapse.grid.scene import Window
from terralapse.labels import SCHEMES
from terralapse.sensors import RGB, Unit
from terralapse.tasks.class_maps import DamageRule, SemanticRule, rule_of

CPU = torch.device("cpu")


def pair_of(height: int, width: int, seed: int = 0, holes: bool = True) -> ArrayPair:
    images = np.random.default_rng(seed).uniform(0, 255, (2, 3, height, width)).astype(np.float32)
    if holes:
        images[0, :, height // 4 : height // 2, width // 3 : width // 2] = np.nan
        images[1, 1, -height // 5 :, -width // 4 :] = np.nan
    return ArrayPair(images, bands=RGB.bands, unit=Unit.RGB255, sensor=RGB)


def read(folder: Path, layer: str) -> np.ndarray:
    with rasterio.open(folder / f"{layer}.tif") as opened:
        return opened.read(1)


def planes_of(detector: Any, pair: ArrayPair, window: Window) -> tuple[np.ndarray, np.ndarray]:
    """Probability [h, w] and planes [planes, h, w] of one pass over a window."""
    images = torch.from_numpy(pair.read(window).images)[None]
    state = {"bands": [0, 1, 2], "temperature": 1.0}
    prob, planes = detector.predict_classes(images, ~images.isnan().any(dim=2), state)
    return prob[0].numpy(), planes[0].numpy()


def sums_of_tiles(detector: Any, pair: ArrayPair, plan: ScenePlan) -> tuple[np.ndarray, np.ndarray]:
    """What blending means, in arrays as large as the scene: weighted sums of the planes of all tiles, and the
    probability of change."""
    margin = plan.halo + plan.core_height + plan.core_width
    shape = plan.height + 2 * margin, plan.width + 2 * margin
    sums = np.zeros((1 + detector.class_maps.planes, *shape))
    weights = np.zeros(shape)
    for row in range(plan.rows):
        for col in range(plan.cols):
            tile = plan.tile(row, col)
            if not pair.read(tile.core).valid.any():
                continue
            prob, planes = planes_of(detector, pair, tile.read)
            down = ramp(tile.read.height, plan.halo, row > 0, row < plan.rows - 1)
            along = ramp(tile.read.width, plan.halo, col > 0, col < plan.cols - 1)
            weight = down[:, None] * along
            at = Window(tile.read.row + margin, tile.read.col + margin, *weight.shape).slices
            sums[:, *at] += weight * np.concatenate([prob[None], planes])
            weights[at] += weight
    inside = slice(margin, -margin), slice(margin, -margin)
    return sums[1:, *inside], sums[0][inside] / np.maximum(weights[inside], 1e-9)


def rims(plan: ScenePlan) -> np.ndarray:
    """bool [h, w]: the outermost pixels of what tiles read, which lack neighbours that the image has."""
    found = np.zeros((plan.height, plan.width), bool)
    for row, col in np.ndindex(plan.rows, plan.cols):
        read = plan.tile(row, col).read
        whole, inner = np.zeros_like(found), np.zeros_like(found)
        whole[read.clip(plan.height, plan.width).slices] = True
        inner[
            Window(read.row + 1, read.col + 1, read.height - 2, read.width - 2).clip(*found.shape).slices
        ] = True
        found |= whole & ~inner
    return found


def agrees(
    folder: Path, detector: Any, sums: np.ndarray, pair: ArrayPair, but: np.ndarray | bool = False
) -> None:
    """The maps in a folder are those of the planes, but where two classes are nearly equal and in `but`."""
    rule = detector.class_maps
    valid = pair.read(Window(0, 0, *pair.shape)).valid
    changed = read(folder, "change") == 1
    ids = rule.decide(sums)
    close = np.zeros(pair.shape, bool)
    groups = (slice(0, 2), slice(2, 6))
    if isinstance(rule, SemanticRule):
        half = rule.planes // 2
        groups = (slice(0, half), slice(half, None))
        if rule.whole:
            sums = np.concatenate([sums, sums[:half] + sums[half:]])
            groups = (slice(0, half), slice(half, 2 * half), slice(2 * half, None))
    for group in groups:
        best = np.sort(sums[group], axis=0)
        close |= best[-1] - best[-2] < 1e-5
    assert close[valid].mean() < 0.01
    close |= but
    for name in rule.rasters:
        found, wanted = read(folder, name), rule.raster(name, ids, changed)
        assert (found[~valid] == 255).all()
        np.testing.assert_array_equal(found[valid & ~close], wanted[valid & ~close])


@pytest.mark.parametrize("scheme", ["second-mamba", "fusu", "xbd-damage"])
@pytest.mark.parametrize("exact", [True, False])
def test_tiles_give_the_classes_of_the_whole_image(tmp_path: Path, scheme: str, exact: bool) -> None:
    pair = pair_of(150, 131)
    detector = RandomClasses(scheme, exact=exact)
    whole = Window(-8, -8, 166, 147)
    _, planes = planes_of(detector, pair, whole)
    planes = planes[:, 8:-8, 8:-8]
    for tile, batch, threads in ((37, 3, 1), (64, 1, 2)):
        result = predict_scene(
            detector, pair, tmp_path, tile=tile, batch=batch, threads=threads, precision="fp32"
        )
        agrees(tmp_path, detector, planes, pair, but=not exact and rims(ScenePlan.from_dict(result.plan)))
        assert tuple(result.classes) == detector.class_maps.rasters


@pytest.mark.parametrize("lanes", [1, 3])
@pytest.mark.parametrize("scheme", ["second-mamba", "xbd-damage"])
def test_what_depends_on_the_tile_is_blended_before_a_class_is_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str, lanes: int
) -> None:
    monkeypatch.setattr(planning, "SMALL_PART", 1)
    if lanes > 1:
        monkeypatch.setattr(planning, "LANE_WIDTH", 40)
    pair = pair_of(140, 117, holes=False)
    images = pair.read(Window(0, 0, 140, 117)).images
    images[:, :, :45, 20:85] = np.nan  # some tiles are skipped
    pair = ArrayPair(images, bands=RGB.bands, unit=Unit.RGB255, sensor=RGB)
    detector = RandomClasses(scheme, tilewise=8.0, halo=7)
    result = predict_scene(detector, pair, tmp_path, tile=20, batch=1, precision="fp32")
    plan = ScenePlan.from_dict(result.plan)
    assert plan.lanes >= lanes
    assert result.tiles_skipped > 0
    sums, prob = sums_of_tiles(detector, pair, plan)
    agrees(tmp_path, detector, sums.astype(np.float32), pair)
    stored, valid = read(tmp_path, "prob"), pair.read(Window(0, 0, 140, 117)).valid
    assert np.abs(stored[valid] / 200 - prob[valid]).max() < 0.006


def test_classes_stand_where_something_changed_and_nowhere_else(tmp_path: Path) -> None:
    pair = pair_of(90, 80)
    predict_scene(RandomClasses(), pair, tmp_path, tile=32, precision="fp32")
    change = read(tmp_path, "change")
    assert 0.05 < (change == 1).mean() < 0.95
    for name in ("classes_before", "classes_after"):
        ids = read(tmp_path, name)
        assert ((ids == 255) == (change == 255)).all()
        assert (ids[change == 0] == 0).all()
        assert set(np.unique(ids[change == 1])) <= {1, 2, 3, 4, 5, 6}
        with rasterio.open(tmp_path / f"{name}.tif") as file:
            assert file.tags(1)["CLASS_SCHEME"] == "second-mamba"
            assert file.tags(1)["CLASS_5"] == "Building"
            assert file.colormap(1)[4] == (0, 0, 255, 255)
            assert file.nodata == 255


def test_a_scheme_of_every_place_has_one_class_for_both_dates_outside_of_change(tmp_path: Path) -> None:
    pair = pair_of(90, 80)
    predict_scene(RandomClasses("fusu"), pair, tmp_path, tile=32, precision="fp32")
    change, before, after = (read(tmp_path, n) for n in ("change", "classes_before", "classes_after"))
    assert (before[change == 0] == after[change == 0]).all()
    assert (before[change == 1] != after[change == 1]).any()
    assert not (before[change != 255] == 0).any()


@pytest.mark.parametrize("exact", [True, False])
def test_an_interrupted_run_goes_on_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exact: bool
) -> None:
    monkeypatch.setattr(planning, "SMALL_PART", 1)
    monkeypatch.setattr(planning, "BLOCK", 32)
    monkeypatch.setattr(planning, "LANE_WIDTH", 96)
    pair = pair_of(130, 150)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()

    def tiles(folder: Path, detector: Any, **more: Any) -> Any:
        return predict_scene(detector, pair, folder, tile=32, batch=1, threads=1, precision="fp32", **more)

    tiles(whole, RandomClasses(exact=exact, tilewise=0 if exact else 8.0))
    detector = RandomClasses(exact=exact, tilewise=0 if exact else 8.0)
    ask, left = detector.predict_classes, [18]

    def stopping(*given: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return ask(*given)

    monkeypatch.setattr(detector, "predict_classes", stopping)
    with pytest.raises(KeyboardInterrupt):
        tiles(broken, detector)
    there = list((broken / ".work" / "parts").glob("part-??????"))
    assert there
    assert not (broken / "classes_before.tif").exists()
    monkeypatch.setattr(detector, "predict_classes", ask)
    result = tiles(broken, detector, resume=True)
    assert 0 < result.tiles_resumed < result.tiles
    for name in (*LAYERS, "classes_before", "classes_after"):
        assert (whole / f"{name}.tif").read_bytes() == (broken / f"{name}.tif").read_bytes()


def test_a_finished_run_is_taken_as_it_is_unless_a_map_is_gone(tmp_path: Path) -> None:
    pair, detector = pair_of(60, 60), RandomClasses()
    predict_scene(detector, pair, tmp_path, tile=32)
    first = (tmp_path / "classes_after.tif").read_bytes()
    (tmp_path / "classes_after.tif").unlink()
    predict_scene(detector, pair, tmp_path, tile=32, resume=True)
    assert (tmp_path / "classes_after.tif").read_bytes() == first


def test_the_grades_of_bda_nano_are_those_of_one_look_at_the_image(tmp_path: Path) -> None:
    detector, pair = registry.build("changemamba/bda-nano"), pair_of(72, 90, holes=False)
    predict_scene(detector, pair, tmp_path, precision="fp32")
    images = torch.from_numpy(pair.read(Window(0, 0, 72, 90)).images)[None]
    with torch.inference_mode():
        building, grade = (
            x[0].numpy() for x in detector.forward(detector.normalise(images, None, {})).maps()
        )
    wanted = np.where(building == 1, grade, 0)
    assert len(np.unique(wanted)) > 1
    assert (read(tmp_path, "damage") == wanted).mean() > 0.999
    with rasterio.open(tmp_path / "damage.tif") as file:
        assert file.tags(1)["CLASS_SCHEME"] == "xbd-damage"


# --- what knows change alone -----------------------------------------------------------------------
def test_a_binary_system_is_computed_stored_and_identified_as_ever(tmp_path: Path) -> None:
    """The digest of the pixels and what identifies the run were there before any map of classes was."""
    pair = ArrayPair(np.random.default_rng(3).random((2, 2, 120, 90), dtype=np.float32))
    detector = FirstBand(halo=6, exact=False)
    (tmp_path / "damage.tif").write_bytes(b"of another run")
    result = predict_scene(detector, pair, tmp_path, tile=32)
    asked = {
        "threshold": None, "tile": 32, "batch": None, "device": "auto", "precision": "auto", "engine": "auto",
    }  # fmt: skip
    record = json.loads((tmp_path / ".work" / "plan.json").read_text())
    assert record["identity"] == digest(identity_of(detector, pair, asked))
    assert result.classes == []
    assert not [n for n in CLASS_LAYERS if (tmp_path / f"{n}.tif").exists()]
    assert hashlib.sha256(read(tmp_path, "prob").tobytes()).hexdigest()[:16] == "6cfa7cac2644c127"


def test_classes_leave_the_map_of_change_as_it_is(tmp_path: Path) -> None:
    class Silent(RandomClasses):
        @property
        def class_maps(self) -> None:
            return None

    pair = pair_of(120, 110)
    for name, detector in (("with", RandomClasses(tilewise=8.0)), ("without", Silent(tilewise=8.0))):
        (tmp_path / name).mkdir()
        predict_scene(detector, pair, tmp_path / name, tile=40, precision="fp32")
    assert not (tmp_path / "without" / "classes_before.tif").exists()
    for layer in LAYERS:
        assert (read(tmp_path / "with", layer) == read(tmp_path / "without", layer)).all()


# --- engines ---------------------------------------------------------------------------------------
def test_graphs_give_change_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    monkeypatch.setenv("TERRALAPSE_CACHE", str(tmp_path / "cache"))
    pair, detector = pair_of(64, 64, holes=False), RandomClasses(exact=True, multiple=4)
    for engine in ("onnx", "torch"):
        (tmp_path / engine).mkdir()
        result = predict_scene(detector, pair, tmp_path / engine, engine=engine, precision="fp32")
        assert bool(result.classes) == (engine == "torch")
    assert not (tmp_path / "onnx" / "classes_before.tif").exists()
    assert (read(tmp_path / "onnx", "change") == read(tmp_path / "torch", "change")).mean() > 0.999
    with pytest.raises(SettingError, match="maps of classes"):
        runner_of("onnx", detector, {}, CPU, "fp32", 1, classes=True)


def test_a_run_by_a_graph_says_what_is_left_out() -> None:
    from terralapse.workflows.change import _partial

    card = RandomClasses().card
    (note,) = _partial(card, SimpleNamespace(classes=[], engine={"name": "onnx"}))  # type: ignore[arg-type]
    assert "left out" in note.text
    assert "--engine torch" in note.text
    done = SimpleNamespace(classes=["classes_before", "classes_after"], engine={"name": "torch"})
    assert _partial(card, done) == []  # type: ignore[arg-type]


# --- memory ----------------------------------------------------------------------------------------
def test_strips_are_held_and_no_rows_of_tiles() -> None:
    rule = SemanticRule(SCHEMES["second-mamba"])
    plan = plan_scene((512, 12_000), halo=8, seams=Seams.BLEND, tile=256)
    assert plan.lanes == 1
    stitch = BlendClasses(plan, 0, rule)
    planes = np.ones((rule.planes, 272, 272), np.float32)
    pixels = 0
    tracemalloc.start()
    try:
        for row in range(plan.rows):
            for col in range(plan.cols):
                for piece in stitch.add(plan.tile(row, col), planes.copy()):
                    pixels += piece.ids[0].size
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert pixels == 512 * 12_000
    row_of_tiles = rule.planes * 272 * 12_000 * 4
    assert peak < row_of_tiles / 5


# --- rules -----------------------------------------------------------------------------------------
def test_no_probability_is_no_class() -> None:
    semantic, damage = SemanticRule(SCHEMES["landsat-scd"]), DamageRule()
    planes = np.zeros((8, 1, 2), np.float32)
    planes[[2, 4], 0, 0] = 0.2
    ids = semantic.decide(planes)
    assert ids[:, 0].tolist() == [[3, 255], [1, 255]]
    assert semantic.raster("classes_before", ids, np.array([[True, True]])).tolist() == [[3, 255]]
    assert semantic.raster("classes_after", ids, np.array([[False, False]])).tolist() == [[0, 0]]
    planes = np.zeros((6, 1, 3), np.float32)
    planes[:, 0, 0] = 0.4, 0.6, 0.1, 0.2, 0.3, 0.4
    planes[:, 0, 1] = 0.6, 0.4, 0.1, 0.2, 0.3, 0.4
    assert damage.decide(planes).tolist() == [[[4, 0, 255]]]


def test_every_system_that_knows_classes_has_a_rule_of_its_scheme() -> None:
    tasks = (Task.SEMANTIC_CHANGE, Task.DAMAGE)
    cards = [c for c in registry.cards() if c.task in tasks and c.status is not Status.PLANNED]
    assert len(cards) > 10
    for card in cards:
        rule = rule_of(card)
        assert rule is not None, card.slug
        assert rule.scheme.slug == card.classes
