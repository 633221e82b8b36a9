"""Finished cells, kept in SQLite by the content of what they depend on, so that an interrupted study goes on where it stopped.

A cell is what one recipe scored on one piece of a suite. Its key holds the models' weights, the recipe, the piece's content,
dtype, kind of device and the versions that numbers depend on: a cell of another model never answers. Processes may share a
store. Imports no torch.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from taia_lens.errors import ResultError

VERSION = 1
APPLICATION = 0x7461696C  # 'tail', so that another program's database is told from ours
_WAIT = 60.0  # seconds that one process waits for another's write
_TABLE = """CREATE TABLE cells
(key TEXT PRIMARY KEY, what TEXT NOT NULL, metrics TEXT NOT NULL, numbers BLOB NOT NULL, texts TEXT NOT NULL)"""


@dataclass(frozen=True, eq=False)
class Cell:
    """What a recipe scored on a piece: values by metric, one a row; and what was generated, where anything was."""

    values: Mapping[str, np.ndarray]
    transcripts: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class CellStore:
    """An open store; made by `open_store`."""

    path: Path
    connection: sqlite3.Connection

    def get(self, what: Mapping[str, Any]) -> Cell | None:
        """The cell that depends on exactly this, or None."""
        with self._named():
            found = self.connection.execute("SELECT metrics, numbers, texts FROM cells WHERE key = ?", (key_of(what),)).fetchone()
        if found is None:
            return None
        names = json.loads(found[0])
        numbers = np.frombuffer(found[1], dtype="<f8").reshape(len(names), -1)
        return Cell(dict(zip(names, numbers, strict=True)), tuple(json.loads(found[2])))

    def put(self, what: Mapping[str, Any], cell: Cell) -> None:
        """Keep a finished cell; in one transaction, so that a stop leaves all of it or none.

        Raises:
            ResultError: The disk is full, or the file cannot be written.
        """
        numbers = np.stack(list(cell.values.values())).astype("<f8").tobytes()
        row = (key_of(what), _text(what), json.dumps(list(cell.values)), numbers, json.dumps(cell.transcripts))
        with self._named(), self.connection:
            self.connection.execute("INSERT OR IGNORE INTO cells VALUES (?, ?, ?, ?, ?)", row)

    def __len__(self) -> int:
        return int(self.connection.execute("SELECT count(*) FROM cells").fetchone()[0])

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise _refusal(self.path, error) from error


def _text(what: Mapping[str, Any]) -> str:
    return json.dumps(what, sort_keys=True)


def key_of(what: Mapping[str, Any]) -> str:
    """The hash of everything that a cell depends on.

    >>> key_of({"recipe": "base"}) == key_of({"recipe": "tuned"})
    False
    """
    return hashlib.blake2b(_text(what).encode(), digest_size=20).hexdigest()


@contextmanager
def open_store(path: str | Path) -> Iterator[CellStore]:
    """Open a store, or begin one.

    Args:
        path: The SQLite file; what studies take as `store` finds finished cells in it and puts new ones there.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder, open_store(Path(folder) / "cells.sqlite") as store:
    ...     store.put({"recipe": "base"}, Cell({"accuracy": np.ones(3)}))
    ...     store.get({"recipe": "base"}).values["accuracy"].tolist(), store.get({"recipe": "tuned"})
    ([1.0, 1.0, 1.0], None)

    Raises:
        ResultError: The file is no store, one of another version, or cannot be opened.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(path, timeout=_WAIT)
    except (OSError, sqlite3.Error) as error:
        raise _refusal(path, error) from error
    try:
        try:
            _begin(path, connection)
        except sqlite3.Error as error:
            raise _refusal(path, error) from error
        yield CellStore(path, connection)
    finally:
        connection.close()


def _begin(path: Path, connection: sqlite3.Connection) -> None:
    _check(path, connection)  # before anything is written: a file that is refused stays as it was
    connection.execute("PRAGMA journal_mode = WAL")  # a reader never waits for a writer, and kill -9 loses no finished cell
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("BEGIN IMMEDIATE")
    if not _check(path, connection):
        connection.execute(_TABLE)
        connection.execute(f"PRAGMA application_id = {APPLICATION}")
        connection.execute(f"PRAGMA user_version = {VERSION}")
    connection.commit()


def _check(path: Path, connection: sqlite3.Connection) -> bool:
    """Whether the file is a store; False where it is empty, an error where it is anything else."""
    application, version = (connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version"))
    tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    if not tables:
        return False
    if application != APPLICATION:
        raise ResultError(f"{path} is a database of another program (tables: {', '.join(tables[:5])}); give another --store")
    if version != VERSION:
        raise ResultError(f"{path} is a store of version {version}, and this taia-lens reads version {VERSION}; give another --store")
    return True


def _refusal(path: Path, error: Exception) -> ResultError:
    return ResultError(f"cannot use the store {path}: {error}; cells finished before stay in it; make room, or give another --store")
