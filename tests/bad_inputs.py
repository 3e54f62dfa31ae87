"""Every bad input that the command line must refuse, as data: how to make it, what must be said.

`tests/test_bad_input.py` runs them; `python tests/bad_inputs.py` prints the table of `docs/bad-input.md`.
"""

from __future__ import annotations

import pickle
import re
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rasterio.control import GroundControlPoint
from rasterio.transform import from_origin

from fixtures_eo import raw_tiff, write_tif
from terralapse import errors


@dataclass(frozen=True)
class BadInput:
    """`make` gets an empty folder and returns the arguments after `terralapse` and `command` (the output is
    added unless they name one with -o); `says` are fragments of the message."""

    name: str
    make: Callable[[Path], list[str]]
    error: type[errors.TerralapseError]
    says: tuple[str, ...]
    command: tuple[str, ...] = ("change",)


def image(
    folder: Path, name: str, *, seed: int = 1, bands: int = 3, size: int = 96, **options: object
) -> str:
    """A good image, 8 bit, 2 m, UTM 33 N unless told otherwise."""
    rng = np.random.default_rng(seed)
    data = rng.integers(30, 220, (bands, size, size)).astype("uint8")
    options = {"transform": from_origin(500000, 5000000, 2, 2), **options}
    return str(write_tif(folder / name, data, **options))  # type: ignore[arg-type]


def good(folder: Path) -> str:
    return image(folder, "good.tif", seed=2)


def missing(d: Path) -> list[str]:
    return [str(d / "nowhere.tif"), good(d)]


def empty_pattern(d: Path) -> list[str]:
    return [str(d / "tiles_*.tif"), good(d)]


def zero_bytes(d: Path) -> list[str]:
    (d / "zero.tif").touch()
    return [str(d / "zero.tif"), good(d)]


def text(d: Path) -> list[str]:
    (d / "text.tif").write_text("this is a letter, not an image\n" * 40)
    return [good(d), str(d / "text.tif")]


def cut_in_a_block(d: Path) -> list[str]:
    path = Path(image(d, "cut.tif", size=512, tiled=True, blockxsize=256, blockysize=256))
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    return [str(path), good(d)]


def cut_in_the_header(d: Path) -> list[str]:
    path = Path(image(d, "cut.tif"))
    path.write_bytes(path.read_bytes()[:60])
    return [str(path), good(d)]


def broken_block(d: Path) -> list[str]:
    options = {"tiled": True, "blockxsize": 128, "blockysize": 128, "compress": "deflate"}
    path = Path(image(d, "broken.tif", size=256, **options))
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 400] = b"\xff" * 400
    path.write_bytes(content)
    return [str(path), image(d, "good.tif", size=256)]


def million(d: Path) -> list[str]:
    path = raw_tiff(d / "million.tif", width=10**6, height=10**6, rows_per_strip=10**6)
    return [str(path), good(d)]


def giant_tile(d: Path) -> list[str]:
    return [str(raw_tiff(d / "tile.tif", tile=(2**30, 2**30))), good(d)]


def many_samples(d: Path) -> list[str]:
    return [str(raw_tiff(d / "samples.tif", samples=65529)), good(d)]


def no_overlap(d: Path) -> list[str]:
    return [good(d), image(d, "far.tif", transform=from_origin(700000, 5000000, 2, 2))]


def no_crs(d: Path) -> list[str]:
    return [good(d), image(d, "nocrs.tif", crs=None)]


def plain_png(d: Path) -> list[str]:
    Image.fromarray(np.full((64, 64, 3), 99, np.uint8)).save(d / "plain.png")
    return [str(d / "plain.png"), good(d)]


def rpc_only(d: Path) -> list[str]:
    path = write_tif(d / "rpc.tif", np.full((1, 64, 64), 9, "uint8"), crs=None)
    import rasterio
    from rasterio.rpc import RPC

    with rasterio.open(path, "r+") as f:
        f.transform = rasterio.Affine.identity()
        f.rpcs = RPC(0, 1, 45, 0.1, [1.0] + [0.0] * 19, [0.0, 1.0] + [0.0] * 18, 32, 32, 9, 0.1,
                     [1.0] + [0.0] * 19, [0.0, 0.0, 1.0] + [0.0] * 17, 32, 32, 0.5, 0.5)  # fmt: skip
    return [str(path), good(d)]


