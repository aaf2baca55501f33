"""The screen may fail in any way; runs go on, and so do lines where lines can be written."""

import errno
import io
import os
import pty
import signal
import subprocess
import sys
import termios
from pathlib import Path
from types import SimpleNamespace

import pytest

from ablation.cli import console
from ablation.execute import display
from ablation.execute.display import Display
from ablation.runs.formats import OURS

ROOT = Path(__file__).resolve().parents[1]


def flight(step=30):
    """A run in flight, as far as a display looks at it."""
    return SimpleNamespace(
        run=SimpleNamespace(name="aux_6/run_0", num_iterations=90),
        log=SimpleNamespace(step=step, curve=[(step, 3.5)], reading=OURS),
        handle=SimpleNamespace(started=True),
        started_s=0.0,
    )


@pytest.fixture
def always(monkeypatch):
    """Plain progress lines without a pause between them."""
    monkeypatch.setattr(display, "QUIET_S", 0.0)


class Terminal:
    """A pseudo-terminal of some size; `shown` is what arrived on it so far."""

    def __init__(self, rows=40, columns=150, encoding="utf-8"):
        self.end, other = pty.openpty()
        termios.tcsetwinsize(self.end, (rows, columns))
        os.set_blocking(self.end, False)
        self.out = open(other, "w", encoding=encoding)  # noqa: SIM115
        self.seen = b""

    def shown(self) -> str:
        try:
            while data := os.read(self.end, 1 << 16):
                self.seen += data
        except OSError:
            pass
        return self.seen.decode(self.out.encoding)


class Failing(io.StringIO):
    """A stream that fails from its n-th write on."""

    def __init__(self, error, after=0):
        super().__init__()
        self.error, self.left = error, after

    def write(self, text):
        self.left -= 1
        if self.left < 0:
            raise self.error
        return super().write(text)


def test_live_lines_on_a_terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    shown = Display(terminal.out)
    shown.progress([flight()], "run 1 of 1")
    assert "aux_6/run_0 [######" in terminal.shown()
    assert "run 1 of 1" in terminal.shown()
    assert shown.bars
    shown.print_line("a lasting line")
    assert not shown.bars
    assert "a lasting line" in terminal.shown()


@pytest.mark.parametrize(
    ("rows", "columns", "term"),
    [(0, 0, "xterm"), (0, 150, "xterm"), (40, 0, "xterm"), (2, 5, "xterm"), (40, 150, "dumb")],
)
def test_a_terminal_without_room_or_cursor_gets_plain_lines(
    always, monkeypatch, rows, columns, term
):
    monkeypatch.setenv("TERM", term)
    terminal = Terminal(rows, columns)
    shown = Display(terminal.out)
    shown.progress([flight()], "run 1 of 1")
    assert not shown.bars
    assert "step 30/90, val loss 3.5000" in terminal.shown()
    assert "| run 1 of 1\r\n" in terminal.shown()
    assert "\x1b" not in terminal.shown()


def test_a_terminal_that_loses_its_size_goes_on_in_plain_lines(always, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    shown = Display(terminal.out)
    shown.progress([flight()], "first")
    termios.tcsetwinsize(terminal.end, (0, 0))
    shown.progress([flight()], "second")
    assert "| second\r\n" in terminal.shown()


@pytest.mark.parametrize(
    "setting",
    ["TQDM_DISABLE=1", "TQDM_MININTERVAL=9999", "TQDM_MININTERVAL=soon", "TQDM_NCOLS=x",
     "TQDM_NONSENSE=1", "TQDM_BAR_FORMAT={nothing}", "COLUMNS=0", "LINES=0", "NO_COLOR=1"],
)  # fmt: skip
def test_settings_of_tqdm_change_nothing(setting):
    """In a process of its own: tqdm takes them when it is imported."""
    program = (
        "import sys; sys.path[:0] = ['.', 'tests']\n"
        "from test_display import Terminal, flight\n"
        "from ablation.execute.display import Display\n"
        "terminal = Terminal()\n"
        "shown = Display(terminal.out)\n"
        "shown.progress([flight()], 'the plan')\n"
        "assert shown.live and shown.bars, 'no live lines'\n"
        "assert 'step 30/90' in terminal.shown() and 'the plan' in terminal.shown()\n"
    )
    name, _, value = setting.partition("=")
    env = {**os.environ, "TERM": "xterm", name: value}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "error", [RuntimeError("a bug"), ImportError("no tqdm"), OSError(errno.EIO, "gone"), KeyError()]
)
def test_live_lines_that_fail_give_way_to_plain_ones(always, monkeypatch, error):
    def fail():
        raise error

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(display, "tqdm_as_shipped", fail)
    terminal = Terminal()
    shown = Display(terminal.out)
    for plan in ("first", "second", "third"):
        shown.progress([flight()], plan)
    assert "| second\r\n" in terminal.shown()
    assert "| third\r\n" in terminal.shown()


