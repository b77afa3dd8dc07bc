"""`python -m gpupipe.bench`: hands over to the command line, the only package that prints."""

import sys

from gpupipe.cli import main

sys.exit(main(["bench", *sys.argv[1:]]))
