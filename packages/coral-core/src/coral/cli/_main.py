"""What the commands do: parse, call the repository, say what came of it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from coral._version import __version__
from coral.cli._adapters import installed_adapters
from coral.cli._fsck import add_fsck
from coral.cli._priority import stand_back
from coral.delta import DeltaConfig
from coral.errors import Conflict, CoralError, RemoteError
from coral.maintenance import serve
from coral.repository import Repository

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; its exit status: 0, or 1 after an error, which stands on standard error; for fsck see its help."""
    args = _parser().parse_args(argv)
    try:
        said = args.run(args)
        if said is not None:
            sys.stdout.write(f"{said}\n")
    except CoralError as error:
        sys.stderr.write(f"coral {args.command}: {error}\n")
        return int(getattr(args, "failed", 1))
    return int(getattr(args, "status", 0))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="coral", description="Version control for model weights.")
    parser.add_argument("--version", action=_Version, nargs=0, help="say which versions are installed, and exit")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")

    repack = commands.add_parser("repack", help="store the past as differences, and free what they stand for")
    repack.add_argument("path", help="the repository's folder")
    repack.add_argument("--aggressive", action="store_true", help="smaller, and several times slower to read")
    repack.add_argument(
        "--auto",
        action="store_true",
        help="beside a training run: stand back for it, and leave whole what may find a nearer keyframe yet",
    )
    repack.add_argument("--entropy", choices=("auto", "deflate", "zstd"), default="auto", help="default: auto")
    repack.set_defaults(run=_repack)

    encode = commands.add_parser("encode")  # what `repack` starts on each processor
    encode.add_argument("path")
    encode.set_defaults(run=_encode)

    push = commands.add_parser("push", help="bring a branch to a remote, with tags and notes")
    push.add_argument("path", help="the repository's folder")
    push.add_argument("remote", nargs="?", default="origin", help="its name, or a URL (default: origin)")
    push.add_argument("branch", nargs="?", help="default: HEAD's")
    push.add_argument("--prune", action="store_true", help="free over there what is pruned here")
    push.add_argument("--due", action="store_true", help="what training runs have left due, standing back for them")
    push.set_defaults(run=_push)

    add_fsck(commands)

    gc = commands.add_parser("gc", help="free what nothing leads to any more")
    gc.add_argument("path", help="the repository's folder")
    gc.add_argument("--grace", type=float, help="seconds for which packs that nothing leads to are kept")
    gc.set_defaults(run=lambda args: Repository(args.path).gc(args.grace))
    return parser


class _Version(argparse.Action):
    """Looks for adapters when it is asked to: reading what is installed takes longer than any command's parser."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        adapters = ", ".join(installed_adapters()) or "none"
        sys.stdout.write(f"coral-core {__version__}\nadapters: {adapters}\n")
        parser.exit()


def _encode(args: argparse.Namespace) -> None:
    serve(Repository(args.path).store, sys.stdin.buffer, sys.stdout.buffer)


def _push(args: argparse.Namespace) -> str:
    repo = Repository(args.path)
    if not args.due:
        return str(repo.push(args.remote, args.branch, prune=args.prune))
    stand_back()
    done = repo.push_due()
    said = "\n".join(str(each) for each in done.values())
    if any(isinstance(each, CoralError) for each in done.values()):
        raise RemoteError(said)
    return said or "nothing was due"


def _repack(args: argparse.Namespace) -> str:
    if args.auto:
        stand_back()
    try:
        config = DeltaConfig(entropy=args.entropy)
        done = Repository(args.path).repack(args.aggressive, config=config, patient=args.auto)
    except Conflict as error:
        if args.auto:  # the other one does the work
            return str(error)
        raise
    return str(done)
