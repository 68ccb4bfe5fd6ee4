"""`python -m tlkeras` is the command `tlkeras`."""

import sys

from tlkeras.cli.main import main

sys.exit(main())
