"""The queue of analyses, kept in SQLite, so that it survives the server; each runs in a process of its own.

What was running when the server ended is queued again at the next start and goes on from the work that it
left.
"""

from __future__ import annotations

import json
import re
import secrets
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine, select, update
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from terralapse.serve.worker import ABANDONED

MOST_WAITING = 100
_FILE = ".terralapse-jobs.sqlite"
_AREAS = ".terralapse-areas"
_PATIENCE = 20.0  # seconds from the wish to stop to the end of patience
_OFTEN = 0.2  # seconds between two notes of progress


class Base(DeclarativeBase):
    """The tables."""


class Job(Base):
    """One analysis. `state` is queued, running, done, failed or cancelled; `share` is of the stage."""

    __tablename__ = "jobs"
    id: Mapped[str] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(unique=True)
    created: Mapped[float]
    state: Mapped[str]
    before: Mapped[str]
    after: Mapped[str]
    before_path: Mapped[str]
    after_path: Mapped[str]
    settings: Mapped[str]
    output: Mapped[str]
    stage: Mapped[str] = mapped_column(default="")
    share: Mapped[float] = mapped_column(default=0.0)
    message: Mapped[str] = mapped_column(default="")
    started: Mapped[float | None] = mapped_column(default=None)
    finished: Mapped[float | None] = mapped_column(default=None)

    def as_dict(self) -> dict[str, Any]:
        """For a page: no path of this machine in it."""
        shown = ("id", "number", "created", "state", "before", "after", "output", "stage", "share", "message")
        values = {name: getattr(self, name) for name in (*shown, "started", "finished")}
        return values | {"settings": json.loads(self.settings)}


class QueueFullError(Exception):
    """More analyses wait than any person will."""


