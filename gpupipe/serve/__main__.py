"""`python -m gpupipe.serve`: hands over to the command line, the only package that prints."""

import sys

from gpupipe.cli import main

sys.exit(main(["serve", *sys.argv[1:]]))
