"""How does a program print so that printing cannot end it?

    if __name__ == "__main__":
        sys.exit(console.run(main))

Standard streams may be closed, be a pipe whose reader has left, a terminal that is gone or one that
knows no sign beyond ASCII. The program goes on to its end all the same: what it writes to files is
not lost with its screen. Only the exit code tells that somebody who wanted text did not get it.
"""

import codecs
import contextlib
import errno
import os
import signal
import sys
from collections.abc import Callable

PLAIN = {  # what stands for a sign where an encoding lacks it
    **{"\u2212": "-", "\u2013": "-", "\u2014": "-", "─": "-", "±": "+-", "\u00d7": "x", "·": "*"},
    **{"≥": ">=", "≤": "<=", "→": "->", "►": ">", "…": "...", "²": "2", "✕": "x", "\u2019": "'"},
}
READER_LEFT = 128 + signal.SIGPIPE  # as a shell reports a program that a closed pipe ended


def plain_signs(error: UnicodeError):
    """For an encoding that lacks a sign: one that means the same, else a question mark."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    missing = error.object[error.start : error.end]
    return "".join(PLAIN.get(sign, "?") for sign in missing), error.end


codecs.register_error("plain_signs", plain_signs)


class Stream:
    """A text stream that swallows what can no longer be written, and remembers why."""

    def __init__(self, stream):
        self.stream, self.lost = stream, None

    def write(self, text: str) -> int:
        self._attempt(lambda: self.stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._attempt(self.stream.flush)

    def _attempt(self, act: Callable[[], object]) -> None:
        if self.lost is None:
            try:
                act()
            except (OSError, ValueError) as error:  # ValueError: the stream was closed
                self.lost = error

    def __getattr__(self, name):
        return getattr(self.stream, name)


def underlying(stream):
    """The stream itself: what writes there has to answer for failures, and they are not counted."""
    return stream.stream if isinstance(stream, Stream) else stream


def silence(stream) -> None:
    """Let what is buffered go nowhere: Python would try to write it when it exits, and complain."""
    with contextlib.suppress(AttributeError, OSError, ValueError):  # it is no file
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def write_plainly(stream) -> None:
    """Never fail for a sign that the stream's encoding lacks."""
    with contextlib.suppress(AttributeError, OSError, ValueError):  # no stream of Python's own
        stream.reconfigure(errors="plain_signs")


def open_all_three() -> None:
    """Where 0, 1 or 2 is closed, the next file opened would be it, and get what is printed."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(number, True)
    os.close(number)


def stop_quietly(program: str) -> None:
    """From here on Ctrl-C or SIGTERM ends the program with one line, whatever it is in: the imports
    of a start, the last moments of an end. What has to be put away first takes them for itself."""

    def end(number: int, _frame) -> None:
        with contextlib.suppress(OSError):
            os.write(2, f"{program}: stopped; nothing was in flight\n".encode())
        os._exit(128 + number)

    for number in STOPPING:
        signal.signal(number, end)
    os.register_at_fork(after_in_child=signals_of_a_fork)


STOPPING = (signal.SIGINT, signal.SIGTERM)


def signals_of_a_fork() -> None:
    """A fork inherits handlers that are not for it (a pool's workers, which their pool ends with
    SIGTERM): there a signal to stop ends the process at once, without a word."""
    for number in STOPPING:
        signal.signal(number, signal.SIG_DFL)


class Stopped(KeyboardInterrupt):
    """A signal to stop; `number` says which."""

    def __init__(self, number: int):
        super().__init__()
        self.number = number


@contextlib.contextmanager
def interruptible():
    """In here Ctrl-C and SIGTERM raise Stopped, so that what is held is put back; then they are as
    they were before."""

    def stop(number: int, _frame) -> None:
        raise Stopped(number)

    before = {number: signal.signal(number, stop) for number in STOPPING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run(main: Callable[[], int]) -> int:
    """main's exit code, its standard streams made safe first."""
    open_all_three()
    if sys.stdin is None:
        sys.stdin = open(os.devnull)  # noqa: SIM115
    out = sys.stdout = Stream(sys.stdout or open(os.devnull, "w"))  # noqa: SIM115
    err = sys.stderr = Stream(sys.stderr or open(os.devnull, "w"))  # noqa: SIM115
    write_plainly(out.stream)
    write_plainly(err.stream)
    try:
        code = main()
    finally:
        out.flush()
        err.flush()
    if out.lost is None:
        return code
    if getattr(out.lost, "errno", None) not in (errno.EPIPE, errno.EIO):
        name = os.path.basename(sys.argv[0])
        print(f"{name}: error: cannot print: {out.lost}", file=err, flush=True)
    return code or READER_LEFT
