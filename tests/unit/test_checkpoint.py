"""The record: written whole, read as a stranger's."""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmwrapper.boinc.init_data import InitData
from vmwrapper.checkpoint import (
    Checkpoint,
    Reached,
    Record,
    count_try,
    fingerprint,
    last_record,
    read_record,
    remove_record,
    write_record,
)
from vmwrapper.errors import GivenUp, HostDiskFailed, MachineExited, NoUsableHypervisor
from vmwrapper.folders import RECORD_FILE
from vmwrapper.hypervisor.interface import Snapshot
from vmwrapper.job.model import Task
from vmwrapper.job.resolve import ResolvedTask
from vmwrapper.outputs import arriving

from .fuzzing import fuzzed

NEWEST = Reached(
    cpu_time_s=11.5,
    elapsed_s=13.0,
    fraction_of_task=0.25,
    program_ran_s=3.5,
    floating_point_operations=1e9,
    integer_operations=0.0,
    guest_cpu_time_s=2.0,
)
CHECKPOINTS = (
    Checkpoint(reached=NEWEST, snapshot=Snapshot(8, '{"state_bytes": 5}'), backend="memory"),
    Checkpoint(
        reached=replace(NEWEST, fraction_of_task=None, cpu_time_s=8.0), snapshot=Snapshot(7, "☃\x00"), backend="memory"
    ),
)
RECORD = Record(
    job="abc",
    tasks_done=2,
    tasks_in_place=2,
    cpu_time_s=7.5,
    elapsed_s=9.25,
    integer_operations=1e12,
    failed_tries=3,
    failed_as="MachineExited",
    checkpoints=CHECKPOINTS,
)


def client(slot: Path, **figures: float) -> InitData:
    return InitData(project_dir=slot, result_name="r", **figures)  # type: ignore[arg-type]


def test_it_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert read_record(tmp_path) is None
    write_record(tmp_path, RECORD)
    write_record(tmp_path, RECORD)
    assert read_record(tmp_path) == RECORD
    assert [path.name for path in tmp_path.iterdir()] == [RECORD_FILE]
    remove_record(tmp_path)
    remove_record(tmp_path)
    assert read_record(tmp_path) is None


@pytest.mark.parametrize(
    "change",
    [
        {"version": 1},
        {"version": 4},
        {"version": "2"},
        {"version": None},
        {"tasks_done": -1},
        {"tasks_done": 1.5},
        {"tasks_done": True},
        {"cpu_time_s": float("nan")},
        {"cpu_time_s": float("inf")},
        {"cpu_time_s": "7"},
        {"job": 5},
        {"tasks_in_place": 0},
        {"tasks_in_place": 3},
        {"more": 1},
        {"checkpoints": None},
        {"checkpoints": {}},
        {"checkpoints": [7]},
        {"checkpoints": [{}]},
        {"checkpoints": [[]]},
    ],
)
def test_what_makes_no_sense_is_not_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, change: dict[str, object]
) -> None:
    (tmp_path / RECORD_FILE).write_text(json.dumps(written() | change))
    assert read_record(tmp_path) is None
    assert "begins anew" in caplog.text


@pytest.mark.parametrize(
    ("where", "change"),
    [
        ("reached", {"cpu_time_s": -1.0}),
        ("reached", {"cpu_time_s": None}),
        ("reached", {"elapsed_s": float("inf")}),
        ("reached", {"program_ran_s": 3}),
        ("reached", {"fraction_of_task": float("nan")}),
        ("reached", {"fraction_of_task": "0.5"}),
        ("reached", {"guest_cpu_time_s": True}),
        ("reached", {"more": 1.0}),
        ("snapshot", {"number": -1}),
        ("snapshot", {"number": 1.0}),
        ("snapshot", {"number": "1"}),
        ("snapshot", {"description": None}),
        ("snapshot", {"description": {}}),
    ],
)
def test_a_checkpoint_that_makes_no_sense_is_not_used(tmp_path: Path, where: str, change: dict[str, object]) -> None:
    record = written()
    record["checkpoints"][1][where] |= change
    (tmp_path / RECORD_FILE).write_text(json.dumps(record))
    assert read_record(tmp_path) is None


def written() -> dict[str, Any]:
    """What is in the file of RECORD."""
    record: dict[str, Any] = json.loads(json.dumps({"version": 3, **asdict(RECORD)}))
    return record


