"""`python -m gpupipe`: the command line."""

import sys

from gpupipe.cli.commands import main

sys.exit(main())
