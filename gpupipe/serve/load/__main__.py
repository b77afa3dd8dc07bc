"""`python -m gpupipe.serve.load`: hands over to the command line, the only package that prints."""

import sys

from gpupipe.cli.load import main

sys.exit(main())
