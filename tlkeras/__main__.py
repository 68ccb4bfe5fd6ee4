"""`python -m tlkeras` is the command `tlkeras`."""

import sys

from tlkeras.cli import main

sys.exit(main())
