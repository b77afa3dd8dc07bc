"""`python -m gpupipe`: the command line."""

import sys

from gpupipe.cli import main

sys.exit(main())
