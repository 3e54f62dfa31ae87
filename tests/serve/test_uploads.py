"""Images that are sent: what is taken and kept, which sentence refuses what, and what is left behind."""

from __future__ import annotations

import hashlib
import io
import json
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from bad_inputs import image
from fixtures_eo import raw_tiff
from terralapse.errors import TerralapseError, UnreadableFileError
from terralapse.serve.app import create_app
from terralapse.serve.looks import Looker
from terralapse.serve.options import Limits, Options
from terralapse.serve.uploads import FOLDER, RefusedError, Uploads, safe_name

BASE = "http://127.0.0.1:8800"
PIECES = {"content-type": "application/offset+octet-stream"}
FREE = Limits(rate=1e6, burst=10**6)


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def create(client: TestClient, name: str, size: int, **more: Any) -> Any:
    return client.post("/api/uploads", json={"name": name, "bytes": size, **more})


def patch(client: TestClient, identity: str, offset: int, data: bytes) -> Any:
    headers = PIECES | {"upload-offset": str(offset)}
    return client.patch(f"/api/uploads/{identity}", content=data, headers=headers)


def finish(client: TestClient, identity: str, data: bytes) -> Any:
    return client.post(f"/api/uploads/{identity}/finish", json={"sha256": sha(data)})


def send(client: TestClient, name: str, data: bytes) -> Any:
    """A whole upload in two pieces; the answer to its end, or to what was refused before."""
    made = create(client, name, len(data))
    if made.status_code != 201:
        return made
    identity = made.json()["id"]
    half = len(data) // 2
    for start, end in ((0, half), (half, len(data))):
        if end > start:
            answer = patch(client, identity, start, data[start:end])
            assert answer.status_code == 200, answer.text
            assert answer.json() == {"offset": end}
    return finish(client, identity, data)


def left(tmp_path: Path) -> list[str]:
    """Everything below the folder of uploads."""
    return sorted(
        str(p.relative_to(tmp_path / "work" / FOLDER)) for p in (tmp_path / "work" / FOLDER).rglob("*")
    )


# --- the protocol ------------------------------------------------------------------------------------
def test_an_image_is_sent_described_and_compared(desk, tmp_path):
    images = []
    for name, seed in (("first_20200102.tif", 1), ("second.tif", 2)):
        data = Path(image(tmp_path, name, seed=seed)).read_bytes()
        said = send(desk, name, data)
        assert said.status_code == 200, said.text
        assert str(tmp_path) not in said.text
        images.append(said.json())
    found = images[0]["image"]
    assert (found["width"], found["height"], found["bands"]) == (96, 96, ["red", "green", "blue"])
    assert (found["epsg"], round(found["resolution_m"], 2), found["sensor"]) == (32633, 2, "rgb")
    assert found["time"].startswith("2020-01-02")
    ring = np.array(found["footprint"]["coordinates"][0])
    assert np.allclose(ring.min(axis=0), [15.0, 45.15], atol=0.01)
    offered = desk.get("/api/inputs").json()
    assert {i["name"] for i in offered["inputs"]} == {i["input"] for i in images}
    assert {i["title"] for i in offered["inputs"]} == {"first_20200102.tif", "second.tif"}
    job = {"before": images[0]["input"], "after": images[1]["input"], "model": "difference"}
    job = desk.post("/api/jobs", json=job).json()
    assert desk.delete(f"/api/uploads/{images[0]['id']}").status_code == 409  # it is needed
    assert ended(desk, job["id"])["state"] == "done"
    assert desk.delete(f"/api/uploads/{images[0]['id']}").status_code == 200
    assert images[0]["id"] not in "".join(left(tmp_path))


def ended(client: TestClient, identity: str, seconds: float = 240) -> dict[str, Any]:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        found = client.get(f"/api/jobs/{identity}").json()
        if found["state"] not in ("queued", "running"):
            return found
        time.sleep(0.1)
    raise AssertionError(f"still {found}")


def test_a_transfer_goes_on_where_it_stopped(desk, tmp_path):
    data = Path(image(tmp_path, "a.tif")).read_bytes()
    made = create(desk, "a.tif", len(data), key="mine")
    where = made.headers["location"]
    identity = made.json()["id"]
    assert (made.status_code, made.headers["upload-offset"]) == (201, "0")
    assert patch(desk, identity, 0, data[:1000]).status_code == 200
    head = desk.head(where)
    assert (head.headers["upload-offset"], head.headers["upload-length"]) == ("1000", str(len(data)))
    wrong = patch(desk, identity, 900, data[900:])
    assert (wrong.status_code, wrong.headers["upload-offset"]) == (409, "1000")
    again = create(desk, "a.tif", len(data), key="mine").json()
    assert (again["id"], again["offset"]) == (identity, 1000)
    assert create(desk, "a.tif", len(data), key="yours").json()["id"] != identity
    early = finish(desk, identity, data)
    assert early.status_code == 409
    assert f"1,000 of {len(data):,} bytes" in early.json()["detail"]
    assert patch(desk, identity, 1000, data[1000:]).status_code == 200
    assert finish(desk, identity, data).json()["image"]["width"] == 96
    assert patch(desk, identity, len(data), b"more").status_code == 409


