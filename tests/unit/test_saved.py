"""What a snapshot consists of: described to our own later self, and read as a stranger's."""

import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from vmwrapper.digest import digest
from vmwrapper.errors import SnapshotUnusable
from vmwrapper.hypervisor.interface import Snapshot
from vmwrapper.hypervisor.qemu.saved import Saved, saved

from .fuzzing import fuzzed

DIGEST = "0123456789abcdef" * 2
MADE_BY = {"QEMU version": "7.2", "processor": "max"}
SAVED = Saved(
    number=7,
    state_bytes=5,
    state_digest=DIGEST,
    layers={"root": ["root-1.qcow2", "root-6.qcow2"], "scratch": ["scratch-6.qcow2"]},
    layer_bytes={"root-1.qcow2": 1, "root-6.qcow2": 1, "scratch-6.qcow2": 1},
    made_by=MADE_BY,
)
FACTS: dict[str, Any] = json.loads(SAVED.snapshot().description)

NAMES = st.sampled_from(
    [
        "root-1.qcow2",
        "../root-1.qcow2",
        "/etc/passwd",
        "..",
        ".",
        "",
        "root-1.qcow2\n",
        "a/b-1.qcow2",
        "root-\u0661.qcow2",
    ]
) | st.text(max_size=12)
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | NAMES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=8,
)
DESCRIPTIONS = (
    st.text(max_size=20)
    | ANYTHING.map(json.dumps)
    | st.fixed_dictionaries(
        {
            "state_bytes": st.integers() | ANYTHING,
            "state_digest": st.just(DIGEST) | ANYTHING,
            "layers": st.dictionaries(st.sampled_from(["root", "scratch"]), st.lists(NAMES, max_size=3)) | ANYTHING,
            "made_by": st.dictionaries(NAMES, NAMES, max_size=2) | ANYTHING,
        }
    ).map(json.dumps)
)


def test_it_is_read_as_it_was_described() -> None:
    assert saved(SAVED.snapshot()) == SAVED
    assert SAVED.snapshot().number == 7
    assert SAVED.state_file == "state-7"
    assert SAVED.files == {"state-7", "root-1.qcow2", "root-6.qcow2", "scratch-6.qcow2"}
    assert SAVED.frozen == {"root-6.qcow2", "scratch-6.qcow2"}


@pytest.mark.parametrize(
    "change",
    [
        {"state_bytes": "5"},
        {"state_bytes": 5.0},
        {"state_bytes": True},
        {"state_digest": DIGEST.upper()},
        {"state_digest": DIGEST + "0"},
        {"state_digest": None},
        {"layers": []},
        {"layers": {"root": []}},
        {"layers": {"root": "root-1.qcow2"}},
        {"layers": {"root": [["root-1.qcow2"]]}},
        {"layers": {"root": ["../root-1.qcow2"]}},
        {"layers": {"root": ["/root-1.qcow2"]}},
        {"layers": {"root": ["root-1.qcow2\n"]}},
        {"layers": {"root": ["Root-1.qcow2"]}},
        {"layers": {"root": ["root-1.raw"]}},
        {"layers": {"root": ["root-1.qcow2", ".."]}},
        {"made_by": {"QEMU version": 7}},
        {"made_by": ["QEMU version"]},
    ],
)
def test_what_makes_no_sense(change: Mapping[str, object]) -> None:
    with pytest.raises(SnapshotUnusable, match="makes no sense"):
        saved(Snapshot(7, json.dumps(FACTS | change)))


@pytest.mark.parametrize("missing", FACTS)
def test_what_is_incomplete(missing: str) -> None:
    with pytest.raises(SnapshotUnusable, match="makes no sense"):
        saved(Snapshot(7, json.dumps({name: fact for name, fact in FACTS.items() if name != missing})))


