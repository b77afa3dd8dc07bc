"""`python -m gpupipe.serve.client`: hands over to the command line, the only package that prints."""

import sys

from gpupipe.cli.client import main

sys.exit(main())
