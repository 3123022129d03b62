"""Folders that are whole or absent: written under another name, which a rename makes the true one."""

import contextlib
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path


@contextlib.contextmanager
def partial_folder(folder: Path, place: Callable[[Path], None] | None = None) -> Iterator[Path]:
    """A folder to write in, which becomes `folder` when the block ends well, and vanishes when it does not.

    place  puts the written folder where it belongs; None: a rename

    What processes that were killed left behind is removed, on the machine they ran on.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    prefix = f"{folder.name}.partial-{socket.gethostname()}-"
    for left in folder.parent.glob(f"{glob_escaped(prefix)}*"):
        if not runs(left.name.removeprefix(prefix).split("-")[0]):
            shutil.rmtree(left, ignore_errors=True)
    partial = Path(tempfile.mkdtemp(prefix=f"{prefix}{os.getpid()}-", dir=folder.parent))
    partial.chmod(0o777 & ~_umask())  # mkdtemp keeps it to its owner
    try:
        yield partial
        if place:
            place(partial)
        else:
            partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def runs(process: str) -> bool:
    """Whether a process of this number runs on this machine."""
    try:
        os.kill(int(process), 0)
    except ValueError:
        return False
    except OSError as error:
        return isinstance(error, PermissionError)
    return True


def glob_escaped(text: str) -> str:
    """A pattern of `glob` that only the text itself fits."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in text)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
