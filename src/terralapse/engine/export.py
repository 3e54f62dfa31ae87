"""A detector as one file that runs without this library: ONNX, OpenVINO, or `torch.export`.

The graph holds the whole detector: the mask, the normalisation, the network and the calibration.

- `images` float32 [B, 2, C, H, W]: the bands of the card in its order, in its unit, NaN where a date cannot
  be used. Any B; H and W are multiples of the card's `size_multiple`, for a `.pt2` two of them or more.
- `low`, `high` float32 [C], only for a detector that stretches a scene: the 2nd and 98th percentile of each
  band over the valid pixels of both dates of the whole scene, which no tile knows.
- `map` int64 [B, H, W], only for a detector that takes a map of the earlier date: class ids of the scheme in
  the card, 255 where nothing is known.
- `probability` float32 [B, H, W], NaN where a date cannot be used.

What is left outside: the alignment of the dates, the cut into tiles and the seams, and, for a network that
sees a whole tile (`exact` False), cutting off the void around a scene.
"""

from __future__ import annotations

import copy
import json
import shutil
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from terralapse._version import __version__
from terralapse.engine import exported
from terralapse.engine.parts import sync_folder
from terralapse.engine.runner import INVARIANT, networks, weights_digest
from terralapse.errors import ModelInputError, OutputExistsError, OutputNotWritableError, SettingError
from terralapse.tasks.change import ChangeDetector
from terralapse.tasks.mapped import MAP, MapDetector
from terralapse.tasks.network import NetworkDetector

# Multiples of the network along a side of an image, at least, and the pixels, about, of the images that the
# graph is traced with. What fits into one window is traced without others: such a network is traced larger.
TRACES = ((2, (128, 192)), (5, (160, 224)))
ROUNDINGS = 4  # times torch's own difference to float64 that a file may differ by
FLIPPED = 1e-4  # share of pixels that may change sides of the threshold by rounding


class DetectorGraph(nn.Module):
    """The graph of a detector; see this module for its inputs and its output."""

    def __init__(self, detector: NetworkDetector) -> None:
        super().__init__()
        self.network = detector.network
        self.detector = detector

    def forward(
        self,
        images: Tensor,
        low: Tensor | None = None,
        high: Tensor | None = None,
        map: Tensor | None = None,
    ) -> Tensor:
        # Nothing is cut off: it tells the tracer that the sides are multiples, which it finds out too late.
        height, width = (
            side // self.detector.multiple * self.detector.multiple for side in images.shape[-2:]
        )
        images = images[..., :height, :width]
        given = {} if map is None else {MAP: map[:, :height, :width]}
        usable = ~images.isnan().any(dim=2).any(dim=1)  # [B, H, W]
        if low is not None and high is not None:
            images = self.detector.stretched(images, low, high)
        normal = self.detector.normalise(images, usable, {})
        probability = self.detector.traced(normal, usable, **given)
        return torch.where(usable, probability, torch.full_like(probability, torch.nan))


@dataclass(frozen=True)
class Check:
    """How an exported file differs from float32 in torch on real tiles, where they are valid: the largest and
    the mean difference of a probability, and the share of pixels that change sides of the threshold.

    `own_rounding` is measured only where the largest difference is more than `INVARIANT`: that of float32 to
    float64, both in torch. A file cannot be nearer to torch than torch is to the exact numbers. CDMaskFormer
    takes the logarithm of one minus a sum that comes near to one, where the last digit counts.
    """

    pixels: int
    max_difference: float
    mean_difference: float
    share_flipped: float
    own_rounding: float = 0.0

    @property
    def holds(self) -> bool:
        """Whether the difference is no more than rounding: `INVARIANT`, or some of torch's own, and
        `FLIPPED`."""
        allowed = max(INVARIANT, ROUNDINGS * self.own_rounding)
        return self.max_difference <= allowed and self.share_flipped <= FLIPPED

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def exportable(detector: ChangeDetector) -> NetworkDetector:
    """The detector, when a graph can hold it.

    Raises:
        ModelInputError: it has no network, or takes more than images.
    """
    slug = detector.card.slug
    if not isinstance(detector, NetworkDetector):
        raise ModelInputError(
            slug,
            "has no network to export: what it computes is fitted to each scene",
            "Choose a network, such as lapsenet/rgb; `terralapse systems` lists all.",
        )
    unknown = [name for name in detector.extras if name != MAP]
    if unknown:
        raise ModelInputError(
            slug,
            f"takes {', '.join(unknown)} beside the images, for which an exported file has no input",
            "Choose another network, such as lapsenet/rgb.",
        )
    if detector.window is not None:
        raise ModelInputError(
            slug,
            f"cuts an image into overlapping windows of {detector.window} pixels, as many as its size asks "
            "for, which a graph for any size cannot",
            "Run it with `terralapse change`, or choose a size of it that takes images of any size.",
        )
    return detector


