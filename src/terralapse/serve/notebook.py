"""What people said: of polygons and of sample points, each edit kept, in a database.

Nothing is ever changed: an edit is a new row with the next version. Two people who edit the same thing at
once both ask for the same version, and the second is told what the first one said. A row is on the disk
before its answer leaves, so that it survives the server.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import UniqueConstraint, func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from terralapse.serve.store import open_store

FILE = ".terralapse-reviews.sqlite"
MOST_EDITS = 500  # of one polygon or point
MOST_SAMPLES = 50  # of one run
MOST_ADDED = 2000  # objects that people have added to one run
_TRIES = 20  # for a number that nobody else has taken meanwhile


class Base(DeclarativeBase):
    """The tables."""


class Edit(Base):
    """What somebody said of a polygon. Those of the run are numbered from 1 on, those that people have added
    -1, -2 and so on. `geometry` is GeoJSON in degrees, None where the outline is the run's; `class_after`, of
    an added one, is a class of the run's scheme."""

    __tablename__ = "edits"
    __table_args__ = (UniqueConstraint("run", "polygon", "version"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    run: Mapped[str] = mapped_column(index=True)
    polygon: Mapped[int]
    version: Mapped[int]
    at: Mapped[str]
    by: Mapped[str]
    verdict: Mapped[str | None]
    grade: Mapped[str | None]
    comment: Mapped[str]
    geometry: Mapped[str | None]
    class_after: Mapped[str | None]

    def as_dict(self) -> dict[str, Any]:
        """For a page."""
        names = ("polygon", "version", "at", "by", "verdict", "grade", "comment", "class_after")
        shape = None if self.geometry is None else json.loads(self.geometry)
        return {n: getattr(self, n) for n in names} | {"geometry": shape}


class Drawn(Base):
    """A sample that was drawn; `design` is that of `terralapse.products.area_sample.Sample` as JSON."""

    __tablename__ = "samples"
    id: Mapped[str] = mapped_column(primary_key=True)
    run: Mapped[str] = mapped_column(index=True)
    at: Mapped[str]
    by: Mapped[str]
    design: Mapped[str]


class Mark(Base):
    """What somebody saw at a point of a sample."""

    __tablename__ = "marks"
    __table_args__ = (UniqueConstraint("sample", "point", "version"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    sample: Mapped[str] = mapped_column(index=True)
    point: Mapped[int]
    version: Mapped[int]
    at: Mapped[str]
    by: Mapped[str]
    label: Mapped[str]

    def as_dict(self) -> dict[str, Any]:
        """For a page."""
        return {n: getattr(self, n) for n in ("point", "version", "at", "by", "label")}


class ConflictError(Exception):
    """Somebody else was quicker; `current` is what they said."""

    def __init__(self, current: dict[str, Any]) -> None:
        super().__init__("edited meanwhile")
        self.current = current


class TooMuchError(Exception):
    """More edits of one thing, or samples of one run, than any people make."""


class Notebook:
    """The edits in a folder or a database; safe to use from several threads, processes and servers.

    Args:
        folder: of the operator, in which the file is made where there is no database.
        database: the address of a PostgreSQL.

    Raises:
        SettingError: the database cannot be used.
    """

    def __init__(self, folder: Path, database: str | None = None) -> None:
        self._engine = open_store(database, folder.resolve() / FILE, Base.metadata)

    def close(self) -> None:
        """Lets go of the database."""
        self._engine.dispose()

    @contextmanager
    def _session(self) -> Iterator[Session]:
        with Session(self._engine) as session:
            yield session

    # --- polygons ------------------------------------------------------------------------------------
    def reviews(self, run: str) -> list[dict[str, Any]]:
        """The last edit of each polygon of a run, by polygon."""
        last = (
            select(Edit.polygon, func.max(Edit.version).label("version"))
            .where(Edit.run == run)
            .group_by(Edit.polygon)
            .subquery()
        )
        wanted = (
            select(Edit)
            .join(last, (Edit.polygon == last.c.polygon) & (Edit.version == last.c.version))
            .where(Edit.run == run)
            .order_by(Edit.polygon)
        )
        with self._session() as session:
            return [e.as_dict() for e in session.scalars(wanted)]

    def history(self, run: str, polygon: int | None = None) -> list[dict[str, Any]]:
        """Every edit of a run or of one of its polygons, the oldest first."""
        wanted = select(Edit).where(Edit.run == run).order_by(Edit.id)
        if polygon is not None:
            wanted = wanted.where(Edit.polygon == polygon)
        with self._session() as session:
            return [e.as_dict() for e in session.scalars(wanted)]

    def say(self, run: str, polygon: int, after: int, **values: Any) -> dict[str, Any]:
        """Adds an edit on top of the version `after` (0 where there is none yet).

        Raises:
            ConflictError: that is not the last version.
            TooMuchError: there are `MOST_EDITS` already.
        """
        shape = values.pop("geometry", None)
        text = None if shape is None else json.dumps(shape)
        row = Edit(run=run, polygon=polygon, version=after + 1, at=_now(), geometry=text, **values)
        self._append(row, after, lambda: self.history(run, polygon))
        return self.history(run, polygon)[after]

    def add(self, run: str, **values: Any) -> dict[str, Any]:
        """Adds an object that the run has missed, as the first edit of a new number below 0.

        Raises:
            ConflictError: others were quicker with every number that was tried.
            TooMuchError: the run has `MOST_ADDED` already.
        """
        lowest = select(func.min(Edit.polygon)).where(Edit.run == run)
        for attempt in range(_TRIES):
            with self._session() as session:
                number = min(session.scalar(lowest) or 0, 0) - 1
            if number < -MOST_ADDED:
                raise TooMuchError
            try:
                return self.say(run, number, 0, **values)
            except ConflictError:
                if attempt == _TRIES - 1:
                    raise
        raise AssertionError  # the last attempt has returned or raised

    # --- samples -------------------------------------------------------------------------------------
    def keep(self, run: str, by: str, design: dict[str, Any]) -> str:
        """Keeps a sample that was drawn; its id.

        Raises:
            TooMuchError: the run has `MOST_SAMPLES` already.
        """
        identity = secrets.token_hex(6)
        with self._session() as session:
            if len(session.scalars(select(Drawn.id).where(Drawn.run == run)).all()) >= MOST_SAMPLES:
                raise TooMuchError
            session.add(Drawn(id=identity, run=run, at=_now(), by=by, design=json.dumps(design)))
            session.commit()
        return identity

    def samples(self, run: str) -> list[dict[str, Any]]:
        """`id`, `at`, `by` and `design` of the samples of a run, the newest first."""
        with self._session() as session:
            wanted = select(Drawn).where(Drawn.run == run).order_by(Drawn.at.desc(), Drawn.id)
            return [
                {"id": d.id, "at": d.at, "by": d.by, "design": json.loads(d.design)}
                for d in session.scalars(wanted)
            ]

    def sample(self, run: str, identity: str) -> dict[str, Any] | None:
        """One, or None."""
        with self._session() as session:
            found = session.get(Drawn, identity)
            if found is None or found.run != run:
                return None
            return {"id": found.id, "at": found.at, "by": found.by, "design": json.loads(found.design)}

    def marks(self, sample: str) -> dict[int, dict[str, Any]]:
        """The last label of each point of a sample; `label` is empty where one was taken back."""
        with self._session() as session:
            wanted = select(Mark).where(Mark.sample == sample).order_by(Mark.point, Mark.version)
            return {m.point: m.as_dict() for m in session.scalars(wanted)}

    def mark(self, sample: str, point: int, after: int, by: str, label: str) -> dict[str, Any]:
        """Labels a point on top of the version `after`.

        Raises:
            ConflictError: that is not the last version.
            TooMuchError: there are `MOST_EDITS` already.
        """
        row = Mark(sample=sample, point=point, version=after + 1, at=_now(), by=by, label=label)

        def known() -> list[dict[str, Any]]:
            with self._session() as session:
                wanted = select(Mark).where(Mark.sample == sample, Mark.point == point).order_by(Mark.version)
                return [m.as_dict() for m in session.scalars(wanted)]

        self._append(row, after, known)
        return known()[after]

    def _append(self, row: Base, after: int, known: Any) -> None:
        before = known()
        if len(before) >= MOST_EDITS:
            raise TooMuchError
        if len(before) != after:
            raise ConflictError(before[-1] if before else {"version": 0})
        try:
            with self._session() as session:
                session.add(row)
                session.commit()
        except IntegrityError as error:  # between the look and the write
            raise ConflictError(known()[-1]) from error


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
