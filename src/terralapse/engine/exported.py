"""Files that `terralapse export` writes: which kinds there are, the card inside, and how they are run.

The card is one JSON text under the name `terralapse`: a property of an ONNX model, an entry of the
`rt_info` of an OpenVINO model, the extra file `terralapse.json` of a `torch.export` archive.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from terralapse.errors import FileMissingError, MissingExtraError, SettingError, UnreadableFileError

FORMATS = {".onnx": "onnx", ".xml": "openvino", ".pt2": "torch"}
CARD = "terralapse"  # the name of the card in a file
EXTRA = f"{CARD}.json"

Call = Callable[[Mapping[str, np.ndarray]], np.ndarray]  # inputs by name to probability float32 [B, H, W]


def format_of(path: Path, wanted: str = "auto") -> str:
    """`onnx`, `openvino` or `torch`: as `wanted`, or as the suffix says.

    Raises:
        SettingError: there is no such format, or it is not that of the suffix.
    """
    suffixes = ", ".join(FORMATS)
    if wanted != "auto" and wanted not in FORMATS.values():
        raise SettingError(f"format {wanted}", "is not known", f"Choose auto, {', '.join(FORMATS.values())}.")
    found = FORMATS.get(path.suffix.lower())
    if found is None:
        raise SettingError(path, "does not say which format it is", f"End its name with one of {suffixes}.")
    if wanted not in ("auto", found):
        raise SettingError(
            f"format {wanted}",
            f"is not that of {path.name}, which is {found}",
            "Leave --format out, or change the suffix.",
        )
    return found


def need(name: str, extra: str) -> ModuleType:
    """An optional package.

    Raises:
        MissingExtraError: it is not installed; names the extra.
    """
    import importlib

    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            name, "is not installed", f"Install it with: pip install 'terralapse[{extra}]'"
        ) from error


def read_card(path: Path) -> dict[str, Any]:
    """What an exported file says of itself; see `engine.export.card_of` for the keys.

    Raises:
        FileMissingError, UnreadableFileError: no file, not a whole one, or none of ours.
        SettingError: the suffix is not that of an exported file.
        MissingExtraError: the package that reads the format is not installed.
    """
    path = Path(path)
    kind = format_of(path)
    if not path.is_file():
        raise FileMissingError(path, "does not exist", "Check the path.")
    with whole(path):
        if kind == "onnx":
            model = need("onnx", "export").load(path, load_external_data=False)
            text = next((p.value for p in model.metadata_props if p.key == CARD), None)
        elif kind == "openvino":
            model = need("openvino", "openvino").Core().read_model(path)
            text = _rt_info(model)
        else:
            with zipfile.ZipFile(path) as archive:
                text = next((archive.read(n).decode() for n in archive.namelist() if n.endswith(EXTRA)), None)
        if text is None:
            raise UnreadableFileError(path, "holds no card of terralapse", "Export it again.")
        return json.loads(text)


def load(path: Path, threads: int | None = None) -> Call:
    """An exported file, ready to be called on a CPU with its inputs by name.

    Raises:
        As `read_card`.
    """
    path = Path(path)
    card = read_card(path)
    opened = {"onnx": open_onnx, "openvino": open_openvino, "torch": _open_torch}[format_of(path)]
    with whole(path):
        return opened(path, tuple(card["inputs"]), threads)


def open_onnx(path: Path, inputs: tuple[str, ...], threads: int | None = None) -> Call:
    """An ONNX file in ONNX Runtime on a CPU, in float32."""
    runtime = need("onnxruntime", "export")
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    options.enable_mem_pattern = False  # tiles come in more than one shape
    options.inter_op_num_threads = 1
    if threads is not None:
        options.intra_op_num_threads = threads
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda given: session.run(None, {name: given[name] for name in inputs})[0]


def open_openvino(path: Path, inputs: tuple[str, ...], threads: int | None = None) -> Call:
    """An OpenVINO or ONNX file in OpenVINO on a CPU, in float32 whatever the CPU would like better."""
    core = need("openvino", "openvino").Core()
    settings = {"INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": "1", "ENABLE_CPU_PINNING": "NO"}
    if threads is not None:
        settings["INFERENCE_NUM_THREADS"] = str(threads)
    compiled = core.compile_model(core.read_model(str(path)), "CPU", settings)
    request = compiled.create_infer_request()

    def call(given: Mapping[str, np.ndarray]) -> np.ndarray:
        found = request.infer({name: np.ascontiguousarray(given[name]) for name in inputs})
        return np.array(found[compiled.output(0)])  # the request keeps its own memory

    return call


def _open_torch(path: Path, inputs: tuple[str, ...], threads: int | None = None) -> Call:
    import torch

    module = torch.export.load(path).module()
    by_name = [name for name in inputs if name == "map"]  # beside what has a fixed place

    def call(given: Mapping[str, np.ndarray]) -> np.ndarray:
        tensors = {name: torch.from_numpy(np.ascontiguousarray(given[name])) for name in inputs}
        named = {name: tensors.pop(name) for name in by_name}
        before = torch.get_num_threads()
        torch.set_num_threads(threads or before)
        try:
            with torch.inference_mode():
                return module(*tensors.values(), **named).numpy()
        finally:
            torch.set_num_threads(before)

    return call


def _rt_info(model: Any) -> str | None:
    if not model.has_rt_info([CARD]):
        return None
    found = model.get_rt_info([CARD])
    return str(getattr(found, "value", found))


@contextmanager
def whole(path: Path) -> Iterator[None]:
    """Says one thing of a file that is cut short or something else, whatever its reader says."""
    try:
        yield
    except (MissingExtraError, UnreadableFileError, MemoryError):
        raise
    except Exception as error:  # each of the three readers has its own kinds
        raise UnreadableFileError(
            path, f"is not a whole {format_of(path)} file", "Export it again, or copy it again."
        ) from error
