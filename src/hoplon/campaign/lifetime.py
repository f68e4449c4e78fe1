"""Processes that end with the one they work for, and temporary folders that are not left behind."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Final, final

if sys.platform != "win32":  # where a killed process leaves its folder
    import fcntl

WORK: Final = "work"
_NAME: Final = re.compile(r"hoplon-\d+-[a-z0-9_]{8}")
_CONTENT: Final = re.compile(rf"{WORK}|stuck-\d+")
_SECONDS: Final = 0.2


def end_with(parent: int, folder: Path | None = None) -> None:
    """From now on, end this process once its parent is gone, which may have been killed; and remove its folder."""
    threading.Thread(target=_watch, args=(parent, folder), daemon=True).start()


def _watch(parent: int, folder: Path | None) -> None:
    while os.getppid() == parent:
        time.sleep(_SECONDS)
    if folder is not None:
        _remove(folder)
    os._exit(1)


@final
class WorkFolder:
    """A new folder for temporary files, which this process holds by a lock until it closes it or ends.

    Those that ended processes of this user left are removed first: folders that have the name and nothing but the files
    of one, and that nobody holds. A file system without locks keeps them all.

    Attributes:
        path: of the folder.
    Raises:
        OSError: no folder can be made.
    """

    def __init__(self) -> None:
        self._held: int | None = None
        _sweep(Path(tempfile.gettempdir()))
        while self._held is None:
            self.path = Path(tempfile.mkdtemp(prefix=f"hoplon-{os.getpid()}-"))
            if sys.platform == "win32":
                return
            try:
                descriptor = os.open(self.path, os.O_RDONLY)
            except OSError:
                self.path.rmdir()
                raise
            with contextlib.suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if self.path.exists():
                self._held = descriptor
            else:  # swept before it was held
                os.close(descriptor)

    def close(self) -> None:
        """Remove the folder."""
        if self._held is not None:
            os.close(self._held)  # first: it may be the last descriptor that there is, and listing takes one
            self._held = None
        _remove(self.path)


def _sweep(places: Path) -> None:
    """Remove what ended processes left."""
    if sys.platform == "win32":
        return
    with contextlib.suppress(OSError):
        for folder in filter(lambda entry: _NAME.fullmatch(entry.name), list(places.iterdir())):
            with contextlib.suppress(OSError):  # another user's, a link, held, gone
                descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    if os.fstat(descriptor).st_uid == os.geteuid():
                        _remove(folder)
                finally:
                    os.close(descriptor)


def _remove(folder: Path) -> None:
    """Remove a folder that holds only what hoplon puts there."""
    with contextlib.suppress(OSError):
        files = list(folder.iterdir())
        if all(_CONTENT.fullmatch(file.name) for file in files):
            for file in files:
                file.unlink(missing_ok=True)
            folder.rmdir()
