"""The queue of analyses, kept in a database, so that it survives the server; each runs in its own process.

Several servers may share a queue. One takes a job by a single statement, and says every two seconds that it
still works at it; what nobody has spoken for, or belonged to a process of this machine that is gone, is
queued again and goes on from the work that was left.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import socket
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
from sqlalchemy import Select, func, select, update
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from terralapse.serve.attempts import PATIENCE, Attempt, Ending, Here, Runner
from terralapse.serve.store import open_store

MOST_WAITING = 100
_FILE = ".terralapse-jobs.sqlite"
_AREAS = ".terralapse-areas"
_OFTEN = 0.2  # seconds between two notes of progress
_BEAT = 2.0  # seconds between two signs of life
_LEASE = 30.0  # seconds without one after which a job is nobody's
_WAIT = 1.0  # seconds between two looks for work
_FRESH = 1.0  # seconds for which a listing is good; other servers may have changed something since
_MOST_LOST = 5  # attempts that may be lost before a job counts as failed
_SAME = 2.0  # seconds by which two readings of when a process began may differ
_RACES = 50  # servers that may ask for the same number at once


class Base(DeclarativeBase):
    """The tables."""


class Job(Base):
    """One analysis. `state` is queued, running, done, failed or cancelled; `share` is of the stage. `place`
    is the workspace in a database that several may share; `owner` is the server that runs it, `beat` its
    last sign of life, and `lost` the attempts that have ended without an answer."""

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
    place: Mapped[str] = mapped_column(default="", server_default="")
    owner: Mapped[str] = mapped_column(default="", server_default="")
    beat: Mapped[float] = mapped_column(default=0.0, server_default="0")
    lost: Mapped[int] = mapped_column(default=0, server_default="0")

    def as_dict(self) -> dict[str, Any]:
        """For a page: no path of this machine in it."""
        shown = ("id", "number", "created", "state", "before", "after", "output", "stage", "share", "message")
        values = {name: getattr(self, name) for name in (*shown, "started", "finished")}
        return values | {"settings": json.loads(self.settings)}


class QueueFullError(Exception):
    """More analyses wait than any person will."""


class Jobs:
    """Runs analyses, the oldest first, as many at once as the runner takes.

    Args:
        workspace: where results appear and, without a database, the queue is kept.
        command: what starts a worker; tests give another.
        fetch: bytes that an analysis may read from public addresses; None lets it reach none.
        database: the address of a PostgreSQL that several servers over the same workspace share.
        runner: where analyses run; by default in processes of this machine, one at a time.

    Raises:
        SettingError: the database cannot be used.
    """

    def __init__(
        self,
        workspace: Path,
        command: tuple[str, ...] = (),
        fetch: int | None = None,
        database: str | None = None,
        runner: Runner | None = None,
    ) -> None:
        self._workspace = workspace.resolve()
        self._runner = runner or Here(command)
        self._fetch = fetch
        self._place = "" if database is None else str(self._workspace)
        self._engine = open_store(database, self._workspace / _FILE, Base.metadata)
        self._owner = f"{_machine()} {os.getpid()} {_born(os.getpid()):.1f} {secrets.token_hex(4)}"
        self._wake = threading.Condition()
        self._stopping = False
        self._running: dict[str, tuple[Attempt, threading.Thread]] = {}
        self._thread: threading.Thread | None = None
        self._listing = threading.Lock()
        self._listed = (-1, 0.0, "")
        self.version = 0

    @property
    def closed(self) -> bool:
        """Whether the queue is being shut down."""
        return self._stopping

    def start(self) -> None:
        """Takes up what was left and begins to work."""
        self._take_back()
        self._stopping = False
        self._thread = threading.Thread(target=self._work, name="terralapse-jobs", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends the work; what is running is queued again and keeps its work for whoever takes it."""
        with self._wake:
            self._stopping = True
            self._wake.notify_all()
        if self._thread is not None:
            self._thread.join(PATIENCE)
        running = list(self._running.values())
        for attempt, _ in running:
            attempt.end()
        for _, thread in running:
            thread.join(PATIENCE)
        self._runner.close()
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
        values = {
            "id": identity,
            "created": time.time(),
            "state": "queued",
            "before": before[0],
            "after": after[0],
            "before_path": str(before[1]),
            "after_path": str(after[1]),
            "settings": json.dumps(dict(settings)),
            "output": f"{stem}-{identity}",
            "place": self._place,
        }
        said = self._insert(values)
        with self._wake:
            self.version += 1
            self._wake.notify_all()
        return said

    def _insert(self, values: dict[str, Any]) -> dict[str, Any]:
        """With the next number, which another server may want at the same time."""
        waiting = select(func.count()).select_from(Job).where(Job.state == "queued", Job.place == self._place)
        for again in range(_RACES):
            with Session(self._engine) as session:
                if (session.scalar(waiting) or 0) >= MOST_WAITING:
                    raise QueueFullError
                job = Job(number=(session.scalar(select(func.max(Job.number))) or 0) + 1, **values)
                session.add(job)
                try:
                    session.commit()
                except IntegrityError:
                    time.sleep(0.01 * secrets.randbelow(again + 2))
                    continue
                return job.as_dict()
        raise QueueFullError

    def _mine(self) -> Select[Job]:
        return select(Job).where(Job.place == self._place)

    def all(self) -> list[dict[str, Any]]:
        """The newest first."""
        with Session(self._engine) as session:
            return [j.as_dict() for j in session.scalars(self._mine().order_by(Job.number.desc()).limit(200))]

    def fresh(self) -> str | None:
        """The listing as JSON where it was made a moment ago and nothing has changed since, else None."""
        version, since, text = self._listed
        return text if version == self.version and time.monotonic() - since < _FRESH else None

    def listing(self) -> str:
        """All as JSON, `{"jobs": [...]}`, made once for everybody who asks at about the same time."""
        with self._listing:
            text = self.fresh()
            if text is None:
                version, since = self.version, time.monotonic()
                text = json.dumps({"jobs": self.all()})
                self._listed = (version, since, text)
            return text

    def get(self, identity: str) -> dict[str, Any] | None:
        """One, or None."""
        with Session(self._engine) as session:
            job = session.scalars(self._mine().where(Job.id == identity)).first()
            return None if job is None else job.as_dict()

    def in_use(self) -> set[str]:
        """Where the inputs lie of what waits or runs."""
        with Session(self._engine) as session:
            jobs = session.scalars(self._mine().where(Job.state.in_(("queued", "running"))))
            return {path for job in jobs for path in (job.before_path, job.after_path)}

    def cancel(self, identity: str) -> bool:
        """Ends one that waits or runs, and removes what it has written so far; False for any other. Where
        another server runs it, that one ends it at its next sign of life."""
        self._take_back()
        ended = {"state": "cancelled", "finished": time.time()}
        known = (Job.id == identity, Job.place == self._place)
        with self._wake:
            waited = self._changed(*known, Job.state == "queued", values=ended)
            if not waited and not self._changed(*known, Job.state == "running", values=ended):
                return False
            self.version += 1
            attempt = self._running.get(identity)
        if attempt is not None:
            attempt[0].end()
        elif waited:
            with Session(self._engine) as session:
                self._clear(session.get_one(Job, identity))
        return True

    # --- who works at what -----------------------------------------------------------------------------
    def _changed(self, *where: Any, values: Mapping[str, Any]) -> bool:
        """Whether a job was there to be changed."""
        with Session(self._engine) as session:
            done = session.execute(update(Job).where(*where).values(**values))
            session.commit()
            return bool(done.rowcount)  # pyright: ignore[reportAttributeAccessIssue]

    def _now(self) -> Any:
        """The clock of the database, because those of several machines differ."""
        if self._engine.dialect.name == "postgresql":
            return func.extract("epoch", func.clock_timestamp())
        return time.time()

    def _claim(self) -> Job | None:
        """Takes the oldest that waits; no other server can take the same one."""
        oldest = (
            select(Job.id)
            .where(Job.state == "queued", Job.place == self._place)
            .order_by(Job.number)
            .limit(1)
            .with_for_update(skip_locked=True)
            .scalar_subquery()
        )
        taken = {"state": "running", "owner": self._owner, "beat": self._now(), "started": time.time()}
        claim = update(Job).where(Job.id == oldest, Job.state == "queued").values(**taken).returning(Job)
        with Session(self._engine, expire_on_commit=False) as session:
            job = session.scalars(claim, execution_options={"synchronize_session": False}).first()
            session.commit()
            return job

    def _take_back(self) -> None:
        """Queues again what nobody works at any more."""
        free = {"state": "queued", "stage": "", "share": 0.0, "owner": ""}
        running = (Job.state == "running", Job.place == self._place)
        silent = self._changed(*running, Job.beat < self._now() - _LEASE, values=free)
        with Session(self._engine) as session:
            owners = session.scalars(select(Job.owner).where(*running, Job.owner != self._owner).distinct())
            gone = [owner for owner in owners if _is_gone(owner)]
        if gone and self._changed(*running, Job.owner.in_(gone), values=free):
            silent = True
        if silent:
            self.version += 1

    def _note(self, identity: str, **values: Any) -> bool:
        """Writes values of a job that this server runs; False where it does so no more."""
        still = (Job.id == identity, Job.state == "running", Job.owner == self._owner)
        found = self._changed(*still, values=values)
        self.version += 1
        return found

    # --- the work --------------------------------------------------------------------------------------
    def _work(self) -> None:
        while not self._stopping:
            try:
                self._take_back()
                started = len(self._running) < self._runner.slots and self._begin()
            except (DBAPIError, OSError):
                started = False  # the database or the cluster is away; it is asked again
            with self._wake:
                if not started and not self._stopping:
                    self._wake.wait(_WAIT)

    def _begin(self) -> bool:
        """Starts the next job in a thread of its own, if there is one."""
        job = self._claim()
        if job is None:
            return False
        self.version += 1
        if (self._workspace / job.output).is_dir():  # the server ended between the result and the note of it
            self._note(job.id, state="done", share=1.0, finished=time.time())
            return True
        task = {
            "before": job.before_path,
            "after": job.after_path,
            "output": str(self._workspace / job.output),
            "settings": self._settings(job),
            "fetch": self._fetch,
        }
        try:
            attempt = self._runner.start(task)
        except OSError:
            self._note(job.id, state="queued", owner="", started=None)
            raise
        thread = threading.Thread(target=self._follow, args=(job, attempt), daemon=True)
        with self._wake:
            self._running[job.id] = (attempt, thread)
        thread.start()
        return True

    def _follow(self, job: Job, attempt: Attempt) -> None:
        over = threading.Event()
        beats = threading.Thread(target=self._live, args=(job.id, attempt, over), daemon=True)
        beats.start()
        last = 0.0

        def told(stage: str, share: float) -> None:
            nonlocal last
            if time.monotonic() - last > _OFTEN:
                last = time.monotonic()
                try:
                    self._note(job.id, stage=stage, share=share)
                except DBAPIError:
                    return  # what it says next will do

        ending = attempt.follow(told)
        over.set()
        beats.join(PATIENCE)
        try:
            self._settle(job, ending)
        finally:
            with self._wake:
                del self._running[job.id]
                self._wake.notify_all()

    def _live(self, identity: str, attempt: Attempt, over: threading.Event) -> None:
        """Says that a job is worked at; ends the attempt where it was cancelled or taken away elsewhere, or
        where the database has been away for so long that another server may have it."""
        said = time.monotonic()
        while not over.wait(_BEAT):
            still = (Job.id == identity, Job.state == "running", Job.owner == self._owner)
            try:
                if not self._changed(*still, values={"beat": self._now()}):
                    break
                said = time.monotonic()
            except DBAPIError:
                if time.monotonic() - said > _LEASE / 2:
                    break
        if not over.is_set():
            attempt.end()

    def _settle(self, job: Job, ending: Ending) -> None:
        """Writes how an attempt ended; what was lost is queued again, a few times."""
        values: dict[str, Any] = {"state": ending.how, "finished": time.time(), "message": ending.message}
        if ending.how == "done":
            values["share"] = 1.0
        elif ending.how == "lost" and (self._stopping or job.lost + 1 < _MOST_LOST):
            count = job.lost + (not self._stopping)
            values = {"state": "queued", "stage": "", "share": 0.0, "owner": "", "lost": count}
        elif ending.how == "lost":
            values |= {"state": "failed", "message": "Its worker died again and again."}
        until = time.monotonic() + _LEASE
        while True:
            try:
                self._note(job.id, **values)
                found = self.get(job.id)
                break
            except DBAPIError:
                if time.monotonic() > until:
                    raise
                time.sleep(_WAIT)
        if found is not None and found["state"] in ("cancelled", "failed"):
            self._clear(job, part=found["state"] == "cancelled")

    def _clear(self, job: Job, part: bool = True) -> None:
        """Removes the area of a job that will not run again and, of one that was cancelled, its work."""
        _remove(self._area(job))
        if part:
            output = self._workspace / job.output
            for suffix in (".part", ".lock"):
                _remove(output.with_name(output.name + suffix))

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


def _machine() -> str:
    """Where process numbers mean the same: this machine, or this container of it."""
    try:
        space = f":{Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:
        space = ""
    return f"{socket.gethostname()}{space}".replace(" ", "_")


def _is_gone(owner: str) -> bool:
    """Whether a server was a process of this machine that has ended. Of others only their silence tells."""
    machine, number, born, _ = owner.split(" ")
    if machine != _machine():
        return False
    return abs(_born(int(number)) - float(born)) > _SAME


def _born(number: int) -> float:
    """When a process began, for numbers are used again; 0 where there is none."""
    try:
        return psutil.Process(number).create_time()
    except psutil.Error:
        return 0.0


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
