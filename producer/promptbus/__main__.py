"""`python -m promptbus` is `promptbus`."""

import sys

from promptbus.cli import main

if __name__ == "__main__":
    sys.exit(main())
