"""A real STAC API (stac-fastapi) over items in memory, with their files beside it, in a process of its own.

`python stac_api.py FOLDER PORT` serves `FOLDER/items.json` (a list of items whose assets name files relative
to FOLDER) at the port of this machine. It hands items out in pages.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PAGE = 7  # items, so that any real search takes several


def application(folder: Path, address: str) -> Any:
    """The API as an ASGI application."""
    from fastapi.staticfiles import StaticFiles
    from stac_fastapi.api.app import StacApi
    from stac_fastapi.api.models import create_get_request_model, create_post_request_model
    from stac_fastapi.extensions import TokenPaginationExtension
    from stac_fastapi.types.config import ApiSettings
    from stac_fastapi.types.core import BaseCoreClient
    from stac_fastapi.types.errors import NotFoundError

    items = [_placed(i, address) for i in json.loads((folder / "items.json").read_text())]
    pages = TokenPaginationExtension()
    post_model, get_model = create_post_request_model([pages]), create_get_request_model([pages])

    class Memory(BaseCoreClient):
        def post_search(self, search_request: Any, **_: Any) -> Any:
            wanted = search_request
            found = [i for i in items if _holds(i, wanted)]
            start = int(getattr(wanted, "token", None) or 0)
            page = found[start : start + PAGE]
            links = []
            if start + PAGE < len(found):
                body = {"token": str(start + PAGE)}
                links.append(
                    {
                        "rel": "next",
                        "href": f"{address}/search",
                        "method": "POST",
                        "body": body,
                        "merge": True,
                    }
                )
            return {"type": "FeatureCollection", "features": page, "links": links}

        def get_search(self, **_: Any) -> Any:
            raise NotFoundError("search by POST")

        def get_item(self, item_id: str, collection_id: str, **_: Any) -> Any:
            for item in items:
                if (item["id"], item["collection"]) == (item_id, collection_id):
                    return item
            raise NotFoundError(item_id)

        def all_collections(self, **_: Any) -> Any:
            names = sorted({i["collection"] for i in items})
            return {"collections": [_collection(n) for n in names], "links": []}

        def get_collection(self, collection_id: str, **_: Any) -> Any:
            return _collection(collection_id)

        def item_collection(self, collection_id: str, **_: Any) -> Any:
            found = [i for i in items if i["collection"] == collection_id]
            return {"type": "FeatureCollection", "features": found, "links": []}

    api = StacApi(
        settings=ApiSettings(enable_response_models=False),
        client=Memory(),
        extensions=[pages],
        search_get_request_model=get_model,
        search_post_request_model=post_model,
    )
    api.app.mount("/files", StaticFiles(directory=folder))
    return api.app


def _placed(item: dict[str, Any], address: str) -> dict[str, Any]:
    """The item with the addresses of itself and of its files."""
    own = f"{address}/collections/{item['collection']}/items/{item['id']}"
    assets = {k: {**a, "href": f"{address}/files/{a['href']}"} for k, a in item["assets"].items()}
    return {**item, "assets": assets, "links": [{"rel": "self", "href": own}]}


def _holds(item: dict[str, Any], wanted: Any) -> bool:
    west, south, east, north = item["bbox"]
    day = item["properties"]["datetime"].replace("Z", "+00:00")
    box, start, end = wanted.bbox, wanted.start_date, wanted.end_date
    return (
        (not wanted.collections or item["collection"] in wanted.collections)
        and (box is None or (west <= box[2] and east >= box[0] and south <= box[3] and north >= box[1]))
        and (start is None or start.isoformat() <= day)
        and (end is None or day <= end.isoformat())
    )


def _collection(name: str) -> dict[str, Any]:
    extent = {"spatial": {"bbox": [[-180, -90, 180, 90]]}, "temporal": {"interval": [[None, None]]}}
    return {
        "type": "Collection", "stac_version": "1.0.0", "id": name, "description": name, "license": "other",
        "extent": extent, "links": [],
    }  # fmt: skip


@contextmanager
def serving(folder: Path, port: int) -> Iterator[str]:
    """The API in a process of its own; gives its address."""
    address = f"http://127.0.0.1:{port}"
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen([sys.executable, __file__, str(folder), str(port)], stdout=log, stderr=log)
        try:
            until = time.monotonic() + 120
            while True:
                try:
                    with urllib.request.urlopen(f"{address}/", timeout=5):
                        break
                except OSError:
                    if process.poll() is not None or time.monotonic() > until:
                        raise RuntimeError((folder / "server.log").read_text()) from None
                    time.sleep(0.1)
            yield address
        finally:
            process.kill()
            process.wait()


if __name__ == "__main__":
    import uvicorn

    root, number = Path(sys.argv[1]), int(sys.argv[2])
    uvicorn.run(application(root, f"http://127.0.0.1:{number}"), port=number, log_level="warning")
