"""The command line: `coral repack PATH`, or `python -m coral repack PATH`."""

from coral.cli._main import main

__all__ = ["main"]
