"""`coral fsck`: its exit status says what was found, as that of fsck(8) does."""

from __future__ import annotations

import argparse
import traceback
from typing import Any

from coral.errors import CoralError, CorruptObject, NotARepository, storage_errors
from coral.filesystem import LocalFileSystem
from coral.maintenance import restore_format
from coral.repository import Repository

__all__ = ["add_fsck"]

_WHOLE, _MENDED, _DAMAGED, _FAILED = 0, 1, 4, 8

_STATUS = f"""\
exit status:
  {_WHOLE}  nothing is damaged
  {_MENDED}  there was damage, and nothing of it is left (--repair)
  {_DAMAGED}  there is damage
  {_FAILED}  it could not be checked: no repository, a newer coral's, a refusal of the filesystem
  2  the command line makes no sense
"""


def add_fsck(commands: Any) -> None:
    """Add the command to those of a parser."""
    parser = commands.add_parser(
        "fsck",
        help="read and check every byte, and mend what can be mended",
        epilog=_STATUS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("path", help="the repository's folder")
    parser.add_argument(
        "--repair",
        action="store_true",
        help="mend it from other copies, here and at its remotes; set aside what is damaged, and delete nothing",
    )
    parser.set_defaults(run=_fsck, failed=_FAILED)


def _fsck(args: argparse.Namespace) -> str | None:
    try:
        return _checked(args)
    except CoralError:
        raise
    except Exception:  # noqa: BLE001 - Python's own status would say that there was damage, and that it is mended
        traceback.print_exc()
        args.status = _FAILED
        return None


def _checked(args: argparse.Namespace) -> str:
    repo, restored = _opened(args.path, args.repair)
    if repo is None:
        args.status = _DAMAGED
        return "format: lost or damaged, so that the repository cannot be opened. Run fsck --repair."
    report = repo.fsck(repair=args.repair)
    if not report.ok:
        args.status = _DAMAGED
    elif report.repaired or restored:
        args.status = _MENDED
    return f"format: written anew\n{report}" if restored else str(report)


def _opened(path: str, repair: bool) -> tuple[Repository | None, bool]:
    """The repository, and whether the file that says it is one had to be written anew; None where it has to."""
    try:
        return Repository(path), False
    except (CorruptObject, NotARepository):
        fs = LocalFileSystem(path)
        with storage_errors(f"repairing the repository {path}"):
            if not {"packs", "refs"} <= {*fs.list("")} or not fs.list("refs"):
                raise
            if not repair:
                return None, False
            restored = restore_format(fs)
        return Repository(path), restored
