"""What goes wrong around a job: each mishap ends with its status and its sentence, and leaves nothing behind."""

import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from vmwrapper.guest.bundle import Bundle, Section, open_bundle

from .conftest import left_behind
from .test_job import LIMIT_S, VMWRAPPER, job, read_until, start, task, vmwrapper, write_job

pytestmark = [pytest.mark.qemu, pytest.mark.usefixtures("default_image")]

NOBODY = 65534
AS_NOBODY = ("setpriv", "--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups")
# Makes directories reachable for everybody, in a mount namespace of its own: pairs of a closed directory and one in it,
# which alone remains of it. From --: the command.
OPENED = """\
while [ "$1" != -- ]; do
    exec 9<"$2"
    mount -t tmpfs -o mode=755 tmpfs "$1" && mkdir -p "$2" && mount -c --bind /proc/self/fd/9 "$2" || exit 99
    shift 2
done
shift
exec 9<&- "$@"
"""
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount and to become another user")


def ends_with(done: subprocess.CompletedProcess[str], status: int, *sentences: str, unsaid: Sequence[str] = ()) -> None:
    """Check how a run ended, and what it said of that."""
    assert done.returncode == status, done.stderr
    assert [text for text in sentences if text not in done.stderr] == [], done.stderr
    assert [text for text in ("Traceback", "\x1b", *unsaid) if text in done.stderr] == [], done.stderr


def end_of(process: subprocess.Popen[str], *, limit_s: float) -> subprocess.CompletedProcess[str]:
    _, said = process.communicate(timeout=limit_s)
    return subprocess.CompletedProcess(process.args, process.returncode, None, said)


def start_group(*arguments: str | Path) -> subprocess.Popen[str]:
    """Like `start`, as a process group of its own, as a terminal's shell makes one."""
    return subprocess.Popen([VMWRAPPER, *arguments], stderr=subprocess.PIPE, text=True, start_new_session=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Makes a file system of so many MiB that is a job's directory."""
    place = tmp_path / "small"

    def mount(size_mib: int) -> Path:
        place.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size_mib}m", "tmpfs", place], check=True)
        return place

    yield mount
    left = left_behind(place)
    if place.is_mount():
        subprocess.run(["umount", place], check=True)
    assert left == []