def test_a_bar_that_cannot_be_closed_does_not_keep_a_line_back(monkeypatch):
    def fail():
        raise AttributeError("half made")

    terminal = Terminal()
    shown = Display(terminal.out)
    shown.bars = [SimpleNamespace(close=fail)]
    shown.print_line("the decision")
    assert "the decision" in terminal.shown()


@pytest.mark.parametrize(
    "error",
    [BrokenPipeError(), OSError(errno.EIO, "gone"), OSError(errno.ENOSPC, "full"),
     ValueError("I/O operation on closed file")],
)  # fmt: skip
@pytest.mark.parametrize("after", [0, 1, 2])
def test_a_stream_that_takes_nothing_more_ends_the_talking_alone(always, error, after):
    shown = Display(Failing(error, after))
    for _ in range(3):
        shown.print_line("a line")
        shown.progress([flight()], "the plan")
    assert shown.out is None
    assert not shown.unprinted


def closed():
    stream = io.StringIO()
    stream.close()
    return stream


@pytest.mark.parametrize(
    "make", [lambda: None, closed, object, lambda: SimpleNamespace(write=print)],
    ids=["none", "closed", "no stream at all", "only write"],
)  # fmt: skip
def test_a_standard_output_that_is_none_or_nothing(always, monkeypatch, make):
    monkeypatch.setattr(sys, "stdout", make())
    shown = Display()
    shown.progress([flight()], "the plan")
    shown.print_line("a line")
    shown.clear()


def test_a_full_pipe_holds_nothing_up_and_loses_no_lasting_line(always):
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    filled = 0
    try:
        while True:
            filled += os.write(writing, b"x" * 4096)
    except BlockingIOError:
        os.set_blocking(writing, True)
    out = open(writing, "w")  # noqa: SIM115
    shown = Display(out)
    for _ in range(3):
        shown.progress([flight()], "the plan")
    signal.alarm(20)  # it would wait here for a reader for ever
    shown.print_line("the decision")
    signal.alarm(0)
    assert list(shown.unprinted) == ["the decision"]
    while filled:
        filled -= len(os.read(reading, min(filled, 1 << 16)))
    shown.print_line("the next")
    assert os.read(reading, 1 << 16) == b"the decision\nthe next\n"
    os.close(reading)


def test_a_display_whose_reader_has_left_leaves_no_complaint_behind():
    program = (
        "import os; r, w = os.pipe(); os.dup2(w, 1); os.close(r)\n"
        "from ablation.execute.display import Display\n"
        "Display().print_line('a line')\n"
    )
    env = {**os.environ, "PYTHONUNBUFFERED": ""}
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=env, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")


def test_what_could_not_be_said_in_time_is_said_at_the_end():
    program = (
        "import os; from ablation.execute.display import Display\n"
        "os.set_blocking(1, False)\n"
        "try:\n"
        "    while True: os.write(1, b'x' * 4096)\n"
        "except BlockingIOError: os.set_blocking(1, True)\n"
        "Display().print_line('the decision')\n"
        "os.write(2, b'not held up')\n"
    )
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, **pipes)
    assert process.stderr.read(11) == b"not held up"
    out, _ = process.communicate(timeout=20)
    assert out.lstrip(b"x") == b"the decision\n"


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [
        ("utf-8", "✅ PROCEED: \u22120.003 ±0.005 → 4 ─"),
        ("latin-1", "? PROCEED: -0.003 ±0.005 -> 4 -"),
        ("ascii", "? PROCEED: -0.003 +-0.005 -> 4 -"),
    ],
)
def test_signs_that_a_terminal_lacks_keep_their_meaning(encoding, shown):
    terminal = Terminal(encoding=encoding)
    Display(terminal.out).print_line("✅ PROCEED: \u22120.003 ±0.005 → 4 ─")
    assert terminal.shown() == shown + "\r\n"


