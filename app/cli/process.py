"""The process of a command that runs until it is stopped: event loop, stop signals, open files."""

import asyncio
import gc
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from app.cli.console import FAILED, OK, fail


@contextmanager
def quick_imports() -> Iterator[None]:
    """Pauses garbage collection around large imports: collecting took a tenth of their time and freed nothing."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def run_until_done(main: Coroutine[Any, Any, None]) -> None:
    """Runs `main` on uvloop. OSError and CannotStart become one line on standard error and exit code 1."""
    import uvloop

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(main)
    except OSError as error:
        fail(str(error))
    except Exception as error:
        from app.servers import CannotStart  # only here: commands without servers need not load them

        if not isinstance(error, CannotStart):
            raise
        fail(str(error))


def raise_file_limit() -> None:
    """Raises the limit of open files to the hard limit: each connection takes one, and the usual limit is 1024."""
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class StopEvent(asyncio.Event):
    """Set by the first SIGINT or SIGTERM."""

    exit_at_once = False
    """Whether the first signal exits without setting the event. True while the gateway starts: nothing needs an orderly
    end yet, and a start may wait for a locked database, which the event would not interrupt."""
    on_hang_up: Callable[[], None] | None = None
    """Called at SIGHUP."""


@asynccontextmanager
async def stop_signals(*, serving: bool = False) -> AsyncIterator[StopEvent]:
    """Handles SIGINT and SIGTERM: the first sets the event, the second exits with code 1.

    With `serving`, the event starts with `exit_at_once`, and SIGHUP calls `on_hang_up` instead of ending the process.
    """
    loop, stop = asyncio.get_running_loop(), StopEvent()
    stop.exit_at_once = serving

    def on_stop_signalled() -> None:
        # os._exit: an exception would end the loop while gRPC's threads still use it, which crashes.
        if stop.is_set():
            os.write(sys.stderr.fileno(), b"Second stop signal: exiting at once.\n")
            os._exit(FAILED)
        if stop.exit_at_once:
            os.write(sys.stderr.fileno(), b"Stopped before serving: exiting at once.\n")
            os._exit(OK)
        stop.set()

    def on_hang_up_signalled() -> None:
        if stop.on_hang_up is not None:
            stop.on_hang_up()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_stop_signalled)
    if serving:
        loop.add_signal_handler(signal.SIGHUP, on_hang_up_signalled)
    try:
        yield stop
    finally:
        if serving:
            loop.remove_signal_handler(signal.SIGHUP)
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
