"""Run the command line as ``python -m dptr``."""

from dptr.cli import main

main()
