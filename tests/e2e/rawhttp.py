"""HTTP by hand over a socket: what the server sent, byte for byte, where client libraries would hide it."""

import json
import select
import socket
import struct
import time


class Raw:
    """One connection. Reading is strict: CR LF everywhere, chunk framing as in RFC 9112."""

    def __init__(self, port, timeout=60):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=timeout)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.buffer = b""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self.socket.close()

    def reset(self):
        """Closes with RST instead of FIN."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def send(self, data):
        self.socket.sendall(data)

    def request(self, method, path, body=None, headers=(), host="localhost"):
        """`body`: bytes, or anything else to send as JSON."""
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
        lines = [f"{method} {path} HTTP/1.1", f"Host: {host}"]
        names = {name.lower() for name, _ in headers}
        if body is not None and "content-length" not in names and "transfer-encoding" not in names:
            lines.append(f"Content-Length: {len(body)}")
        if body is not None and "content-type" not in names:
            lines.append("Content-Type: application/json")
        lines += [f"{name}: {value}" for name, value in headers]
        self.send(("\r\n".join(lines) + "\r\n\r\n").encode("latin1") + (body or b""))

    def fill(self):
        data = self.socket.recv(65536)
        self.buffer += data
        return len(data) > 0

    def readable(self, seconds=0):
        return len(self.buffer) > 0 or bool(select.select([self.socket], [], [], seconds)[0])

    def read_until(self, mark):
        while mark not in self.buffer:
            assert self.fill(), f"the connection ended before {mark!r}: {self.buffer[:200]!r}"
        out, _, self.buffer = self.buffer.partition(mark)
        return out

    def read_exactly(self, count):
        while len(self.buffer) < count:
            assert self.fill(), f"the connection ended {count - len(self.buffer)} bytes early: {self.buffer[:200]!r}"
        out, self.buffer = self.buffer[:count], self.buffer[count:]
        return out

    def read_head(self):
        return Head(self.read_until(b"\r\n\r\n"))

    def read_chunk(self):
        """The data of one HTTP chunk; b"" for the last one, whose closing line is read as well."""
        size = self.read_until(b"\r\n")
        assert size and all(c in b"0123456789abcdefABCDEF" for c in size), f"bad chunk size {size!r}"
        data = self.read_exactly(int(size, 16))
        assert self.read_exactly(2) == b"\r\n", "a chunk does not end in CR LF"
        return data

    def read_chunks(self):
        out = []
        while True:
            chunk = self.read_chunk()
            if not chunk:
                return out
            out.append(chunk)

    def read_answer(self):
        """(head, body bytes); a chunked body is joined."""
        head = self.read_head()
        while head.status == 100:
            head = self.read_head()
        if head.get("transfer-encoding") == "chunked":
            return head, b"".join(self.read_chunks())
        return head, self.read_exactly(int(head.get("content-length", "0")))

    def at_end(self, seconds=5):
        """True when the server closes within `seconds` and sends nothing before."""
        if self.buffer:
            return False
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if select.select([self.socket], [], [], 0.1)[0]:
                try:
                    return self.socket.recv(1) == b""
                except ConnectionResetError:
                    return True
        return False


class Head:
    """Status line and header fields. Field names are compared without case."""

    def __init__(self, data):
        lines = data.decode("latin1").split("\r\n")
        version, status, self.reason = lines[0].split(" ", 2)
        assert version == "HTTP/1.1", lines[0]
        self.status = int(status)
        self.fields = []
        for line in lines[1:]:
            name, colon, value = line.partition(":")
            assert colon and name and name == name.strip() and "\n" not in line, f"bad header line {line!r}"
            self.fields.append((name.lower(), value.strip()))

    def get(self, name, default=None):
        values = [value for field, value in self.fields if field == name]
        assert len(values) <= 1, f"{name} stands {len(values)} times in {self.fields}"
        return values[0] if values else default


def exchange(port, method, path, body=None, headers=()):
    """One request on a connection of its own: (head, body bytes)."""
    with Raw(port) as connection:
        connection.request(method, path, body, headers)
        return connection.read_answer()


def stream_chunks(port, path, body, headers=()):
    """The HTTP chunks of a streamed answer: (head, [bytes])."""
    with Raw(port) as connection:
        connection.request("POST", path, body, headers)
        head = connection.read_head()
        if head.get("transfer-encoding") != "chunked":
            rest = connection.read_exactly(int(head.get("content-length", "0")))
            raise AssertionError(f"not a stream: {head.status} {rest[:500]!r}")
        return head, connection.read_chunks()


def sse_events(chunks, prefix=b"data: "):
    """The JSON of each event, checking that every HTTP chunk is exactly one event; a last `[DONE]` is left out."""
    out = []
    for i, chunk in enumerate(chunks):
        assert chunk.startswith(prefix) and chunk.endswith(b"\n\n"), f"chunk {i} is not one event: {chunk!r}"
        data = chunk[len(prefix):-2]
        assert data and b"\n" not in data and b"\r" not in data and data[:1] != b" ", f"chunk {i} is not one event: {chunk!r}"
        if data == b"[DONE]":
            assert i == len(chunks) - 1, "an event follows [DONE]"
            return out
        out.append(json.loads(data.decode("utf-8")))
    return out
