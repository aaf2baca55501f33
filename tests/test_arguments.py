"""How a command line speaks: options given twice, the words of the system, paths to paste."""

import errno
import os
import subprocess
from pathlib import Path

import pytest

from ablation.cli.arguments import REMEDIES, Parser, a_path, pasteable, plain_words


def parser() -> Parser:
    made = Parser(prog="x.py", once=("--arms",))
    made.add_argument("--arms")
    made.add_argument("--dir", type=a_path)
    made.add_argument("--skips", action="store_true")
    return made


@pytest.mark.parametrize("words", ["--arms a --arms b", "--arms=a --arms b", "--arms a --arms=a",
    "--arms a --dir x --arms a", "--arms a --arms a --arms a"])  # fmt: skip
def test_an_option_given_twice_of_which_all_may_be_meant_is_refused(words, capsys):
    with pytest.raises(SystemExit) as ended:
        parser().parse_args(words.split())
    complaint = capsys.readouterr().err
    assert ended.value.code == 2
    assert "times: give it once" in complaint
    assert complaint.count("\n") == 1


@pytest.mark.parametrize("words", ["--arms a --dir x --dir y", "--arms=--arms --dir y"])
def test_of_other_options_the_last_one_counts(words):
    assert parser().parse_args(words.split()).dir == Path("y")


NAMES = ["plain", "a b", "a'b", 'a"b', "$(x)", "-lead", "a\nb", "a\tb\x1b[31m", "ünï", "a\\b\n",
         "a'b\nc", os.fsdecode(b"\xff\xfe"), "a\x1bb0", "a\x85"]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_path_to_paste_is_one_printable_word_that_bash_takes_for_it(name):
    word = pasteable(Path(name))
    assert word.isprintable()
    said = subprocess.run(["bash", "-c", f"printf %s {word}"], stdout=subprocess.PIPE).stdout
    assert os.fsdecode(said) == name


@pytest.mark.parametrize("number", REMEDIES, ids=errno.errorcode.get)
def test_the_words_of_the_system_name_file_and_remedy(number):
    said = plain_words(OSError(number, os.strerror(number), "some/file"))
    assert said == f"some/file: {os.strerror(number)}; {REMEDIES[number]}"
    assert "Errno" not in plain_words(OSError(number, os.strerror(number)))


def test_other_errors_speak_for_themselves():
    assert plain_words(ValueError("--runs 0: give more")) == "--runs 0: give more"
    assert plain_words(OSError("squeue does not answer")) == "squeue does not answer"


def test_a_current_folder_that_is_gone_is_told(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(OSError) as caught:
        Path("experiments").mkdir()
    assert plain_words(caught.value) == "the current folder is gone; cd to one that is there"
