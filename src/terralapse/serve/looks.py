"""What a new image is, worked out in a process that a hostile or huge file may take down without harm.

`python -m terralapse.serve.looks` is that process: it reads one question a line from standard input and
answers each with one JSON object a line. `Looker` asks it, waits no longer than it must, and starts another
when one has died or was too slow.
"""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from typing import Any

from terralapse.errors import HostileFileError, TerralapseError, UnreadableFileError

_KEPT = 256
_START = 120.0  # seconds that a process may need until it is ready; the machine may be busy
_HINT = "Make a tiled GeoTIFF (COG) of it, or cut it to the place that matters."


class Looker:
    """Describes images by asking a process of its own, one at a time; safe to use from several threads.

    Args:
        seconds: for one image.
        memory: bytes that the process may hold.
        pixels: that an image may declare.
        fetch: bytes that may be read from addresses; None lets no address through.
        command: what starts the process; tests give another.
    """

    def __init__(
        self, seconds: float, memory: int, pixels: int, fetch: int | None, command: tuple[str, ...] = ()
    ) -> None:
        self._seconds, self._pixels = seconds, pixels
        self._config = {"memory": memory, "fetch": fetch}
        self._command = command or (sys.executable, "-m", "terralapse.serve.looks")
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[str, int, int], dict[str, Any]] = OrderedDict()
        self._process: subprocess.Popen[str] | None = None
        self._lines: queue.Queue[str] = queue.Queue()

    def look(self, source: str | Path) -> dict[str, Any]:
        """What an image is: name, format, size, bands, sensor, date, place and `footprint` (a polygon in
        degrees, or None), and what is wrong with it.

        Raises:
            TerralapseError: with the reason that it cannot be used, and without the folder it lies in.
        """
        key = _key(source)
        with self._lock:
            if key is not None and key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
            found = self._ask(str(source))
            if key is not None:
                self._kept[key] = found
                while len(self._kept) > _KEPT:
                    self._kept.popitem(last=False)
        if found["width"] * found["height"] > self._pixels:
            size = f"{found['width']:,} x {found['height']:,} pixels"
            raise HostileFileError(
                _name(str(source)), f"declares {size}, more than the {self._pixels:,} allowed here", _HINT
            )
        return found

    def warm(self) -> None:
        """Starts the process, so that the first person does not wait for it."""
        with self._lock, suppress(TerralapseError):  # the first look says what is wrong
            self._started("image")

    def close(self) -> None:
        """Ends the process."""
        with self._lock:
            self._end()

    def _ask(self, source: str) -> dict[str, Any]:
        name = _name(source)
        process = self._started(name)
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps({"source": source}) + "\n")
            process.stdin.flush()
            said = json.loads(self._line(self._seconds))
        except queue.Empty as error:
            self._end()
            fault = f"took longer than {self._seconds:g} s to look at"
            raise UnreadableFileError(name, fault, _HINT) from error
        except (OSError, ValueError) as error:
            self._end()
            fault = "cannot be read: looking at it ended the process that tried"
            raise UnreadableFileError(name, fault, "Check where the file comes from.") from error
        if "error" in said:
            raise UnreadableFileError(said["error"]["what"], said["error"]["fault"], said["error"]["hint"])
        return said["found"]

    def _started(self, name: str) -> subprocess.Popen[str]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self._end()
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._lines = queue.Queue()
        threading.Thread(target=_read, args=(self._process, self._lines), daemon=True).start()
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(self._config) + "\n")
            self._process.stdin.flush()
            json.loads(self._line(_START))
        except (queue.Empty, OSError, ValueError) as error:
            self._end()
            fault = "cannot be looked at: the process for it does not start"
            raise UnreadableFileError(
                name, fault, "Tell the operator; the server may lack memory."
            ) from error
        return self._process

    def _line(self, seconds: float) -> str:
        """The next line; empty when the process has ended."""
        return self._lines.get(timeout=seconds)

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            if process.stdin is not None:
                process.stdin.close()


