"""The code of docs/writing-an-adapter.md, as a module."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

PAGE = Path(__file__).parents[2] / "docs" / "writing-an-adapter.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def _run() -> ModuleType:
    found = ModuleType("writing_an_adapter")
    sys.modules[found.__name__] = found  # where pytest looks a class's module up
    exec(compile("\n".join(BLOCKS), str(PAGE), "exec"), vars(found))  # noqa: S102 - the page is this repository's
    return found


CODE = _run()
