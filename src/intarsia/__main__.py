"""``python -m intarsia``."""

from intarsia.cli.main import main

main()
