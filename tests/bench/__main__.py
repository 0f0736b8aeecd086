"""Measures vmwrapper against bare QEMU and the host on this machine: `make bench`.

What is compared is measured in turns, so that a noisy machine is noisy for both; a figure is the median of the rounds,
with the smallest and the largest.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from .checkpoints import measure_busy_checkpoints, measure_checkpoints, measure_freed_memory, measure_loss
from .figure import Figure
from .requests import measure_requests
from .start import measure_idle, measure_start
from .transfers import measure_further_tasks, measure_huge_file, measure_large_files, measure_small_files
from .virtualbox import measure_virtualbox
from .virtualbox_guest import measure_virtualbox_guest
from .vsphere import measure_vsphere

MEASURES = (
    measure_start,
    measure_idle,
    measure_large_files,
    measure_small_files,
    measure_further_tasks,
    measure_huge_file,
    measure_requests,
    measure_checkpoints,
    measure_busy_checkpoints,
    measure_freed_memory,
    measure_loss,
    measure_virtualbox,
    measure_virtualbox_guest,
    measure_vsphere,
)


def show(figures: Sequence[Figure]) -> None:
    table = Table("figure", "median", "min", "max", "unit", "aim")
    for figure in figures:
        numbers = (figure.median, min(figure.values), max(figure.values))
        sign = ">=" if figure.more_is_better else "<="
        aim = f"{sign} {figure.aim:g}" if figure.aim is not None else ""
        table.add_row(figure.name, *(f"{number:.3g}" for number in numbers), figure.unit, aim)
    Console(width=120).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True, help="where to write the figures")
    parser.add_argument("--only", default="", help="a part of the name of what to measure, such as virtualbox")
    chosen = parser.parse_args()
    file = chosen.json
    figures = []
    for measure in [measure for measure in MEASURES if chosen.only in measure.__name__]:
        with tempfile.TemporaryDirectory() as folder:
            figures += measure(Path(folder))
    show(figures)
    file.write_text(json.dumps([asdict(figure) | {"median": figure.median} for figure in figures], indent=2) + "\n")


if __name__ == "__main__":
    main()
