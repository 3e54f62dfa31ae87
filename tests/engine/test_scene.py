"""Scene prediction: exact, independent of how it is cut, complete, and honest about what it could not see."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stand_ins import Attention, Convolutions, FirstBand, WavePair, card
from terralapse.engine import scene as engine
from terralapse.engine.plan import ScenePlan
from terralapse.engine.scene import predict_scene
from terralapse.errors import ModelInputError, ResumeMismatchError, SettingError
from terralapse.grid.cog import write_cog
from terralapse.grid.pair import ArrayPair, Pair, PairBlock
from terralapse.grid.scene import Window
from terralapse.labels import Reason
from terralapse.tasks.change import ChangeDetector


def images_of(height: int, width: int, seed: int = 0, holes: bool = True) -> np.ndarray:
    images = np.random.default_rng(seed).random((2, 2, height, width), dtype=np.float32)
    if holes:
        images[0, 0, height // 4 : height // 2, width // 3 : width // 2] = np.nan
        images[1, 1, -height // 5 :, -width // 4 :] = np.nan
    return images


def unquantised(detector: ChangeDetector, pair: Pair, folder: Path, **options: Any) -> np.ndarray:
    """Every probability before it is quantised; asserts that each pixel comes once."""
    prob = np.zeros(pair.shape, np.float32)
    seen = np.zeros(pair.shape, np.uint8)

    def keep(piece: Any) -> None:
        prob[piece.window.slices] = piece.prob
        seen[piece.window.slices] += 1

    predict_scene(detector, pair, folder, sink=keep, **options)
    assert (seen == 1).all()
    return prob


def whole_image(detector: ChangeDetector, pair: Pair, margin: int) -> np.ndarray:
    """One pass over everything, with the same margin of nodata around it that tiles see."""
    height, width = pair.shape
    block = pair.read(Window(-margin, -margin, height + 2 * margin, width + 2 * margin))
    images = torch.from_numpy(block.images)[None]
    with torch.inference_mode():
        prob = detector.predict(images, ~images.isnan().any(dim=2), {})[0].numpy()
    prob = np.where(block.valid, prob, np.nan)
    return prob[margin : margin + height, margin : margin + width]


def load_plan(folder: Path) -> dict[str, Any]:
    return json.loads((folder / ".work" / "plan.json").read_text())["plan"]


def read(folder: Path, layer: str) -> np.ndarray:
    with rasterio.open(folder / f"{layer}.tif") as opened:
        return opened.read(1)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    height=st.integers(1, 400),
    width=st.integers(1, 400),
    halo=st.integers(0, 40),
    multiple=st.sampled_from([1, 4, 14]),
    tile=st.none() | st.integers(30, 300),
    batch=st.none() | st.integers(1, 5),
    exact=st.booleans(),
)
def test_what_goes_in_comes_out_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory,
    height: int,
    width: int,
    halo: int,
    multiple: int,
    tile: int | None,
    batch: int | None,
    exact: bool,
) -> None:
    pair = ArrayPair(images_of(height, width, holes=height > 8 and width > 8))
    folder = tmp_path_factory.mktemp("scene")
    found = unquantised(FirstBand(halo, multiple, exact), pair, folder, tile=tile, batch=batch)
    block = pair.read(Window(0, 0, height, width))
    expected = np.where(block.valid, block.images[0, 0], np.nan)
    if exact:
        np.testing.assert_array_equal(found, expected)
    else:  # a weighted mean of equal numbers
        np.testing.assert_allclose(found, expected, rtol=3e-7)
    np.testing.assert_array_equal(read(folder, "valid"), block.reason)


def test_tiles_with_enough_halo_equal_one_pass_over_the_whole_image(tmp_path: Path) -> None:
    pair = ArrayPair(images_of(333, 290))
    detector = Convolutions(halo=5)  # five 3 x 3 convolutions see five pixels far
    expected = whole_image(detector, pair, 5)
    assert np.nanstd(expected) > 0.1
    for tile in (37, 64, 200):
        found = unquantised(detector, pair, tmp_path, tile=tile, precision="fp32")
        np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)


def test_a_halo_that_is_too_small_shows(tmp_path: Path) -> None:
    """The test above can fail: with four pixels of halo the seams are seen."""
    pair = ArrayPair(images_of(333, 290))
    detector = Convolutions(halo=4)
    found = unquantised(detector, pair, tmp_path, tile=64, precision="fp32")
    assert np.nanmax(np.abs(found - whole_image(detector, pair, 5))) > 1e-3


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_result_does_not_depend_on_tile_batch_or_threads(tmp_path: Path, precision: str) -> None:
    pair = ArrayPair(images_of(420, 380))
    detector = Convolutions(halo=8, multiple=4)
    options: list[dict[str, Any]] = [
        {"tile": 420},
        {"tile": 64, "batch": 1},
        {"tile": 64, "batch": 7},
        {"tile": 100, "threads": 2},
    ]
    found = [unquantised(detector, pair, tmp_path, precision=precision, **o) for o in options]
    stored = read(tmp_path, "prob").astype(int)
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], atol=1e-4, rtol=0)
    predict_scene(detector, pair, tmp_path, precision=precision, tile=64)
    assert np.abs(read(tmp_path, "prob").astype(int) - stored).max() <= 1


def test_the_same_run_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    pair = ArrayPair(images_of(600, 520))
    for name, threads in (("a", 1), ("b", 2), ("c", 1)):
        (tmp_path / name).mkdir()
        predict_scene(FirstBand(halo=3), pair, tmp_path / name, tile=200, threads=threads)
    for layer in ("prob", "valid", "change"):
        first = (tmp_path / "a" / f"{layer}.tif").read_bytes()
        assert (tmp_path / "b" / f"{layer}.tif").read_bytes() == first
        assert (tmp_path / "c" / f"{layer}.tif").read_bytes() == first


def test_blended_tiles_leave_no_step_at_the_seams(tmp_path: Path) -> None:
    """Each tile of this detector is lifted by its own mean; only a ramp can hide that."""
    images = np.full((2, 2, 256, 256), 0.2, np.float32)
    images[:, :, :, 128:] = 0.8
    images += np.random.default_rng(0).uniform(0, 1e-3, images.shape).astype(np.float32)
    pair = ArrayPair(images)
    detector = Attention(halo=16)
    blended = unquantised(detector, pair, tmp_path, tile=64)
    detector.exact = True
    cropped = unquantised(detector, pair, tmp_path, tile=64)

    def step(prob: np.ndarray) -> float:  # at the seam between the second column of tiles and its neighbour
        return float(np.abs(np.diff(prob[100, 50:80])).max())

    assert step(cropped) > 0.02
    assert step(blended) < 0.005
    borders = blended[[0, 0, -1, -1], [0, -1, 0, -1]]
    assert borders[[0, 2]] == pytest.approx([0.2, 0.2], abs=0.05)  # no dark corners
    assert borders[[1, 3]] == pytest.approx([0.8, 0.8], abs=0.05)


def test_blending_over_lanes_equals_blending_in_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = ArrayPair(images_of(300, 700))
    one = unquantised(Attention(halo=10), pair, tmp_path, tile=50)
    monkeypatch.setattr("terralapse.engine.plan.LANE_WIDTH", 150)
    many = unquantised(Attention(halo=10), pair, tmp_path, tile=50)
    assert len(list(ScenePlan.from_dict(load_plan(tmp_path)).parts())) == 5
    np.testing.assert_array_equal(many, one)


def test_empty_tiles_are_skipped_and_come_out_with_their_reason(tmp_path: Path) -> None:
    images = images_of(256, 256, holes=False)
    reason = np.zeros((256, 256), np.uint8)
    reason[:128] = Reason.CLOUD_AFTER
    reason[200:, 200:] = Reason.OUTSIDE_AOI
    detector = FirstBand(halo=8)
    result = predict_scene(detector, ArrayPair(images, reason=reason), tmp_path, tile=64)
    assert result.tiles == 16
    assert result.tiles_skipped == 8
    full_tiles = [s for s in detector.shapes if s[-1] == 80 and s[-2] == 80]
    assert sum(s[0] for s in full_tiles) == 8
    np.testing.assert_array_equal(read(tmp_path, "valid"), reason)
    masked = reason > 0
    for layer in ("prob", "change"):
        assert (read(tmp_path, layer)[masked] == 255).all()
        assert (read(tmp_path, layer)[~masked] != 255).all()
    assert result.valid_pixels == (~masked).sum()
    assert result.reasons == {
        "valid": int((~masked).sum()),
        "cloud_after": 128 * 256,
        "outside_aoi": 56 * 56,
    }


def test_one_pixel_of_nan_masks_one_pixel(tmp_path: Path) -> None:
    images = images_of(128, 128, holes=False)
    images[1, 0, 50, 60] = np.nan
    predict_scene(FirstBand(halo=4), ArrayPair(images), tmp_path, tile=32)
    assert [tuple(p) for p in np.argwhere(read(tmp_path, "prob") == 255)] == [(50, 60)]
    assert read(tmp_path, "valid")[50, 60] == Reason.NODATA_AFTER


def test_a_scene_without_any_valid_pixel_is_written_as_such(tmp_path: Path) -> None:
    images = np.full((2, 2, 600, 700), np.nan, np.float32)
    detector = FirstBand()
    result = predict_scene(detector, ArrayPair(images), tmp_path)
    assert result.valid_pixels == 0
    assert result.state == {}
    assert detector.shapes == []
    assert (read(tmp_path, "prob") == 255).all()
    assert (read(tmp_path, "change") == 255).all()
    assert (read(tmp_path, "valid") == Reason.NODATA_BEFORE).all()
    assert (tmp_path / "prob.tif").stat().st_size < 20_000


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.4837, 0.5, 0.999, 1.0])
def test_change_is_prob_cut_at_the_threshold_in_true_and_in_stored_values(
    tmp_path: Path, threshold: float
) -> None:
    images = images_of(200, 200, holes=False)
    images[0, 0, 0, :4] = [threshold, np.nextafter(np.float32(threshold), np.float32(-1)), 0.0, 1.0]
    images[0, 0] = images[0, 0].clip(0, 1)
    result = predict_scene(FirstBand(), ArrayPair(images), tmp_path, threshold=threshold)
    prob, change = read(tmp_path, "prob"), read(tmp_path, "change")
    truth = images[0, 0].astype(np.float64) >= np.float32(threshold)
    np.testing.assert_array_equal(change == 1, truth)
    np.testing.assert_array_equal(prob * 0.005 >= threshold - 1e-9, truth)
    assert np.abs(prob * 0.005 - images[0, 0]).max() <= 0.005 + 1e-6
    assert result.changed_pixels == truth.sum()


def test_the_threshold_is_the_users_then_the_scenes_then_the_cards(tmp_path: Path) -> None:
    class Choosy(FirstBand):
        def fit(self, sample: Any) -> dict[str, Any]:
            return {"threshold": 0.25}

    pair = ArrayPair(images_of(40, 40))
    assert predict_scene(Choosy(), pair, tmp_path, threshold=0.7).threshold == 0.7
    assert predict_scene(Choosy(), pair, tmp_path).threshold == 0.25
    plain = FirstBand()
    plain.card = card(threshold=0.35)
    assert predict_scene(plain, pair, tmp_path).threshold == 0.35


def test_what_the_detector_says_of_invalid_pixels_is_not_used_and_nan_elsewhere_is_an_error(
    tmp_path: Path,
) -> None:
    class Broken(FirstBand):
        def predict(self, images: torch.Tensor, valid: torch.Tensor, state: dict[str, Any]) -> torch.Tensor:
            prob = super().predict(images, valid, state)
            prob[~valid.all(dim=1)] = float("nan")
            return prob if self.halo else prob.fill_(float("nan"))

    pair = ArrayPair(images_of(64, 64))
    predict_scene(Broken(halo=1), pair, tmp_path)
    assert (read(tmp_path, "prob") != 255).sum() == predict_scene(FirstBand(), pair, tmp_path).valid_pixels
    with pytest.raises(ModelInputError, match="stand-in: gave probabilities outside of 0 to 1, or none"):
        predict_scene(Broken(halo=0), pair, tmp_path)


def test_a_detector_that_returns_another_shape_is_named(tmp_path: Path) -> None:
    class Narrow(FirstBand):
        def predict(self, images: torch.Tensor, valid: torch.Tensor, state: dict[str, Any]) -> torch.Tensor:
            return images[:, 0, 0, ::2, ::2].nan_to_num()

    with pytest.raises(
        ModelInputError, match=r"stand-in: returned \(1, 128, 128\) for tiles of \(1, 256, 256\)"
    ):
        predict_scene(Narrow(), ArrayPair(images_of(64, 64)), tmp_path)


@pytest.mark.parametrize("simulated", [torch.OutOfMemoryError("no"), MemoryError("no")])
def test_running_out_of_memory_halves_the_batch_then_the_tile_and_is_recorded(
    tmp_path: Path, simulated: Exception
) -> None:
    class Shrinking(Convolutions):
        """Memory that is there when the engine measures, and too little for five tiles afterwards."""

        def predict(self, images: torch.Tensor, valid: torch.Tensor, state: dict[str, Any]) -> torch.Tensor:
            if images.shape[-1] == 74 and images.shape[0] > 3:
                raise simulated
            return super().predict(images, valid, state)

    pair = ArrayPair(images_of(300, 300))
    expected = whole_image(Convolutions(halo=5), pair, 5)
    seen: dict[Any, np.ndarray] = {}

    def keep(piece: Any) -> None:
        seen[piece.window] = piece.prob

    result = predict_scene(Shrinking(halo=5), pair, tmp_path, tile=64, batch=5, precision="fp32", sink=keep)
    assert result.batch == 2
    assert result.events == ["out of memory: the batch was reduced to 2"]
    assert len(seen) == 25
    for window, prob in seen.items():
        np.testing.assert_allclose(prob, expected[window.slices], atol=1e-5, rtol=0)

    class Tiny(Convolutions):
        def predict(self, images: torch.Tensor, valid: torch.Tensor, state: dict[str, Any]) -> torch.Tensor:
            if images.shape[-1] == 310:  # the tile itself, not the measuring window nor its pieces
                raise simulated
            return super().predict(images, valid, state)

    result = predict_scene(Tiny(halo=5), pair, tmp_path, tile=300, precision="fp32", sink=keep)
    assert result.events == ["out of memory: each tile was computed in 2 x 2 pieces"]
    np.testing.assert_allclose(seen[Window(0, 0, 300, 300)], expected, atol=1e-5, rtol=0)
    assert json.dumps(result.as_dict())


def test_memory_that_no_smaller_piece_can_do_with_is_an_error_that_says_so(tmp_path: Path) -> None:
    class Never(FirstBand):
        def predict(self, images: torch.Tensor, valid: torch.Tensor, state: dict[str, Any]) -> torch.Tensor:
            if images.shape[-1] < 256 or images.shape[-1] == 300:
                raise torch.OutOfMemoryError("no")
            return super().predict(images, valid, state)

    with pytest.raises(SettingError, match="needs more memory than there is"):
        predict_scene(Never(), ArrayPair(images_of(300, 300)), tmp_path, tile=300)


def test_other_errors_of_the_network_are_not_taken_for_memory(tmp_path: Path) -> None:
    class Faulty(FirstBand):
        def predict(self, images: torch.Tensor, valid: torch.Tensor, state: dict[str, Any]) -> torch.Tensor:
            raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        predict_scene(Faulty(), ArrayPair(images_of(64, 64)), tmp_path)


def test_an_error_of_reading_comes_through_and_no_thread_stays(tmp_path: Path) -> None:
    class Torn(ArrayPair):
        def read(self, window: Window) -> PairBlock:
            if window.row > 100 and window.height == 64:
                raise OSError("a broken block")
            return super().read(window)

    before = threading.active_count()
    with pytest.raises(OSError, match="a broken block"):
        predict_scene(FirstBand(), Torn(images_of(256, 256)), tmp_path, tile=64)
    assert threading.active_count() == before
    assert not (tmp_path / "prob.tif").exists()


def test_an_error_of_storing_stops_the_run(tmp_path: Path) -> None:
    def refuse(piece: Any) -> None:
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        predict_scene(FirstBand(), ArrayPair(images_of(256, 256)), tmp_path, tile=64, sink=refuse)


@pytest.mark.parametrize("seams", [True, False])
def test_an_error_of_one_tile_among_several_at_once_ends_all_threads(tmp_path: Path, seams: bool) -> None:
    class Faulty(FirstBand):
        def predict(self, images: torch.Tensor, valid: torch.Tensor, state: dict[str, Any]) -> torch.Tensor:
            if images.shape[-1] == 64 + 16 and bool((images[:, 0, 0].nan_to_num() > 2).any()):
                raise RuntimeError("one tile is bad")
            return super().predict(images, valid, state)

    images = images_of(512, 512, holes=False)
    images[0, 0, 300, 300] = 3.0  # in a tile in the middle
    before = threading.active_count()
    with pytest.raises(RuntimeError, match="one tile is bad"):
        predict_scene(
            Faulty(halo=8, exact=seams),
            ArrayPair(images),
            tmp_path,
            tile=64,
            batch=1,
            threads=3,
            engine="torch",
        )
    assert threading.active_count() == before
    assert not list(tmp_path.glob("*.tif"))
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize("layer", ["prob", "valid", "change"])
def test_a_raster_that_cannot_be_written_leaves_no_draft_and_the_run_is_not_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layer: str
) -> None:
    def refuse(source: Any, dst: Path, **options: Any) -> Path:
        if dst.name == f"{layer}.tif":
            raise OSError("the disk is gone")
        return write_cog(source, dst, **options)

    monkeypatch.setattr(engine, "write_cog", refuse)
    pair, before = ArrayPair(images_of(128, 128)), threading.active_count()
    with pytest.raises(OSError, match="the disk is gone"):
        predict_scene(FirstBand(), pair, tmp_path, threads=3)
    assert threading.active_count() == before
    assert not (tmp_path / f"{layer}.tif").exists()
    assert not list(tmp_path.glob(".*.tif")), "drafts"
    assert not (tmp_path / ".work" / "done.json").exists()
    monkeypatch.undo()
    predict_scene(FirstBand(), pair, tmp_path, threads=3, resume=True)
    assert {p.name for p in tmp_path.glob("*.tif")} == {"prob.tif", "valid.tif", "change.tif"}


def test_ctrl_c_while_rasters_are_written_leaves_no_draft(tmp_path: Path) -> None:
    def stop(stage: str, done: int, _total: int) -> None:
        if stage == "write" and done == 1:
            raise KeyboardInterrupt

    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        predict_scene(FirstBand(), ArrayPair(images_of(128, 128)), tmp_path, threads=2, progress=stop)
    assert threading.active_count() == before
    assert not list(tmp_path.glob(".*.tif"))
    assert not (tmp_path / ".work" / "done.json").exists()


def test_the_rasters_of_a_run_do_not_depend_on_the_threads(tmp_path: Path) -> None:
    written = {}
    for threads in (1, 3):
        folder = tmp_path / str(threads)
        folder.mkdir()
        predict_scene(FirstBand(), ArrayPair(images_of(200, 300)), folder, threads=threads, engine="torch")
        written[threads] = {p.name: p.read_bytes() for p in folder.glob("*.tif")}
    assert len(written[1]) == 3
    assert written[1] == written[3]


def test_progress_comes_from_the_calling_thread_and_ends_complete(tmp_path: Path) -> None:
    calls: list[tuple[str, int, int]] = []
    threads = set()

    def progress(stage: str, done: int, total: int) -> None:
        threads.add(threading.get_ident())
        calls.append((stage, done, total))

    predict_scene(FirstBand(), ArrayPair(images_of(200, 200)), tmp_path, tile=50, progress=progress)
    assert threads == {threading.get_ident()}
    assert list(dict.fromkeys(stage for stage, _, _ in calls)) == ["fit", "predict", "write"]
    for stage in ("fit", "predict", "write"):
        own = [(done, total) for name, done, total in calls if name == stage]
        assert own == sorted(own)
        assert own[-1][0] == own[-1][1]
    assert ("predict", 200 * 200, 200 * 200) in calls


def test_pixels_are_read_once_along_a_row_and_tiles_never_wait_for_the_whole_scene(tmp_path: Path) -> None:
    class Counting(ArrayPair):
        windows: list[Window]

        def read(self, window: Window) -> PairBlock:
            if window.height == 64 + 20:  # a row of tiles, not the sample
                self.windows.append(window)
            return super().read(window)

    pair = Counting(images_of(64, 640, holes=False))
    pair.windows = []
    predict_scene(FirstBand(halo=10), pair, tmp_path, tile=64)
    assert sum(w.width for w in pair.windows) == 640 + 20
    assert len(pair.windows) == 10


def test_rasters_carry_grid_nodata_classes_and_how_they_were_made(tmp_path: Path) -> None:
    pair = WavePair(700, 900, hole=Window(100, 100, 50, 60))
    result = predict_scene(FirstBand(halo=2), pair, tmp_path, threshold=0.6)
    for layer, nodata in (("prob", 255), ("change", 255), ("valid", None)):
        with rasterio.open(tmp_path / f"{layer}.tif") as opened:
            assert opened.crs.to_epsg() == 32631
            assert tuple(opened.transform)[:6] == tuple(pair.geobox.affine)[:6]
            assert opened.dtypes == ("uint8",)
            assert opened.nodata == nodata
            assert opened.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
            tags = opened.tags()
            assert tags["TERRALAPSE_MODEL"] == "stand-in"
            assert tags["TERRALAPSE_PLAN"] == result.plan_hash
            assert float(tags["TERRALAPSE_THRESHOLD"]) == 0.6
            if layer == "prob":
                assert opened.scales == (0.005,)
            else:
                assert opened.colormap(1)[1][3] == 255
                assert (
                    opened.tags(1)["CLASS_1"]
                    == {"change": "Change", "valid": "Outside the area of interest"}[layer]
                )
    assert result.reasons == {"valid": 700 * 900 - 3000, "cloud_after": 3000}
    assert not list(tmp_path.glob("*.aux.xml"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 1.5}, "threshold 1.5: lies outside"),
        ({"tile": 0}, "tile 0: is not positive"),
        ({"batch": -1}, "batch -1: is not positive"),
        ({"threads": 0}, "threads 0: is not positive"),
        ({"device": "cuda:99"}, "device cuda:99: is not there"),
        ({"device": "toaster"}, "device toaster: is not there"),
        ({"precision": "fp8"}, "precision fp8: is not known"),
    ],
)
def test_settings_out_of_range_are_refused_before_anything_is_written(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(SettingError, match=message):
        predict_scene(Convolutions(halo=1), ArrayPair(images_of(32, 32)), tmp_path, **options)
    assert not list(tmp_path.glob("*.tif"))


def test_a_finished_run_is_not_computed_again_and_another_is_not_mistaken_for_it(tmp_path: Path) -> None:
    pair = ArrayPair(images_of(128, 128))
    first = predict_scene(FirstBand(), pair, tmp_path, threshold=0.4)
    detector = FirstBand()
    again = predict_scene(detector, pair, tmp_path, threshold=0.4, resume=True)
    assert detector.shapes == []
    assert again == first
    with pytest.raises(ResumeMismatchError, match="half-finished run of other inputs"):
        predict_scene(FirstBand(), pair, tmp_path, threshold=0.5, resume=True)
    with pytest.raises(ResumeMismatchError):
        predict_scene(FirstBand(), ArrayPair(images_of(128, 129)), tmp_path, threshold=0.4, resume=True)
    other = Convolutions(halo=0)
    predict_scene(other, pair, tmp_path)
    with torch.no_grad():
        next(other.network.parameters()).add_(1e-3)
    with pytest.raises(ResumeMismatchError):  # the same card with other weights
        predict_scene(other, pair, tmp_path, resume=True)


def test_the_sample_covers_small_scenes_whole_and_large_ones_evenly() -> None:
    small = engine.sample_of(WavePair(500, 700))
    assert small.fraction == 1.0
    assert sum(w.height * w.width for w in small.windows) == 500 * 700
    large = engine.sample_of(WavePair(20_000, 30_000))
    assert 0 < large.fraction < 0.05
    values = sum(b.images.size for b in large)
    assert 4_000_000 < values <= 16_000_000
    centres = np.array([[w.row + 128, w.col + 128] for w in large.windows]) / [20_000, 30_000]
    assert centres.mean(axis=0) == pytest.approx([0.5, 0.5], abs=0.05)
    assert centres.std(axis=0) == pytest.approx([0.29, 0.29], abs=0.05)
    assert engine.sample_of(WavePair(20_000, 30_000)).windows == large.windows


def test_the_sample_finds_the_only_valid_corner_of_an_empty_scene() -> None:
    images = np.full((2, 2, 3000, 3000), np.nan, np.float32)
    images[:, :, 2900:2950, 40:90] = 1.0
    sample = engine.sample_of(ArrayPair(images))
    assert sum(int(b.valid.sum()) for b in sample) == 2500
    assert len(sample.windows) == 1
