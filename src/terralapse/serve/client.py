"""A client of `terralapse serve`: sends two images, has them compared there, and fetches the products.

It needs nothing of the extra `serve`. What it writes appears whole or not at all; an interrupt cancels the
analysis on the server.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, quote, urlsplit

import urllib3
from urllib3.exceptions import HTTPError

from terralapse.errors import (
    FileMissingError,
    ModelInputError,
    ServerError,
    SettingError,
    TerralapseError,
)
from terralapse.grid.sources import sha256_of

if TYPE_CHECKING:
    from terralapse.products.result import ChangeResult

Progress = Callable[[str, int, int], None]

PIECE = 8 * 2**20  # bytes sent at once; half a second on a slow line, so that little is lost with it
ATTEMPTS = 6
BACKOFF = 0.5  # seconds before the second attempt, doubled each time
_TIMEOUT = urllib3.Timeout(connect=15, read=60)
_READ = 2**20
_LISTED = 10.0  # seconds in which a result must appear that the server says is done
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
_SHARE = 1000


class Client:
    """One server.

    Args:
        server: its address, also as it prints it, with the token.
        token: what it wants from everyone; wins over that of the address.

    Raises:
        SettingError: no http(s) address.
    """

    def __init__(self, server: str, token: str | None = None) -> None:
        parts = urlsplit(server)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise SettingError(f"server {server}", "is no address", "Write it like http://127.0.0.1:8800.")
        self.address = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"
        token = token or next(iter(parse_qs(parts.query).get("token", [])), None)
        self._headers = {"user-agent": "terralapse"} | ({"authorization": f"Bearer {token}"} if token else {})
        self._pool = urllib3.PoolManager(retries=False, timeout=_TIMEOUT)

    # --- one request -----------------------------------------------------------------------------------
    def ask(self, method: str, path: str, told: Any = None) -> Any:
        """Sends JSON, or nothing, and returns the JSON of the answer.

        Raises:
            ServerError: nobody answers, or the answer is a refusal.
        """
        kind = {} if told is None else {"content-type": "application/json"}
        body = None if told is None else json.dumps(told).encode()
        for attempt in range(1, ATTEMPTS + 1):
            try:
                answer = self._send(method, path, body, kind)
            except HTTPError as error:
                # What is only read may be asked for again; what is written may have been done.
                if method != "GET" or attempt == ATTEMPTS:
                    raise self._silent(error) from error
            else:
                if answer.status != 429 or "retry-after" not in answer.headers or attempt == ATTEMPTS:
                    return self._json(answer)
            time.sleep(BACKOFF * 2 ** (attempt - 1))
        raise AssertionError("unreachable")

    def _send(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str], preload: bool = True
    ) -> urllib3.BaseHTTPResponse:
        return self._pool.request(
            method,
            self.address + path,
            body=body,
            headers=self._headers | dict(headers),
            redirect=False,
            preload_content=preload,
        )

    def _json(self, answer: urllib3.BaseHTTPResponse) -> Any:
        try:
            said = json.loads(answer.data)
        except ValueError:
            said = None
        if answer.status < 300 and said is not None:
            return said
        detail = said.get("detail") if isinstance(said, dict) else None
        if not isinstance(detail, str):
            fault = f"does not answer as a terralapse server does (status {answer.status})"
            raise ServerError(self.address, fault, "Check the address.")
        hint = "Mend that, and run it again."
        if answer.status == 401:
            detail, hint = "wants a token", "Give it with --token, or set TERRALAPSE_TOKEN."
        raise ServerError(self.address, detail.rstrip("."), hint)

    def _silent(self, error: HTTPError) -> ServerError:
        reason = re.sub(r"^.*?(?:object at 0x\w+>|Connection\([^)]*\)): ?", "", str(error))
        fault = f"cannot be reached, or the connection broke ({reason})"
        return ServerError(self.address, fault, "Is `terralapse serve` running there?")

    # --- images ----------------------------------------------------------------------------------------
    def upload(self, path: Path, progress: Progress | None = None) -> dict[str, Any]:
        """Sends a file in pieces and returns what the server says of it. A transfer that breaks goes on where
        it stopped, also one of an earlier call.

        Raises:
            ServerError: it is not taken, or the connection breaks again and again.
        """
        size, sha256 = path.stat().st_size, sha256_of(path)
        told = {"name": path.name, "bytes": size, "key": sha256}
        made = self.ask("POST", "/api/uploads", told)
        where, offset, failed = f"/api/uploads/{made['id']}", int(made["offset"]), 0
        with path.open("rb") as file:
            while offset < size:
                if progress is not None:
                    progress("upload", offset, size)
                file.seek(offset)
                headers = {"content-type": "application/offset+octet-stream", "upload-offset": str(offset)}
                try:
                    answer = self._send("PATCH", where, file.read(PIECE), headers)
                    if answer.status == 200:
                        offset, failed = int(self._json(answer)["offset"]), 0
                        continue
                    if answer.status not in (400, 408, 409, 423, 429) or failed + 1 == ATTEMPTS:
                        self._json(answer)
                except HTTPError as error:
                    if failed + 1 == ATTEMPTS:
                        raise self._silent(error) from error
                failed += 1
                time.sleep(BACKOFF * 2 ** (failed - 1))
                offset = int(self.ask("GET", where)["offset"])
        if progress is not None:
            progress("upload", size, size)
        return self.ask("POST", f"{where}/finish", {"sha256": sha256})

    def name_of(self, source: str, sent: list[str], progress: Progress | None = None) -> str:
        """What the server calls an image. A file of this machine is sent first, and its id added to `sent`;
        an image that the server offers and an address keep their names.

        Raises:
            FileMissingError, SettingError, ServerError: it is none of these, or is not taken.
        """
        if source.startswith(("http://", "https://")):
            return source
        offered = self.ask("GET", "/api/inputs")
        path = Path(source)
        if path.is_file():
            if offered.get("uploads") is None:
                hint = "Name an image that it offers, or have it started with --uploads."
                raise SettingError(self.address, "takes no images from others", hint)
            made = self.upload(path, progress)
            sent.append(made["id"])
            return made["input"]
        names = [i["name"] for i in offered["inputs"]]
        if source in names:
            return source
        if path.is_dir():
            hint = "Mosaic it into one file (gdalbuildvrt, then gdal_translate), or run without --server."
            raise SettingError(source, "is a folder, and a server takes single files", hint)
        some = ", ".join(names[:5]) or "none"
        hint = f"Check the path; images of the server: {some}{', …' if len(names) > 5 else ''}."
        raise FileMissingError(source, "is neither a file here nor an image of the server", hint)

    # --- analyses --------------------------------------------------------------------------------------
    def start(self, before: str, after: str, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Queues an analysis of two images by their names on the server."""
        return self.ask("POST", "/api/jobs", {"before": before, "after": after, **settings})

    def cancel(self, identity: str) -> None:
        """Cancels an analysis; that it has ended already is no failure."""
        answer = self._send("DELETE", f"/api/jobs/{identity}", None, {})
        if answer.status != 404:
            self._json(answer)

    def follow(self, identity: str, progress: Progress | None = None) -> dict[str, Any]:
        """Waits for the end of an analysis, telling how far it is, and returns what became of it.

        Raises:
            ServerError: it failed or was cancelled, or the server is gone.
        """
        for job in self._states(identity):
            state, stage = job["state"], job["stage"]
            if state == "done":
                return job
            if state in ("failed", "cancelled"):
                fault = "failed" if state == "failed" else "was cancelled on the server"
                said = job["message"].rstrip(".")
                raise ServerError(
                    f"analysis {identity}", f"{fault}{f': {said}' if said else ''}", "Run it again."
                )
            if progress is not None and stage:
                progress(f"{stage} on the server", round(_SHARE * job["share"]), _SHARE)
        raise AssertionError("unreachable")

    def _states(self, identity: str) -> Iterator[dict[str, Any]]:
        """A job whenever something changes, over connections that may break."""
        failed = 0
        while True:
            try:
                answer = self._send("GET", "/api/jobs/events", None, {}, preload=False)
                try:
                    if answer.status != 200:
                        self._json(answer)
                    for line in _lines(answer):
                        if line.startswith("data: "):
                            failed = 0
                            listed = json.loads(line.removeprefix("data: "))["jobs"]
                            found = next((j for j in listed if j["id"] == identity), None)
                            yield found or self.ask("GET", f"/api/jobs/{identity}")
                finally:
                    answer.close()
            except HTTPError as error:
                if failed == ATTEMPTS:
                    raise self._silent(error) from error
            failed = min(failed + 1, ATTEMPTS)
            time.sleep(BACKOFF * 2 ** (failed - 1))
            yield self.ask("GET", f"/api/jobs/{identity}")

    # --- products --------------------------------------------------------------------------------------
    def download(self, folder: str, into: Path, progress: Progress | None = None) -> None:
        """Fetches all products of a result into a folder that is there.

        Args:
            folder: what the server calls the result (`output` of an analysis).
            into: where they go.
            progress: told the bytes.

        Raises:
            ServerError: it is not there, or is not given whole.
        """
        until = time.monotonic() + _LISTED
        while True:
            listed = self.ask("GET", "/api/results")["results"]
            found = next((r for r in listed if r["title"] == folder), None)
            if found is not None:
                break
            if time.monotonic() > until:
                raise ServerError(self.address, f"does not show the result {folder}", "Look into its folder.")
            time.sleep(BACKOFF)
        files = self.ask("GET", f"{found['href']}/files")["files"]
        total, done = sum(f["bytes"] for f in files), 0
        for file in files:
            parts = str(file["name"]).split("/")
            if not all(_PART.fullmatch(p) for p in parts):
                fault = f"names a product {file['name']!r}, which is no name of a file"
                raise ServerError(self.address, fault, "Check who runs that server.")
            path = into.joinpath(*parts)
            path.parent.mkdir(parents=True, exist_ok=True)
            self._fetch(f"{found['href']}/files/{quote(file['name'])}", path, int(file["bytes"]))
            done += file["bytes"]
            if progress is not None:
                progress("download", done, max(total, 1))

    def _fetch(self, where: str, path: Path, size: int) -> None:
        for attempt in range(1, ATTEMPTS + 1):
            got = 0
            try:
                answer = self._send("GET", where, None, {}, preload=False)
                try:
                    if answer.status != 200:
                        self._json(answer)
                    with path.open("wb") as file:
                        for piece in answer.stream(_READ):
                            got += len(piece)
                            if got > size:
                                break
                            file.write(piece)
                finally:
                    answer.close()
                if got == size:
                    return
            except HTTPError as error:
                if attempt == ATTEMPTS:
                    raise self._silent(error) from error
            time.sleep(BACKOFF * 2 ** (attempt - 1))
        raise ServerError(self.address, f"does not give all of {path.name}", "Run it again.")