@pytest.fixture
def as_nobody(tmp_path: Path, default_image: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs vmwrapper as an ordinary user, who may read `tmp_path` and the default guest in it."""
    images = tmp_path / "cache/images"
    images.mkdir(parents=True)
    shutil.copy(default_image, images)
    tmp_path.chmod(0o755)
    pairs = [(closed, place) for place in (Path(sys.base_prefix), tmp_path) if (closed := closed_parent(place))]
    opened = ["unshare", "--mount", "sh", "-c", OPENED, "sh", *(str(path) for pair in pairs for path in pair), "--"]
    environment = os.environ | {"VMWRAPPER_CACHE": str(images.parent)}

    def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        argv = [*opened, *AS_NOBODY, VMWRAPPER, *arguments]
        return subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False)

    return run


def closed_parent(path: Path) -> Path | None:
    """The topmost directory on the way to `path` that not everybody may pass."""
    return next((parent for parent in reversed(path.parents) if not parent.stat().st_mode & stat.S_IXOTH), None)


@pytest.mark.parametrize("chapter", ["Machine created", "Machine is on", "Running the program"])
def test_ctrl_c_reaches_the_whole_group_and_ends_it_cleanly(tmp_path: Path, chapter: str) -> None:
    process = start_group("run", write_job(tmp_path, job(task("sleep.sh")), sleep="sleep 60"))
    read_until(process, chapter)
    os.killpg(process.pid, signal.SIGINT)
    ends_with(end_of(process, limit_s=5), 130, "stopped on request", unsaid=["console"])


@pytest.mark.parametrize("send", [os.kill, os.killpg])
@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_closed_terminal_ends_it_cleanly(
    tmp_path: Path, send: Callable[[int, int], None], number: signal.Signals
) -> None:
    process = start_group("run", write_job(tmp_path, job(task("sleep.sh")), sleep="sleep 60"))
    read_until(process, "Running the program")
    send(process.pid, number)
    ends_with(end_of(process, limit_s=5), 130, "stopped on request", unsaid=["console"])


@needs_root
def test_full_host_disk_under_the_guest(small_disk: Callable[[int], Path]) -> None:
    script = "dd if=/dev/zero of=big bs=1M count=600; sync; sleep 60"
    began_at = time.monotonic()
    done = vmwrapper("run", write_job(small_disk(120), job(task("fill.sh")), fill=script))
    assert time.monotonic() - began_at < 20
    ends_with(done, 75, "the host's disk failed", "No space left on device")


@needs_root
@pytest.mark.parametrize("size_mib", [1, 40])
def test_full_host_disk_under_the_kernel(small_disk: Callable[[int], Path], size_mib: int) -> None:
    done = vmwrapper("run", write_job(small_disk(size_mib), job(task("true.sh")), true="true"))
    ends_with(done, 75, "No space left on device", unsaid=["Machine created"])


@needs_root
def test_full_host_disk_under_the_boot(small_disk: Callable[[int], Path]) -> None:
    done = vmwrapper("run", write_job(small_disk(60), job(task("true.sh")), true="true"))
    ends_with(done, 75, "the host's disk failed", "No space left on device")


@needs_root
def test_full_host_disk_under_the_lock(small_disk: Callable[[int], Path]) -> None:
    job_file = write_job(small_disk(1), job(task("true.sh")), true="true")
    with (job_file.parent / "filling").open("wb", buffering=0) as filling, suppress(OSError):
        while True:
            filling.write(bytes(4096))
    ends_with(vmwrapper("run", job_file), 75, "No space left on device")


@needs_root
def test_full_host_disk_under_an_output(small_disk: Callable[[int], Path]) -> None:
    tags = "<disk_mb>0</disk_mb><memory_mb>512</memory_mb><output>big</output>"
    script = "dd if=/dev/zero of=big bs=1M count=150"
    folder = small_disk(180)  # of which kernel and window take 120
    done = vmwrapper("run", write_job(folder, job(task("fill.sh", tags)), fill=script))
    ends_with(done, 75, "can't write", "No space left on device")
    assert not (folder / "big").exists()


def test_program_that_kills_its_supervisor(tmp_path: Path) -> None:
    every_shell = 'for p in /proc/[0-9]*; do read -r n <$p/comm; [ "$n" = sh ] && kill -9 ${p#/proc/}; done; sleep 100'
    running = []
    for name, script in (("parent", "kill -9 $PPID; sleep 100"), ("shells", every_shell)):
        folder = tmp_path / name
        folder.mkdir()
        running.append(start("run", write_job(folder, job(task("kill.sh")), kill=script)))
    for process in running:
        ends_with(end_of(process, limit_s=60), 195, "nobody in the guest waits for the end of kill.sh any more")


@pytest.mark.parametrize("tags", ["", "<stdout_filename>out</stdout_filename>"])
def test_program_that_says_more_than_the_guest_holds(tmp_path: Path, tags: str) -> None:
    text = job(task("talk.sh", "<disk_mb>0</disk_mb>", tags))
    done = vmwrapper("run", write_job(tmp_path, text, talk="dd if=/dev/zero bs=1M count=300; exit 0"))
    ends_with(done, 0, "Finish called")


@pytest.mark.parametrize(
    ("script", "tags", "status", "sentences"),
    [
        ("dd if=/dev/zero bs=1M count=10240 && echo yes > result", "", 0, []),
        (
            "dd if=/dev/zero bs=1M count=300 >&2; echo; echo the end >&2; exit 3",
            "",
            195,
            ["failed: exit status 3", "\nthe end"],
        ),
        ("exec <&- >&- 2>&-; sleep 1; echo yes > result", "", 0, []),
        ("echo a word >/dev/stderr; exit 3", "<user>ada</user>", 195, ["exit status 3", "a word"]),
        ("(setsid sleep 1000 &); (setsid sh -c 'trap \"\" TERM; sleep 1000' &); echo yes > result", "", 0, []),
        ("pkill qemu-ga; sleep 2; echo yes > result", "", 0, []),
        ("pkill -9 qemu-ga; sleep 2; pkill -9 qemu-ga; echo yes > result", "", 0, []),
        ("halt -f; sleep 60", "", 195, ["the guest halted before the task was done"]),
        (
            "dd if=/dev/zero of=big bs=1M || exit 5",
            "<disk_mb>64</disk_mb>",
            195,
            ["status 5", "No space left on device"],
        ),
        ("true", "<memory_mb>1000000</memory_mb>", 206, ["the job wants 1000000 MiB of memory; this computer has"]),
        (
            "true",
            "<disk_mb>16</disk_mb><data>in</data>",
            206,
            ["the inputs have 17 MiB, the guest 16 MiB", "<disk_mb>"],
        ),
        (
            "true",
            "<disk_mb>17</disk_mb><data>in</data>",
            195,
            ["the guest's end of a transfer failed", "No space left"],
        ),
    ],
)
def test_program_that_does_its_worst(
    tmp_path: Path, script: str, tags: str, status: int, sentences: Sequence[str]
) -> None:
    (tmp_path / "in").write_bytes(bytes(17 << 20))
    output = "<output>result</output>" if status == 0 else ""
    done = vmwrapper("run", write_job(tmp_path, job(task("worst.sh", tags, output)), worst=script))
    ends_with(done, status, *sentences)
    assert (tmp_path / "result").exists() == (status == 0)


@pytest.mark.parametrize(
    ("program", "sentence"),
    [
        (b"#!/usr/bin/no-such-interpreter\n", "exit status 127"),
        (b"\x7fELF\x02\x01\x01" + bytes(57), "failed: exit status"),
        (b"", ""),
    ],
)
def test_program_that_the_guest_cannot_execute(tmp_path: Path, program: bytes, sentence: str) -> None:
    (tmp_path / "program").write_bytes(program)
    (tmp_path / "job.xml").write_text(job(task("program")))
    ends_with(vmwrapper("run", tmp_path / "job.xml"), 195 if sentence else 0, sentence)


def test_output_goes_into_a_folder_that_exists(tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    text = job(task("say.sh", "<output>a/b/result</output>"))
    done = vmwrapper("run", write_job(tmp_path, text, say="mkdir -p a/b; echo right > a/b/result"))
    ends_with(done, 0)
    assert (tmp_path / "a/b/result").read_text() == "right\n"


def test_output_goes_through_a_link_inside_the_slot(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "result").symlink_to("real/place")
    done = vmwrapper(
        "run", write_job(tmp_path, job(task("say.sh", "<output>result</output>")), say="echo yes > result")
    )
    ends_with(done, 0)
    assert (tmp_path / "result").readlink() == Path("real/place")
    assert not (tmp_path / "real/place").is_symlink()
    assert (tmp_path / "real/place").read_text() == "yes\n"


def test_task_reads_what_an_earlier_one_wrote(tmp_path: Path) -> None:
    tasks = (
        task("first.sh", "<output>between</output>"),
        task("second.sh", "<data>between</data><output>result</output>"),
    )
    programs = {"first": "echo one > between", "second": "cat between > result; echo two >> result"}
    ends_with(vmwrapper("run", write_job(tmp_path, job(*tasks), **programs)), 0)
    assert (tmp_path / "result").read_text() == "one\ntwo\n"


def link_out_of_the_slot(slot: Path) -> None:
    outside = slot.parent / "outside"
    outside.write_text("precious")
    (slot / "result").symlink_to(outside)


def link_folder_out_of_the_slot(slot: Path) -> None:
    (slot.parent / "elsewhere").mkdir()
    (slot / "folder").symlink_to(slot.parent / "elsewhere")


def nothing_happens(_slot: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("tags", "mishap", "sentence"),
    [
        ("<output>result</output>", link_out_of_the_slot, "outside of"),
        ("<output>folder/result</output>", link_folder_out_of_the_slot, "outside of"),
        ("<output>folder/result</output>", nothing_happens, "has no directory to go to"),
        (f"<data>{300 * 'n'}</data>", nothing_happens, "is missing"),
    ],
)
def test_job_that_cannot_run_ends_before_anything_boots(
    tmp_path: Path, tags: str, mishap: Callable[[Path], None], sentence: str
) -> None:
    slot = tmp_path / "slot"
    slot.mkdir()
    mishap(slot)
    ends_with(
        vmwrapper("run", write_job(slot, job(task("true.sh", tags)), true="true")),
        206,
        sentence,
        unsaid=["Processing", "Machine"],
    )
    assert all(path.read_text() == "precious" for path in tmp_path.iterdir() if path.is_file())


def test_job_file_in_a_directory_that_does_not_exist(tmp_path: Path) -> None:
    ends_with(vmwrapper("run", tmp_path / "no/job.xml"), 148, "there is no job file")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["file", "link to a folder", "link to a file", "dangling link"])
def test_something_has_the_name_of_the_machines_folder(tmp_path: Path, kind: str) -> None:
    slot, outside, ours = tmp_path / "slot", tmp_path / "outside", tmp_path / "slot/.vmwrapper"
    slot.mkdir()
    if kind == "file":
        ours.write_text("precious")
    else:
        ours.symlink_to(outside)
    if kind == "link to a folder":
        outside.mkdir()
        (outside / "file").write_text("precious")
    elif kind == "link to a file":
        outside.write_text("precious")
    before = sorted(path for path in tmp_path.rglob("*") if path.parent != slot)
    done = vmwrapper("run", write_job(slot, job(task("true.sh")), true="true"))
    ends_with(done, 75, "can't make an empty directory", str(ours))
    assert sorted(path for path in tmp_path.rglob("*") if path.parent != slot) == before
    assert all(path.read_text() == "precious" for path in (ours, outside, outside / "file") if path.is_file())
    ours.unlink()


@needs_root
def test_read_only_directory(tmp_path: Path, as_nobody: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    job_file = write_job(tmp_path, job(task("true.sh")), true="true")
    ends_with(as_nobody("run", job_file), 75, "can't write into the job's directory: Permission denied")


@needs_root
def test_cache_folder_that_cannot_be_written(as_nobody: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    there = as_nobody("image", "build", "--output", "/proc/no/default.vmguest")
    ends_with(there, 1, "can't build /proc/no/default.vmguest")


@needs_root
def test_ordinary_user_runs_a_job(tmp_path: Path, as_nobody: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    slot = tmp_path / "slot"
    slot.mkdir()
    os.chown(slot, NOBODY, NOBODY)
    text = job(task("say.sh", "<output>result</output>"))
    ends_with(as_nobody("run", write_job(slot, text, say="id -u > result")), 0)
    assert (slot / "result").read_text() == "0\n"
    assert (slot / "result").stat().st_uid == NOBODY


@needs_root
def test_unreadable_image(tmp_path: Path, as_nobody: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    slot, image = tmp_path / "slot", tmp_path / "slot/own.qcow2"
    slot.mkdir()
    os.chown(slot, NOBODY, NOBODY)
    image.touch(mode=0o600)
    text = job(task("true.sh")).replace("default", "own")
    ends_with(as_nobody("run", write_job(slot, text, true="true")), 206, f"can't read {image}: Permission denied")


def test_killed_in_the_middle_of_an_output_and_run_again(tmp_path: Path) -> None:
    text = job(task("big.sh", "<output>big</output>"))
    process = start("run", write_job(tmp_path, text, big="dd if=/dev/zero of=big bs=1M count=300"))
    read_until(process, "Copying out")
    while not any(path.stat().st_size > 1 << 20 for path in tmp_path.glob(".vmwrapper-*")):
        assert process.poll() is None
        time.sleep(0.005)
    process.kill()
    process.communicate()
    assert not (tmp_path / "big").exists()
    assert list(tmp_path.glob(".vmwrapper-*"))
    ends_with(vmwrapper("run", write_job(tmp_path, text, big="echo small > big")), 0)
    assert (tmp_path / "big").read_text() == "small\n"


def kernel(bundle: Bundle) -> Section:
    return bundle.kernel


def initramfs(bundle: Bundle) -> Section:
    return bundle.initramfs


@pytest.mark.parametrize("part", [kernel, initramfs])
def test_damaged_image(tmp_path: Path, default_image: Path, part: Callable[[Bundle], Section]) -> None:
    image = tmp_path / "own.vmguest"
    shutil.copy(default_image, image)
    section = part(open_bundle(image))
    with image.open("r+b") as file:
        file.seek(section.offset + section.size // 2)
        right = file.read(4)
        file.seek(-4, os.SEEK_CUR)
        file.write(bytes(byte ^ 0xFF for byte in right))
    text = job(task("true.sh")).replace("default", image.name)
    ends_with(vmwrapper("run", write_job(tmp_path, text, true="true")), 206, f"{image} is damaged")


@pytest.mark.parametrize(
    "name", ["a b, %s%20 'quoted' \"twice\" ünï☃ $HOME `x` \\ " + 140 * "n", "id=x,,y=z\nline\udcff"]
)
def test_directory_of_any_name(tmp_path: Path, name: str) -> None:
    slot = tmp_path / name
    slot.mkdir()
    text = job(task("say.sh", "<data>in</data><output>result</output>"))
    (slot / "in").write_text("right")
    ends_with(vmwrapper("run", write_job(slot, text, say="cp in result")), 0)
    assert (slot / "result").read_text() == "right"


@pytest.mark.parametrize("redirection", ["2>&-", "<&- >&- 2>&-", "2>/dev/full"])
def test_nobody_hears_the_log(tmp_path: Path, redirection: str) -> None:
    job_file = write_job(tmp_path, job(task("say.sh", "<output>result</output>")), say="echo right > result")
    argv = ["sh", "-c", f'exec "$0" run "$1" {redirection}', VMWRAPPER, job_file]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    ends_with(done, 0)
    assert (done.stdout, done.stderr) == ("", "")
    assert (tmp_path / "result").read_text() == "right\n"


def test_reader_of_the_log_goes_away(tmp_path: Path) -> None:
    process = start("run", write_job(tmp_path, job(task("say.sh", "<output>result</output>")), say="echo yes > result"))
    read_until(process, "Machine created")
    assert process.stderr is not None
    process.stderr.close()
    assert process.wait(timeout=LIMIT_S) == 0
    assert (tmp_path / "result").read_text() == "yes\n"


@pytest.mark.parametrize("source", ["/dev/urandom", "/dev/zero"])
def test_rubbish_in_the_data_port_does_not_touch_outputs(tmp_path: Path, source: str) -> None:
    script = (
        f"head -c 3000000 {source} > /dev/virtio-ports/org.vmwrapper.data & sleep 0.5\n"
        "head -c 100000 /dev/urandom > result; sha256sum < result > sum"
    )
    tags = "<output>result</output><output>sum</output>"
    ends_with(vmwrapper("run", write_job(tmp_path, job(task("spoil.sh", tags)), spoil=script)), 0)
    digest = subprocess.run(["sha256sum"], input=(tmp_path / "result").read_bytes(), capture_output=True, check=True)
    assert digest.stdout == (tmp_path / "sum").read_bytes()


def test_guest_whose_shell_is_evil_gets_no_escape_sequence_into_the_log(tmp_path: Path) -> None:
    script = """\
sh=$(readlink -f /bin/sh) && rm /usr/bin/sh
printf '#!%s sh\\nprintf "\\\\033[31mred\\\\033]0;title\\\\007\\\\n" >&2; exit 3\\n' $sh >/usr/bin/sh
chmod +x /usr/bin/sh; echo yes > result"""
    done = vmwrapper("run", write_job(tmp_path, job(task("evil.sh", "<output>result</output>")), evil=script))
    ends_with(done, 195, "failed with status 3", "red")
    assert not (tmp_path / "result").exists()
