"""The job whose power is cut: programs that find out whether their memory and their disk are of the same moment.

The first one rewrites small pieces of many files in place, makes files and removes some, does all that on a disk and in
memory, and compares the two in each step, with what is cached of the disk forgotten. It knows its own end in advance,
and so do we. It takes its time while it is recorded only: after a date that it is told, it hurries.
"""

import hashlib
import time
from pathlib import Path

STEPS = 30
SECOND_STEPS = 8
RECORDED_FOR_S = 30
"""The longest that the program takes its time."""
OUTPUTS = ("first.out", "second.out")

_BLOCKS = 96
_PARTS = 2  # of 4 KiB, which a block has; mostly only the first is rewritten
_REWRITTEN = 12  # in a step
_SEED = 2026

_FIRST = f"""\
#!/bin/sh
set -u
fail() {{
    echo "step $step: $*" >&2
    exit 1
}}

# 16 bytes that name both, so that each sector tells what it is: 4 KiB of them without starting a process.
content() {{
    line="$((1000000 + $1)) $((1000000 + $2))
"
    block=$line$line$line$line$line$line$line$line
    block=$block$block$block$block$block$block$block$block
    block=$block$block$block$block
}}

sum() {{
    cd "$1" && cat blocks/* grown/* counter | md5sum
}}

read -r slow_until <slow_until
disk=$PWD/disk mem=/dev/shm/mem
mkdir "$disk" "$mem" "$disk/blocks" "$mem/blocks" "$disk/grown" "$mem/grown"
mount -o remount,discard /run/vmwrapper/scratch || exit 1
step=0 r={_SEED} k=0
while [ $k -lt {_BLOCKS} ]; do
    content 0 $k
    for place in "$disk" "$mem"; do
        printf %s "$block$block" >"$place/blocks/$((1000 + k))"
    done
    k=$((k + 1))
done
for place in "$disk" "$mem"; do
    echo 0 >"$place/counter"
    echo >"$place/grown/0"
done

while [ $step -lt {STEPS} ]; do
    read -r on_disk <"$disk/counter"
    [ "$on_disk" = $step ] || fail "the disk is of step $on_disk"
    step=$((step + 1))
    n=0
    while [ $n -lt {_REWRITTEN} ]; do
        r=$(((r * 1103515245 + 12345) % 2147483648))
        k=$((r / 65536 % {_BLOCKS}))
        content $step $k
        [ $((r / 256 % 4)) = 0 ] && block=$block$block
        printf %s "$block" 1<>"$disk/blocks/$((1000 + k))"
        printf %s "$block" 1<>"$mem/blocks/$((1000 + k))"
        n=$((n + 1))
    done
    content $step 0
    block=$block$block$block$block$block$block$block$block
    for place in "$disk" "$mem"; do
        printf %s "$block" >"$place/grown/$((1000 + step))"
        [ $((step % 3)) = 0 ] && rm -f "$place/grown/$((1000 + step - 5))"
        echo $step >"$place/counter"
    done
    [ $((step % 2)) = 0 ] && sync
    echo 3 >/proc/sys/vm/drop_caches
    on_disk=$(sum "$disk")
    in_mem=$(sum "$mem")
    [ "$on_disk" = "$in_mem" ] || fail "disk and memory differ: $(diff -rq "$disk" "$mem" 2>&1)"
    echo "$step $r $on_disk" >>history
    [ "$(date +%s)" -ge "$slow_until" ] || sleep 0.25
done
cat history "$disk"/blocks/* >first.out
"""

_SECOND = f"""\
#!/bin/sh
read -r slow_until <slow_until
step=0
while [ $step -lt {SECOND_STEPS} ]; do
    step=$((step + 1))
    md5sum <first.out >>second.out
    sync
    [ "$(date +%s)" -ge "$slow_until" ] || sleep 0.2
done
"""

_TASK = """\
<task>
    <vm>default</vm><innerjob>{name}.sh</innerjob><memory_mb>128</memory_mb><disk_mb>64</disk_mb>
    <checkpoint_interval>0.4</checkpoint_interval>{data}<output>{name}.out</output>
</task>
"""


def write_job(slot: Path, inputs: Path) -> Path:
    """The job file, in the slot, with links to its inputs in the other folder, as a client makes them.

    There they keep their times, which a job is known by.
    """
    slow_until = "<data>slow_until</data>"
    tasks = _TASK.format(name="first", data=slow_until)
    tasks += _TASK.format(name="second", data=slow_until + "<data>first.out</data>")
    (slot / "job.xml").write_text(f"<job_desc>\n{tasks}</job_desc>\n")
    (inputs / "slow_until").write_text(f"{time.time() + RECORDED_FOR_S:.0f}\n")
    (inputs / "first.sh").write_text(_FIRST)
    (inputs / "second.sh").write_text(_SECOND)
    for path in inputs.iterdir():
        (slot / path.name).symlink_to(path)
    return slot / "job.xml"


def right_outputs() -> dict[str, bytes]:
    """What the job's outputs have to be."""
    blocks = [_content(0, number) * _PARTS for number in range(_BLOCKS)]
    grown = {0: b"\n"}
    history = b""
    r = _SEED
    for step in range(1, STEPS + 1):
        for _ in range(_REWRITTEN):
            r = (r * 1103515245 + 12345) % 2147483648
            number = r // 65536 % _BLOCKS
            parts = _PARTS if r // 256 % 4 == 0 else 1
            content = _content(step, number)
            blocks[number] = content * parts + blocks[number][parts * len(content) :]
        grown[step] = _content(step, 0) * 8
        if step % 3 == 0:
            grown.pop(step - 5, None)
        everything = b"".join([*blocks, *_in_order_of_name(grown), b"%d\n" % step])
        history += b"%d %d %s  -\n" % (step, r, hashlib.md5(everything).hexdigest().encode())
    first = history + b"".join(blocks)
    second = b"%s  -\n" % hashlib.md5(first).hexdigest().encode()
    return {"first.out": first, "second.out": second * SECOND_STEPS}


def _in_order_of_name(grown: dict[int, bytes]) -> list[bytes]:
    return [grown[number] for number in sorted(grown)]  # "0", and then from "1001" on


def _content(step: int, number: int) -> bytes:
    return b"%d %d\n" % (1000000 + step, 1000000 + number) * 256
