"""vmwrapper, but with checkpoints as often as the job file says, whatever they cost."""

import sys

from vmwrapper import checkpointer
from vmwrapper.cli import main

if __name__ == "__main__":
    checkpointer.MOST_OF_RUNNING_TIME = 1.0
    sys.exit(main())
