"""The modules here import each other by their plain names, also where pytest imports tests by path."""

import sys
from pathlib import Path

if (here := str(Path(__file__).parent)) not in sys.path:
    sys.path.insert(0, here)
