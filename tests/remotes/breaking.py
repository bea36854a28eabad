"""A proxy on loopback that breaks requests on their way to a real server."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit


class Breaking:
    """What is between client and server. `fault(number)` says what happens to a request; `bodies` counts bytes."""

    def __init__(self, server: str) -> None:
        self.target = urlsplit(server).netloc
        self.fault: Callable[[int], str | None] = lambda number: None
        self.requests = 0
        self.sent = 0  # bytes of bodies to the server
        self.answered = 0  # of those from it
        self.late: list[Callable[[], object]] = []  # requests that nobody waits for any more
        self.lock = threading.Lock()

    def begin(self, fault: Callable[[int], str | None] | None = None) -> None:
        """Count anew, with a fault to come."""
        self.arrive()
        self.requests = self.sent = self.answered = 0
        self.fault = fault or (lambda number: None)

    def arrive(self) -> None:
        """Have what is late come to the server."""
        while self.late:
            self.late.pop(0)()


@contextmanager
def breaking(server: str) -> Iterator[tuple[str, Breaking]]:
    """A proxy before a server: its URL, and what breaks there."""
    state = Breaking(server)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def handle_one(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            with state.lock:
                number, state.requests = state.requests, state.requests + 1
                state.sent += len(body)
                state.arrive()
            fault = state.fault(number)
            if fault is not None and fault.isdigit():
                self._answer(int(fault), {}, b"")
                return
            if fault == "cut":
                self.close_connection = True
                return
            if fault == "late":
                with state.lock:
                    state.late.append(lambda: self._ask(body))
                self.close_connection = True
                return
            status, headers, answer = self._ask(body)
            if fault == "delayed":
                time.sleep(0.05)
            if fault == "twice":
                status, headers, answer = self._ask(body)
            if fault == "lost":
                self.close_connection = True
                return
            if fault == "wrong" and self.command == "GET" and status < 300 and answer:
                answer = bytes([answer[0] ^ 1]) + answer[1:]
                headers = {
                    name: value for name, value in headers.items() if not name.lower().startswith("x-amz-checksum")
                }
            self._answer(status, headers, answer, short=fault == "truncated" and self.command == "GET")

        def _ask(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
            connection = http.client.HTTPConnection(state.target)
            try:
                headers = {name: value for name, value in self.headers.items() if name.lower() != "connection"}
                connection.request(self.command, self.path, body, headers)
                found = connection.getresponse()
                return found.status, dict(found.getheaders()), found.read()
            finally:
                connection.close()

        def _answer(self, status: int, headers: dict[str, str], body: bytes, *, short: bool = False) -> None:
            self.send_response_only(status)
            for name, value in headers.items():
                if name.lower() not in ("content-length", "transfer-encoding", "connection", "date", "server"):
                    self.send_header(name, value)
            length = headers.get("Content-Length", str(len(body))) if self.command == "HEAD" else str(len(body))
            self.send_header("Content-Length", length)
            self.end_headers()
            if self.command != "HEAD":
                with state.lock:
                    state.answered += len(body)
                self.wfile.write(body[: len(body) // 2] if short else body)
            self.close_connection = self.close_connection or short

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_one  # noqa: N815 - the names that the module looks for

        def log_message(self, *args: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *args: object) -> None:
            pass  # a client that has gone

    proxy = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=proxy.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{proxy.server_address[1]}", state
    finally:
        proxy.shutdown()
        proxy.server_close()
        thread.join()
