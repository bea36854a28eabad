"""`python -m coral`: see `coral.cli`."""

import sys

from coral.cli import main

if __name__ == "__main__":
    sys.exit(main())