def inputs_of(detector: NetworkDetector, stretched: bool) -> tuple[str, ...]:
    """Names of the inputs of the graph of a detector."""
    return ("images", *(("low", "high") if stretched else ()), *detector.extras)


def card_of(detector: NetworkDetector, stretched: bool) -> dict[str, Any]:
    """What an exported file says of itself, JSON-ready."""
    card = detector.card
    return {
        "terralapse": __version__,
        "slug": card.slug,
        "title": card.title,
        "task": str(card.task),
        "inputs": list(inputs_of(detector, stretched)),
        "output": "probability",
        "bands": list(detector.bands),
        "units": [str(unit) for unit in card.inputs.units],
        "gsd_range_m": None if card.inputs.gsd_range is None else list(card.inputs.gsd_range),
        "size_multiple": detector.multiple,
        "halo": detector.halo,
        "exact_seams": detector.exact,
        "threshold": 0.5 if card.threshold is None else card.threshold,
        "temperature": card.temperature,
        "classes": card.classes,
        "map_scheme": detector.map_scheme.slug if isinstance(detector, MapDetector) else None,
        "limits": list(card.limits),
        "licences": asdict(card.licences),
        "weights_sha256": weights_digest(detector),
    }


def trace(detector: NetworkDetector, stretched: bool) -> Any:
    """The detector as a `torch.export.ExportedProgram` of any batch, height and width, see `least_side`.

    Raises:
        ModelInputError: the network has a step that needs to know its sides.
    """
    for least, sides in TRACES:
        program = _traced(detector, stretched, least, sides)
        if _any_size(program, detector, stretched, 2 * least):
            return program
    raise ModelInputError(
        detector.card.slug,
        "cannot be traced for any height and width: a step of the network takes those of the trace",
        "Run it with `terralapse change` instead.",
    )


def least_side(program: Any) -> int:
    """Multiples of the network along a side of an image that a program takes, at least."""
    images = next(n for n in program.graph.nodes if n.op == "placeholder" and n.name == "images").meta["val"]
    symbols = images.shape[3].node.expr.free_symbols
    return max(int(program.range_constraints[symbol].lower) for symbol in symbols)


def _any_size(program: Any, detector: NetworkDetector, stretched: bool, most: int) -> bool:
    """Whether a program takes an image of other sides than those of its trace."""
    side, bands = most * detector.multiple, len(detector.bands)
    given = [torch.zeros(1, 2, bands, side, side)]
    if stretched:
        given += [torch.zeros(bands), torch.full((bands,), 255.0)]
    named = {MAP: torch.zeros(1, side, side, dtype=torch.int64)} if MAP in detector.extras else {}
    try:
        with torch.no_grad():
            program.module()(*given, **named)
    except AssertionError:  # a guard of the graph
        return False
    return True


def _traced(detector: NetworkDetector, stretched: bool, least: int, traced: tuple[int, int]) -> Any:
    multiple, bands = detector.multiple, len(detector.bands)
    height, width = (max(least, round(side / multiple)) * multiple for side in traced)
    generator = torch.Generator().manual_seed(0)
    # Three, since two is also the number of dates, which the tracer would take for the batch.
    given: list[Tensor] = [255 * torch.rand(3, 2, bands, height, width, generator=generator)]
    # From two multiples on: at one, a side of the deepest maps is 1, for which torch would broadcast them.
    rows, cols = torch.export.Dim("rows", min=least), torch.export.Dim("cols", min=least)
    sides = {3: rows if multiple == 1 else multiple * rows, 4: cols if multiple == 1 else multiple * cols}
    batch = torch.export.Dim("batch", min=1)
    shapes: dict[str, Any] = {"images": {0: batch, **sides}}
    if stretched:
        given += [torch.zeros(bands), torch.full((bands,), 255.0)]
        shapes |= {"low": {}, "high": {}}
    named: dict[str, Tensor] = {}
    if MAP in detector.extras:
        named[MAP] = torch.zeros(3, height, width, dtype=torch.int64)
        shapes[MAP] = {0: batch, 1: sides[3], 2: sides[4]}
    for network in networks(detector):
        network.eval()
    try:
        with torch.no_grad():
            graph = DetectorGraph(detector)
            program = torch.export.export(graph, tuple(given), named, dynamic_shapes=shapes)
    except Exception as error:  # the tracer has many kinds, none of them public
        raise ModelInputError(
            detector.card.slug,
            f"cannot be traced for any batch and size ({_first_line(error)})",
            "Run it with `terralapse change` instead.",
        ) from error
    seen = (
        next(n for n in program.graph.nodes if n.op == "placeholder" and n.name == "images").meta["val"].shape
    )
    fixed = [name for name, at in (("batch", 0), ("height", 3), ("width", 4)) if isinstance(seen[at], int)]
    if fixed:  # by a step of the network, which the tracer does not always say
        raise ModelInputError(
            detector.card.slug,
            f"cannot be traced for any {' and '.join(fixed)}: a step of the network takes that of the trace",
            "Run it with `terralapse change` instead.",
        )
    return program


