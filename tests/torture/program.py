"""The program that is tortured: it finds out by itself when its memory and its disk are of different instants.

It keeps what it has done three times: in its shell's variables, in files in memory, and on the scratch disk. At each
step all three must agree; now and then also byte for byte, with what the guest's kernel remembered of the disk
forgotten before, so that it is really read. A ring of blocks is written in place and synced at each step: there a disk
that is older or newer than the memory shows, where a file that only grows could hide it behind its end, and what is not
synced in the memory.

All that it writes follows from its input, so that the host knows what must come out.
"""

import hashlib
import random
from collections.abc import Iterator
from pathlib import Path

from vmwrapper.hypervisor.interface import MIB

CHUNK_BYTES = 24576
INPUT_BYTES = 3 * MIB
_RING_BLOCKS = 64
_BLOCK_BYTES = 4096
_STEPS_PER_LOOK = 8
_SHORT = "tr a-z A-Z <grown.txt >short.txt"

_LONG = f"""\
#!/bin/sh
# Steps to do are the argument. Exit status 3: memory and disk are of different instants.
set -u
memory=/run/torture
fail() {{ echo "step $step of $steps: $*" >&2; exit 3; }}
sum_of() {{ set -- $(md5sum <"$1"); sum=$1; }}
agree() {{
    read -r on_disk <state && read -r in_memory <$memory/state || fail 'a state is missing'
    [ "$on_disk" = "$step $sum" ] || fail "memory has $step $sum, the disk $on_disk"
    [ "$in_memory" = "$step $sum" ] || fail "the variables have $step $sum, the memory $in_memory"
}}
look() {{
    sync
    echo 3 >/proc/sys/vm/drop_caches
    for file in grown ring; do
        set -- $(md5sum <$file) $(md5sum <$memory/$file)
        [ "$1" = "$3" ] || fail "$file on the disk is not the one in memory"
    done
}}
steps=$1 step=0
mkdir $memory || exit 4
cp input grown && cp input $memory/grown || exit 4
sum_of input
echo "$step $sum" | tee state >$memory/state
while [ $step -lt $steps ]; do
    agree
    yes "$step $sum" | head -c {CHUNK_BYTES} >chunk
    tee -a grown <chunk >>$memory/grown || exit 4
    for ring in ring $memory/ring; do
        dd if=chunk of=$ring bs={_BLOCK_BYTES} count=1 seek=$((step % {_RING_BLOCKS})) conv=notrunc,fsync || exit 4
    done 2>$memory/said
    sum_of chunk
    step=$((step + 1))
    echo "$step $sum" >state.new && mv state.new state && echo "$step $sum" >$memory/state || exit 4
    echo "$step" | awk '{{ print $1 / '$((steps + 1))' }}' >$memory/fraction
    [ $((step % {_STEPS_PER_LOOK})) -ne 0 ] || look
    sleep 0.03 # so that there is time for a checkpoint where the processor is not emulated
done
agree
look
cat ring >>grown
echo "$step $sum" >last
cat last last >grown.txt
"""


def write_job(folder: Path, *, seed: int, steps: int) -> Path:
    """Write the job, of two tasks, with its programs and its input, into an empty folder; its job file."""
    folder.joinpath("long.sh").write_text(_LONG)
    folder.joinpath("short.sh").write_text(f"#!/bin/sh\n{_SHORT}\n")
    folder.joinpath("input").write_bytes(_input(seed))
    tags = (
        "<vm>default</vm><memory_mb>160</memory_mb><disk_mb>64</disk_mb><checkpoint_interval>1.5</checkpoint_interval>"
    )
    job_file = folder / "job.xml"
    job_file.write_text(
        f"<job_desc><task>{tags}<innerjob>long.sh</innerjob><command_line>{steps}</command_line><data>input</data>"
        "<output>grown</output><output>grown.txt</output><weight>9</weight>"
        "<fraction_done_filename>/run/torture/fraction</fraction_done_filename></task>"
        f"<task>{tags}<innerjob>short.sh</innerjob><data>grown.txt</data><output>short.txt</output></task></job_desc>"
    )
    return job_file


def expected(*, seed: int, steps: int) -> dict[str, bytes]:
    """What the job's outputs must be."""
    grown = bytearray(_input(seed))
    ring = bytearray()
    last = hashlib.md5(grown).hexdigest()
    for step, chunk in enumerate(_chunks(last, steps)):
        grown += chunk
        place = step % _RING_BLOCKS * _BLOCK_BYTES
        ring[place : place + _BLOCK_BYTES] = chunk[:_BLOCK_BYTES]
        last = hashlib.md5(chunk).hexdigest()
    line = f"{steps} {last}\n".encode()
    return {"grown": bytes(grown + ring), "grown.txt": line * 2, "short.txt": line.upper() * 2}


def _chunks(first_sum: str, steps: int) -> Iterator[bytes]:
    last = first_sum
    for step in range(steps):
        line = f"{step} {last}\n".encode()
        chunk = (line * (CHUNK_BYTES // len(line) + 1))[:CHUNK_BYTES]
        yield chunk
        last = hashlib.md5(chunk).hexdigest()


def _input(seed: int) -> bytes:
    return random.Random(seed).randbytes(INPUT_BYTES)
