"""List hoplon's files of which a command executes a function: ``python tests/project/executed_files.py inject ...``."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import CodeType, FrameType
from typing import Any


def executed_files(run: Callable[[], Any]) -> list[str]:
    """Files of hoplon of which ``run`` enters a function, module bodies and class bodies aside, by path in ``src``."""
    entered: set[CodeType] = set()

    def trace(frame: FrameType, event: str, argument: object) -> None:
        entered.add(frame.f_code)

    threading.setprofile(trace)
    sys.setprofile(trace)
    try:
        run()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    bodies = {"<module>", "<lambda>", "<genexpr>", "<listcomp>", "<dictcomp>", "<setcomp>"}
    functions = {code.co_filename for code in entered if code.co_name not in bodies and code.co_flags & 0x2}
    parts = [Path(name).parts for name in functions]
    return sorted("/".join(part[part.index("src") + 1 :]) for part in parts if "src" in part and "hoplon" in part)


def main(arguments: Sequence[str]) -> None:
    """Run a command of hoplon and print the files that it went through."""
    try:
        from hoplon.cli.app import main as command
    except ImportError:  # the house before it had rooms
        from hoplon.cli.app import main as command
    files = executed_files(lambda: command(list(arguments)))
    print("\n".join(files), file=sys.stderr)
    print(f"{len(files)} files", file=sys.stderr)


if __name__ == "__main__":
    main(sys.argv[1:])
