"""What a workunit allows."""

from pathlib import Path

import pytest

from vmwrapper.boinc.init_data import GlobalPreferences, InitData
from vmwrapper.errors import DiskLimitExceeded, MemoryLimitExceeded
from vmwrapper.hypervisor.interface import MIB
from vmwrapper.limits import check_disk, check_memory, cpu_cap_percent, disk_use_bytes, niceness


def test_memory(caplog: pytest.LogCaptureFixture) -> None:
    check_memory(1 << 20, 0)
    check_memory(256, 1e9)
    assert caplog.text == ""
    check_memory(256, 300 * MIB)
    assert "A machine of 256 MiB can come to need 384 MiB" in caplog.text
    with pytest.raises(MemoryLimitExceeded, match=rf"256 MiB.*255 MiB.*rsc_memory_bound to at least {384 * MIB}"):
        check_memory(256, 255 * MIB)


def test_disk_use_is_the_sum_of_apparent_sizes(tmp_path: Path) -> None:
    slot, project_dir = tmp_path / "slot", tmp_path / "project"
    (slot / "folder").mkdir(parents=True)
    project_dir.mkdir()
    (slot / "one").write_bytes(b"1")
    with (slot / "folder" / "sparse").open("wb") as sparse:
        sparse.truncate(1000)
    (slot / "link").symlink_to("/nowhere")
    (project_dir / "out").write_bytes(bytes(20))
    (project_dir / "image").write_bytes(bytes(400))
    outputs = [project_dir / "out", project_dir / "none", slot / "one"]
    assert disk_use_bytes(slot, outputs) == 1 + 1000 + len("/nowhere") + 20


def test_disk() -> None:
    check_disk(3 * MIB, 0)
    check_disk(3 * MIB, 3 * MIB)
    with pytest.raises(DiskLimitExceeded, match=r"3 MiB, its workunit allows 2 MiB.*rsc_disk_bound"):
        check_disk(3 * MIB, 2 * MIB)


@pytest.mark.parametrize(("wish", "nice"), [(-1, 19), (0, 19), (1, 10), (2, 0), (3, -10), (4, -16), (7, 19)])
def test_niceness(wish: int, nice: int) -> None:
    assert niceness(InitData(project_dir=Path("/p"), result_name="r", process_priority=wish)) == nice


def test_priorities_that_nobody_shall_change() -> None:
    assert niceness(InitData(project_dir=Path("/p"), result_name="r", no_priority_change=True)) is None


@pytest.mark.parametrize(
    ("plan_class", "limit", "percent"),
    [
        ("vbox64_mt", 50.0, 50),
        ("vbox64", 33.4, 33),
        ("vbox64", 0.1, 1),
        ("vbox64", 100.0, 100),
        ("vbox64", 250.0, 100),
        ("vbox64", 0.0, 100),  # no limit
        ("qemu", 50.0, 100),  # the client throttles it
        (None, 50.0, 100),
    ],
)
def test_processor_time_where_the_client_does_not_throttle(plan_class: str | None, limit: float, percent: int) -> None:
    preferences = GlobalPreferences(cpu_usage_limit=limit)
    client = InitData(project_dir=Path("/p"), result_name="r", plan_class=plan_class, global_preferences=preferences)
    assert cpu_cap_percent(client) == percent
