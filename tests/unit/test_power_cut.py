"""That the power cuts find what programs do wrong with their files, and let be what they do right."""

import fcntl
import os
import stat
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.torture.content import SECTOR, Content, Fate, survivor
from tests.torture.operations import (
    ROOT,
    Allocate,
    ContentOperation,
    Create,
    Link,
    Operation,
    Recording,
    Rename,
    Resize,
    SyncFile,
    SyncFolder,
    Unlink,
    Write,
)
from tests.torture.power_cut import Cut, every_cut, materialize, sample_cuts
from tests.torture.recorded_folder import RecordedFolder, recorded_folder, why_not
from vmwrapper.durable import write_durably

RECORD, SCRATCH, OTHER = 2, 3, 4
OLD, NEW = b"old", b"new and longer"
CONTENTS = OLD + NEW
WRITE_OLD, WRITE_NEW = Write(RECORD, 0, len(OLD), 0), Write(SCRATCH, 0, len(NEW), len(OLD))
FILE, FOLDER = stat.S_IFREG | 0o644, stat.S_IFDIR | 0o755
THERE = [Create(ROOT, "record", RECORD, FILE), WRITE_OLD, SyncFile(RECORD), SyncFolder(ROOT)]
MAKE_SCRATCH = [Create(ROOT, "scratch", SCRATCH, FILE), WRITE_NEW]
REPLACE = Rename(ROOT, "scratch", ROOT, "record")

Outcome = dict[str, bytes]