def test_it_goes_on_after_the_server_has_been_started_again(tmp_path, looker):
    (tmp_path / "work").mkdir()
    options = Options(workspace=tmp_path / "work", uploads=True, limits=FREE)
    data = Path(image(tmp_path, "a.tif")).read_bytes()
    with TestClient(create_app(options, looker), base_url=BASE) as client:
        half = create(client, "a.tif", len(data)).json()["id"]
        patch(client, half, 0, data[:5000])
        whole = send(client, "b.tif", data).json()
    stray = tmp_path / "work" / FOLDER / ("0" * 16)
    stray.symlink_to(tmp_path)
    with TestClient(create_app(options, looker), base_url=BASE) as client:
        assert not stray.is_symlink()
        assert client.head(f"/api/uploads/{half}").headers["upload-offset"] == "5000"
        patch(client, half, 5000, data[5000:])
        assert finish(client, half, data).status_code == 200
        assert client.get("/api/look", params={"name": whole["input"]}).json()["width"] == 96


def test_bytes_that_are_wrong_or_too_many_are_refused(desk, tmp_path):
    data = Path(image(tmp_path, "a.tif")).read_bytes()
    identity = create(desk, "a.tif", len(data)).json()["id"]
    long = patch(desk, identity, 0, data + b"x")
    assert long.status_code == 413
    assert "is longer than" in long.json()["detail"]
    patch(desk, identity, 0, data)
    wrong = finish(desk, identity, data + b"x")
    assert wrong.status_code == 422
    assert "did not arrive as it was sent" in wrong.json()["detail"]
    assert left(tmp_path) == []
    assert desk.head(f"/api/uploads/{identity}").status_code == 404


def test_one_transfer_at_a_time(tmp_path, looker):
    uploads = Uploads(tmp_path, FREE, looker)
    upload = uploads.create("a.tif", 10)
    with uploads.writing(upload, 0) as sink:
        sink.write(b"12345")
        with pytest.raises(RefusedError, match="another transfer"), uploads.writing(upload, 5):
            pass
        with pytest.raises(RefusedError, match="another transfer"):
            uploads.remove(upload)
    with uploads.writing(upload, 5) as sink:
        assert sink.offset == 5


def test_what_is_sent_before_a_break_is_kept(desk, tmp_path):
    identity = create(desk, "a.tif", 10).json()["id"]

    def pieces() -> Iterator[bytes]:
        yield b"1234"
        raise ConnectionResetError

    headers = PIECES | {"upload-offset": "0", "content-length": "10"}
    with pytest.raises(ConnectionResetError):
        desk.patch(f"/api/uploads/{identity}", content=pieces(), headers=headers)
    assert patch(
        desk, identity, int(desk.head(f"/api/uploads/{identity}").headers["upload-offset"]), b""
    ).is_success


# --- limits ------------------------------------------------------------------------------------------
def limited(tmp_path: Path, looker: Looker, **limits: Any) -> Uploads:
    return Uploads(tmp_path, replace(FREE, **limits), looker)


def test_size_number_and_room_are_limited(tmp_path, looker):
    uploads = limited(tmp_path, looker, upload=1000, uploads=2, upload_disk=1500)
    with pytest.raises(
        RefusedError, match=r"a\.tif: has 0\.00101 MB, and this server takes at most 0\.001 MB"
    ):
        uploads.create("a.tif", 1010)
    uploads.create("a.tif", 800)
    with pytest.raises(RefusedError, match="no room"):
        uploads.create("b.tif", 900)
    uploads.create("b.tif", 500)
    with pytest.raises(RefusedError, match="Too many uploads"):
        uploads.create("c.tif", 1)
    with pytest.raises(RefusedError, match="is empty"):
        uploads.create("c.tif", 0)


def test_a_disk_that_would_be_full_takes_nothing(tmp_path, looker):
    uploads = limited(tmp_path, looker, upload=2**60, upload_disk=2**61)
    with pytest.raises(RefusedError, match="there is no room for"):
        uploads.create("a.tif", 2**59)


