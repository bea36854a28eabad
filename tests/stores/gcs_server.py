"""A server of Google Cloud Storage: `python gcs_server.py PORT BUCKET`.

It is the emulator of PyPI's gcp-storage-emulator, with what that one passes over: `ifGenerationMatch=0`, by which an
object is put only where there is none.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers import objects
from gcp_storage_emulator.storage import Storage

_create_file = Storage.create_file
_absent = False  # what the request asks for that is being answered: the server answers one at a time


class _Taken(Exception):
    """There is an object of that name."""


def _create(self: Storage, bucket: str, name: str, *more: Any) -> Any:
    if _absent:
        try:
            self.get_file_obj(bucket, name)
        except NotFound:
            pass
        else:
            raise _Taken
    return _create_file(self, bucket, name, *more)


def _conditional(handle: Callable[..., Any]) -> Callable[..., Any]:
    def do(request: Any, response: Any, *more: Any, **named: Any) -> Any:
        global _absent  # noqa: PLW0603
        _absent = request.query.get("ifGenerationMatch") == ["0"]
        try:
            return handle(request, response, *more, **named)
        except _Taken:
            response.status = HTTPStatus.PRECONDITION_FAILED

    return do


Storage.create_file = _create
objects.insert, objects.upload_partial = _conditional(objects.insert), _conditional(objects.upload_partial)

from gcp_storage_emulator.server import create_server  # noqa: E402 - its table of routes takes them as they are now

if __name__ == "__main__":
    create_server("127.0.0.1", int(sys.argv[1]), in_memory=True, default_bucket=sys.argv[2]).run()
