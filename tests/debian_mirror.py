"""The Debian mirror that this machine's apt is set up for, and how apt reaches it."""

import re
import subprocess
from pathlib import Path


def mirror() -> str | None:
    """Its URL, which ends in a slash; None where apt has no list of packages from one."""
    columns = ("--format", "$(REPO_URI)", "Created-By: Packages", "Origin: Debian", "Label: Debian", "Component: main")
    found = run("apt-get", "indextargets", *columns).split()
    return found[0] if found else None


def apt_connection() -> list[str]:
    """Options of apt that it takes to reach the mirror, such as through a proxy."""
    return re.findall(r"^Acquire::https?::.*", run("apt-config", "dump"), re.MULTILINE)


def run(*argv: str | Path) -> str:
    """The output of a program that must succeed."""
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{argv[0]}: {done.stderr[-2000:]}"
    return done.stdout
