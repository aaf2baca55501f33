"""What can be known before the first run is said before it: one line, the value, the remedy."""

import os
import struct
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from ablation.execute import before_run_1
from ablation.execute.before_run_1 import HEADER_BYTES, MAGIC, VERSION, check_materials
from ablation.folder.materials import Materials
from ablation.study.profiles import PROFILES
from ablation.study.study import SHORT
from tests.support.invent import ARMS, experiment, rescaled

ROOT = Path(__file__).resolve().parents[1]
MINI = PROFILES["mini"]
T, BATCH = MINI.own_scale.sequence_length, MINI.own_scale.batch_size
VAL = MINI.own_scale.val_tokens + 1


def write_shard(path, tokens, header=None, largest=255, at=-1):
    """Zeros, and one token that is the largest."""
    count = tokens if header is None else header[2]
    magic, version = (MAGIC, VERSION) if header is None else header[:2]
    with open(path, "wb") as file:
        file.write(struct.pack("<iii", magic, version, count).ljust(HEADER_BYTES, b"\0"))
        file.truncate(HEADER_BYTES + 2 * tokens)
        if tokens:
            file.seek(HEADER_BYTES + 2 * (at % tokens))
            file.write(struct.pack("<H", largest))


@pytest.fixture
def ours(tmp_path):
    """This project's trainer, and data for 100 iterations of the mini profile, no more."""
    (tmp_path / "data").mkdir()
    write_shard(tmp_path / "data" / "x_train_000001.bin", 60 * BATCH * T + 1)
    write_shard(tmp_path / "data" / "x_train_000002.bin", 40 * BATCH * T + T)
    write_shard(tmp_path / "data" / "x_val_000000.bin", VAL)
    return Materials(ROOT / "train_gpt.py", tmp_path / "data")


@pytest.fixture
def another(tmp_path, ours):
    """A trainer that is not ours, with the same data."""
    script = tmp_path / "train.py"
    script.write_text("print('training')\n")
    return Materials(script, ours.data_dir)


def refusal(m, e) -> str:
    with pytest.raises(ValueError) as refused:
        check_materials(m, e)
    line = str(refused.value)
    assert line.isprintable()
    return line


# ---------------------------------------------------------------------------------------------
# Arguments


def by_hand(*seeds, arms=("baseline",), **changes):
    arms = tuple(ARMS[name] for name in arms)
    return experiment(plan="manual", arms=arms, seeds=seeds, **changes)


def on(processes, pass_size=64, device="cuda", profile=MINI):
    profile = rescaled(profile, device_batch_size=pass_size)
    return experiment(profile=profile, processes=processes, device=device)


@pytest.mark.parametrize(
    ("e", "parts"),
    [
        (by_hand(-1), ["--seeds", "seed -1", "0 to 4294967295"]),
        (by_hand(1, 2**32), ["--seeds", "seed 4294967296", "0 to 4294967295"]),
        (by_hand(2**64), ["--seeds", str(2**64)]),
        (by_hand(2**32 - 1, arms=("aux_6", "aux_6_repeat")), ["aux_6_repeat", "4294968295"]),
        (on(3), ["3 processes", "16 sequences", "give --num_gpus 2"]),
        (on(32), ["32 processes", "give --num_gpus 16"]),
        (on(3, device="cpu"), ["3 processes", "give --nodes_per_run 2"]),
    ],
)
def test_arguments_that_cannot_work_are_named(e, parts, ours, another):
    for m in (ours, another):
        line = refusal(m, e)
        for part in parts:
            assert part in line


@pytest.mark.parametrize(
    ("e", "parts"),
    [
        (on(1, 3), ["--device_batch_size 3", "the 16 sequences", "give 2"]),
        (on(2, 5), ["--device_batch_size 5", "the 8 sequences", "give 4"]),
        (on(4, 3), ["--device_batch_size 3", "the 4 sequences", "give 2"]),
    ],
)
def test_passes_of_our_trainer_are_equal(e, parts, ours, another):
    line = refusal(ours, e)
    for part in parts:
        assert part in line
    check_materials(another, e)  # which may know how to make unequal ones


@pytest.mark.parametrize(
    "e",
    [
        by_hand(0, 2**32 - 1),
        by_hand(2**32 - 1001, arms=("aux_6", "aux_6_repeat")),
        by_hand(2**32 - 1, arms=("aux_6", "aux_8")),
        on(1),
        on(16, 1),
        on(2, 8),
        on(2, 4),
    ],
)
def test_what_can_work_is_let_through(e, ours, another):
    check_materials(ours, e)
    check_materials(another, e)


# ---------------------------------------------------------------------------------------------
# How much text


