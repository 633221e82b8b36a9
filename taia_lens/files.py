"""Files written whole or not at all."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def write_whole(path: Path, content: bytes) -> None:
    """Write a file whole or not at all: to one beside it, which takes its name at the end. Folders on the way are made.

    Raises:
        OSError: It cannot be written; nothing is left behind, and what stood there before still does.
    """
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(content)
        partial.replace(path)
    finally:
        with suppress(OSError):  # its folder may be a file
            partial.unlink(missing_ok=True)
