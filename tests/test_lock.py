"""One orchestrator at a time may carry out an experiment's runs, on any disk."""

import errno
import json
import multiprocessing
import os
import threading
import time

import pytest

from ablation.execute import lock, watcher
from ablation.execute.lock import Lock, holder
from ablation.runs.store import write_json


def no_links(number):
    """A file system without hard links says so with one of several errors."""

    def refuse(*_, **__):
        raise OSError(number, os.strerror(number))

    return refuse


def take(folder, together, answers):
    said = []
    together.wait(10)
    try:
        lock = Lock(folder, said.append).__enter__()
        lock.touched_s = -1e9
        lock.touch()  # it is this one's
        answers.put(("taken", len(said)))
    except ValueError:
        answers.put(("refused", len(said)))
    together.wait(10)  # hold it until all have tried


@pytest.mark.parametrize("links", [True, False])
def test_of_many_that_find_a_stale_lock_one_takes_it(tmp_path, monkeypatch, links):
    if not links:
        monkeypatch.setattr(os, "link", no_links(errno.EPERM))
    many, processes = 6, multiprocessing.get_context("fork")
    for _ in range(10):
        write_json(tmp_path / "lock.json", {**Lock(tmp_path).me, "pid": 2**22 + 1})
        together, answers = processes.Barrier(many), processes.Queue()
        takers = [processes.Process(target=take, args=(tmp_path, together, answers))
                  for _ in range(many)]  # fmt: skip
        for taker in takers:
            taker.start()
        got = [answers.get(timeout=10) for _ in takers]
        for taker in takers:
            taker.join(10)
        assert [answer for answer, _ in got].count("taken") == 1
        assert sum(said for _, said in got) == 1  # one of them removed the stale lock


@pytest.mark.parametrize(
    ("lock", "silent_s", "lives"),
    [
        ({}, 0, True),
        ({}, 1e6, True),  # it lives, however silent
        ({"pid": 2**22 + 1}, 0, False),
        ({"born": 1}, 0, False),  # the id was given to another process since
        ({"pid": "x; rm"}, 0, False),
        ({"boot": "an earlier one"}, 0, False),
        ({"host": "elsewhere", "boot": "its own"}, 60, True),
        ({"host": "elsewhere", "boot": "its own"}, 600, False),
        ({"host": "elsewhere", "boot": "its own"}, -60, True),
        ({"host": "elsewhere", "boot": "its own"}, -6000, False),  # a clock that was ahead
        ({"namespace": "of a container"}, 60, True),
        ({"namespace": "of a container"}, 600, False),
        ("", 0, False),
        ("[]", 0, False),
    ],
)
def test_who_holds_a_lock_and_whether_it_lives(tmp_path, lock, silent_s, lives):
    path = tmp_path / "lock.json"
    me = Lock(tmp_path).me
    path.write_text(lock if isinstance(lock, str) else json.dumps({**me, **lock}))
    assert holder(path, path.stat().st_mtime + silent_s)[1] == lives


def test_a_lock_says_its_holder_safely(tmp_path):
    write_json(tmp_path / "lock.json", {**Lock(tmp_path).me, "host": "\x1b[2J", "boot": "x"})
    with pytest.raises(ValueError, match=r"host  \[2J, pid \d+"):
        Lock(tmp_path).__enter__()


@pytest.mark.parametrize("age_s", [600, -6000], ids=["seems old", "of tomorrow"])
@pytest.mark.parametrize("lives", [True, False])
def test_a_lock_out_of_sight_is_watched_before_it_is_lost(tmp_path, monkeypatch, age_s, lives):
    """Clocks of hosts and disks differ; whoever lives touches its lock."""
    monkeypatch.setattr(lock, "OBSERVE_S", 0.5)
    path, said = tmp_path / "lock.json", []
    write_json(path, {**Lock(tmp_path).me, "host": "elsewhere", "boot": "its own"})
    then = time.time() - age_s
    os.utime(path, (then, then))
    until = threading.Event()

    def touch():
        while not until.wait(0.02):
            os.utime(path, (then + time.monotonic(), then + time.monotonic()))

    toucher = threading.Thread(target=touch)
    if lives:
        toucher.start()
    try:
        if lives:
            with pytest.raises(ValueError, match=r"host elsewhere.*lock\.json"):
                Lock(tmp_path, said.append).__enter__()
        else:
            with Lock(tmp_path, said.append):
                assert "Took over" in said[-1]
    finally:
        until.set()
        if lives:
            toucher.join()


