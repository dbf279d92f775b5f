"""``python -m intarsia``."""

from intarsia.cli import main

main()