def one_band_against_four(d: Path) -> list[str]:
    return [image(d, "one.tif", bands=1), image(d, "four.tif", bands=4)]


def unknown_band(d: Path) -> list[str]:
    return [good(d), good(d), "--bands", "red,swir22"]


def all_nodata(d: Path) -> list[str]:
    path = write_tif(
        d / "empty.tif", np.zeros((3, 96, 96), "uint8"), nodata=0, transform=from_origin(5e5, 5e6, 2, 2)
    )
    return [str(path), good(d)]


def output_in_a_file(d: Path) -> list[str]:
    (d / "taken").write_text("a file where a folder should be")
    return [good(d), image(d, "b.tif"), "-o", str(d / "taken" / "out")]


def output_exists(d: Path) -> list[str]:
    (d / "full").mkdir()
    (d / "full" / "thesis.docx").write_text("do not overwrite")
    return [good(d), image(d, "b.tif"), "-o", str(d / "full")]


class Payload:
    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return eval, ("__import__('pathlib').Path('terralapse-was-owned').touch()",)


def output_is_a_result(d: Path) -> list[str]:
    (d / "done").mkdir()
    (d / "done" / "run.json").write_text("{}")
    return [good(d), image(d, "b.tif"), "-o", str(d / "done")]


def pickled_weights(d: Path) -> list[str]:
    with zipfile.ZipFile(d / "weights.pth", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"stem": Payload()}))
        archive.writestr("archive/version", "3\n")
    return [good(d), image(d, "b.tif"), "--model", f"lapsenet/rgb={d / 'weights.pth'}"]


def weights_alone(d: Path) -> list[str]:
    with zipfile.ZipFile(d / "weights.pth", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"stem": Payload()}))
        archive.writestr("archive/version", "3\n")
    return [good(d), image(d, "b.tif"), "--model", str(d / "weights.pth")]


def unknown_model(d: Path) -> list[str]:
    return [good(d), image(d, "b.tif"), "--model", "irmad"]


def code_as_model(d: Path) -> list[str]:
    return [good(d), image(d, "b.tif"), "--model", "__import__('os').system('true')"]


def planned_model(d: Path) -> list[str]:
    return [good(d), image(d, "b.tif"), "--model", "changen2"]


def other_task(d: Path) -> list[str]:
    return [good(d), image(d, "b.tif"), "--model", "rsmamba"]


def threshold(d: Path) -> list[str]:
    return [good(d), image(d, "b.tif"), "--threshold", "1.5"]


def missing_aoi(d: Path) -> list[str]:
    return [good(d), image(d, "b.tif"), "--aoi", str(d / "nowhere.geojson")]


def broken_aoi(d: Path) -> list[str]:
    (d / "aoi.geojson").write_text('{"type": "FeatureCollection", "features": [')
    return [good(d), image(d, "b.tif"), "--aoi", str(d / "aoi.geojson")]


def aoi_elsewhere(d: Path) -> list[str]:
    ring = "[[[2,2],[2.1,2],[2.1,2.1],[2,2]]]"
    (d / "aoi.geojson").write_text(f'{{"type":"Polygon","coordinates":{ring}}}')
    return [good(d), image(d, "b.tif"), "--aoi", str(d / "aoi.geojson")]


def missing_zones(d: Path) -> list[str]:
    return [good(d), image(d, "b.tif"), "--zones", str(d / "nowhere.gpkg")]


def missing_grid(d: Path) -> list[str]:
    return [good(d), image(d, "b.tif"), "--grid", "finest"]


def no_such_device(d: Path) -> list[str]:
    return [good(d), image(d, "b.tif"), "--device", "cuda:7"]


def no_such_precision(d: Path) -> list[str]:
    return [good(d), image(d, "b.tif"), "--precision", "int4"]