@fuzzed
@given(st.integers(0, 10**9), DESCRIPTIONS)
def test_any_description_is_one_of_files_in_the_folder_or_makes_no_sense(
    tmp_path: Path, number: int, description: str
) -> None:
    try:
        found = saved(Snapshot(number, description))
    except SnapshotUnusable:
        return
    assert found.number == number
    assert all(os.path.basename(name) == name not in {"", ".", ".."} for name in found.files)  # noqa: PTH119
    assert found.frozen <= found.files
    assert saved(found.snapshot()) == found
    with pytest.raises(SnapshotUnusable):
        found.check(tmp_path, found.made_by, found.layers)  # since nothing is there


@pytest.mark.parametrize(("number", "disk"), [(10**300, "root"), (7, "r" * 300)], ids=["number", "disk"])
def test_a_name_that_no_file_can_have(tmp_path: Path, number: int, disk: str) -> None:
    for name in ("state-7", "root-1.qcow2"):
        (tmp_path / name).write_bytes(b"12345")
    layers = {"root": [f"{disk}-1.qcow2"]}
    sizes = {f"{disk}-1.qcow2": 1}
    found = saved(Snapshot(number, json.dumps(FACTS | {"layers": layers, "layer_bytes": sizes})))
    with pytest.raises(SnapshotUnusable):
        found.check(tmp_path, MADE_BY, ["root"])


def test_layers_that_were_merged_are_not_needed() -> None:
    less = SAVED.without({"root-1.qcow2"})
    assert less.layers == {"root": ["root-6.qcow2"], "scratch": ["scratch-6.qcow2"]}
    assert less.without({"another-1.qcow2"}) == less


class TestChecking:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        for name in SAVED.files:
            (tmp_path / name).write_bytes(b"12345")
        return tmp_path

    def test_all_is_there(self, folder: Path) -> None:
        SAVED.check(folder, MADE_BY, ["root", "scratch"])

    @pytest.mark.parametrize("name", sorted(SAVED.files))
    def test_a_file_is_missing(self, folder: Path, name: str) -> None:
        (folder / name).unlink()
        with pytest.raises(SnapshotUnusable, match=f"its file {name} is missing"):
            SAVED.check(folder, MADE_BY, ["root", "scratch"])
        (folder / name).mkdir()
        with pytest.raises(SnapshotUnusable, match=f"its file {name} is missing"):
            SAVED.check(folder, MADE_BY, ["root", "scratch"])

    def test_a_state_of_another_size(self, folder: Path) -> None:
        (folder / "state-7").write_bytes(b"1234")
        with pytest.raises(SnapshotUnusable, match="state-7 has 4 bytes instead of 5"):
            SAVED.check(folder, MADE_BY, ["root", "scratch"])

    @pytest.mark.parametrize("disks", [[], ["root"], ["root", "scratch", "third"]])
    def test_other_disks(self, folder: Path, disks: list[str]) -> None:
        with pytest.raises(SnapshotUnusable, match="had other disks"):
            SAVED.check(folder, MADE_BY, disks)

    def test_another_machine(self, folder: Path) -> None:
        ours = MADE_BY | {"QEMU version": "10.0"}
        with pytest.raises(SnapshotUnusable, match=r"had the QEMU version 7\.2, where this one has 10\.0"):
            SAVED.check(folder, ours, ["root", "scratch"])
        with pytest.raises(SnapshotUnusable, match="had the colour None"):
            SAVED.check(folder, MADE_BY | {"colour": "red"}, ["root", "scratch"])


@pytest.mark.parametrize("size", [0, 1, 1 << 20, (1 << 20) + 1])
def test_the_digest_is_of_all_bytes(tmp_path: Path, size: int) -> None:
    content = os.urandom(size)
    (tmp_path / "file").write_bytes(content)
    assert digest(tmp_path / "file", threading.Event()) == xxhash.xxh3_128_hexdigest(content)


def test_a_digest_that_nobody_wants_any_more(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    stop = threading.Event()
    stop.set()
    assert digest(tmp_path / "file", stop) == xxhash.xxh3_128_hexdigest(b"")