def write_graph(
    detector: NetworkDetector, path: Path, kind: str, stretched: bool, program: Any = None
) -> dict[str, Any]:
    """Writes the graph with its card to `path` (and beside it a `.bin` for OpenVINO), as it goes, and returns
    the card.

    `program` is what `trace` gave for this detector, for who writes more than one format of it.

    Raises:
        ModelInputError: the network cannot be expressed in this format.
        MissingExtraError: the packages of the format are not installed.
    """
    vino = exported.need("openvino", "openvino") if kind == "openvino" else None
    if kind != "torch":
        exported.need("onnx", "export")
        exported.need("onnxscript", "export")
    if program is None:
        program = trace(detector, stretched)
    card = card_of(detector, stretched)
    if kind == "torch":
        card["least_side"] = least_side(program) * detector.multiple
    text = json.dumps(card, sort_keys=True)
    if kind == "torch":
        for module in program.graph_module.modules():
            for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
                node.meta.pop("stack_trace", None)  # paths of this machine, and most of the file
        with warnings.catch_warnings():
            # Weights may share one block of memory; the writer warns of that, and writes them all.
            warnings.simplefilter("ignore", UserWarning)
            torch.export.save(program, path, extra_files={exported.EXTRA: text})
        return card
    onnx_path = path if kind == "onnx" else path.with_suffix(".onnx")
    _write_onnx(detector, program, onnx_path, text, inputs_of(detector, stretched))
    if vino is not None:
        try:
            model = vino.convert_model(str(onnx_path))
        except Exception as error:
            raise _not_expressed(detector, kind, error) from error
        onnx_path.unlink()
        model.set_rt_info(text, [exported.CARD])
        vino.save_model(model, str(path), compress_to_fp16=False)
    return card


def _write_onnx(
    detector: NetworkDetector, program: Any, path: Path, text: str, inputs: tuple[str, ...]
) -> None:
    try:
        # Not optimised: on an unrolled scan that takes many minutes, and runtimes do it when they load.
        graph = torch.onnx.export(
            program,
            (),
            dynamo=True,
            optimize=False,
            verbose=False,
            input_names=list(inputs),
            output_names=["probability"],
        )
    except Exception as error:
        raise _not_expressed(detector, "onnx", error) from error
    assert graph is not None
    passes = exported.need("onnx_ir.passes.common", "export")
    if graph.model.functions:  # bodies of loops, which OpenVINO wants in their place
        passes.InlinePass()(graph.model)
    # Where in the source each step was traced: paths of this machine, and most of the file.
    passes.ClearMetadataAndDocStringPass()(graph.model)
    graph.model.metadata_props[exported.CARD] = text
    graph.save(path, external_data=False)


def _not_expressed(detector: NetworkDetector, kind: str, error: Exception) -> ModelInputError:
    return ModelInputError(
        detector.card.slug,
        f"cannot be expressed as {kind} ({_first_line(error)})",
        "Choose another format, or run it with `terralapse change`.",
    )


def export(
    detector: ChangeDetector,
    path: Path,
    tiles: Sequence[np.ndarray],
    *,
    kind: str = "auto",
    overwrite: bool = False,
) -> tuple[dict[str, Any], Check]:
    """Writes a detector to one file, checked; the file appears whole or not at all.

    Args:
        detector: a network for two dates.
        path: ends with `.onnx`, `.xml` (OpenVINO, with a `.bin` beside it) or `.pt2`.
        tiles: float32 [B, 2, C, H, W] each, real images in the bands of the card, to check the file on; for a
            detector that takes a map with its class ids as one more band, as `MapDetector` has them.
        kind: `auto` (as the suffix says), `onnx`, `openvino`, `torch`.
        overwrite: replace a file that is there.

    Returns:
        The card that is in the file, and the comparison with float32 in torch.

    Raises:
        SettingError: suffix and `kind` do not fit; or the file would differ by more than rounding.
        ModelInputError: the detector cannot be exported.
        OutputExistsError, OutputNotWritableError: of `path`.
        MissingExtraError: the packages of the format are not installed.
    """
    path = Path(path)
    kind = exported.format_of(path, kind)
    network = exportable(detector)
    if path.exists() and not overwrite:
        raise OutputExistsError(path, "exists", "Give --overwrite, or another name.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{path.stem}-", dir=path.parent))
    except OSError as error:
        raise OutputNotWritableError(
            path.parent, f"cannot be written ({error})", "Choose another."
        ) from error
    try:
        stretched = network.always_stretches
        draft = folder / path.name
        card = write_graph(network, draft, kind, stretched)
        found = compare(network, draft, tiles, stretched)
        if not found.holds:
            raise SettingError(
                path,
                f"would differ from float32 in torch by {found.max_difference:.2g} in probability, and "
                f"{found.share_flipped:.2%} of the pixels would change sides; it was not written",
                "Choose another format.",
            )
        publish(draft, path)
    except OSError as error:
        raise OutputNotWritableError(path, f"cannot be written ({error})", "Free some space.") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return card, found


