"""`python -m sslops.training.cli` is `sslops`."""

import sys

from sslops.training.cli.command_line import main

if __name__ == "__main__":
    sys.exit(main())