def _nano_weights(d: Path, change: Callable[[dict[str, Any]], None], system: str = "bcd-nano") -> list[str]:
    """Arguments with weights of a small network in which something was changed."""
    from safetensors.torch import save_file

    from terralapse import registry

    network = registry.build(f"changemamba/{system}", untrained=True).network
    tensors = {k: v.contiguous() for k, v in network.state_dict().items()}
    change(tensors)
    save_file(tensors, d / "nano.safetensors")
    chosen = ["--model", "changemamba/bcd-nano", "--weights", str(d / "nano.safetensors")]
    return [good(d), image(d, "b.tif"), *chosen]


def weights_of_another_system(d: Path) -> list[str]:
    return _nano_weights(d, lambda _: None, "bda-nano")


def a_tensor_missing(d: Path) -> list[str]:
    return _nano_weights(d, lambda tensors: tensors.pop("main_clf.bias"))


def a_tensor_too_many(d: Path) -> list[str]:
    return _nano_weights(d, lambda tensors: tensors.update(extra=tensors["main_clf.bias"].clone()))


def weights_of_another_size(d: Path) -> list[str]:
    weight = "encoder.layers.0.blocks.0.norm.weight"
    return _nano_weights(d, lambda tensors: tensors.update({weight: tensors[weight].repeat(4)}))


def weights_for_no_system(d: Path) -> list[str]:
    (d / "w.safetensors").touch()
    return [good(d), image(d, "b.tif"), "--weights", str(d / "w.safetensors")]


def weights_not_there(d: Path) -> list[str]:
    chosen = ["--model", "changemamba/bcd-nano", "--weights", str(d / "nowhere.safetensors")]
    return [good(d), image(d, "b.tif"), *chosen]


def a_network_without_weights(d: Path) -> list[str]:
    return [good(d), image(d, "b.tif"), "--model", "changemamba/bcd-tiny"]


def _mapped(d: Path, *more: str) -> list[str]:
    """Arguments with a small network that takes a map of the earlier date."""
    from safetensors.torch import save_file

    from terralapse import registry

    network = registry.build("mapformer/nano", untrained=True).network
    save_file({k: v.contiguous() for k, v in network.state_dict().items()}, d / "nano.safetensors")
    chosen = ["--model", "mapformer/nano", "--weights", str(d / "nano.safetensors")]
    return [good(d), image(d, "b.tif"), *chosen, *more]


def no_map_before(d: Path) -> list[str]:
    return _mapped(d)


def map_of_other_classes(d: Path) -> list[str]:
    codes = np.array([10, 40, 80], "uint8").repeat(32 * 96).reshape(1, 96, 96)
    path = write_tif(d / "worldcover.tif", codes, transform=from_origin(500000, 5000000, 2, 2))
    return _mapped(d, "--before-map", str(path))


def map_with_bands(d: Path) -> list[str]:
    return _mapped(d, "--before-map", image(d, "rgb.tif"))


def map_not_there(d: Path) -> list[str]:
    return _mapped(d, "--before-map", str(d / "nowhere.tif"))


def map_for_another_model(d: Path) -> list[str]:
    return [good(d), image(d, "b.tif"), "--model", "ir-mad", "--before-map", "rules"]


def network_scheme(d: Path) -> list[str]:
    return ["/vsicurl/http://127.0.0.1:9/secret.tif", good(d)]


def zip_slip(d: Path) -> list[str]:
    with zipfile.ZipFile(d / "S2A_slip.zip", "w") as archive:
        archive.writestr("../../outside.xml", "<x/>")
        archive.writestr("S2A_MSIL2A_20210601T000000_N0500_R001_T33UUP_0.SAFE/MTD_MSIL2A.xml", "<x/>")
    return [str(d / "S2A_slip.zip"), good(d)]


def gcps_in_a_line(d: Path) -> list[str]:
    points = [GroundControlPoint(row=10 * i, col=10 * i, x=5e5 + 20 * i, y=5e6 - 20 * i) for i in range(4)]
    path = write_tif(d / "gcps.tif", np.full((3, 96, 96), 7, "uint8"), crs=None)
    import rasterio

    with rasterio.open(path, "r+") as f:
        f.transform = rasterio.Affine.identity()
        f.gcps = (points, rasterio.CRS.from_epsg(32633))
    return [str(path), good(d)]


