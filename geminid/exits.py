"""Ways out of a command: each is an exit code, and an error is one line on stderr."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn, TypeVar

FAILURE, MISTAKE, INTERRUPTED = 1, 2, 130  # exit codes; 128 + SIGINT
Parsed = TypeVar("Parsed")
_RULE = re.compile(r"[─-]{3,}")


@contextlib.contextmanager
def one_line() -> Iterator[None]:
    """Leaves by an exit code for whatever a command raises; with GEMINID_TRACEBACK in the environment it is raised."""
    try:
        yield
    except KeyboardInterrupt:
        leave("stopped; the same command resumes where it left off", INTERRUPTED)
    except BrokenPipeError:  # whoever reads the answer has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(FAILURE)
    except (ValueError, OSError, RuntimeError, ArithmeticError) as error:
        if os.environ.get("GEMINID_TRACEBACK"):
            raise
        if _is_disk_full(error):
            leave(_disk_full_line(error), FAILURE)
        if isinstance(error, ValueError | FileNotFoundError | FileExistsError | IsADirectoryError | NotADirectoryError):
            leave(_line(error), MISTAKE)
        if isinstance(error, ArithmeticError):
            line = f"what was asked leaves the range of numbers ({_line(error)})"
            leave(f"{line}; ask for something else, or see where with GEMINID_TRACEBACK=1", MISTAKE)
        if isinstance(error, OSError):
            leave(_line(error), FAILURE)
        raise


def leave(message: str, code: int) -> NoReturn:
    sys.stderr.write(f"geminid: {message}\n")
    sys.stderr.flush()
    sys.exit(code)


def parsed(parse: Callable[[], Parsed]) -> Parsed:
    """What tyro makes of the command line; of the box that it draws around a mistake, what it says."""
    drawn = io.StringIO()
    try:
        with contextlib.redirect_stderr(drawn):
            return parse()
    except SystemExit as leaving:
        if leaving.code != MISTAKE:
            raise
    leave(_said(drawn.getvalue()), MISTAKE)


def _said(box: str) -> str:
    """The box: a title, then parts between rules. Where the terminal knows ASCII alone the title is a part, too."""
    parts: list[list[str]] = [[]]
    for line in (line.strip("│ ") for line in box.splitlines() if not line.startswith(("╭", "╰"))):
        if _RULE.fullmatch(line):
            parts.append([])
        elif line:
            parts[-1].append(line)
    said, *rest = parts if "╭" in box else parts[1:]
    text = " ".join(said).partition(" Got errors:")[0].rstrip(".")
    for part in rest:
        if part[:1] == ["Perhaps you meant:"]:
            text += f"; perhaps you meant {part[1].split()[0]}"
    where = re.findall(r"geminid [a-z ]*--help", " ".join(" ".join(part) for part in rest))
    return f"{text}; see {max(where, key=len, default='geminid --help')}"


def _is_disk_full(error: Exception) -> bool:
    """Also where a library (TensorStore, ArrayRecord) has turned the errno into words."""
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    return full or "No space left on device" in str(error) or "Disk quota exceeded" in str(error)


def _disk_full_line(error: Exception) -> str:
    named = getattr(error, "filename", None)
    place = Path(str(named or ".")).absolute()
    while not place.is_dir():
        place = place.parent
    free = shutil.disk_usage(place).free
    return f"{named or 'a file'} could not be written: the disk is full ({free:,} bytes free at {place}); make room"


def _line(error: Exception) -> str:
    if isinstance(error, FileExistsError) and error.filename:
        text = f"{error.filename} is there already, and it is no directory; give another name or remove it"
    elif isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    else:
        text = str(error)
    return " ".join(text.split()) or type(error).__name__
