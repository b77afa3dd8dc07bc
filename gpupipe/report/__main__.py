"""`python -m gpupipe.report`: hands over to the command line, the only package that prints."""

import sys

from gpupipe.cli import main

sys.exit(main(["report", *sys.argv[1:]]))
