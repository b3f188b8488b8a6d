"""`python -m sslops COMMAND ...` is `sslops COMMAND ...`."""

import sys

from sslops.training.cli import main

if __name__ == "__main__":
    sys.exit(main())