def test_halves_expire_and_what_is_needed_stays(tmp_path, looker):
    now = [time.time()]
    needed: set[str] = set()
    limits = replace(FREE, upload_half=100, upload_whole=1000)
    uploads = Uploads(tmp_path, limits, looker, lambda: needed, lambda: now[0])
    data = Path(image(tmp_path, "a.tif")).read_bytes()
    half, whole = uploads.create("half.tif", 10), uploads.create("a.tif", len(data))
    with uploads.writing(whole, 0) as sink:
        sink.write(data)
    uploads.finish(whole, sha(data))
    now[0] += 150
    uploads.sweep()
    assert not (tmp_path / FOLDER / half.id).exists()
    now[0] += 1000
    needed.add(str(uploads.path(whole)))
    uploads.sweep()
    assert uploads.path(whole).exists()
    needed.clear()
    uploads.sweep()
    assert list((tmp_path / FOLDER).iterdir()) == []


def test_a_client_that_sends_nothing_is_let_go(tmp_path, looker):
    (tmp_path / "work").mkdir()
    options = Options(workspace=tmp_path / "work", uploads=True, limits=replace(FREE, upload_wait=0.2))
    app = create_app(options, looker)
    with TestClient(app, base_url=BASE) as client:
        identity = create(client, "a.tif", 10).json()["id"]
        answers = client.portal.call(_slow, app, identity)  # type: ignore[union-attr]
        assert answers[0]["status"] == 408
        assert b"nothing came for 0.2 s" in answers[1]["body"]
        assert client.head(f"/api/uploads/{identity}").headers["upload-offset"] == "4"


async def _slow(app: Any, identity: str) -> list[dict[str, Any]]:
    """Sends four bytes of ten, and then nothing more."""
    import anyio

    sent = iter([{"type": "http.request", "body": b"1234", "more_body": True}])
    answers: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        for message in sent:
            return message
        await anyio.sleep_forever()
        raise AssertionError

    async def answer(message: dict[str, Any]) -> None:
        answers.append(message)

    headers = PIECES | {"upload-offset": "0", "content-length": "10", "host": "127.0.0.1"}
    scope = {
        "type": "http", "method": "PATCH", "path": f"/api/uploads/{identity}", "query_string": b"",
        "raw_path": f"/api/uploads/{identity}".encode(), "scheme": "http", "client": ("127.0.0.1", 1),
        "headers": [(k.encode(), v.encode()) for k, v in headers.items()],
    }  # fmt: skip
    await app(scope, receive, answer)
    return answers


# --- what is no image --------------------------------------------------------------------------------
def sentinel_like(*names: str) -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        for name in names:
            archive.writestr(name, "x")
    return held.getvalue()


def linked() -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        link = zipfile.ZipInfo("MTD_MSIL2A.xml")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    return held.getvalue()


def million(folder: Path) -> bytes:
    return raw_tiff(folder / "m.tif", width=10**6, height=10**6, rows_per_strip=10**6).read_bytes()