def outcome(recording: Recording, cut: Cut) -> Outcome:
    """The files that are there after a cut, by their path."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        materialize(recording, cut, folder)
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def outcomes(*operations: Operation, data: bytes = CONTENTS, first: int = len(THERE)) -> list[Outcome]:
    """Of all cuts but the very early, and of many that are random."""
    recording = Recording.of(operations, data)
    return [outcome(recording, cut) for cut in every_cut(recording, random=40) if cut.after >= first]


def at_the_end(*operations: Operation) -> list[Outcome]:
    return outcomes(*operations, first=len(operations))


def records(found: Iterable[Outcome]) -> set[bytes | None]:
    return {one.get("record") for one in found}


def test_what_replaces_a_file_without_syncing_it_loses_both() -> None:
    found = records(outcomes(*THERE, *MAKE_SCRATCH, REPLACE, SyncFolder(ROOT)))
    assert {OLD, b"", NEW} <= found
    assert bytes(len(NEW)) in found  # the size is there, and zeros


def test_what_overwrites_a_file_in_place_loses_both() -> None:
    rewrite = Write(RECORD, 0, len(NEW), len(OLD))
    assert {OLD, b"", NEW} <= records(outcomes(*THERE, Resize(RECORD, 0), rewrite, SyncFile(RECORD)))


def test_the_right_order_keeps_the_old_or_the_new() -> None:
    right = [*THERE, *MAKE_SCRATCH, SyncFile(SCRATCH), REPLACE, SyncFolder(ROOT)]
    assert records(outcomes(*right)) == {OLD, NEW}
    assert records(at_the_end(*right)) == {NEW}


def test_a_rename_that_nobody_synced_may_be_undone_but_leaves_something() -> None:
    assert records(at_the_end(*THERE, *MAKE_SCRATCH, SyncFile(SCRATCH), REPLACE)) == {OLD, NEW}


def test_a_synced_file_of_an_unsynced_folder_may_have_no_name() -> None:
    assert records(at_the_end(Create(ROOT, "record", RECORD, FILE), WRITE_OLD, SyncFile(RECORD))) == {None, OLD}


def test_a_synced_folder_may_name_a_file_without_its_content() -> None:
    found = records(at_the_end(Create(ROOT, "record", RECORD, FILE), WRITE_OLD, SyncFolder(ROOT)))
    assert found == {b"", bytes(len(OLD)), OLD}


def test_the_old_may_go_before_the_new_is_there_in_another_folder() -> None:
    new_folder = [Create(ROOT, "states", OTHER, FOLDER), SyncFolder(ROOT)]
    new_file = [Create(OTHER, "new", SCRATCH, FILE), WRITE_NEW, SyncFile(SCRATCH)]
    early = outcomes(*THERE, *new_folder, *new_file, Unlink(ROOT, "record"), SyncFolder(OTHER))
    assert {} in early
    right = outcomes(*THERE, *new_folder, *new_file, SyncFolder(OTHER), Unlink(ROOT, "record"))
    assert {} not in right
    assert {"states/new": NEW} in right


def test_a_folder_keeps_its_changes_in_order() -> None:
    found = outcomes(*THERE, *MAKE_SCRATCH, SyncFile(SCRATCH), Unlink(ROOT, "record"))
    assert {tuple(sorted(one)) for one in found} == {("record",), ("record", "scratch"), ("scratch",)}


@pytest.mark.parametrize("syncs", [[], [SyncFolder(ROOT)], [SyncFolder(OTHER)]])
def test_what_moves_between_folders_is_in_one_of_them(syncs: list[Operation]) -> None:
    states = [Create(ROOT, "states", OTHER, FOLDER), SyncFolder(ROOT)]
    move = [Rename(ROOT, "record", OTHER, "moved"), Create(OTHER, "later", SCRATCH, FILE)]
    found = at_the_end(*THERE, *states, *move, *syncs)
    moved = {"states/moved": OLD}
    not_yet = [] if syncs else [{"record": OLD}]
    later = [{**moved, "states/later": b""}]
    assert {frozenset(one.items()) for one in found} == {
        frozenset(one.items()) for one in [*not_yet, *later, *([] if SyncFolder(OTHER) in syncs else [moved])]
    }


def test_names_of_one_file_share_its_content(tmp_path: Path) -> None:
    recording = Recording.of([*THERE, Link(ROOT, "kept", RECORD), Rename(ROOT, "kept", ROOT, "record")], CONTENTS)
    materialize(recording, Cut(len(recording.operations), names=Fate.ALL), tmp_path)
    assert (tmp_path / "kept").samefile(tmp_path / "record")  # and a rename among them does nothing


def test_writes_tear_between_sectors_and_go_to_the_disk_in_any_order() -> None:
    old, new = b"abcdefgh" * SECTOR, b"N" * 8 * SECTOR
    again = b"A" * 10
    operations = [
        THERE[0],
        Write(RECORD, 0, len(old), 0),
        SyncFile(RECORD),
        SyncFolder(ROOT),
        Write(RECORD, 0, len(new), len(old)),
        Write(RECORD, 2 * SECTOR + 100, len(again), len(old) + len(new)),
    ]
    seen = set()
    for one in outcomes(*operations, data=old + new + again):
        pieces = [one["record"][start : start + SECTOR] for start in range(0, len(old), SECTOR)]
        for number, piece in enumerate(pieces):
            expected = {old[number * SECTOR :][:SECTOR], b"N" * SECTOR}
            if number == 2:  # of the two writes to it there is none, or the first, or both
                expected.add(b"N" * 100 + again + b"N" * (SECTOR - 110))
            assert piece in expected
        seen.add(tuple(piece[:1] for piece in pieces))
    assert len(seen) > 10


def test_an_appended_file_may_end_with_any_sector_of_it() -> None:
    added = Write(RECORD, len(OLD), 3 * SECTOR, len(OLD))
    sizes = {survivor([WRITE_OLD, added], synced=1, fate=Fate.RANDOM, rng=Random(seed)).size for seed in range(1000)}
    assert sizes == {len(OLD), SECTOR, 2 * SECTOR, 3 * SECTOR, len(OLD) + 3 * SECTOR}


SIZES = st.integers(0, 40)
CHANGES = st.lists(
    st.builds(Write, st.just(RECORD), SIZES, SIZES, SIZES)
    | st.builds(Resize, st.just(RECORD), SIZES)
    | st.builds(Allocate, st.just(RECORD), SIZES, SIZES.filter(bool), st.booleans(), st.booleans()),
    max_size=12,
)


@given(changes=CHANGES)
def test_contents_become_what_files_become(changes: list[ContentOperation]) -> None:
    data = bytes(range(1, 101))
    content, expected = Content(), bytearray()
    for change in changes:
        content.apply(change)
        match change:
            case Write(_, offset, length, position) if length:
                expected.extend(bytes(max(0, offset - len(expected))))
                expected[offset : offset + length] = data[position : position + length]
            case Resize(_, size):
                expected = expected[:size] + bytes(max(0, size - len(expected)))
            case Allocate(_, offset, length, grows, zeroes):
                if grows:
                    expected.extend(bytes(max(0, offset + length - len(expected))))
                if zeroes:
                    end = min(len(expected), offset + length)
                    expected[offset:end] = bytes(max(0, end - offset))
    operations = [THERE[0], *changes, SyncFile(RECORD), SyncFolder(ROOT)]
    assert outcome(Recording.of(operations, data), Cut(len(operations))) == {"record": bytes(expected)}


def test_a_sample_is_mostly_where_it_matters_and_can_be_had_again() -> None:
    many = [Write(RECORD, number, 1, 0) for number in range(5000)]
    recording = Recording.of([*THERE, *many, REPLACE, *many], CONTENTS)
    cuts = sample_cuts(recording, how_many=60, rng=Random(1))
    assert cuts == sample_cuts(recording, how_many=60, rng=Random(1))
    assert len(set(cuts)) == 60
    at = {cut.after for cut in cuts}
    assert len(THERE) + len(many) + 1 in at
    assert 20 < sum(cut.after < 10 or abs(cut.after - len(many) - 5) < 5 for cut in cuts) < 60
    again = next(cut for cut in cuts if cut.contents is Fate.RANDOM and cut.after > len(many) + 10)
    small = Recording.of([*THERE, *many[:100]], CONTENTS)
    assert outcome(small, again) == outcome(small, again)


def test_a_small_recording_has_few_cuts() -> None:
    assert [cut.after for cut in sample_cuts(Recording.of([]), how_many=9, rng=Random(1))].count(0) <= 9


Record = Callable[[Callable[[RecordedFolder], object]], Recording]


@pytest.fixture
def record_in(tmp_path: Path) -> Record:
    """Records what is done to a folder with `record`, which holds what is old."""
    if reason := why_not():
        pytest.skip(reason)

    def record(program: Callable[[RecordedFolder], object]) -> Recording:
        backing = tmp_path / "backing"
        backing.mkdir()
        (backing / "record").write_bytes(OLD)
        with recorded_folder(tmp_path / "slot", backing=backing, log=tmp_path / "log") as recorded:
            program(recorded)
        assert not any((tmp_path / "slot").iterdir())
        return Recording.read(tmp_path / "log")

    return record


def recorded_outcomes(recording: Recording) -> list[tuple[list[str], Outcome]]:
    """With what was marked by then."""
    cuts = [*every_cut(recording), *sample_cuts(recording, how_many=100, rng=Random(5))]
    return [(recording.marks(cut.after), outcome(recording, cut)) for cut in cuts]


@pytest.mark.fuse
def test_a_durable_write_is_whole_and_stays_when_it_was_told(record_in: Record) -> None:
    def program(recorded: RecordedFolder) -> None:
        write_durably(recorded.folder / "record", NEW)
        recorded.mark("told")

    found = recorded_outcomes(record_in(program))
    assert {one["record"] for marks, one in found if not marks} == {OLD, NEW}
    assert {one["record"] for marks, one in found if marks} == {NEW}


@pytest.mark.fuse
def test_a_careless_write_is_found_out(record_in: Record) -> None:
    def program(recorded: RecordedFolder) -> None:
        (recorded.folder / "new").write_bytes(NEW)
        (recorded.folder / "new").replace(recorded.folder / "record")

    assert {OLD, b"", NEW} <= records(one for _, one in recorded_outcomes(record_in(program)))


@pytest.mark.fuse
def test_with_nothing_lost_it_is_as_it_was(record_in: Record, tmp_path: Path) -> None:
    def program(recorded: RecordedFolder) -> None:
        rng, folder = Random(11), recorded.folder
        (folder / "states").mkdir()
        (folder / "link").symlink_to("record")
        os.mkfifo(folder / "fifo")
        (folder / "link").read_bytes()
        for number in range(150):
            _change_something(folder / rng.choice(["", "states"]) / rng.choice("abc"), rng)
            if number % 50 == 0:
                (folder / "record").chmod(0o640 + number)

    recording = record_in(program)
    materialize(recording, Cut(len(recording.operations), Fate.ALL, Fate.ALL), tmp_path / "slot")
    assert _described(tmp_path / "slot") == _described(tmp_path / "backing")


def _change_something(path: Path, rng: Random) -> None:
    other = path.with_name(rng.choice("abc"))
    if not path.exists():
        path.write_bytes(rng.randbytes(rng.randrange(5000)))
    elif (what := rng.randrange(7)) == 0:
        path.unlink()
    elif what == 1:
        path.replace(other)
    elif what == 2:
        other.unlink(missing_ok=True)
        if path.exists():
            other.hardlink_to(path)
    elif what == 3:
        os.truncate(path, rng.randrange(9000))
    else:
        with path.open("r+b" if what > 4 else "ab", buffering=0) as file:
            file.seek(rng.randrange(9000))
            file.write(rng.randbytes(rng.randrange(5000)))
            os.posix_fallocate(file.fileno(), rng.randrange(20000), 100)


def _described(folder: Path) -> dict[str, tuple[int, int, bytes | str]]:
    described: dict[str, tuple[int, int, bytes | str]] = {}
    for path in folder.rglob("*"):
        status = path.lstat()
        content: bytes | str = (
            str(path.readlink()) if path.is_symlink() else path.read_bytes() if path.is_file() else b""
        )
        links = 0 if path.is_dir() else status.st_nlink
        described[str(path.relative_to(folder))] = (status.st_mode, links, content)
    return described


@pytest.mark.fuse
def test_unnamed_files_locks_and_descriptors_of_others_work(record_in: Record) -> None:
    def program(recorded: RecordedFolder) -> None:
        with tempfile.TemporaryFile(dir=recorded.folder) as file:
            file.write(NEW)
            file.seek(0)
            assert file.read() == NEW
        lock = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 100, 1, 0)
        path = recorded.folder / "record"
        with path.open("r+b") as one, path.open("r+b") as two:
            fcntl.fcntl(one, fcntl.F_OFD_SETLK, lock)
            with pytest.raises(BlockingIOError):
                fcntl.fcntl(two, fcntl.F_OFD_SETLK, lock)
            path.unlink()
            subprocess.run(["/bin/echo", "-n", "by another"], stdout=one, check=True)
            assert two.read() == b"by another"

    recording = record_in(program)
    ends = outcome(recording, Cut(len(recording.operations), Fate.ALL, Fate.ALL))
    assert ends == {}


@pytest.mark.fuse
def test_the_folder_goes_with_whoever_wanted_it(tmp_path: Path) -> None:
    if reason := why_not():
        pytest.skip(reason)
    slot = tmp_path / "slot"
    script = """
import os, sys
from pathlib import Path
from tests.torture.recorded_folder import recorded_folder
slot = Path(sys.argv[1])
with recorded_folder(slot, backing=slot.with_name("backing"), log=slot.with_name("log")):
    assert slot.is_mount()
    os._exit(3)
"""
    done = subprocess.run([sys.executable, "-c", script, slot], cwd=Path(__file__).parents[2], check=False)
    assert done.returncode == 3
    for _ in range(1000):
        if not slot.is_mount():
            break
        time.sleep(0.01)
    assert not slot.is_mount()
