"""What of a job's inputs goes into one call of a guest's."""

from pathlib import Path
from threading import Event

from vmwrapper.hypervisor.checksum import AllChecksums
from vmwrapper.hypervisor.inputs import inputs
from vmwrapper.hypervisor.vmware.called_guest import MOST_BYTES, _by_size, _packed

MIB = 1 << 20


def made(folder: Path, sizes: list[int]) -> dict[str, Path]:
    for number, size in enumerate(sizes):
        with (folder / str(number)).open("wb") as file:
            file.truncate(size)
    return {str(number): folder / str(number) for number, _ in enumerate(sizes)}


def test_no_call_carries_all_of_many_small_files(tmp_path: Path) -> None:
    sizes = [MIB - 1] * 20 + [MIB, 5 * MIB, 0, 1]
    batches, large = _by_size(inputs(made(tmp_path, sizes)))
    assert [file.size for file in large] == [MIB, 5 * MIB]
    assert sorted(file.size for batch in batches for file in batch) == [0, 1] + [MIB - 1] * 20
    assert all(sum(file.size for file in batch) <= MOST_BYTES for batch in batches)
    assert len(batches) == 3


def test_there_is_a_last_call_in_any_case(tmp_path: Path) -> None:
    assert _by_size([]) == ([[]], [])
    assert _by_size(inputs(made(tmp_path, [MIB])))[0] == [[]]


def test_packing_ends_when_nobody_waits_for_it(tmp_path: Path) -> None:
    enough = Event()
    files = inputs(made(tmp_path, [MIB - 1] * 7))
    whole = _packed(files, AllChecksums(), enough)
    enough.set()
    assert len(_packed(files, AllChecksums(), enough)) < len(whole) / 10