BAD: dict[str, tuple[str, Callable[[Path], bytes], str]] = {
    "text": ("a.tif", lambda _: b"this is a letter\n" * 9, "holds text, not an image"),
    "bytes": ("a.tif", lambda _: bytes(range(200, 256)) * 9, "holds data of an unknown format"),
    "vrt": ("a.tif", lambda _: b"<VRTDataset/>", "holds VRT, which is not taken"),
    "hdf": ("a.tif", lambda _: b"\x89HDF\r\n\x1a\n" + b"\0" * 99, "holds HDF5, which is not taken"),
    "cut": ("a.tif", lambda d: Path(image(d, "x.tif")).read_bytes()[:400], "a.tif: "),
    "header": ("a.tif", lambda _: b"II*\0\x08\0\0\0", "a.tif: "),
    "huge": ("a.tif", million, "a.tif: "),
    "png": ("a.png", lambda _: b"\x89PNG\r\n\x1a\n", "a.png: "),
    "not a zip": ("a.zip", lambda d: Path(image(d, "x.tif")).read_bytes(), "is no archive"),
    "zip as tif": ("a.tif", lambda _: sentinel_like("a"), "holds ZIP, which is not taken"),
    "zip": ("a.zip", lambda _: sentinel_like("a.txt"), "is an archive and not a Sentinel-2 product"),
    "slip": ("a.zip", lambda _: sentinel_like("../MTD_MSIL2A.xml"), "leads out of it"),
    "absolute": ("a.zip", lambda _: sentinel_like("/etc/MTD_MSIL2A.xml"), "leads out of it"),
    "link": ("a.zip", lambda _: linked(), "holds a link"),
    "half a zip": ("a.zip", lambda _: sentinel_like("a" * 99)[:60], "is not a whole archive"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_image_is_said_and_removed(desk, tmp_path, case):
    name, make, says = BAD[case]
    said = send(desk, name, make(tmp_path))
    assert said.status_code == 422
    assert says in said.json()["detail"]
    assert said.json()["detail"].endswith(".")
    assert str(tmp_path) not in said.text
    assert left(tmp_path) == []
    assert desk.get("/api/inputs").json()["inputs"] == []


def test_an_image_that_declares_too_many_pixels_is_refused(tmp_path):
    small = Looker(60, 2**32, 5000, None)
    try:
        with pytest.raises(
            TerralapseError, match="declares 96 x 96 pixels, more than the 5,000 allowed here"
        ):
            small.look(image(tmp_path, "a.tif"))
    finally:
        small.close()


@pytest.mark.parametrize(
    "name",
    ["../a.tif", "..\\a.tif", "/etc/a.tif", "a/b.tif", "C:\\a.tif", "a\0.tif", "..", "", "a", "a.vrt",
     "a.json", "a.tif.exe", ".tif/", "x" * 300 + ".tif"],
)  # fmt: skip
def test_names_that_lead_somewhere_or_are_of_no_image_are_refused(desk, tmp_path, name):
    answer = create(desk, name, 10)
    assert answer.status_code == 422
    assert left(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("T33UUP_20210601.tif", "T33UUP_20210601.tif"),
        ("après le séisme (2).TIF", "apres_le_seisme_2.TIF"),
        ("....tif", "image.tif"),
        ("$(rm -rf).png", "rm_-rf.png"),
        ("日本.jp2", "image.jp2"),
        ("-o=x.tif", "o_x.tif"),
        ("upload:x::2021.tif", "upload_x_2021.tif"),
    ],
)
def test_names_on_the_disk_are_plain(name, kept):
    assert safe_name(name) == kept


def test_without_leave_nothing_can_be_sent(serve, tmp_path):
    assert create(serve(), "a.tif", 1).status_code == 405
    folder = tmp_path / "in"
    folder.mkdir()
    client = serve(workspace=tmp_path, inputs=(folder,))
    assert create(client, "a.tif", 1).status_code == 405
    assert client.get("/api/inputs").json()["uploads"] is None


@pytest.mark.parametrize("headers", [{"origin": "https://evil.example"}, {"sec-fetch-site": "cross-site"}])
def test_a_page_of_another_site_can_send_nothing(desk, headers):
    body = {"name": "a.tif", "bytes": 1}
    assert desk.post("/api/uploads", json=body, headers=headers).status_code == 403
    assert desk.patch("/api/uploads/x", content=b"x", headers=PIECES | headers).status_code == 403


def test_pieces_say_what_and_how_many_they_are(desk):
    identity = create(desk, "a.tif", 4).json()["id"]
    where = f"/api/uploads/{identity}"
    plain = {"upload-offset": "0", "content-type": "text/plain"}
    assert desk.patch(where, content=b"1234", headers=plain).status_code == 415
    chunked = desk.patch(where, content=iter([b"12"]), headers=PIECES | {"upload-offset": "0"})
    assert chunked.status_code == 413
    assert desk.patch(where, content=b"1", headers=PIECES).status_code == 422
    assert desk.patch("/api/jobs/x", content=b"1", headers=PIECES).status_code == 405
    assert (
        desk.patch(f"{where}/../x", content=b"1", headers=PIECES | {"upload-offset": "0"}).status_code == 404
    )


def test_a_process_that_dies_or_hangs_is_replaced(tmp_path):
    script = tmp_path / "look.py"
    script.write_text(
        "import json, sys, time, os\nsys.stdin.readline()\nprint('{}', flush=True)\n"
        "for line in sys.stdin:\n"
        "    name = json.loads(line)['source']\n"
        "    if 'die' in name: os.kill(os.getpid(), 11)\n"
        "    if 'hang' in name: time.sleep(600)\n"
        "    print(json.dumps({'found': {'width': 1, 'height': 1}}), flush=True)\n"
    )
    import sys

    found = Looker(1.0, 2**32, 100, None, (sys.executable, str(script)))
    try:
        with pytest.raises(UnreadableFileError, match=r"die\.tif: cannot be read: looking at it ended"):
            found.look("/somewhere/die.tif")
        with pytest.raises(UnreadableFileError, match=r"^hang\.tif: took longer than 1 s"):
            found.look("/somewhere/hang.tif")
        assert found.look("/somewhere/good.tif") == {"width": 1, "height": 1}
    finally:
        found.close()


def test_addresses_are_read_where_the_operator_allows_it_and_only_public_ones(tmp_path):
    """Without a door of its own the process of the server resolves, as it does in earnest."""
    (tmp_path / "work").mkdir()
    options = Options(workspace=tmp_path / "work", urls=True, limits=FREE)
    with TestClient(create_app(options), base_url=BASE) as client:
        assert client.get("/api/inputs").json()["urls"] is True
        for url, status, says in (
            ("http://example.org/a.tif", 422, "is no https address"),
            ("https://example.org:8443/a.tif", 422, "names the port 8443"),
            ("https://127.0.0.1/a.tif", 409, "is not on the public Internet"),
            ("https://[::ffff:10.0.0.1]/a.tif", 422, "names a host by a number"),
            ("https://169.254.169.254/latest/meta-data", 409, "is not on the public Internet"),
        ):
            said = client.get("/api/look", params={"name": url})
            assert (said.status_code, says in said.json()["detail"]) == (status, True), said.text
        job = {"before": "http://example.org/a.tif", "after": "https://example.org/b.tif"}
        assert client.post("/api/jobs", json=job).status_code == 422


# --- at random ---------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory, looker: Looker) -> Iterator[tuple[TestClient, Path]]:
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "work").mkdir()
    options = Options(workspace=folder / "work", uploads=True, limits=FREE)
    with TestClient(create_app(options, looker), base_url=BASE) as client:
        yield client, folder


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("good")
    plain = Path(image(folder, "plain.tif")).read_bytes()
    packed = {"tiled": True, "blockxsize": 32, "blockysize": 32, "compress": "deflate"}
    made = {"a.tif": plain, "b.tif": Path(image(folder, "packed.tif", **packed)).read_bytes()}
    for name, form in (("c.png", "PNG"), ("d.jpg", "JPEG")):
        held = io.BytesIO()
        Image.fromarray(np.arange(48 * 48 * 3, dtype=np.uint8).reshape(48, 48, 3)).save(held, form)
        made[name] = held.getvalue()
    return made


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_whatever_is_sent_there_is_no_failure_and_nothing_is_left(fuzzed, good, data):
    """Random bytes, images that are cut, and headers that lie: a sentence, or an image; never a failure."""
    client, folder = fuzzed
    name = data.draw(st.sampled_from(sorted(good)))
    how = data.draw(st.sampled_from(["random", "cut", "lies", "swapped"]))
    content = bytearray(good[name])
    if how == "random":
        magic = data.draw(st.sampled_from([b"", b"II*\0", b"MM\0*", b"II+\0", bytes(content[:8])]))
        content = bytearray(magic + data.draw(st.binary(max_size=400)))
    elif how == "cut":
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    elif how == "lies":
        for _ in range(data.draw(st.integers(1, 6))):
            # Directories lie at the start or, as GDAL writes them, at the end.
            at = data.draw(st.integers(0, min(400, len(content) - 5)))
            at = len(content) - 5 - at if data.draw(st.booleans()) else at
            content[at : at + 4] = data.draw(st.sampled_from([b"\xff" * 4, b"\0" * 4, b"\xff\xff\xff\x7f"]))
    else:
        name = data.draw(st.sampled_from(["a.tif", "a.png", "a.jp2", "a.zip"]))
    said = send(client, name, bytes(content))
    assert said.status_code in (200, 422), said.text
    assert str(folder) not in said.text
    if said.status_code == 200:
        assert said.json()["image"]["width"] > 0
        assert client.delete(f"/api/uploads/{said.json()['id']}").status_code == 200
    else:
        assert said.json()["detail"].endswith(".")
    assert left(folder) == []


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(name=st.text(max_size=60), size=st.integers(-5, 2**60), key=st.text(max_size=20))
def test_whatever_is_announced_there_is_no_failure_and_no_path(fuzzed, name, size, key):
    client, folder = fuzzed
    body = json.dumps({"name": name, "bytes": size, "key": key})
    said = client.post("/api/uploads", content=body, headers={"content-type": "application/json"})
    assert said.status_code in (201, 413, 422, 507)
    if said.status_code == 201:
        assert client.delete(f"/api/uploads/{said.json()['id']}").status_code == 200
    assert left(folder) == []
    own = {".terralapse-jobs.sqlite", ".terralapse-reviews.sqlite", FOLDER}
    assert {p.name.removesuffix("-shm").removesuffix("-wal") for p in (folder / "work").iterdir()} == own
