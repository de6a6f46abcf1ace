"""The command line: parses, calls, prints; no logic of its own."""

from bolus.cli.app import app, main

__all__ = ["app", "main"]