def test_half_a_lock_is_watched_before_it_is_taken_over(tmp_path, monkeypatch):
    """Where it cannot be made whole at once, its maker may be about to write it."""
    monkeypatch.setattr(lock, "OBSERVE_S", 60)
    path = tmp_path / "lock.json"
    path.touch()
    writer = threading.Timer(0.3, write_json, (path, Lock(tmp_path).me))
    writer.start()
    with pytest.raises(ValueError, match="being run by another"):
        Lock(tmp_path, lambda _: None).__enter__()
    writer.join()


@pytest.mark.parametrize("number", watcher.NO_HARD_LINKS, ids=os.strerror)
def test_without_hard_links_there_is_one_orchestrator_too(tmp_path, monkeypatch, number):
    monkeypatch.setattr(os, "link", no_links(number))
    with Lock(tmp_path) as lock:
        lock.touched_s = -1e9
        lock.touch()  # it is this one's
        with pytest.raises(ValueError, match=f"pid {os.getpid()}"):
            Lock(tmp_path).__enter__()
    assert {path.name for path in tmp_path.iterdir()} == {".lock.guard"}


IN_PLACE_OF_A_FILE = {
    "a link": lambda path, elsewhere: path.symlink_to(elsewhere),
    "a link to nothing": lambda path, elsewhere: path.symlink_to(elsewhere.with_name("nowhere")),
    "a pipe": lambda path, _: os.mkfifo(path),
    "a folder": lambda path, _: path.mkdir(),
    "an endless file": lambda path, _: path.symlink_to("/dev/zero"),
}


@pytest.mark.parametrize("make", IN_PLACE_OF_A_FILE.values(), ids=IN_PLACE_OF_A_FILE)
@pytest.mark.parametrize("name", ["lock.json", ".lock.guard"])
def test_what_is_no_lock_is_named_and_nothing_is_written_through_it(tmp_path, name, make):
    exp_dir, elsewhere = tmp_path / "exp", tmp_path / "elsewhere"
    exp_dir.mkdir()
    elsewhere.write_text("precious")
    if name == ".lock.guard":  # which is for those that find a lock
        write_json(exp_dir / "lock.json", {**Lock(exp_dir).me, "pid": 2**22 + 1})
    make(exp_dir / name, elsewhere)
    with pytest.raises(ValueError, match=f"{name} is no regular file") as told:
        Lock(exp_dir).__enter__()
    assert "\n" not in str(told.value)
    assert elsewhere.read_text() == "precious"
    assert {path.name for path in tmp_path.iterdir()} == {"exp", "elsewhere"}


HUGE = '{"host": "' + "x" * (1 << 21) + '"}'


@pytest.mark.parametrize("text", [HUGE, "[" * 99_999, "\x00", '{"pid": 1e999}'],
                         ids=["huge", "deep", "binary", "no number"])  # fmt: skip
def test_a_lock_of_hostile_contents_is_stale_in_the_end(tmp_path, monkeypatch, text):
    monkeypatch.setattr(lock, "OBSERVE_S", 0.1)
    (tmp_path / "lock.json").write_text(text)
    then = time.time() - 1000
    os.utime(tmp_path / "lock.json", (then, then))
    said = []
    with Lock(tmp_path, said.append):
        assert len(said[-1]) < 400


def test_a_lock_that_became_a_link_is_lost_and_not_touched(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    with Lock(tmp_path) as lock:
        (tmp_path / "lock.json").rename(elsewhere)
        (tmp_path / "lock.json").symlink_to(elsewhere)
        os.utime(elsewhere, (1, 1))
        lock.touched_s = -1e9
        with pytest.raises(ValueError, match="no longer this orchestrator's"):
            lock.touch()
    assert elsewhere.stat().st_mtime == 1


def test_an_orchestrator_that_lost_its_lock_stops(tmp_path):
    with Lock(tmp_path) as lock:
        write_json(tmp_path / "lock.json", {"host": "another"})
        lock.touched_s = -1e9
        with pytest.raises(ValueError, match="no longer this orchestrator's"):
            lock.touch()
    assert (tmp_path / "lock.json").exists()
