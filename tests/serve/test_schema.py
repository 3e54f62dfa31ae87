"""What `/openapi.json` describes, asked for at random: never a failure, never a path of this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings

from bad_inputs import image
from terralapse.serve.app import create_app
from terralapse.serve.looks import Looker
from terralapse.serve.options import Limits, Options

schemathesis = pytest.importorskip("schemathesis")
BASE = "http://127.0.0.1:8800"
HOST = {"host": "127.0.0.1:8800"}
_ENDLESS = "/api/jobs/events"


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory, shelf: Path, looker: Looker) -> Any:
    """A server with everything turned on but work: its queue is not started."""
    folder = tmp_path_factory.mktemp("machine")
    for name in ("work", "images"):
        (folder / name).mkdir()
    image(folder / "images", "a.tif")
    options = Options(
        (shelf,),
        workspace=folder / "work",
        inputs=(folder / "images",),
        uploads=True,
        limits=Limits(rate=1e6, burst=10**6),
    )
    return create_app(options, looker)


@schemathesis.serializer("application/offset+octet-stream")
def pieces(_context: Any, value: Any) -> bytes:
    """The body of a transfer: whatever was drawn for it."""
    raw = getattr(value, "data", value)
    return raw if isinstance(raw, bytes) else str(raw).encode()


def test_every_operation_answers(machine: Any) -> None:
    described = schemathesis.openapi.from_asgi("/openapi.json", machine, headers=HOST)
    asked = 0
    for operation in (found.ok() for found in described.get_all_operations()):
        if operation.path == _ENDLESS:
            continue

        @settings(max_examples=5, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy())
        def ask(case: Any) -> None:
            answer = case.call(headers=HOST)
            said = f"{case.method} {case.formatted_path}: {answer.status_code} {answer.text[:300]}"
            assert answer.status_code < 500 or answer.status_code == 507, said
            if answer.status_code >= 400 and case.method != "HEAD":
                assert isinstance(answer.json()["detail"], str), said
                assert "/" not in answer.json()["detail"].partition(":")[0], said

        ask()
        asked += 1
    assert asked > 25


def test_the_description_has_what_the_page_uses(machine: Any) -> None:
    said = TestClient(machine, base_url=BASE).get("/openapi.json").json()
    for path, methods in {
        "/api/uploads": {"post"},
        "/api/uploads/{identity}": {"get", "head", "patch", "delete"},
        "/api/uploads/{identity}/finish": {"post"},
        "/api/look": {"get"},
        "/api/jobs": {"get", "post"},
    }.items():
        assert set(said["paths"][path]) == methods
