"""An app for the client's twin: `fake_app.py FOLDER HABIT...`, where its nth start has the nth habit, or the last one.

What it was asked goes into FOLDER/requests, a line for each; init_data.xml of each start is kept as FOLDER/init_data.N.
"""

import mmap
import os
import signal
import sys
import time
from pathlib import Path

CONTROL, HEARTBEAT, STATUS, TRICKLE_UP, TRICKLE_DOWN = (1024 * channel for channel in (0, 4, 5, 6, 7))


def main(folder: Path, habits: list[str]) -> int:
    starts = folder / "starts"
    number = int(starts.read_text()) if starts.exists() else 0
    starts.write_text(str(number + 1))
    (folder / f"init_data.{number}").write_bytes(Path("init_data.xml").read_bytes())
    assert not Path("boinc_temporary_exit").exists()
    habit = habits[min(number, len(habits) - 1)]
    print(f"start {number}: {habit}", file=sys.stderr, flush=True)
    with open("boinc_mmap_file", "r+b") as file, mmap.mmap(file.fileno(), 8192) as memory:  # noqa: PTH123
        assert not any(memory[STATUS:])
        return live(habit, folder, memory)


def live(habit: str, folder: Path, memory: mmap.mmap) -> int:  # noqa: C901  (a table)
    match habit.split():
        case ["done"]:
            (folder / "out").write_text("output")
            status = b"<current_cpu_time>2</current_cpu_time><checkpoint_cpu_time>0</checkpoint_cpu_time>"
            send(memory, STATUS, status + b"<fraction_done>1.0</fraction_done>")
            Path("boinc_finish_called").write_text("0\n")
        case ["no-output"]:
            Path("boinc_finish_called").write_text("0\n")
        case ["exit", status]:
            return int(status)
        case ["later", *reason]:
            delay_s = 3600 if reason == ["for", "an", "hour"] else 0.1
            Path("boinc_temporary_exit").write_text(f"{delay_s}\n" + (" ".join(reason) + "\n" if reason else ""))
        case ["signal", number]:
            os.kill(os.getpid(), int(number))
            time.sleep(60)
        case ["checkpoint"]:
            status = b"<current_cpu_time>5</current_cpu_time><checkpoint_cpu_time>4</checkpoint_cpu_time>"
            send(memory, STATUS, status)
            obey(folder, memory)
        case ["obey"]:
            obey(folder, memory)
        case ["listen"]:
            listen(folder, memory)
        case ["deaf"]:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            time.sleep(60)
        case ["trickle"]:
            trickle(memory)
        case ["other-pid", pid]:
            figures = f"<current_cpu_time>1</current_cpu_time><other_pid>{pid}</other_pid>"
            send(memory, STATUS, figures.encode())
        case ["litter"]:
            Path("left over").touch()
            obey(folder, memory)
    return 0


def obey(folder: Path, memory: mmap.mmap) -> None:
    with (folder / "requests").open("a") as log:
        while (request := receive(memory, CONTROL)) not in (b"<quit/>", b"<abort/>"):
            if request:
                print(request.decode(), file=log, flush=True)
                print("asked", request.decode(), file=sys.stderr, flush=True)
            time.sleep(0.01)


def listen(folder: Path, memory: mmap.mmap) -> None:
    """Until the heartbeats say that the network is suspended; then ends when they cease."""
    heard = b""
    while b"<network_suspended/>" not in heard:
        heard = receive(memory, HEARTBEAT) or heard
        time.sleep(0.01)
    heard_at_s = time.monotonic()
    while time.monotonic() - heard_at_s < 0.5:
        if receive(memory, HEARTBEAT):
            heard_at_s = time.monotonic()
        time.sleep(0.01)
    print("nobody there", file=sys.stderr, flush=True)


def trickle(memory: mmap.mmap) -> None:
    """Send one up, upload a file, and wait for the answer and for one from the project."""
    Path("trickle_up.xml").write_text("<variety>credit</variety>\nsome text")
    Path("boinc_ufr_out").touch()
    send(memory, TRICKLE_UP, b"<have_new_trickle_up/>\n<have_new_upload_file/>\n")
    heard = b""
    while not (b"<have_trickle_down/>" in heard and b"<upload_file_status/>" in heard):
        heard += receive(memory, TRICKLE_DOWN) or b""
        time.sleep(0.01)
    assert not Path("boinc_ufr_out").exists()
    [message] = Path().glob("trickle_down_*")
    print("the project says", message.read_text(), Path("boinc_ufs_out").read_text(), file=sys.stderr, flush=True)


def send(memory: mmap.mmap, place: int, text: bytes) -> None:
    memory[place + 1 : place + 2 + len(text)] = text + b"\0"
    memory[place] = 1


def receive(memory: mmap.mmap, place: int) -> bytes | None:
    if not memory[place]:
        return None
    text = memory[place + 1 : place + 1024].split(b"\0")[0]
    memory[place] = 0
    return text


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