@pytest.mark.parametrize(
    ("e", "enough"),
    [
        (experiment(full_iterations=100), True),
        (experiment(full_iterations=101), False),
        (experiment(full_iterations=101, plan="adaptive"), False),
        (by_hand(1, full_iterations=101), False),
        (by_hand(1, arms=("screen_baseline",), full_iterations=510), True),  # short runs
        (by_hand(1, arms=("screen_baseline",), full_iterations=515), False),
        (by_hand(1, arms=("screen_baseline", "aux_6"), full_iterations=510), False),
    ],
)
def test_the_longest_run_has_its_windows_in_the_shards(e, enough, ours, another):
    check_materials(another, e)  # what it needs is its own affair
    if enough:
        check_materials(ours, e)
    else:
        line = refusal(ours, e)
        assert "2 train shard(s) with 1,600 windows of 64 tokens" in line
        assert "at most 100" in line
        assert "prepare" not in line  # the standard library has no more


def test_a_window_needs_a_token_after_its_last(ours):
    e = experiment(full_iterations=100)
    write_shard(ours.data_dir / "x_train_000002.bin", 40 * BATCH * T)
    assert "1,599 windows" in refusal(ours, e)


@pytest.mark.parametrize(
    ("profile", "changes", "shards"),
    [
        ("speedrun", {}, 27),  # FACTS: 5100 iterations of 524,288 tokens
        ("small", {}, 2),
        ("speedrun", {"full_iterations": 1000}, 6),
        ("speedrun", {"full_iterations": round(5100 / SHORT)}, 103),  # all that there are
        ("speedrun", {"plan": "manual", "arms": (ARMS["screen_aux_6"],), "seeds": (1,)}, 6),
    ],
)
def test_the_remedy_asks_for_as_many_shards_as_the_longest_run_needs(
    profile, changes, shards, tmp_path
):
    profile = PROFILES[profile]
    fields = {"profile": profile, "full_iterations": profile.full_iterations} | changes
    e = experiment(**fields)
    command = f"python data/prepare.py fineweb --shards {shards}"
    (tmp_path / "empty").mkdir()
    m = Materials(ROOT / "train_gpt.py", tmp_path / "empty")
    line = refusal(m, e)
    assert line.endswith(f"make them: {command} --output_dir {tmp_path / 'empty'}")
    assert before_run_1.prepare(ROOT / profile.data_dir, e) == command


@pytest.mark.parametrize(("there", "missing"), [(27, False), (26, True)])
def test_27_shards_are_enough_for_the_speedrun_and_26_are_not(there, missing, tmp_path):
    """Files of 200 MB that take no room, looked into in no time."""
    for number in range(1, there + 1):
        write_shard(tmp_path / f"fineweb_train_{number:06d}.bin", 100_000_000, largest=50256)
    write_shard(tmp_path / "fineweb_val_000000.bin", 100_000_000, largest=50256)
    m, profile = Materials(ROOT / "train_gpt.py", tmp_path), PROFILES["speedrun"]
    e = experiment(profile=profile, full_iterations=5100, processes=8)
    if missing:
        line = refusal(m, e)
        assert "26 train shard(s) with 2,539,056 windows" in line
        assert "need 2,611,200" in line
        assert "python data/prepare.py fineweb --shards 27" in line
        assert "at most 4,959" in line
    else:
        check_materials(m, e)
        line = refusal(m, replace(e, full_iterations=10**12))
        assert "prepare" not in line  # nobody has so many
        assert "at most 5,149" in line


@pytest.mark.parametrize("tokens", [0, T, MINI.own_scale.val_tokens])
def test_validation_tokens_have_to_be_there(tokens, ours):
    write_shard(ours.data_dir / "x_val_000000.bin", tokens)
    assert "validation tokens in whole windows" in refusal(ours, experiment())


def test_an_empty_shard_beside_others_is_no_fault(ours):
    write_shard(ours.data_dir / "x_train_000003.bin", 0)
    check_materials(ours, experiment())


# ---------------------------------------------------------------------------------------------
# Damaged and foreign shards


def remove(path):
    path.unlink()


def as_folder(path):
    remove(path)
    path.mkdir()


def as_pipe(path):
    remove(path)
    os.mkfifo(path)


def link_to(target):
    def change(path):
        remove(path)
        path.symlink_to(target)

    return change


def rewritten(tokens=VAL, **options):
    return lambda path: write_shard(path, tokens, **options)


