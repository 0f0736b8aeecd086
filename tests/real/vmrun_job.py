"""The program `vmwrapper` with vmrun's stand-in as its hypervisor: `python -m tests.real.vmrun_job HOME WORDS`."""

import sys
from pathlib import Path

from vmwrapper import cli
from vmwrapper.hypervisor.vmware.vmrun.backend import VmrunHypervisor


def main(home: Path, *words: str) -> int:
    cli.all_hypervisors = lambda: (VmrunHypervisor(home / "vmrun", modules=home),)  # type: ignore[assignment]
    return cli.main(list(words))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), *sys.argv[2:]))
