"""Files that anybody can have written: a value or one line, never a wait, never a link followed."""

import json
import os
import socket

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ablation.runs import untrusted
from ablation.runs.store import write_json
from ablation.runs.untrusted import MAX_DEPTH, open_regular, printable, read_json


def socket_at(path):
    where = os.getcwd()
    os.chdir(path.parent)  # a socket's path may be no longer than 107 bytes
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.chdir(where)


def link_to(target):
    return lambda path: path.symlink_to(target)


NOT_FILES = {  # how it is made, a word of the message
    "a FIFO": (os.mkfifo, "a FIFO, not a regular file"),
    "a folder": (os.mkdir, "a folder, not a regular file"),
    "a socket": (socket_at, "a socket"),
    "a link to an endless device": (link_to("/dev/zero"), "a link; put the file itself there"),
    "a link to a file": (link_to("/etc/hostname"), "a link; put the file itself there"),
    "a link to itself": (link_to("config.json"), "a link; put the file itself there"),
    "a link to nothing": (link_to("gone"), "a link; put the file itself there"),
}


@pytest.mark.parametrize("read", [open_regular, read_json])
@pytest.mark.parametrize(("make", "why"), NOT_FILES.values(), ids=NOT_FILES)
def test_what_is_no_file_is_named_at_once(tmp_path, make, why, read):
    path = tmp_path / "config.json"
    make(path)
    with pytest.raises(ValueError, match=f"{path}: {why}"):
        read(path)


def test_a_device_is_no_file(tmp_path):
    with pytest.raises(ValueError, match="/dev/zero: a device"):
        open_regular("/dev/zero")
    (tmp_path / "file").write_text("{}")
    with pytest.raises(ValueError, match="a part of this path is a file"):
        read_json(tmp_path / "file" / "config.json")
    with pytest.raises(ValueError, match="too long a path"):
        read_json(tmp_path / ("x" * 300))


def test_a_file_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    def denied(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(untrusted.os, "open", denied)
    with pytest.raises(ValueError, match=r"config\.json: may not be read; chmod"):
        read_json(tmp_path / "config.json")


def test_what_is_not_there_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "config.json")


DEEP = b'{"a": %b}'
CONTENTS = {
    "nothing": (b"", "not JSON"),
    "invalid UTF-8": (b'{"a": "\xff\xfe"}', "not JSON"),
    "zeros": (bytes(100), "not JSON"),
    "a list": (b"[1]", "holds a list, not an object"),
    "a number": (b"1", "holds a int, not an object"),
    "NaN": (b'{"a": NaN}', "NaN is no number of JSON"),
    "infinity": (b'{"a": -Infinity}', "-Infinity is no number of JSON"),
    "a number beyond all bounds": (b'{"a": 1e999}', "1e999 is beyond all bounds"),
    "100,000 digits": (b'{"a": %b}' % (b"9" * 100_000), "a number of 100000 digits"),
    "a name twice": (b'{"a": 1, "a": 2}', "'a' is given twice"),
    "a name twice inside": (b'{"b": [{"a": 1, "\\u0061": 2}]}', "'a' is given twice"),
    "a name with controls twice": (b'{"\\u001b[2J": 1, "\\u001b[2J": 2}', "is given twice"),
    "too deep a list": (DEEP % (b"[" * MAX_DEPTH + b"]" * MAX_DEPTH), "nested deeper than 64"),
    "too deep an object": (b'{"a":' * 65 + b"1" + b"}" * 65, "nested deeper than 64"),
    "deeper than Python": (DEEP % (b"[" * 100_000 + b"]" * 100_000), "not JSON"),
    "open for ever": (b"[" * 100_000, "not JSON"),
}


@pytest.mark.parametrize(("data", "why"), CONTENTS.values(), ids=CONTENTS)
def test_what_is_no_record_is_one_line(tmp_path, data, why):
    path = tmp_path / "config.json"
    path.write_bytes(data)
    with pytest.raises(ValueError) as error:
        read_json(path)
    assert str(error.value).startswith(f"{path}: ")
    assert why in str(error.value)
    assert str(error.value).isprintable()


def test_at_the_bounds_a_record_is_read(tmp_path, monkeypatch):
    path = tmp_path / "config.json"
    text = DEEP % (b"[" * (MAX_DEPTH - 1) + b"]" * (MAX_DEPTH - 1))
    monkeypatch.setattr(untrusted, "MAX_JSON", len(text))
    path.write_bytes(text)
    assert "a" in read_json(path)
    path.write_bytes(text + b" ")
    with pytest.raises(ValueError, match="more than 0 MiB"):
        read_json(path)
    path.write_text('{"a": [' + ", ".join(["[]"] * 20) + "]}")  # wide is not deep
    assert read_json(path)


def test_an_endless_file_is_read_to_its_bound_only(tmp_path):
    path = tmp_path / "config.json"
    with open(path, "wb") as file:
        file.truncate(1 << 40)  # a hole
    with pytest.raises(ValueError, match="more than 16 MiB"):
        read_json(path)


def test_a_path_with_control_characters_is_printable(tmp_path):
    folder = tmp_path / "a\x1b[2Jb\udcff"
    folder.mkdir()
    for content in ("{", "[]", None):
        path = folder / "config.json"
        path.write_text(content) if content else (path.unlink(), path.mkdir())
        with pytest.raises(ValueError) as error:
            read_json(path)
        assert str(error.value).isprintable()


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=60) | st.text(alphabet='{}[]",:\\u0aeE-+.9NI ').map(str.encode))
def test_any_bytes_are_a_record_or_one_line(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("any") / "config.json"
    path.write_bytes(data)
    try:
        assert isinstance(read_json(path), dict)
    except ValueError as error:
        assert str(error).isprintable()


# ---------------------------------------------------------------------------------------------
# Writing


def temporary(path, more=""):
    return path.with_name(f".{path.name}.{os.getpid()}{more}.tmp")


def test_nothing_is_written_through_a_link(tmp_path):
    other = tmp_path / "other"
    other.write_text("precious")
    path = tmp_path / "result.json"
    path.symlink_to(other)
    for more in ("", "-1"):
        temporary(path, more).symlink_to(other)
    write_json(path, {"a": 1})
    assert other.read_text() == "precious"
    assert not path.is_symlink()
    assert read_json(path) == {"a": 1}


def in_the_way(path):
    path.mkdir()
    (path / "x").touch()


@pytest.mark.parametrize("litter", [lambda path: path.write_text("half"), in_the_way, os.mkfifo])
def test_what_a_killed_process_left_blocks_no_later_write(tmp_path, litter):
    path = tmp_path / "result.json"
    litter(temporary(path))
    for value in ({"a": 1}, {"a": 2}):
        write_json(path, value)
        assert json.loads(path.read_text()) == value
    left = {file.name for file in tmp_path.iterdir()} - {"result.json"}
    assert left <= {temporary(path).name}  # a folder that is not empty


def test_a_write_into_a_place_that_is_taken_names_it_and_leaves_nothing(tmp_path):
    path = tmp_path / "result.json"
    in_the_way(path)
    with pytest.raises(OSError, match=r"result\.json"):
        write_json(path, {"a": 1})
    assert [file.name for file in tmp_path.iterdir()] == ["result.json"]


def test_a_printable_text_is_cut_and_says_so():
    assert printable("a\x1b[31m\nb\x00 ", 100) == "a [31m b"
    assert printable("x" * 11, 10) == "x" * 9 + "…"
