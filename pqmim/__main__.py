"""``python -m pqmim``: the command line."""

import sys

from pqmim.cli import main

if __name__ == "__main__":
    sys.exit(main())