def _read(process: subprocess.Popen[str], lines: queue.Queue[str]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        lines.put(line)
    lines.put("")
    process.stdout.close()


def _key(source: str | Path) -> tuple[str, int, int] | None:
    """Of a file as it is now; folders and addresses are looked at each time."""
    path = Path(source)
    if not path.is_file():
        return None
    stat = path.stat()
    return str(path), stat.st_mtime_ns, stat.st_size


def _name(source: str) -> str:
    return source if source.startswith("https://") else Path(source).name


# --- the process -------------------------------------------------------------------------------------
def main() -> None:
    """Answers until standard input ends."""
    from terralapse.serve.drivers import restrict

    config = json.loads(sys.stdin.readline())
    _bound(config["memory"])
    restrict(packages=("rasterio",), side_files=True)  # as the analysis will see it
    shut(config["fetch"])
    import terralapse.grid.open  # noqa: F401  ready only when all is there

    _tell(ready=True)
    for line in sys.stdin:
        source = json.loads(line)["source"]
        try:
            shut(config["fetch"])  # what was read before does not count
            _tell(found=describe(source))
        except TerralapseError as error:
            _tell(error=_said(error))
        except MemoryError:
            fault = "needs more memory to look at than is allowed here"
            _tell(error={"what": _name(source), "fault": fault, "hint": _HINT})


def describe(source: str) -> dict[str, Any]:
    """See `Looker.look`. Headers, metadata and a few squares of pixels are read.

    Raises:
        TerralapseError: it cannot be opened, with the reason.
    """
    from terralapse.errors import NoGeoreferenceError
    from terralapse.grid._georef import resolution_m
    from terralapse.grid.open import open_scene

    missing = None
    try:
        scene = open_scene(source)
    except NoGeoreferenceError as error:
        if Path(source).is_dir():
            raise
        missing, scene = error, open_scene(source, pixel_grid=True)
    with scene:
        info = scene.info
        box = info.geobox
        guess = next((n.text for n in info.notes if n.code == "sensor-guess"), "")
        warnings = [n.text for n in info.notes if n.level == "warning" and n.code != "pixel-grid"]
        return {
            "name": _name(source),
            "width": int(box.shape.x),
            "height": int(box.shape.y),
            "bands": [b.name for b in info.bands],
            "dtype": info.dtype,
            "unit": info.unit.value,
            "sensor": info.sensor.slug,
            "sensor_title": info.sensor.title,
            "sensor_why": guess.partition(": ")[2].rstrip("."),
            "time": None if info.time is None else info.time.isoformat(),
            "crs": None if missing or box.crs is None else box.crs.proj.name,
            "epsg": None if missing or box.crs is None else box.crs.epsg,
            "resolution_m": None if missing else round(resolution_m(box), 6),
            "footprint": None if missing else _footprint(scene),
            "warnings": warnings,
        }


def _footprint(scene: Any) -> dict[str, Any]:
    """The ground that a scene covers, in degrees; of many tiles the hull."""
    import shapely

    from terralapse.grid.footprint import lonlat_footprint

    shape = lonlat_footprint(scene)
    if shape.geom_type != "Polygon":
        shape = shape.convex_hull
    return json.loads(
        shapely.to_geojson(shapely.set_precision(shapely.polygons(shapely.get_exterior_ring(shape)), 1e-7))
    )


def _said(error: TerralapseError) -> dict[str, str]:
    """Without the folder, which is nobody's business; a fault may name the file as well."""
    return {"what": _name(error.what), "fault": error.fault, "hint": error.hint}


def shut(fetch: int | None) -> None:
    """From here on this process reaches public addresses alone, within the budget; none without one."""
    from terralapse.grid import _http
    from terralapse.grid._door import Door

    _http.through(Door(fetch) if fetch else Door(0, schemes=()))


def _bound(memory: int) -> None:
    """Where the system can, no more than so many bytes for data."""
    try:
        import resource
    except ImportError:  # pragma: no cover - not on Windows
        return
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    within = memory if most == resource.RLIM_INFINITY else min(memory, most)
    resource.setrlimit(resource.RLIMIT_DATA, (within, most))


def _tell(**values: Any) -> None:
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
