"""What a stranger, a hostile page or a crafted result gets out of the server: nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from fixtures_eo import raw_tiff
from serve_clients import TOKEN, call
from terralapse.errors import SettingError
from terralapse.serve.app import NOTHING
from terralapse.serve.guard import Buckets
from terralapse.serve.options import Limits, Options


# --- who may connect ---------------------------------------------------------------------------------
def test_the_loopback_is_the_default():
    assert Options().loopback
    assert Options().host == "127.0.0.1"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "map.example.org", ""])
def test_an_open_host_needs_a_token(host):
    with pytest.raises(SettingError, match=r"no token is set\. Set one with --token"):
        Options(host=host)
    assert not Options(host=host, token=TOKEN).loopback


@pytest.mark.parametrize("token", ["", "short", "with space in the middle", "ümläut-ümläut-ümläut"])
def test_a_token_that_is_easily_guessed_or_broken_is_refused(token):
    with pytest.raises(SettingError, match="token"):
        Options(token=token)


PATHS = (
    "/",
    "/api/results",
    "/api/results/nothing",
    "/tiles/a/b/1/1/1",
    "/openapi.json",
    "/static/x",
    "/nope",
)


@pytest.mark.parametrize("path", PATHS)
def test_without_the_token_everything_is_refused_alike(serve, path):
    client = serve(host="0.0.0.0", token=TOKEN)
    wrong = [{}, {"authorization": "Bearer wrong-wrong-wrong-wrong"}, {"authorization": f"Basic {TOKEN}"}]
    for headers in wrong:
        answer = client.get(path, headers=headers)
        assert answer.status_code == 401
        assert "needs the token" in answer.text
        assert TOKEN not in answer.text
    assert client.get(path, params={"token": TOKEN[:-1]}).status_code == 401


def test_the_token_opens_by_header_by_address_and_by_cookie(serve):
    client = serve(host="0.0.0.0", token=TOKEN)
    assert client.get("/api/results", headers={"authorization": f"Bearer {TOKEN}"}).status_code == 200
    assert client.get("/api/results", params={"token": TOKEN}).status_code == 200
    first = client.get("/", params={"token": TOKEN, "a": "b"}, follow_redirects=False)
    assert (first.status_code, first.headers["location"]) == (303, "/?a=b")
    assert {"HttpOnly", "SameSite=Strict"} <= set(first.headers["set-cookie"].split("; "))
    assert client.get("/api/results").status_code == 200


def test_another_name_for_this_machine_is_refused(client):
    assert client.get("/api/results", headers={"host": "evil.example:8800"}).status_code == 421
    assert client.get("/api/results", headers={"host": "127.0.0.1.evil.example"}).status_code == 421
    for good in ("localhost:8800", "127.0.0.1", "[::1]:8800"):
        assert client.get("/api/results", headers={"host": good}).status_code == 200


# --- what may be asked -------------------------------------------------------------------------------
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_nothing_can_be_written(client, method):
    assert client.request(method, "/api/results").status_code == 405


def test_bodies_and_long_addresses_are_refused(client):
    assert client.request("GET", "/api/results", content=b"x" * 10).status_code == 413
    chunked = client.request("GET", "/api/results", content=iter([b"x", b"y"]))
    assert chunked.status_code == 413
    assert client.get("/api/results?a=" + "x" * 5000).status_code == 414


def test_too_many_requests_have_to_wait(serve):
    client = serve(limits=Limits(rate=0.5, burst=3))
    codes = [client.get("/api/results").status_code for _ in range(5)]
    assert codes == [200, 200, 200, 429, 429]
    assert int(client.get("/").headers["retry-after"]) >= 1


def test_a_bucket_fills_again_and_is_of_one_client():
    now = 0.0
    buckets = Buckets(rate=2, burst=2, clock=lambda: now)
    assert [buckets.take("a") for _ in range(2)] == [0, 0]
    assert buckets.take("a") == pytest.approx(0.5)
    assert buckets.take("b") == 0
    now = 0.5
    assert buckets.take("a") == 0
    assert buckets.take("a") > 0


# --- paths -------------------------------------------------------------------------------------------
TRAVERSAL = (
    "../secret.txt",
    "..%2Fsecret.txt",
    "%2e%2e/secret.txt",
    "..%252Fsecret.txt",
    "..\\secret.txt",
    "/etc/passwd",
    "%2Fetc%2Fpasswd",
    "change.tif/../../secret.txt",
    "link.txt",
    "linked/secret.txt",
    ".hidden",
    "change.tif%00.png",
    "missing.tif",
    "",
)


@pytest.fixture
def trapped(tmp_path: Path, shelf: Path) -> Path:
    """A result with links out of it and a hidden file, and a secret beside it."""
    shutil.copytree(shelf / "Blobs", tmp_path / "shelf/run")
    (tmp_path / "shelf/secret.txt").write_text("secret")
    (tmp_path / "shelf/run/link.txt").symlink_to(tmp_path / "shelf/secret.txt")
    (tmp_path / "shelf/run/linked").symlink_to(tmp_path / "shelf")
    (tmp_path / "shelf/run/.hidden").write_text("secret")
    (tmp_path / "shelf/by-link").symlink_to(tmp_path / "shelf/run")
    return tmp_path / "shelf"


@pytest.mark.parametrize("name", TRAVERSAL)
def test_files_out_of_a_result_and_files_that_are_not_there_look_the_same(serve, trapped, name):
    client = serve(trapped)
    answer = call(client, f"/api/results/run-01234567/files/{name}")
    assert answer.status_code == 404
    assert answer.json() == {"detail": NOTHING}
    assert b"secret" not in answer.content


@pytest.mark.parametrize(
    "path", ["/static/../app.py", "/static/..%2Fapp.py", "/static/%2e%2e/app.py", "//etc/passwd"]
)
def test_no_source_and_no_file_of_the_system_is_served(client, path):
    answer = call(client, path)
    assert answer.status_code == 404
    assert answer.json() == {"detail": NOTHING}


def test_links_are_no_results_and_no_products(serve, trapped):
    client = serve(trapped)
    found = client.get("/api/results").json()["results"]
    assert [r["title"] for r in found] == ["run"]
    names = {f["name"] for f in client.get("/api/results/run-01234567/files").json()["files"]}
    assert not names & {"link.txt", "linked/secret.txt", ".hidden"}


def test_a_layer_that_became_a_link_is_not_followed(serve, trapped, monkeypatch):
    client = serve(trapped)
    assert client.get("/tiles/run-01234567/change/tilejson.json").status_code == 200
    layer = trapped / "run/change.tif"
    layer.rename(trapped / "elsewhere.tif")
    layer.symlink_to(trapped / "elsewhere.tif")
    assert client.get("/tiles/run-01234567/change/tilejson.json").status_code == 404


def test_unknown_results_facts_and_tiles_say_the_same(client, ids):
    paths = [
        "/api/results/none",
        "/api/results/..",
        f"/api/results/{ids['Blobs']}/facts/none",
        f"/api/results/{ids['Blobs']}/features/collections/none/items",
        "/tiles/none/change/17/1/1",
        f"/tiles/{ids['Blobs']}/none/17/1/1",
    ]
    for path in paths:
        answer = call(client, path)
        assert (answer.status_code, answer.json()) == (404, {"detail": NOTHING}), path


# --- crafted files -----------------------------------------------------------------------------------
VRT = """<VRTDataset rasterXSize="1" rasterYSize="1"><VRTRasterBand dataType="Byte" band="1">
<SimpleSource><SourceFilename>/etc/passwd</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>"""


@pytest.mark.parametrize(
    "content",
    [
        VRT,
        "<GDAL_WMS><Service name='TMS'><ServerUrl>http://127.0.0.1:1/</ServerUrl></Service></GDAL_WMS>",
        "",
    ],
    ids=["vrt", "wms", "empty"],
)
def test_a_raster_that_is_none_is_an_error_that_names_the_file_only(serve, shelf, tmp_path, content):
    shutil.copytree(shelf / "Blobs", tmp_path / "run")
    (tmp_path / "run/prob.tif").write_text(content)
    answer = serve(tmp_path).get("/tiles/run-01234567/probability/tilejson.json")
    assert answer.status_code == 409
    assert answer.json()["detail"].startswith("prob.tif: ")
    assert str(tmp_path) not in answer.text


def test_a_header_that_asks_for_too_much_is_refused(serve, shelf, tmp_path):
    shutil.copytree(shelf / "Blobs", tmp_path / "run")
    raw_tiff(tmp_path / "run/prob.tif", width=10**6, height=10**6, rows_per_strip=10**6)
    assert serve(tmp_path).get("/tiles/run-01234567/probability/tilejson.json").status_code == 409


@pytest.mark.parametrize(
    "record",
    ["[]", "3", '{"summary": 4}', '{"summary": {"summary": null}}', "[" * 100_000, "\xff", "{}"],
)
def test_a_record_that_is_none_is_a_problem_and_no_failure(serve, tmp_path, record):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/run.json").write_text(record, encoding="latin-1")
    found = serve(tmp_path).get("/api/results")
    assert found.status_code == 200
    assert len(found.json()["problems"]) == 1


# --- what a browser is told --------------------------------------------------------------------------
def test_the_policy_lets_nothing_inline_and_no_other_host(client):
    for path in ("/", "/api/results", "/nope", "/openapi.json"):
        headers = client.get(path).headers
        rules = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
        assert rules["default-src"] == "'none'"
        assert rules["script-src"] == rules["style-src"] == rules["worker-src"] == "'self'"
        assert rules["connect-src"] == "'self'"
        assert rules["img-src"] == "'self' data:"
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert headers["referrer-policy"] == "no-referrer"
        assert "access-control-allow-origin" not in headers


def test_only_the_basemap_of_the_operator_is_let_in(serve):
    client = serve(basemap="https://tiles.example.org/{z}/{x}/{y}.png")
    rules = client.get("/").headers["content-security-policy"]
    assert "img-src 'self' data: https://tiles.example.org;" in rules
    for bad in (
        "https://a.b/{z}/{x}",
        "ftp://a.b/{z}/{x}/{y}",
        "https://a b/{z}/{x}/{y}",
        "https://a;b/{z}/{x}/{y}",
    ):
        with pytest.raises(SettingError, match="basemap"):
            Options(basemap=bad)


def test_downloads_never_run_in_the_origin_of_the_page(client, ids):
    answer = client.get(f"/api/results/{ids['Blobs']}/files/report.html")
    assert answer.headers["content-disposition"] == 'attachment; filename="report.html"'
    assert "default-src 'none'" in answer.headers["content-security-policy"]


def test_the_api_is_described_without_another_host(client):
    said = client.get("/openapi.json").json()
    assert "/api/results/{result_id}/histogram" in said["paths"]
    assert {m for name, path in said["paths"].items() for m in path if not name.endswith("/talk")} == {"get"}
    assert client.get("/docs").status_code == 404
    assert "cdn" not in json.dumps(said)
