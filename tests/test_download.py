"""Downloads against a server on this machine: resume, checksums, unsafe archives."""

import hashlib
import io
import logging
import tarfile
import threading
import zipfile
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from asr.corpora.download import Archive, DownloadError, fetch, obtain, unpack

CONTENT = bytes(range(256)) * 4000  # 1 MB


@dataclass
class Server:
    """Serves ``files``; the switches make it misbehave as real ones do."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    honours_range: bool = True
    entity_tag: str | None = '"v1"'
    cut_after: list[int] = field(default_factory=list)
    """Bytes after which each of the next answers breaks off."""
    statuses: list[int] = field(default_factory=list)
    """Error statuses of the next answers."""
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    """Path and Range header of each request."""


@pytest.fixture
def server():
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            state.requests.append((self.path, self.headers.get("Range")))
            content = state.files.get(self.path)
            if state.statuses or content is None:
                self.send_error(state.statuses.pop(0) if state.statuses else 404)
                return
            start = 0
            if state.honours_range and self.headers.get("Range"):
                condition = self.headers.get("If-Range")
                if condition is None or condition == state.entity_tag:
                    start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
            if start >= len(content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            if state.entity_tag:
                self.send_header("ETag", state.entity_tag)
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            body = content[start:]
            self.wfile.write(body[: state.cut_after.pop(0)] if state.cut_after else body)

        def log_message(self, *_):
            pass

    listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    state.url = f"http://127.0.0.1:{listener.server_port}"
    state.files["/x/a.bin"] = CONTENT
    yield state
    listener.shutdown()
    thread.join()
    listener.server_close()


def archive(
    server: Server, checksum: str | None = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"
) -> Archive:
    return Archive(f"{server.url}/x/a.bin", checksum)


def get(item: Archive, folder: Path, **options) -> Path:
    return fetch(item, folder, pause_seconds=0, **options)


def test_download_with_progress_and_either_checksum(server, tmp_path):
    seen = []
    path = get(archive(server), tmp_path / "new", progress=lambda *values: seen.append(values))
    assert path == tmp_path / "new" / "a.bin"
    assert path.read_bytes() == CONTENT
    assert seen[-1] == ("downloading a.bin (MB)", 1, 1)
    md5 = f"md5:{hashlib.md5(CONTENT).hexdigest().upper()}"
    assert get(archive(server, md5), tmp_path / "md5").read_bytes() == CONTENT
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["a.bin", "a.bin"]


def test_without_official_checksum_the_computed_one_is_told(server, tmp_path, caplog):
    with caplog.at_level(logging.INFO, "asr"):
        get(archive(server, None), tmp_path)
    assert hashlib.sha256(CONTENT).hexdigest() in caplog.text


def test_what_is_there_is_verified_and_not_fetched_again(server, tmp_path):
    (tmp_path / "a.bin").write_bytes(CONTENT)
    get(archive(server), tmp_path)
    assert server.requests == []
    (tmp_path / "a.bin").write_bytes(b"damaged")
    with pytest.raises(DownloadError, match="wrong sha256 checksum"):
        get(archive(server), tmp_path)
    assert get(archive(server), tmp_path).read_bytes() == CONTENT


def test_a_partial_file_is_continued(server, tmp_path):
    (tmp_path / "a.bin.part").write_bytes(CONTENT[:300_000])
    assert get(archive(server), tmp_path).read_bytes() == CONTENT
    assert server.requests == [("/x/a.bin", "bytes=300000-")]
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]


def test_a_broken_connection_is_retried_from_where_it_stopped(server, tmp_path):
    server.cut_after = [200_000, 100_000]
    assert get(archive(server), tmp_path).read_bytes() == CONTENT
    assert [wanted for _, wanted in server.requests] == [None, "bytes=200000-", "bytes=300000-"]


def test_after_too_many_breaks_the_next_run_continues(server, tmp_path):
    server.cut_after = [200_000, 100_000]
    with pytest.raises(DownloadError, match="after 300000 of 1024000 bytes; run the command again to resume"):
        get(archive(server), tmp_path, num_attempts=2)
    assert get(archive(server), tmp_path).read_bytes() == CONTENT
    assert server.requests[-1] == ("/x/a.bin", "bytes=300000-")


def test_a_server_that_ignores_range_sends_it_all_again(server, tmp_path):
    server.honours_range = False
    (tmp_path / "a.bin.part").write_bytes(b"stale" * 1000)
    assert get(archive(server), tmp_path).read_bytes() == CONTENT


def test_two_versions_of_a_file_are_never_joined(server, tmp_path):
    server.cut_after = [200_000]
    with pytest.raises(DownloadError):
        get(archive(server, None), tmp_path, num_attempts=1)
    server.files["/x/a.bin"] = CONTENT[::-1]
    server.entity_tag = '"v2"'
    assert get(archive(server, None), tmp_path).read_bytes() == CONTENT[::-1]


def test_a_complete_partial_file_needs_nothing_more(server, tmp_path):
    (tmp_path / "a.bin.part").write_bytes(CONTENT)
    assert get(archive(server), tmp_path).read_bytes() == CONTENT


def test_a_partial_file_longer_than_the_real_one_is_dropped(server, tmp_path):
    (tmp_path / "a.bin.part").write_bytes(CONTENT + b"more")
    assert get(archive(server), tmp_path).read_bytes() == CONTENT


def test_a_wrong_checksum_is_named_and_the_file_kept_aside(server, tmp_path):
    wrong = f"sha256:{'0' * 64}"
    with pytest.raises(DownloadError, match=r"/x/a\.bin has the wrong sha256 .*kept as .*a\.bin\.corrupt"):
        get(archive(server, wrong), tmp_path)
    assert [p.name for p in tmp_path.iterdir() if p.suffix != ".validator"] == ["a.bin.corrupt"]


def test_refusals_are_not_retried_and_outages_are(server, tmp_path):
    with pytest.raises(DownloadError, match=r"/x/none\.bin: HTTP 404 .*give source=DIR"):
        get(Archive(f"{server.url}/x/none.bin"), tmp_path)
    assert len(server.requests) == 1
    server.statuses = [503, 502]
    assert get(archive(server), tmp_path).read_bytes() == CONTENT


def test_no_server_and_no_url_are_one_line_errors(tmp_path):
    with pytest.raises(DownloadError, match=r"cannot download http://127\.0\.0\.1:9/a\.bin: .*refused"):
        get(Archive("http://127.0.0.1:9/a.bin"), tmp_path, num_attempts=1)
    with pytest.raises(DownloadError, match="is not a URL"):
        get(Archive("data/a.bin"), tmp_path)


def tar_of(members: dict[str, bytes], links: dict[str, str] | None = None, mode: str = "w:gz") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        for name, target in (links or {}).items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, target
            tar.addfile(member)
    return buffer.getvalue()


def zip_of(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as zipped:
        for name, content in members.items():
            zipped.writestr(name, content)
    return buffer.getvalue()


MEMBERS = {"corpus/etc/list.txt": b"one", "corpus/wav/a.wav": b"RIFF" * 100}


@pytest.mark.parametrize(
    "content", [tar_of(MEMBERS), tar_of(MEMBERS, mode="w:bz2"), tar_of(MEMBERS, mode="w"), zip_of(MEMBERS)]
)
def test_tar_and_zip_are_unpacked(tmp_path, content):
    (tmp_path / "a.archive").write_bytes(content)
    unpack(tmp_path / "a.archive", tmp_path / "out")
    files = {p.relative_to(tmp_path / "out").as_posix(): p for p in (tmp_path / "out").rglob("*")}
    assert {name: p.read_bytes() for name, p in files.items() if p.is_file()} == MEMBERS
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.archive", "out"]


@pytest.mark.parametrize("name", ["../evil.txt", "corpus/../../evil.txt", "/tmp/evil.txt", "..\\evil.txt"])
@pytest.mark.parametrize("make", [tar_of, zip_of])
def test_members_that_climb_out_are_refused(tmp_path, name, make):
    (tmp_path / "a.archive").write_bytes(make({"corpus/ok.txt": b"x", name: b"evil"}))
    with pytest.raises(DownloadError, match="is unsafe: its member"):
        unpack(tmp_path / "a.archive", tmp_path / "deep" / "out")
    assert not list(tmp_path.rglob("evil*"))
    assert not (tmp_path / "deep" / "out").exists()


def test_links_are_skipped_so_that_nothing_is_written_through_them(tmp_path, caplog):
    (tmp_path / "outside").mkdir()
    content = tar_of({"corpus/a.txt": b"x"}, links={"corpus/link": str(tmp_path / "outside")})
    (tmp_path / "a.tar.gz").write_bytes(content)
    with caplog.at_level(logging.WARNING, "asr"):
        unpack(tmp_path / "a.tar.gz", tmp_path / "out")
    assert [p.name for p in (tmp_path / "out" / "corpus").iterdir()] == ["a.txt"]
    assert "corpus/link" in caplog.text


@pytest.mark.parametrize("damage", [lambda c: c[: len(c) // 2], lambda c: b"not an archive at all"])
def test_a_damaged_archive_leaves_nothing_behind(tmp_path, damage):
    noise = b"".join(hashlib.sha256(bytes([n % 256, n // 256])).digest() for n in range(3000))
    (tmp_path / "a.tar.gz").write_bytes(damage(tar_of({"a.bin": noise, "b.bin": noise})))
    with pytest.raises(DownloadError, match=r"cannot unpack .*a\.tar\.gz: .*delete the file"):
        unpack(tmp_path / "a.tar.gz", tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["a.tar.gz"]


def test_obtain_fetches_each_archive_once_from_the_mirror(server, tmp_path):
    server.files = {f"/m/{name}.tar.gz": tar_of({f"c/{name}.txt": b"x"}) for name in ("one", "two")}
    archives = [Archive(f"http://127.0.0.1:9/{name}.tar.gz") for name in ("one", "two")]
    for _ in range(2):
        root = obtain(archives, tmp_path, mirror=f"{server.url}/m/")
        assert sorted(p.relative_to(root).as_posix() for p in root.rglob("*.txt")) == [
            "one/c/one.txt",
            "two/c/two.txt",
        ]
    assert len(server.requests) == 2