def test_the_record_is_only_that(tmp_path: Path) -> None:
    write_record(tmp_path, RECORD)
    assert json.loads((tmp_path / RECORD_FILE).read_bytes()) == written()


def test_what_is_safe_is_as_of_the_newest_checkpoint() -> None:
    assert RECORD.safe_cpu_time_s == 11.5
    assert replace(RECORD, checkpoints=()).safe_cpu_time_s == 7.5


@pytest.mark.parametrize("content", [b"", b"[]", b"[" * 100_000, b"\xff", b'{"version": 3}'])
def test_what_is_no_record_is_not_used(tmp_path: Path, content: bytes) -> None:
    (tmp_path / RECORD_FILE).write_bytes(content)
    assert read_record(tmp_path) is None


@fuzzed
@given(
    st.binary(max_size=300)
    | st.dictionaries(
        st.sampled_from(["version", *asdict(RECORD)]), st.integers() | st.floats() | st.text(max_size=5) | st.none()
    ).map(lambda record: json.dumps(record).encode())
)
def test_any_content_is_a_record_or_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / RECORD_FILE).write_bytes(content)
    record = read_record(tmp_path)
    assert record is None or record.tasks_done >= 0


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just(10**400),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


def parts(of: Any) -> Iterator[tuple[Any, Any]]:
    """All that a record in JSON consists of: containers, each with the key or index of something in it."""
    for key, value in of.items() if isinstance(of, dict) else enumerate(of):
        yield of, key
        if isinstance(value, dict | list):
            yield from parts(value)


@fuzzed
@given(st.integers(0), ANYTHING)
def test_any_change_is_read_as_it_is_or_not_used(tmp_path: Path, number: int, change: object) -> None:
    record = written()
    places = list(parts(record))
    container, key = places[number % len(places)]
    container[key] = change
    (tmp_path / RECORD_FILE).write_text(json.dumps(record))
    if found := read_record(tmp_path):
        assert all(one.snapshot.number >= 0 and one.reached.elapsed_s >= 0 for one in found.checkpoints)
        write_record(tmp_path, found)
        assert read_record(tmp_path) == found


def test_a_folder_that_takes_no_file(tmp_path: Path) -> None:
    with pytest.raises(HostDiskFailed, match="can't write"):
        write_record(tmp_path / "none", RECORD)


class TestFingerprint:
    def resolved(self, folder: Path) -> tuple[ResolvedTask, ...]:
        first = Task(line=1, innerjob="program")
        return (
            ResolvedTask(
                task=first,
                image=folder / "image",
                inputs={"program": folder / "program"},
                packages={},
                outputs={"out": folder / "out"},
            ),
            ResolvedTask(task=first, image=folder / "image", inputs={"out": folder / "out"}, packages={}, outputs={}),
        )

    def test_it_changes_with_what_the_job_reads(self, tmp_path: Path) -> None:
        for name in ("job.xml", "image", "program"):
            (tmp_path / name).write_bytes(b"1")
        tasks = self.resolved(tmp_path)
        before = fingerprint(tmp_path / "job.xml", tasks)
        (tmp_path / "out").write_bytes(b"written by the first task, read by the second")
        assert fingerprint(tmp_path / "job.xml", tasks) == before
        for name in ("job.xml", "image", "program"):
            (tmp_path / name).write_bytes(b"22")
            changed = fingerprint(tmp_path / "job.xml", tasks)
            assert changed != before
            before = changed


def test_a_record_that_cant_be_read_just_now_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / RECORD_FILE).mkdir()  # as an error of the disk
    with pytest.raises(HostDiskFailed, match="can't read"):
        read_record(tmp_path)
    count_try(tmp_path, MachineExited("killed"), ran_s=0)
    assert (tmp_path / RECORD_FILE).is_dir()