def publish(draft: Path, path: Path) -> None:
    """Moves a finished file, and the `.bin` that belongs to an `.xml`, to its name on the same disk."""
    if path.suffix.lower() == ".xml":  # first, so that no `.xml` stands without its numbers
        draft.with_suffix(".bin").replace(path.with_suffix(".bin"))
    draft.replace(path)
    sync_folder(path.parent)


def compare(detector: NetworkDetector, path: Path, tiles: Sequence[np.ndarray], stretched: bool) -> Check:
    """An exported file beside `predict` in float32, on tiles that have valid pixels."""
    call = exported.load(path)
    threshold = 0.5 if detector.card.threshold is None else detector.card.threshold
    pixels, largest, total, flipped = 0, 0.0, 0.0, 0
    for tile in tiles:
        state = _state_on(detector, tile, stretched)
        wanted, known = _eager(detector, tile, state, torch.float32)
        extras = detector.extras_of(torch.from_numpy(tile), state)
        given = {
            "images": np.ascontiguousarray(tile[:, :, : len(detector.bands)]),
            **{name: np.array(ends, np.float32) for name, ends in state.get("stretch", {}).items()},
            **{name: value.numpy() for name, value in extras.items()},
        }
        values = call(given)
        if (
            values.shape != wanted.shape
            or np.isnan(values[known]).any()
            or not np.isnan(values[~known]).all()
        ):
            return Check(int(known.sum()), 1.0, 1.0, 1.0)
        difference = np.abs(values - wanted)[known].astype(np.float64)
        pixels += difference.size
        largest = max(largest, float(difference.max(initial=0.0)))
        total += float(difference.sum())
        flipped += int(((values >= threshold) != (wanted >= threshold))[known].sum())
    count = max(pixels, 1)
    found = Check(pixels, largest, total / count, flipped / count)
    return found if found.holds else replace(found, own_rounding=own_rounding(detector, tiles, stretched))


def own_rounding(detector: NetworkDetector, tiles: Sequence[np.ndarray], stretched: bool) -> float:
    """The largest difference of a probability between float32 and float64, both in torch. Zero for a network
    that does not run in float64, so that nothing is allowed on its account."""
    double = copy.copy(detector)
    double.network = copy.deepcopy(detector.network).double()
    largest = 0.0
    for tile in tiles:
        state = _state_on(detector, tile, stretched)
        found, known = _eager(detector, tile, state, torch.float32)
        try:
            exact, _ = _eager(double, tile, state, torch.float64)
        except RuntimeError:  # of types that do not mix
            return 0.0
        largest = max(largest, float(np.abs(found - exact)[known].max(initial=0.0)))
    return largest


def _state_on(detector: NetworkDetector, tile: np.ndarray, stretched: bool) -> dict[str, Any]:
    """The state of a detector for a tile as `export` takes them, as `fit` would give it."""
    count = len(detector.bands)
    state: dict[str, Any] = {"bands": list(range(count)), "temperature": detector.card.temperature}
    if MAP in detector.extras:
        state[MAP] = count
    if stretched:
        low, high = np.nanpercentile(tile[:, :, :count], (2, 98), axis=(0, 1, 3, 4)).astype(np.float32)
        state["stretch"] = {"low": low.tolist(), "high": high.tolist()}
    return state


def _eager(
    detector: NetworkDetector, tile: np.ndarray, state: dict[str, Any], kind: torch.dtype
) -> tuple[np.ndarray, np.ndarray]:
    """Probability [B, H, W] by `predict` on images of this type, and where both dates are usable."""
    tensor = torch.from_numpy(tile).to(kind)
    usable = ~tensor[:, :, : len(detector.bands)].isnan().any(dim=2)
    with torch.inference_mode():
        return detector.predict(tensor, usable, state).numpy(), usable.all(dim=1).numpy()


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:160] if lines else ''}"
