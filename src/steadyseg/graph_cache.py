"""Traced graphs on disk, so that a program that starts again need not trace them again.

They lie in the user's folder of caches, or in STEADYSEG_CACHE; "off" there keeps nothing. A graph is found by what it
depends on: the model with its weights, the sizes, this package's own files and the versions of what traces.
"""

from __future__ import annotations

import json
import logging
import os
import time
from contextlib import suppress
from functools import cache
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import platformdirs

import steadyseg

LIMIT = 2**30
"""Bytes; beyond them the graphs that were not read for longest go."""
TRACERS = ("torch", "onnx", "onnx-ir", "onnxscript")
PART = ".part"
DAY = 24 * 60 * 60
_logger = logging.getLogger(__name__)


def folder() -> Path | None:
    """Return where graphs are kept; None where they are not."""
    wanted = os.environ.get("STEADYSEG_CACHE")
    if wanted == "off":
        return None
    if wanted:
        return Path(os.path.expanduser(wanted))  # noqa: PTH111 (Path's own raises for a user who is not there)
    return platformdirs.user_cache_path("steadyseg", appauthor=False) / "graphs"


def key(*parts: Any) -> str:
    """Return the name of a graph that depends on `parts`, which JSON can hold, and on what all depend on."""
    return sha256(json.dumps([*parts, _sources()]).encode()).hexdigest()


def read(key: str) -> bytes | None:
    """Return a graph; None where there is none."""
    place = folder()
    try:
        if place is None:
            return None
        path = place / f"{key}.onnx"
        found = path.read_bytes()
        path.touch()  # read last, kept longest
    except OSError:
        return None
    return found


def write(key: str, graph: bytes) -> None:
    """Keep a graph, and let old ones go; where nothing can be written, say so once and go on."""
    place = folder()
    if place is None:
        return
    try:
        place.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile(dir=place, prefix=f".{key}.", suffix=PART, delete=False) as part:
            part.write(graph)
        Path(part.name).replace(place / f"{key}.onnx")
    except OSError as error:
        _say_once(f"traced graphs cannot be kept in {place} ({error.strerror}), so the next run traces them again")
    with suppress(OSError):
        _drop_old(place)


def _drop_old(place: Path) -> None:
    """Remove what exceeds LIMIT, and what a program left half written."""
    left = LIMIT
    files = [(path, path.stat()) for path in place.iterdir() if path.suffix in (".onnx", PART)]
    for path, about in sorted(files, key=lambda entry: entry[1].st_mtime, reverse=True):
        left -= about.st_size
        if left < 0 or (path.suffix == PART and time.time() - about.st_mtime > DAY):
            path.unlink(missing_ok=True)


@cache
def _say_once(text: str) -> None:
    _logger.warning(text)


@cache
def _sources() -> str:
    """SHA-256 of this package's files, and of the versions of what traces."""
    digest = sha256(" ".join(f"{name} {version(name)}" for name in TRACERS).encode())
    root = Path(steadyseg.__file__).parent
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()