def test_a_stream_of_somebody_s_own_that_knows_ascii_alone():
    class Own:
        said = ""

        def write(self, text):
            self.said += text.encode("ascii").decode()

        def flush(self):
            pass

    out = Own()
    shown = Display(out)
    shown.print_line("✅ PROCEED: \u22120.003")
    shown.print_line("the next")
    assert out.said == "? PROCEED: -0.003\nthe next\n"


# ---------------------------------------------------------------------------------------------
# console.run: how whole programs print

PROGRAM = """
import os, sys
sys.path.insert(0, {root!r})
from ablation.cli import console

def main():
    for number in range({lines}):
        print("line", number, "\u2705 \u2212 \\udce4")
    sys.stderr.write("a complaint\\n")
    with open("written", "w") as file:
        file.write(f"{{file.fileno() > 2}} {{all(map(os.get_inheritable, range(3)))}}")
    return {code}

sys.exit(console.run(main))
"""


@pytest.mark.parametrize(
    ("how", "code", "left"),
    [
        ("", 0, 0),
        (">&-", 0, 0),
        ("2>&-", 0, 0),
        ("<&-", 0, 0),
        (">&- 2>&- <&-", 0, 0),
        ("| head -n 1; exit ${PIPESTATUS[0]}", 141, 0),
        ("| true; exit ${PIPESTATUS[0]}", 141, 0),
        ("| head -n 1; exit ${PIPESTATUS[0]}", 3, 3),
        (">/dev/full", 141, 0),
    ],
)
@pytest.mark.parametrize(("encoding", "lines"), [("utf-8", 20000), ("ascii", 20000), ("ascii", 1)])
def test_a_program_goes_on_to_its_end_whatever_becomes_of_its_streams(
    tmp_path, how, code, left, encoding, lines
):
    if lines == 1 and "|" in how:
        how, code = "", left  # whether the reader has left by then is chance
    (tmp_path / "program.py").write_text(PROGRAM.format(root=str(ROOT), lines=lines, code=left))
    done = subprocess.run(
        ["bash", "-c", f"'{sys.executable}' program.py {how}"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUNBUFFERED": ""},
        stdin=subprocess.DEVNULL,
        capture_output=True,
    )
    assert done.returncode == code, done.stderr
    assert b"Traceback" not in done.stderr
    assert b"Exception" not in done.stderr
    # no file of its own, nor of the programs it calls, in place of a closed stream
    assert (tmp_path / "written").read_text() == "True True"
    assert (b"No space left" in done.stderr) == ("full" in how)


def test_what_a_program_ends_with_is_kept():
    def main():
        sys.exit(2)

    out, err, stdin = sys.stdout, sys.stderr, sys.stdin
    try:
        with pytest.raises(SystemExit) as ended:
            console.run(main)
    finally:
        sys.stdout, sys.stderr, sys.stdin = out, err, stdin
    assert ended.value.code == 2


def test_what_is_said_cannot_steer_the_terminal():
    out = io.StringIO()
    text = "📊 DECISION: ±0.1 → go\nNew experiment: a\x1b]0;title\x07\x1b[31m\r\u202eb"
    Display(out).print_line(text)
    assert out.getvalue() == "📊 DECISION: ±0.1 → go\nNew experiment: a ]0;title  [31m  b\n"


SIGNALLED = """
import os, signal, sys, time
sys.path.insert(0, {root!r})
from ablation.cli import console

def signal_a_fork(number):
    ready, say = os.pipe()
    if not (child := os.fork()):
        os.write(say, b"!")
        time.sleep(5)
        os._exit(0)
    os.read(ready, 1)  # a fork that has only begun forgets signals
    os.kill(child, number)
    ended = os.waitpid(child, 0)[1]
    print(os.WIFSIGNALED(ended) and os.WTERMSIG(ended))

console.stop_quietly("program")
for number in console.STOPPING:
    signal_a_fork(number)
    with console.interruptible():
        signal_a_fork(number)
try:
    with console.interruptible():
        os.kill(os.getpid(), signal.SIGTERM)
except console.Stopped as stop:
    print(stop.number)
os.kill(os.getpid(), signal.SIGINT)
"""


def test_a_fork_that_is_stopped_ends_as_the_signal_would_end_it_without_a_word():
    """Workers of a pool are forks, and their pool ends them with SIGTERM."""
    done = subprocess.run(
        [sys.executable, "-c", SIGNALLED.format(root=str(ROOT))],
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.split() == ["2", "2", "15", "15", "15"]
    assert (done.returncode, done.stderr) == (130, "program: stopped; nothing was in flight\n")
