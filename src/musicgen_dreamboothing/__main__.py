"""`python -m musicgen_dreamboothing` is the command line."""

import sys

from musicgen_dreamboothing.cli import main

if __name__ == "__main__":
    sys.exit(main())