def change(
    client: Client,
    before: str,
    after: str,
    output: str | Path,
    settings: Mapping[str, Any],
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
) -> ChangeResult:
    """Has two images compared by a server, and writes the products folder as `workflows.change` does.

    Args:
        client: the server.
        before, after: files here, names of images that the server offers, or addresses where it takes them.
        output: the folder to write; it appears whole or not at all.
        settings: fields of `ChangeSettings` that a server takes, as JSON; `area` is a GeoJSON polygon.
        overwrite: replace a result that is there.
        progress, say: as in `workflows.change`.

    Raises:
        TerralapseError: one of its subclasses, for anything that the caller can mend. An interrupt cancels
            the analysis; what was sent of an image is found again by the next call.
    """
    from terralapse.engine.output import OutputFolder
    from terralapse.products.result import ChangeResult

    tell = say or (lambda _: None)
    sent: list[str] = []
    with OutputFolder(Path(output), overwrite=overwrite) as folder:
        try:
            names = [client.name_of(source, sent, progress) for source in (before, after)]
            job = client.start(names[0], names[1], settings)
            tell(f"Analysis {job['id']} on {client.address}")
            try:
                done = client.follow(job["id"], progress)
            except KeyboardInterrupt:
                client.cancel(job["id"])
                tell("The analysis was cancelled on the server.")
                raise
            client.download(done["output"], folder.staging, progress)
            folder.publish()
        finally:
            for identity in sent:
                _forget(client, identity, tell)
    return ChangeResult(Path(output))


