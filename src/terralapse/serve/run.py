"""Binds, says where, and serves until it is told to stop."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec

from terralapse.errors import MissingExtraError, SettingError
from terralapse.serve.options import Options

_KEEP_ALIVE = 20  # seconds
_HEAD_START = 3.0  # seconds at most that the address is kept back while the first tiles are drawn
_GOODBYE = 3  # seconds for open answers; a page that follows the analyses never ends by itself


def serve(options: Options, say: Callable[[str], None], ready: Callable[[str], None] | None = None) -> None:
    """Serves until interrupted. GDAL is restricted first, for this whole process.

    Args:
        options: what to show and where to listen.
        say: told the address, with the token when there is one.
        ready: told the same address once the socket listens.

    Raises:
        MissingExtraError: the extra `serve` is not installed.
        SettingError: the address cannot be bound to.
        TerralapseError: a folder that was named and holds a damaged result.
    """
    for name in ("fastapi", "rio_tiler", "sqlalchemy", "uvicorn"):
        if find_spec(name) is None:
            raise MissingExtraError(
                "terralapse serve", f"needs {name}, which is not installed", "pip install 'terralapse[serve]'"
            )
    import uvicorn

    from terralapse.serve.drivers import restrict

    bound = _bind(options)
    restrict()
    from terralapse.serve.app import create_app

    app = create_app(options)
    address = _address(options, bound)
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,  # addresses may hold the token
        server_header=False,
        date_header=True,
        limit_concurrency=options.limits.connections,
        timeout_keep_alive=_KEEP_ALIVE,
        timeout_graceful_shutdown=_GOODBYE,
        h11_max_incomplete_event_size=16 * 1024,
        proxy_headers=False,
        ws="none",
    )
    app.state.warmth.start(_HEAD_START)
    say(f"Map  {address}")
    if ready is not None:
        ready(address)
    with suppress(KeyboardInterrupt):  # raised again by uvicorn when all is closed; it is how a server ends
        uvicorn.Server(config).run(sockets=[bound])


def _bind(options: Options) -> socket.socket:
    host = options.host.strip("[]")
    try:
        # With its protocol: asyncio sends without delay only on sockets that say that they are of TCP.
        family, kind, protocol, _, place = socket.getaddrinfo(host, options.port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(place)
        bound.listen(128)
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        raise SettingError(
            f"{options.host}:{options.port}",
            "is taken" if taken else f"cannot be bound to ({error.strerror})",
            "Choose another with --port, or --port 0 for any that is free.",
        ) from error
    return bound


def _address(options: Options, bound: socket.socket) -> str:
    host = "127.0.0.1" if options.host in ("0.0.0.0", "::") else options.host.strip("[]")
    name = f"[{host}]" if ":" in host else host
    tail = f"?token={options.token}" if options.token else ""
    return f"http://{name}:{bound.getsockname()[1]}/{tail}"
