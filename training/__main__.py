"""`python -m sslops.training METHOD ...` is `sslops train METHOD ...`."""

import sys

from sslops.training.cli import COMMANDS, main

if __name__ == "__main__":
    arguments = sys.argv[1:]
    named = bool(arguments) and (arguments[0] in COMMANDS or arguments[0].startswith("-"))
    sys.exit(main(arguments if named else ["train", *arguments]))
