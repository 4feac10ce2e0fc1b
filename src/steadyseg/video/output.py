"""Outputs that appear complete or not at all: written under a hidden name beside the final one, then renamed."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from av import FFmpegError

from steadyseg.types import ConfigError, DataError


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Turn a failed write into a one-line DataError that names `path`.

    Raises:
        DataError: instead of an error of the operating system or of FFmpeg.
    """
    try:
        yield
    except (OSError, FFmpegError) as error:
        if error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
            raise DataError(f"{path}: the disk is full; nothing was kept, free some space and run again") from error
        raise DataError(f"{path} cannot be written ({error.strerror or error})") from error


class Output:
    """One output file or folder; nobody sees it under its name before ``commit``.

    Attributes:
        path: the final name.
        part: where to write until then, hidden and in the same folder.
    """

    def __init__(self, path: str | Path, *, source: Path | None = None, overwrite: bool = False) -> None:
        """Check the name; nothing is written yet.

        Args:
            path: the final name of the file or folder.
            source: the input, which must not be overwritten; None when there is none.
            overwrite: whether an existing output may be replaced.

        Raises:
            ConfigError: `path` is the input, exists, or lies in a folder that does not exist.
        """
        # A link is followed, so that replacing the output keeps the link and changes what it points to.
        self.path = Path(path).expanduser().resolve()
        self.part = self.path.with_name(f".{self.path.name}.{os.getpid()}.part")
        with _writable(self.path):
            if source is not None and _is_same(self.path, source):
                raise ConfigError(f"output {path} is the input itself; give another name")
            if not self.path.parent.is_dir():
                raise ConfigError(f"output {path}: there is no folder {self.path.parent}; create it or name another")
            if self.path.exists() and not overwrite and not _is_empty_folder(self.path):
                raise ConfigError(f"output {path} exists; name another or allow it to be overwritten (--overwrite)")

    def open_file(self) -> None:
        """Create the empty hidden file, so that an unwritable place is found before any work.

        Raises:
            ConfigError: the name is a folder, or nothing can be written there.
        """
        if self.path.is_dir():
            raise ConfigError(f"output {self.path} is a folder; expected the name of a file")
        with _writable(self.path):
            self.part.write_bytes(b"")

    def open_folder(self, *suffixes: str) -> None:
        """Create the hidden folder.

        Args:
            suffixes: of the files that will be in it, such as ".png". A folder that already exists is
                only replaced when all it holds are such files.

        Raises:
            ConfigError: the name is a file or holds other files, or nothing can be written there.
        """
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError(f"output {self.path} is a file; expected the name of a folder")
        others = (
            [file.name for file in self.path.iterdir() if file.suffix not in suffixes] if self.path.is_dir() else []
        )
        if others:
            raise ConfigError(
                f"output {self.path} also holds {others[0]}, which is no {' or '.join(suffixes)}; give another folder"
            )
        with _writable(self.path):
            shutil.rmtree(self.part, ignore_errors=True)
            self.part.mkdir()

    def commit(self) -> None:
        """Give the finished output its name, replacing what was there."""
        with naming(self.path):
            if self.part.is_dir() and self.path.is_dir():
                old = self.part.with_suffix(".old")
                self.path.rename(old)
                self.part.rename(self.path)
                shutil.rmtree(old)
            else:
                self.part.replace(self.path)

    def discard(self) -> None:
        """Remove everything written so far; an older output stays as it was."""
        if self.part.is_dir():
            shutil.rmtree(self.part, ignore_errors=True)
        else:
            self.part.unlink(missing_ok=True)


@contextmanager
def _writable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(f"output {path} cannot be written ({error.strerror}); give another folder") from error


def _is_same(path: Path, source: Path) -> bool:
    return path.exists() and source.exists() and path.samefile(source)


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())