def _forget(client: Client, identity: str, tell: Callable[[str], None]) -> None:
    """Removes what was sent; a server that keeps it for its week does no harm, and says so."""
    try:
        client.ask("DELETE", f"/api/uploads/{identity}")
    except TerralapseError as error:
        tell(f"The server keeps an image for now ({error.fault}).")


def settings_of(given: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Of the settings of a local run those that a server takes, as JSON.

    Raises:
        SettingError: one that differs from its default and has no meaning there; an area that is not one
            polygon.
    """
    taken: dict[str, Any] = {}
    for name, value in given.items():
        if value == defaults[name]:
            continue
        if name == "aoi":
            taken["area"] = _polygon(Path(value))
        elif name in _SENT:
            taken[name] = value
        else:
            option = f"--{name.replace('_', '-')}"
            raise SettingError(option, "is not sent to a server", "Leave it out, or run without --server.")
    if "=" in taken.get("model", ""):
        raise ModelInputError(taken["model"], "names a file of weights here", "Name a system of the server.")
    return taken


_SENT = (
    "model",
    "threshold",
    "date_before",
    "date_after",
    "pixel_grid",
    "coregister",
    "normalise",
    "min_area",
    "rectangles",
    "geojson",
)


def _polygon(path: Path) -> dict[str, Any]:
    """The area of a vector file as one ring in degrees."""
    from terralapse.grid.aoi import Area
    from terralapse.grid.footprint import WGS84

    shape = Area(path).geometry(WGS84)
    if shape.geom_type != "Polygon" or len(shape.interiors):  # pyright: ignore[reportAttributeAccessIssue]
        hint = "Give one polygon without holes, or run without --server."
        raise SettingError(path, "is more than one polygon, or has a hole", hint)
    ring = shape.exterior.coords  # pyright: ignore[reportAttributeAccessIssue]
    return {"type": "Polygon", "coordinates": [[list(p[:2]) for p in ring]]}


def _lines(answer: urllib3.BaseHTTPResponse) -> Iterator[str]:
    """The lines of a stream as they come."""
    held = b""
    while piece := answer.read1(_READ):
        held += piece
        *whole, held = held.split(b"\n")
        for line in whole:
            yield line.decode("utf-8", errors="replace").rstrip("\r")
