"""What the operator of a server decides, checked before anything listens."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from terralapse.errors import FileMissingError, SettingError

MOST_FEATURES = 1000  # in one page of polygons
_SHORTEST_TOKEN = 16
_TOKEN = re.compile(r"[A-Za-z0-9._~-]+")  # what a query and a header carry as it is
_KEEP = "Give --workspace for analyses or --reviews for reviews too."
_LOCAL_NAMES = ("localhost",)


@dataclass(frozen=True)
class Limits:
    """What one client may ask for.

    `rate` requests a second on average and `burst` at once, for each address; `url` is the longest address
    in characters; `vertices` of polygons in one answer; `cache` bytes of tiles kept in memory;
    `connections` open at once; `overzoom` levels beyond the pixels of a layer and `underzoom` before it is
    a dot. Of uploads: `upload` bytes of one, `uploads` files and `upload_disk` bytes of all, `upload_wait`
    seconds without a byte before a transfer is given up, `upload_half` seconds for which half of a file is
    kept and `upload_whole` for which a whole one is. Of any new image: `pixels` that it may declare,
    `look` seconds and `look_memory` bytes to look at it, `fetch` bytes to read of it from an address.
    """

    rate: float = 100.0
    burst: int = 600
    url: int = 4096
    vertices: int = 500_000
    cache: int = 128 * 2**20
    connections: int = 256
    overzoom: int = 4
    underzoom: int = 4
    upload: int = 4 * 10**9
    uploads: int = 40
    upload_disk: int = 40 * 10**9
    upload_wait: float = 30.0
    upload_half: float = 24 * 3600.0
    upload_whole: float = 7 * 24 * 3600.0
    pixels: int = 4 * 10**9
    look: float = 60.0
    look_memory: int = 4 * 2**30
    fetch: int = 8 * 10**9


@dataclass(frozen=True)
class Options:
    """Where to listen, what to show, and who may see it.

    Args:
        results: folders that a run has written, or folders of such folders.
        host: the address to bind to; the loopback by default.
        port: 0 for a free one.
        token: what every request must bring; needed unless `host` is the loopback.
        basemap: `https://host/{z}/{x}/{y}.png` of a background map; the only foreign host that a page may
            reach.
        workspace: where analyses that are started from the page are kept; None allows none.
        inputs: folders whose images may be compared; needs `workspace`.
        uploads: whether images may be sent to the workspace.
        urls: whether images may be named by a public https address.
        reviews: where reviews and samples are kept; by default the workspace, else none are.
        database: `postgresql+psycopg://...`, which keeps queue, reviews and samples in place of files of
            SQLite, for several servers together.
        dask: the address of a Dask scheduler, under whose workers analyses run.
        llm, base_url: a language model that may answer questions beside the rules, and its endpoint (else
            OPENAI_BASE_URL).
        limits: see `Limits`.

    Raises:
        FileMissingError: a folder that is not there.
        SettingError: inputs, a cluster or a database without a workspace, an open host without a token, a
            token easily guessed, a bad port or basemap.
    """

    results: tuple[Path, ...] = ()
    host: str = "127.0.0.1"
    port: int = 8800
    token: str | None = None
    basemap: str | None = None
    workspace: Path | None = None
    inputs: tuple[Path, ...] = ()
    uploads: bool = False
    urls: bool = False
    reviews: Path | None = None
    database: str | None = None
    dask: str | None = None
    llm: str | None = None
    base_url: str | None = None
    limits: Limits = Limits()

    def __post_init__(self) -> None:
        for folder in self.results:
            if not folder.is_dir():
                raise FileMissingError(folder, "is no folder", "Give folders that a run has written.")
        for folder in (*self.inputs, *(() if self.workspace is None else (self.workspace,))):
            if not folder.is_dir():
                raise FileMissingError(folder, "is no folder", "Make it, or give another.")
        if self.reviews is not None and not self.reviews.is_dir():
            raise FileMissingError(self.reviews, "is no folder", "Make it, or give another.")
        if self.base_url is not None and self.llm is None:
            raise SettingError("base-url", "is of no use without a model", "Give --llm NAME too.")
        if bool(self.inputs or self.uploads or self.urls) != (self.workspace is not None):
            raise SettingError(
                "workspace and inputs",
                "are only of use together",
                "Give --workspace for results, and --inputs, --uploads or --allow-urls for what to compare.",
            )
        if self.dask is not None and self.workspace is None:
            raise SettingError("dask", "is of no use without analyses", "Give --workspace too.")
        if self.database is not None and self.kept is None:
            raise SettingError("database", "is of no use without what it keeps", _KEEP)
        if not 0 <= self.port <= 65535:
            raise SettingError(f"port {self.port}", "is out of range", "Choose one of 1 to 65535, or 0.")
        if self.token is None and not self.loopback:
            raise SettingError(
                f"host {self.host}",
                "can be reached from other machines and no token is set",
                "Set one with --token or TERRALAPSE_TOKEN, or bind to 127.0.0.1.",
            )
        if self.token is not None and (len(self.token) < _SHORTEST_TOKEN or not _TOKEN.fullmatch(self.token)):
            raise SettingError(
                "token",
                f"needs at least {_SHORTEST_TOKEN} letters, digits or any of . _ ~ -",
                "Make one with: python -c 'import secrets; print(secrets.token_urlsafe(24))'",
            )
        if self.basemap is not None:
            _ = self.basemap_origin

    @property
    def shown(self) -> tuple[Path, ...]:
        """All folders to look for results in."""
        return self.results if self.workspace is None else (*self.results, self.workspace)

    @property
    def kept(self) -> Path | None:
        """The folder in which what people say is kept, if there is one."""
        return self.reviews or self.workspace

    @property
    def loopback(self) -> bool:
        """Whether only this machine can connect."""
        if self.host in _LOCAL_NAMES:
            return True
        try:
            return ipaddress.ip_address(self.host.strip("[]")).is_loopback
        except ValueError:
            return False

    @property
    def basemap_origin(self) -> str | None:
        """Scheme and host of the basemap, for the policy of the page."""
        if self.basemap is None:
            return None
        hint = "Give it as https://host/{z}/{x}/{y}.png."
        parts = urlsplit(self.basemap)
        safe = re.fullmatch(r"[A-Za-z0-9.-]+(:\d+)?", parts.netloc)
        if parts.scheme not in ("http", "https") or not safe:
            raise SettingError(f"basemap {self.basemap}", "is no address of tiles", hint)
        if not all(f"{{{name}}}" in self.basemap for name in "zxy"):
            raise SettingError(f"basemap {self.basemap}", "lacks {z}, {x} or {y}", hint)
        return f"{parts.scheme}://{parts.netloc}"
