"""Work in a process of its own, which never outlives the one that started it."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

POLL_S = 0.2


def call(function: Callable[..., Any], *args: Any) -> tuple[Any, float]:
    """`function(*args)` in a fresh process: its result, and the most memory it had resident, in GiB.

    Its ValueError, OSError or RuntimeError is raised here; one that dies without a word is a ChildProcessError.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    worker = context.Process(target=_answer, args=(function, args, sender, os.getpid()), daemon=True)
    worker.start()
    sender.close()
    try:
        result = receiver.recv()
    except EOFError:
        worker.join()
        raise ChildProcessError(f"a process ended with exit code {worker.exitcode}; the same command resumes") from None
    finally:
        if sys.exc_info()[0] is KeyboardInterrupt:
            worker.terminate()
        worker.join()
    if isinstance(result, Exception):
        raise result
    return result


def _answer(function: Callable[..., Any], args: tuple[Any, ...], sender: Any, parent: int) -> None:
    end_with(parent)
    try:
        sender.send((function(*args), peak_rss_gib()))
    except (ValueError, OSError, RuntimeError) as error:
        sender.send(portable(error))


def peak_rss_gib() -> float:
    """Most memory that this process has had resident."""
    unit = 2**30 if sys.platform == "darwin" else 2**20  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def portable(error: Exception) -> Exception:
    """The error as one that can be sent to another process: the same for the command line, plain text inside."""
    if isinstance(error, OSError) and error.errno is not None:
        return OSError(error.errno, error.strerror, error.filename)
    kinds = (ValueError, FileNotFoundError, OSError)
    return next((kind for kind in kinds if isinstance(error, kind)), RuntimeError)(str(error))


def end_with(parent: int) -> None:
    """From now on this process dies when its parent does, also by SIGKILL: two writers would spoil a run.

    Ctrl-C reaches the parent alone, which stops this process.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(POLL_S)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
