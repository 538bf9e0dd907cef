"""Fetching weights from a hub: against a small server of our own that speaks as the hub does."""

from __future__ import annotations

import hashlib
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from stepladder import hub
from stepladder.errors import ModelFileError

CONTENT = bytes(range(256)) * 4096
COMMIT = "a" * 40
ETAG = hashlib.sha256(CONTENT).hexdigest()


class FakeHub(BaseHTTPRequestHandler):
    """One repository with one file; a GET may be cut off, a Range is honoured."""

    requests: list[tuple[str, str, str | None]]
    content: bytes
    cut_after: int | None
    etag = ETAG

    def log_message(self, *args) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        span = self.headers.get("Range")
        self.server.requests.append((self.command, self.path, span))
        if not self.path.startswith("/org/tiny/resolve/main/model.gguf"):
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start = int(span.removeprefix("bytes=").split("-")[0]) if span else 0
        data = self.server.content[start:]
        self.send_response(206 if span else 200)
        self.send_header("ETag", f'"{self.etag}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(data)))
        if span:
            self.send_header(
                "Content-Range", f"bytes {start}-{len(self.server.content) - 1}/{len(self.server.content)}"
            )
        self.end_headers()
        if not body:
            return
        if self.server.cut_after is not None:
            data, self.server.cut_after = data[: self.server.cut_after], None
            self.wfile.write(data)
            self.close_connection = True
            return
        self.wfile.write(data)


@pytest.fixture
def server():
    made = ThreadingHTTPServer(("127.0.0.1", 0), FakeHub)
    made.requests, made.cut_after, made.content = [], None, CONTENT
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


def fetch(server, cache: Path, name: str = "model.gguf") -> Path:
    return hub.fetch(hub.HubFile("org/tiny", name, None), cache=cache, endpoint=address(server))


def address(server) -> str:
    return f"http://127.0.0.1:{server.server_port}"


def test_a_file_is_fetched_once(server, tmp_path):
    path = fetch(server, tmp_path)
    assert path.read_bytes() == CONTENT
    before = sum(method == "GET" for method, _, _ in server.requests)
    assert fetch(server, tmp_path) == path
    assert sum(method == "GET" for method, _, _ in server.requests) == before == 1


def test_a_download_that_was_cut_off_goes_on_where_it_stopped(server, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 100_000)  # it resumes by whole chunks
    server.cut_after = 300_000
    path = fetch(server, tmp_path)
    spans = [span for method, _, span in server.requests if method == "GET"]
    assert path.read_bytes() == CONTENT
    assert spans == [None, "bytes=300000-"]


def gets(server) -> int:
    return sum(method == "GET" for method, _, _ in server.requests)


def test_wrong_content_is_refused_and_fetched_anew(server, tmp_path):
    server.content = CONTENT[:-1] + b"x"
    with pytest.raises(ModelFileError, match="hub:org/tiny/model.gguf is not what the hub named") as caught:
        fetch(server, tmp_path)
    assert hashlib.sha256(server.content).hexdigest() in str(caught.value)
    assert ETAG in str(caught.value)
    server.content = CONTENT
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    assert gets(server) == 2


def test_content_is_compared_once_and_again_when_it_was_touched(server, tmp_path, monkeypatch):
    digests = []
    digest = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda *of: digests.append(of) or digest(*of))
    path = fetch(server, tmp_path)
    assert fetch(server, tmp_path) == path
    assert len(digests) == 1
    path.resolve().write_bytes(CONTENT[::-1])
    with pytest.raises(ModelFileError, match="is not what the hub named"):
        fetch(server, tmp_path)
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    assert gets(server) == 2


def test_a_bad_blob_in_a_shared_store_is_removed_there_too(server, tmp_path):
    blob = fetch(server, tmp_path).resolve()
    shared = tmp_path / "shared"
    shared.write_bytes(CONTENT[::-1])
    blob.unlink()
    blob.symlink_to(shared)
    with pytest.raises(ModelFileError, match="is not what the hub named"):
        fetch(server, tmp_path)
    assert not shared.exists()
    assert fetch(server, tmp_path).read_bytes() == CONTENT