class Jobs:
    """Runs one analysis at a time, the oldest first.

    Args:
        workspace: where results appear and the queue is kept.
        command: what starts a worker; tests give another.
        fetch: bytes that an analysis may read from public addresses; None lets it reach none.
    """

    def __init__(self, workspace: Path, command: tuple[str, ...] = (), fetch: int | None = None) -> None:
        self._workspace = workspace.resolve()
        self._command = command or (sys.executable, "-m", "terralapse.serve.worker")
        self._fetch = fetch
        self._engine = create_engine(f"sqlite:///{self._workspace / _FILE}")
        Base.metadata.create_all(self._engine)
        self._wake = threading.Condition()
        self._stopping = False
        self._process: subprocess.Popen[str] | None = None
        self._current: str | None = None
        self._thread: threading.Thread | None = None
        self.version = 0

    @property
    def closed(self) -> bool:
        """Whether the queue is being shut down."""
        return self._stopping

    def start(self) -> None:
        """Takes up what was left and begins to work."""
        with Session(self._engine) as session:
            session.execute(
                update(Job).where(Job.state == "running").values(state="queued", stage="", share=0.0)
            )
            session.commit()
        self._stopping = False
        self._thread = threading.Thread(target=self._work, name="terralapse-jobs", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends the work; what is running keeps its work for the next start."""
        with self._wake:
            self._stopping = True
            self._wake.notify_all()
            process = self._process
        if process is not None:
            _end(process)
        if self._thread is not None:
            self._thread.join(_PATIENCE)
        self._engine.dispose()

    def add(
        self, before: tuple[str, Path | str], after: tuple[str, Path | str], settings: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Queues an analysis of two inputs, each a name and where it lies: a path or an address. `area` of
        the settings is a polygon as GeoJSON in degrees.

        Raises:
            QueueFullError: too many wait.
        """
        identity = secrets.token_hex(6)
        stem = re.sub(r"[^a-z0-9]+", "-", Path(after[0]).stem.lower()).strip("-")[:40] or "result"
        with self._wake, Session(self._engine) as session:
            waiting = len(session.scalars(select(Job.id).where(Job.state == "queued")).all())
            if waiting >= MOST_WAITING:
                raise QueueFullError
            last = session.scalars(select(Job.number).order_by(Job.number.desc()).limit(1)).first() or 0
            job = Job(
                id=identity,
                number=last + 1,
                created=time.time(),
                state="queued",
                before=before[0],
                after=after[0],
                before_path=str(before[1]),
                after_path=str(after[1]),
                settings=json.dumps(dict(settings)),
                output=f"{stem}-{identity}",
            )
            session.add(job)
            session.commit()
            said = job.as_dict()
            self.version += 1
            self._wake.notify_all()
        return said

    def all(self) -> list[dict[str, Any]]:
        """The newest first."""
        with Session(self._engine) as session:
            return [j.as_dict() for j in session.scalars(select(Job).order_by(Job.number.desc()).limit(200))]

    def get(self, identity: str) -> dict[str, Any] | None:
        """One, or None."""
        with Session(self._engine) as session:
            job = session.get(Job, identity)
            return None if job is None else job.as_dict()

    def in_use(self) -> set[str]:
        """Where the inputs lie of what waits or runs."""
        with Session(self._engine) as session:
            jobs = session.scalars(select(Job).where(Job.state.in_(("queued", "running"))))
            return {path for job in jobs for path in (job.before_path, job.after_path)}

    def cancel(self, identity: str) -> bool:
        """Ends one that waits or runs, and removes what it has written so far; False for any other."""
        with self._wake, Session(self._engine) as session:
            job = session.get(Job, identity)
            if job is None or job.state not in ("queued", "running"):
                return False
            job.state, job.finished = "cancelled", time.time()
            session.commit()
            self.version += 1
            process = self._process if self._current == identity else None
        if process is not None:
            _end(process)
        return True

    # --- the worker ------------------------------------------------------------------------------------
    def _work(self) -> None:
        while True:
            with self._wake:
                job = None
                while not self._stopping and (job := self._next()) is None:
                    self._wake.wait(1.0)
                if self._stopping or job is None:
                    return
                self._note(job.id, "queued", state="running", started=time.time())
                self._current = job.id
                self._process = subprocess.Popen(
                    self._command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
                process = self._process
            try:
                self._follow(job, process)
            finally:
                with self._wake:
                    self._process = self._current = None

    def _next(self) -> Job | None:
        with Session(self._engine, expire_on_commit=False) as session:
            return session.scalars(
                select(Job).where(Job.state == "queued").order_by(Job.number).limit(1)
            ).first()

    def _follow(self, job: Job, process: subprocess.Popen[str]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        errors: list[str] = []
        reader = threading.Thread(target=lambda: errors.extend(process.stderr or ()), daemon=True)
        reader.start()
        output = self._workspace / job.output
        task = {
            "before": job.before_path,
            "after": job.after_path,
            "output": str(output),
            "settings": self._settings(job),
            "fetch": self._fetch,
        }
        said, last = "", 0.0
        try:
            process.stdin.write(json.dumps(task) + "\n")
            process.stdin.flush()
            for line in process.stdout:
                told = json.loads(line)
                said = told.get("error", said)
                if "stage" in told and time.monotonic() - last > _OFTEN:
                    last = time.monotonic()
                    self._note(job.id, "running", stage=told["stage"], share=told["share"])
        except BrokenPipeError:
            said = ""  # it ended before it was told; its code says why
        code = process.wait()
        reader.join(_PATIENCE)
        for pipe in (process.stdin, process.stdout, process.stderr):
            pipe.close()
        now = time.time()
        if code == 0:
            self._note(job.id, "running", state="done", share=1.0, finished=now)
        elif not (self._stopping and code in (130, -2, -15, ABANDONED)):
            message = (
                said or f"The analysis ended with code {code}. {errors[-1].strip() if errors else ''}".strip()
            )
            self._note(job.id, "running", state="failed", message=message, finished=now)
        found = self.get(job.id)
        if found is not None and found["state"] == "cancelled":
            for suffix in (".part", ".lock"):
                _remove(output.with_name(output.name + suffix))
        if found is not None and found["state"] in ("cancelled", "failed"):
            _remove(self._area(job))

    def _area(self, job: Job) -> Path:
        return self._workspace / _AREAS / f"{job.output}.geojson"

    def _settings(self, job: Job) -> dict[str, Any]:
        """As the analysis takes them: the area is a file, which stays as long as the record names it."""
        settings = json.loads(job.settings)
        area = settings.pop("area", None)
        if area is not None:
            path = self._area(job)
            path.parent.mkdir(exist_ok=True)
            feature = {"type": "Feature", "properties": {}, "geometry": area}
            path.write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))
            settings["aoi"] = str(path)
        return settings

    def _note(self, identity: str, only: str, **values: Any) -> None:
        """Writes values of a job that is still in the state `only`."""
        with Session(self._engine) as session:
            session.execute(update(Job).where(Job.id == identity, Job.state == only).values(**values))
            session.commit()
        self.version += 1


def _end(process: subprocess.Popen[str]) -> None:
    """Asks, waits, and then does not ask."""
    process.terminate()
    try:
        process.wait(_PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
