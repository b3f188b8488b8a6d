"""What a person types: the `sslops` command, its sub-commands, what is done with a finished run."""

from sslops.training.cli.command_line import COMMANDS, main

__all__ = ["COMMANDS", "main"]