def test_names_that_are_no_digest_are_taken_as_they_are(server, tmp_path, monkeypatch):
    monkeypatch.setattr(FakeHub, "etag", "0123abc")
    server.content = b"small"
    assert fetch(server, tmp_path).read_bytes() == b"small"


@pytest.fixture(params=["refuses", "never answers"])
def nowhere(request, monkeypatch) -> Iterator[str]:
    """The address of a hub that cannot be reached; whoever waits there between two tries is found out."""

    def waits(seconds: float) -> None:
        pytest.fail(f"it waits {seconds} s for another try")

    monkeypatch.setattr("time.sleep", waits)
    monkeypatch.setattr(hub, "REACH_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        if request.param == "refuses":
            listener.close()
            yield "http://127.0.0.1:9"
        else:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"


TINY = hub.HubFile("org/tiny", "model.gguf", None)


@pytest.mark.timeout(20)
def test_a_hub_that_cannot_be_reached(nowhere, tmp_path):
    with pytest.raises(ModelFileError) as caught:
        hub.fetch(TINY, cache=tmp_path, endpoint=nowhere)
    told = "hub:org/tiny/model.gguf could not be fetched: it is not on this machine, and the hub cannot be reached at"
    assert str(caught.value).startswith(f"{told} {nowhere} (")
    assert "\n" not in str(caught.value)


@pytest.mark.timeout(20)
def test_what_is_here_is_used_where_the_hub_cannot_be_reached(server, nowhere, tmp_path):
    path = fetch(server, tmp_path)
    assert hub.fetch(TINY, cache=tmp_path, endpoint=nowhere) == path
    with pytest.raises(ModelFileError, match="it is not on this machine"):
        hub.fetch(TINY._replace(revision="v2"), cache=tmp_path, endpoint=nowhere)


@pytest.mark.timeout(20)
def test_a_limit_of_the_users_own_counts(nowhere, tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "REACH_S", 3600.0)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_ETAG_TIMEOUT", 1)
    with pytest.raises(ModelFileError, match="the hub cannot be reached at"):
        hub.fetch(TINY, cache=tmp_path, endpoint=nowhere)


def test_a_commit_that_is_here_asks_nobody(server, tmp_path):
    path = fetch(server, tmp_path)
    before = len(server.requests)
    assert hub.fetch(TINY._replace(revision=COMMIT), cache=tmp_path, endpoint=address(server)) == path
    assert len(server.requests) == before


def test_offline_by_the_environment_nobody_is_asked(server, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelFileError, match="it is not on this machine, and HF_HUB_OFFLINE is set$"):
        fetch(server, tmp_path)
    assert server.requests == []
    monkeypatch.undo()
    path = fetch(server, tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    before = len(server.requests)
    assert fetch(server, tmp_path) == path
    assert len(server.requests) == before


def test_what_the_hub_says_is_told_in_one_sentence(server, tmp_path):
    with pytest.raises(ModelFileError) as caught:
        fetch(server, tmp_path, "absent.gguf")
    assert str(caught.value) == "hub:org/tiny/absent.gguf could not be fetched: the repository has no such file"


@pytest.mark.parametrize(
    ("model", "parts"),
    [
        ("hub:a/b/c.gguf", ("a/b", "c.gguf", None)),
        ("hub:a/b/deep/c.gguf@v1.0", ("a/b", "deep/c.gguf", "v1.0")),
    ],
)
def test_references(model, parts):
    assert hub.parse_reference(model) == parts


@pytest.mark.parametrize("model", ["hub:", "hub:a/b", "hub:a/b/c@", "hub:a b/c/d"])
def test_references_that_are_none(model):
    with pytest.raises(ModelFileError, match="hub:OWNER/REPOSITORY/FILE"):
        hub.parse_reference(model)


def test_paths_are_taken_from_the_configurations_folder(tmp_path):
    assert hub.resolve("m.gguf", tmp_path) == tmp_path / "m.gguf"
    assert hub.resolve("/x/m.gguf", tmp_path) == Path("/x/m.gguf")