class TestLastRecord:
    def tasks(self, folder: Path) -> list[ResolvedTask]:
        """Two that are done, with an output each, and one that is not."""
        (folder / "one").write_bytes(b"1")
        (folder / "two").write_bytes(b"2")
        return [
            ResolvedTask(
                task=Task(line=1, innerjob="program"),
                image=folder / "image",
                inputs={},
                packages={},
                outputs={name: folder / name},
            )
            for name in ("one", "two", "three")
        ]

    def test_of_the_same_job_it_counts(self, tmp_path: Path) -> None:
        write_record(tmp_path, RECORD)
        said = client(tmp_path, checkpoint_cpu_time_s=5)
        assert last_record(tmp_path, "abc", self.tasks(tmp_path), said) == RECORD

    def test_outputs_that_were_about_to_be_put_in_place_are_put_there(self, tmp_path: Path) -> None:
        tasks = self.tasks(tmp_path)
        with ExitStack() as names:
            arriving(tmp_path / "two", names).write_bytes(b"new 2")
            names.pop_all()  # killed here
        write_record(tmp_path, replace(RECORD, tasks_in_place=1))
        for _ in range(2):
            assert last_record(tmp_path, "abc", tasks, client(tmp_path)) == RECORD
            assert (tmp_path / "two").read_bytes() == b"new 2"
        assert read_record(tmp_path) == RECORD
        assert {path.name for path in tmp_path.iterdir()} == {"one", "two", RECORD_FILE}

    def test_a_task_whose_output_has_gone_is_done_again(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        write_record(tmp_path, RECORD)
        tasks = self.tasks(tmp_path)
        (tmp_path / "two").unlink()
        record = last_record(tmp_path, "abc", tasks, client(tmp_path))
        assert (record.tasks_done, record.tasks_in_place, record.checkpoints) == (1, 1, ())
        assert "two is missing" in caplog.text

    def test_more_tasks_than_there_are_are_not_done(self, tmp_path: Path) -> None:
        write_record(tmp_path, replace(RECORD, tasks_done=99, tasks_in_place=99))
        assert last_record(tmp_path, "abc", self.tasks(tmp_path), client(tmp_path)).tasks_done == 2

    def test_of_another_job_only_its_failures_count(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        write_record(tmp_path, RECORD)
        assert last_record(tmp_path, "def", [], client(tmp_path)) == Record(
            job="def", failed_tries=3, failed_as="MachineExited"
        )
        assert "begins anew" in caplog.text

    def test_where_there_is_none_the_client_knows_the_figures(self, tmp_path: Path) -> None:
        said = client(tmp_path, checkpoint_cpu_time_s=5, starting_elapsed_time_s=6)
        assert last_record(tmp_path, "abc", [], said) == Record(job="abc", cpu_time_s=5, elapsed_s=6)


class TestTries:
    def test_delays_grow_and_then_the_job_is_given_up(self, tmp_path: Path) -> None:
        delays = []
        for _ in range(12):
            failure = MachineExited("killed")
            count_try(tmp_path, failure, ran_s=10)
            delays.append(failure.retry_after_s)
        assert delays == [15, 30, 60, 120, 240, 480, *[600] * 6]
        with pytest.raises(GivenUp, match=r"killed \(given up after 13 tries in a row\)"):
            count_try(tmp_path, MachineExited("killed"), ran_s=10)

    def test_a_failure_of_another_kind_is_the_first_one(self, tmp_path: Path) -> None:
        for failure in (NoUsableHypervisor("none"), NoUsableHypervisor("none"), MachineExited("killed")):
            count_try(tmp_path, failure, ran_s=10)
        assert failure.tries == 1

    def test_so_is_one_after_a_long_time(self, tmp_path: Path) -> None:
        for _ in range(20):
            failure = MachineExited("killed")
            count_try(tmp_path, failure, ran_s=3600)
            assert failure.tries == 1

    def test_what_is_to_be_installed_is_asked_for_each_hour_of_a_day(self, tmp_path: Path) -> None:
        for _ in range(24):
            failure = NoUsableHypervisor("none")
            count_try(tmp_path, failure, ran_s=10)
            assert failure.retry_after_s == 3600
        with pytest.raises(GivenUp):
            count_try(tmp_path, NoUsableHypervisor("none"), ran_s=10)

    def test_the_record_keeps_what_is_safe(self, tmp_path: Path) -> None:
        write_record(tmp_path, RECORD)
        count_try(tmp_path, MachineExited("killed"), ran_s=10)
        record = read_record(tmp_path)
        assert record == replace(RECORD, failed_tries=4)

    def test_a_full_disk_is_not_counted(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        failure = HostDiskFailed("full")
        count_try(tmp_path / "none", failure, ran_s=10)
        assert failure.retry_after_s == 15
        assert "not counted" in caplog.text