def _bench(models: str, *more: str, data: str = "levir-cd") -> Callable[[Path], list[str]]:
    """Arguments of a comparison on a data set of one pair, with its ledger in the folder of the case."""

    def make(d: Path) -> list[str]:
        for folder in ("A", "B", "label"):
            (d / "set/test" / folder).mkdir(parents=True)
            grey = np.full((32, 32) if folder == "label" else (32, 32, 3), 0, np.uint8)
            Image.fromarray(grey).save(d / "set/test" / folder / "one.png")
        return ["--data", data, "--root", str(d / "set"), "--models", models, *more]

    return make


BENCH = ("bench", "change")
E = errors
CASES = [
    BadInput("A file that is not there", missing, E.FileMissingError, ("nowhere.tif", "does not exist")),
    BadInput("A pattern that matches nothing", empty_pattern, E.FileMissingError, ("tiles_*.tif",)),
    BadInput("Zero bytes", zero_bytes, E.UnreadableFileError, ("zero.tif", "empty")),
    BadInput("A text file named .tif", text, E.UnreadableFileError, ("text.tif", "text")),
    BadInput("A file cut off inside a block", cut_in_a_block, E.TruncatedFileError, ("cut.tif", "block")),
    BadInput("A file cut off inside its header", cut_in_the_header, E.TruncatedFileError, ("cut.tif",)),
    BadInput("A damaged block", broken_block, E.TruncatedFileError, ("broken.tif", "block", "band")),
    BadInput("A header of 10⁶ × 10⁶ pixels in 1 kB", million, E.HostileFileError, ("million.tif",)),
    BadInput("A tile of 2³⁰ × 2³⁰", giant_tile, E.HostileFileError, ("tile.tif",)),
    BadInput("65,529 samples a pixel", many_samples, E.HostileFileError, ("samples.tif",)),
    BadInput("Two images of different places", no_overlap, E.NoOverlapError, ("good.tif", "far.tif")),
    BadInput("No CRS", no_crs, E.NoGeoreferenceError, ("nocrs.tif", "CRS")),
    BadInput("A PNG without a world file", plain_png, E.NoGeoreferenceError, ("plain.png",)),
    BadInput("RPCs only", rpc_only, E.UnsupportedGeoreferenceError, ("rpc.tif", "RPC")),
    BadInput(
        "Ground control points in a line", gcps_in_a_line, E.UnsupportedGeoreferenceError, ("gcps.tif",)
    ),
    BadInput("One band against four", one_band_against_four, E.TerralapseError, ("one.tif", "four.tif")),
    BadInput("A band that is not there", unknown_band, E.BandError, ("swir22", "red, green, blue")),
    BadInput("Nothing but nodata", all_nodata, E.NoValidDataError, ("empty.tif", "nodata")),
    BadInput("An output folder inside a file", output_in_a_file, E.OutputNotWritableError, ("taken",)),
    BadInput(
        "An output folder with other files", output_exists, E.OutputExistsError, ("full", "never replaced")
    ),
    BadInput(
        "A result that is there already", output_is_a_result, E.OutputExistsError, ("done", "overwrite")
    ),
    BadInput("Weights with a pickle payload", pickled_weights, E.UnsafeWeightsError, ("weights.pth",)),
    BadInput("Pickled weights in place of a model", weights_alone, E.TerralapseError, ("weights.pth",)),
    BadInput(
        "Weights of another system",
        weights_of_another_system,
        E.WeightsMismatchError,
        ("nano.safetensors", "MambaBCD", "missing"),
    ),
    BadInput(
        "Weights without one tensor", a_tensor_missing, E.WeightsMismatchError, ("1 missing: main_clf.bias",)
    ),
    BadInput(
        "Weights with a tensor too many", a_tensor_too_many, E.WeightsMismatchError, ("1 unknown: extra",)
    ),
    BadInput(
        "Weights of another size", weights_of_another_size, E.WeightsMismatchError, ("1 of another shape",)
    ),
    BadInput("Weights that are not there", weights_not_there, E.FileMissingError, ("nowhere.safetensors",)),
    BadInput("Weights for no system", weights_for_no_system, E.SettingError, ("--model",)),
    BadInput(
        "A network whose weights do not ship",
        a_network_without_weights,
        E.SystemNotReadyError,
        ("changemamba/bcd-tiny", "--weights", "MambaBCD_Tiny"),
    ),
    BadInput(
        "A model that needs a map before, without one",
        no_map_before,
        E.ModelInputError,
        ("mapformer/nano", "--before-map"),
    ),
    BadInput(
        "A map before of other classes",
        map_of_other_classes,
        E.ModelInputError,
        ("worldcover.tif", "10, 40, 80", "0 vegetation"),
    ),
    BadInput(
        "A map before with several bands", map_with_bands, E.UnreadableFileError, ("rgb.tif", "3 bands")
    ),
    BadInput("A map before that is not there", map_not_there, E.FileMissingError, ("nowhere.tif",)),
    BadInput(
        "A map before for a model without", map_for_another_model, E.ModelInputError, ("ir-mad", "no map")
    ),
    BadInput("A model that does not exist", unknown_model, E.UnknownSystemError, ("irmad", "ir-mad")),
    BadInput("Code in place of a model", code_as_model, E.UnknownSystemError, ("__import__",)),
    BadInput("A planned model", planned_model, E.SystemNotReadyError, ("changen2", "planned")),
    BadInput("A model of another task", other_task, E.ModelInputError, ("rsmamba", "classification")),
    BadInput("A threshold above one", threshold, E.SettingError, ("threshold", "1.5")),
    BadInput("An area of interest that is not there", missing_aoi, E.FileMissingError, ("nowhere.geojson",)),
    BadInput("A broken area of interest", broken_aoi, E.UnreadableFileError, ("aoi.geojson",)),
    BadInput("An area of interest elsewhere", aoi_elsewhere, E.NoOverlapError, ("aoi.geojson",)),
    BadInput("Zones that are not there", missing_zones, E.FileMissingError, ("nowhere.gpkg",)),
    BadInput("A grid that is neither rule nor file", missing_grid, E.TerralapseError, ("finest",)),
    BadInput("A device that is not there", no_such_device, E.SettingError, ("cuda:7",)),
    BadInput("A precision that does not exist", no_such_precision, E.SettingError, ("int4",)),
    BadInput("A GDAL connection string", network_scheme, E.UnreadableFileError, ("/vsicurl/",)),
    BadInput("An archive with paths that climb out", zip_slip, E.HostileFileError, ("S2A_slip.zip",)),
    BadInput(
        "A comparison with a model that does not exist",
        _bench("irmad"),
        E.UnknownSystemError,
        ("ir-mad",),
        BENCH,
    ),
    BadInput(
        "A comparison that names a model twice", _bench("cva,cva"), E.SettingError, ("cva", "twice"), BENCH
    ),
    BadInput(
        "A comparison on labels of another task",
        _bench("cva", data="eurosat"),
        E.SettingError,
        ("eurosat", "classification", "levir-cd"),
        BENCH,
    ),
    BadInput(
        "A comparison on a data set without the validation split it needs",
        _bench("cva", "--threshold", "val", data="levir-cd-plus"),
        E.SettingError,
        ("val", "holdout"),
        BENCH,
    ),
]


def run(case: BadInput, folder: Path) -> tuple[errors.TerralapseError | None, list[str]]:
    """The error that the library raises for a case, and what is left beside the inputs."""
    from typer.testing import CliRunner

    from terralapse.cli.app import app

    arguments = case.make(folder)
    before = {p.relative_to(folder) for p in folder.rglob("*")}
    if "-o" not in arguments:
        arguments += ["-o", str(folder / "out")]
    outcome = CliRunner().invoke(app, [*case.command, *arguments])
    left = sorted(
        str(p.relative_to(folder)) for p in folder.rglob("*") if p.relative_to(folder) not in before
    )
    error = outcome.exception
    if error is not None and not isinstance(error, errors.TerralapseError):
        raise error
    return error, left


def table() -> str:
    """The Markdown table of the documentation: the input, the error, the message."""
    rows = ["| input | error | message |", "|---|---|---|"]
    for case in CASES:
        with tempfile.TemporaryDirectory() as folder:
            error, _ = run(case, Path(folder))
            said = re.sub(re.escape(folder) + r"/?", "", str(error)).replace("|", "\\|")
            rows.append(f"| {case.name} | `{type(error).__name__}` | {said} |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    sys.stdout.write(table())
