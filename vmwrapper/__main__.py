"""`python -m vmwrapper`."""

import sys

from vmwrapper.cli import main

sys.exit(main())