OF_ANY_TRAINER = {  # what somebody did to a shard, and the words that answer it
    "removed": (remove, "make them: python data/prepare.py"),
    "a folder": (as_folder, "not a regular file"),
    "a pipe": (as_pipe, "not a regular file"),
    "a link to nothing": (link_to("nowhere"), "cannot be read (No such file"),
    "a link to a device": (link_to("/dev/zero"), "not a regular file"),
    "cut off": (lambda path: os.truncate(path, 2000), "tokens announced, but 2000 bytes"),
    "only a header": (lambda path: os.truncate(path, 12), "tokens announced, but 12 bytes"),
    "longer": (lambda path: os.truncate(path, 10**6), "tokens announced, but 1000000 bytes"),
    "fewer than none": (rewritten(header=(20240520, 1, -1)), "-1 tokens announced"),
    "a large vocabulary": (rewritten(largest=256), "token 256, but the profile's vocabulary"),
    "its first token": (rewritten(largest=60_000, at=0), "token 60000"),
    "a large one of many": (rewritten(tokens=10**7, largest=256), "token 256"),
}
OF_OURS = {
    "empty": (lambda path: os.truncate(path, 0), "not a token shard"),
    "text": (lambda path: path.write_bytes(b"tokens"), "not a token shard"),
    "another magic": (rewritten(header=(20240521, 1, VAL)), "not a token shard"),
    "another version": (rewritten(header=(20240520, 2, VAL)), "not a token shard"),
}


@pytest.mark.parametrize("damage", [*OF_ANY_TRAINER, *OF_OURS])
@pytest.mark.parametrize("name", ["x_train_000001.bin", "x_val_000000.bin"])
def test_a_damaged_shard_is_named_with_the_remedy(name, damage, ours, another):
    if name.startswith("x_train"):
        remove(ours.data_dir / "x_train_000002.bin")
    change, words = (OF_ANY_TRAINER | OF_OURS)[damage]
    change(ours.data_dir / name)
    line = refusal(ours, experiment())
    assert words in line
    assert str(ours.data_dir) in line
    if damage in OF_OURS:  # another trainer may have data of another kind
        check_materials(another, experiment())
    else:
        assert words in refusal(another, experiment())


def test_shards_behind_links_are_shards(ours, tmp_path):
    (tmp_path / "farm").mkdir()
    for path in ours.data_dir.iterdir():
        (tmp_path / "farm" / path.name).symlink_to(path)
    (tmp_path / "link").symlink_to(tmp_path / "farm")
    check_materials(Materials(ours.script, tmp_path / "link"), experiment())


@pytest.mark.parametrize(
    ("folder", "words"),
    [
        ("nowhere", "make them: python data/prepare.py --output_dir"),
        ("file", "Not a directory"),
        ("a folder with a blank", "--output_dir '"),
    ],
)
def test_a_data_folder_without_shards_is_named(folder, words, ours, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "a folder with a blank").mkdir()
    line = refusal(Materials(ours.script, tmp_path / folder), experiment())
    assert words in line
    assert str(tmp_path / folder) in line


def test_a_folder_that_this_user_may_not_read_is_named(ours, monkeypatch):
    def denied(_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "listdir", denied)
    assert f"--data_dir {ours.data_dir}: Permission denied" in refusal(ours, experiment())


# ---------------------------------------------------------------------------------------------
# Whose trainer


@pytest.mark.parametrize(
    ("files", "is_ours"),
    [
        (["train_gpt.py", "aux_heads.py"], True),
        (["train_gpt.py"], False),  # modded-nanogpt's has this name too
        (["train.py", "aux_heads.py"], False),
    ],
)
def test_our_trainer_is_known_by_its_files_also_where_it_was_edited(files, is_ours, tmp_path):
    for name in files:
        (tmp_path / name).write_text("import aux_heads\n" if name.startswith("train") else "")
    code = Materials(tmp_path / files[0], tmp_path).code
    assert before_run_1.is_ours(code) is is_ours


def test_the_copy_of_our_trainer_is_ours(ours, tmp_path):
    ours.code.copy_to(tmp_path / "copy")
    assert before_run_1.is_ours(Materials(tmp_path / "copy" / "train_gpt.py", ours.data_dir).code)


def test_a_trainer_that_cannot_be_read_is_said_first(ours, tmp_path):
    (tmp_path / "broken.py").write_text("def f(:\n")
    assert "broken.py, line 1" in refusal(
        Materials(tmp_path / "broken.py", ours.data_dir), experiment()
    )
    assert "no such file" in refusal(Materials(tmp_path / "none.py", ours.data_dir), experiment())


def test_looking_into_shards_loads_no_numpy(ours):
    code = (
        "import sys; from pathlib import Path; from ablation.execute import before_run_1;"
        "from ablation.folder import materials; from tests.support.invent import experiment;"
        f"m = materials.Materials(Path({str(ours.script)!r}),"
        f" Path({str(ours.data_dir)!r})); before_run_1.check_materials(m, experiment());"
        "assert 'numpy' not in sys.modules and 'torch' not in sys.modules"
    )
    env = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT}/tests"}
    assert os.spawnve(os.P_WAIT, sys.executable, [sys.executable, "-c", code], env) == 0
