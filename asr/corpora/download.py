"""Fetching a corpus from its official home: resumed where it stopped, verified, unpacked safely."""

import hashlib
import http.client
import logging
import shutil
import stat
import tarfile
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from asr.corpora.collect import Progress
from asr.errors import AsrError

logger = logging.getLogger(__name__)

_CHUNK_BYTES = 1 << 18
_MEGABYTE = 1_000_000
_TIMEOUT_SECONDS = 60.0
_NUM_ATTEMPTS = 4
_ARCHIVE_SUFFIXES = (".tar.gz", ".tar.bz2", ".tar.xz", ".tgz", ".tar", ".zip")


class DownloadError(AsrError):
    """A corpus archive that cannot be fetched, verified or unpacked."""


@dataclass(frozen=True, slots=True)
class Archive:
    """One file of an official corpus site.

    ``checksum`` is ``sha256:HEX`` or ``md5:HEX``, or ``None`` where the site publishes none: then
    the computed one is logged, so that it can be compared between machines.
    """

    url: str
    checksum: str | None = None

    @property
    def filename(self) -> str:
        """The last part of the URL."""
        return Path(urllib.parse.unquote(urllib.parse.urlsplit(self.url).path)).name


def obtain(
    archives: Sequence[Archive], folder: Path, *, mirror: str | None = None, progress: Progress | None = None
) -> Path:
    """Download, verify and unpack ``archives`` below ``folder``; what is there already is kept.

    Args:
        folder: archives go here, their contents each into a folder named after the archive.
        mirror: URL prefix that replaces everything before the archives' file names.

    Returns:
        The folder that holds the unpacked archives, to be given to the corpus reader.

    Raises:
        DownloadError: naming the URL or file, and what to do.
    """
    unpacked = folder / "unpacked"
    for archive in archives:
        destination = unpacked / _without_suffix(archive.filename)
        if destination.is_dir():
            continue
        source = archive
        if mirror is not None:
            source = replace(archive, url=f"{mirror.rstrip('/')}/{archive.filename}")
        unpack(fetch(source, folder, progress=progress), destination, progress=progress)
    return unpacked


def fetch(
    archive: Archive,
    folder: Path,
    *,
    progress: Progress | None = None,
    num_attempts: int = _NUM_ATTEMPTS,
    pause_seconds: float = 2.0,
) -> Path:
    """Download one archive into ``folder``, continuing a ``.part`` file left by an earlier run.

    A broken connection is retried from where it stopped. The file gets its name only when it is
    complete and its checksum is right; a wrong one is kept aside as ``.corrupt``.

    Raises:
        DownloadError: when the server cannot be reached, refuses, or delivers something else.
    """
    target = folder / archive.filename
    if target.is_file():
        _verify(target, archive)
        return target
    part = folder / f"{archive.filename}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for attempt in range(1, num_attempts + 1):
            try:
                _continue_download(archive.url, part, progress)
                break
            except _TEMPORARY_ERRORS as error:
                if isinstance(error, urllib.error.HTTPError) and error.code < 500:
                    raise DownloadError(_refused(archive, error)) from None
                if attempt == num_attempts:
                    raise DownloadError(
                        f"cannot download {archive.url}: {_words(error)}; "
                        "run the command again to resume, or give source=DIR or mirror=URL"
                    ) from None
                logger.warning("%s: %s; trying again", archive.filename, _words(error))
                time.sleep(pause_seconds * attempt)
    except OSError as error:
        raise DownloadError(f"cannot write {part}: {error.strerror or error}") from None
    _verify(part, archive)
    part.replace(target)
    _validator_path(part).unlink(missing_ok=True)
    return target


def unpack(archive: Path, destination: Path, *, progress: Progress | None = None) -> None:
    """Unpack a tar or zip archive into the new folder ``destination``, which appears only when complete.

    Only plain files and folders are taken; links and devices are skipped with a warning.

    Raises:
        DownloadError: when the archive is damaged, or a member would land outside ``destination``.
    """
    # Beside the archive, not the destination: corpus readers search the destination's parent.
    partial = archive.with_name(archive.name + ".unpacking")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    members = _zip_members if zipfile.is_zipfile(archive) else _tar_members
    try:
        for num_done, (name, content) in enumerate(members(archive), start=1):
            target = _inside(partial, name, archive)
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as output:
                shutil.copyfileobj(content, output, _CHUNK_BYTES)
            if progress is not None:
                progress(f"unpacking {archive.name}", num_done, None)
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise DownloadError(
            f"cannot unpack {archive}: {_words(error)}; delete the file and run the command again"
        ) from None
    except DownloadError:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    destination.parent.mkdir(parents=True, exist_ok=True)
    partial.replace(destination)


class _InterruptedError(Exception):
    """The connection ended before the announced number of bytes."""


_TEMPORARY_ERRORS = (
    urllib.error.URLError,
    http.client.HTTPException,
    ConnectionError,
    TimeoutError,
    _InterruptedError,
)


def _continue_download(url: str, part: Path, progress: Progress | None) -> None:
    """One request: append to ``part`` what is missing, or start over where the server wants that."""
    have = part.stat().st_size if part.exists() else 0
    try:
        with _request(url, have, _validator_path(part)) as response:
            resumed = response.status == http.HTTPStatus.PARTIAL_CONTENT and _range_start(response) == have
            if have and not resumed:
                if response.status == http.HTTPStatus.PARTIAL_CONTENT:
                    part.unlink()
                    raise _InterruptedError("the server sent another part than asked for")
                logger.info("%s: the server cannot resume, or the file has changed; starting over", part.name)
                have = 0
            _remember_validator(response, part)
            length = response.headers.get("Content-Length")
            total = have + int(length) if length is not None else None
            with part.open("ab" if have else "wb") as output:
                while chunk := response.read(_CHUNK_BYTES):
                    output.write(chunk)
                    have += len(chunk)
                    if progress is not None:
                        total_mb = total // _MEGABYTE if total is not None else None
                        progress(f"downloading {part.stem} (MB)", have // _MEGABYTE, total_mb)
    except urllib.error.HTTPError as error:
        if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE or not have:
            raise
        # Nothing is left to send: the part is the whole file already, or it belongs to another one.
        if error.headers.get("Content-Range", "") != f"bytes */{have}":
            part.unlink()
            raise _InterruptedError("the partial file does not fit the server's") from None
        return
    if total is not None and have < total:
        raise _InterruptedError(f"the connection ended after {have} of {total} bytes")


@contextmanager
def _request(url: str, have: int, validator_path: Path) -> Iterator[http.client.HTTPResponse]:
    headers = {"User-Agent": "asr-prepare", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if validator_path.exists():
            headers["If-Range"] = validator_path.read_text()
    try:
        request = urllib.request.Request(url, headers=headers)
        response = urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS)
    except ValueError as error:
        raise DownloadError(f"{url!r} is not a URL: {error}") from None
    with response:
        yield response


def _validator_path(part: Path) -> Path:
    return part.with_name(part.name + ".validator")


def _remember_validator(response: http.client.HTTPResponse, part: Path) -> None:
    """Keep what identifies this version of the file, so that two versions are never joined (RFC 9110)."""
    entity_tag = response.headers.get("ETag", "")
    strong = entity_tag if entity_tag and not entity_tag.startswith("W/") else None
    validator = strong or response.headers.get("Last-Modified")
    if validator:
        _validator_path(part).write_text(validator)
    else:
        _validator_path(part).unlink(missing_ok=True)


def _range_start(response: http.client.HTTPResponse) -> int | None:
    unit, _, rest = response.headers.get("Content-Range", "").partition(" ")
    start = rest.partition("-")[0]
    return int(start) if unit == "bytes" and start.isdigit() else None


def _verify(path: Path, archive: Archive) -> None:
    algorithm, _, expected = (archive.checksum or "sha256:").partition(":")
    digest = hashlib.new(algorithm)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    actual = digest.hexdigest()
    if not expected:
        logger.info(
            "%s: no official checksum to compare with; its %s is %s", archive.filename, algorithm, actual
        )
    elif actual != expected.lower():
        aside = path.with_name(f"{archive.filename}.corrupt")
        path.replace(aside)
        raise DownloadError(
            f"{archive.url} has the wrong {algorithm} checksum ({actual}, not {expected}); "
            f"kept as {aside}: run the command again to download it anew"
        )


def _refused(archive: Archive, error: urllib.error.HTTPError) -> str:
    return (
        f"cannot download {archive.url}: HTTP {error.code} {error.reason}; "
        "download the corpus by hand and give source=DIR, or give mirror=URL"
    )


def _words(error: BaseException) -> str:
    reason = getattr(error, "reason", None)
    return str(reason or error) or type(error).__name__


def _tar_members(archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
    # Stream mode: one pass over the compressed file, however many members it has.
    with tarfile.open(archive, "r|*") as tar:
        for member in tar:
            if member.isfile():
                content = tar.extractfile(member)
                assert content is not None
                yield member.name, content
            elif not member.isdir():
                logger.warning("%s: skipped %s, which is a link or a device", archive.name, member.name)


def _zip_members(archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
    with zipfile.ZipFile(archive) as zipped:
        for member in zipped.infolist():
            if stat.S_ISLNK(member.external_attr >> 16):
                logger.warning("%s: skipped %s, which is a link", archive.name, member.filename)
            elif not member.is_dir():
                with zipped.open(member) as content:
                    yield member.filename, content


def _inside(folder: Path, name: str, archive: Path) -> Path:
    """Where member ``name`` goes; refuses absolute names and any that climb out of ``folder``."""
    parts = name.replace("\\", "/").split("/")
    target = folder.joinpath(*parts)
    if name.startswith(("/", "\\")) or ".." in parts or not target.resolve().is_relative_to(folder.resolve()):
        raise DownloadError(f"{archive} is unsafe: its member {name!r} would be written outside its folder")
    return target


def _without_suffix(filename: str) -> str:
    for suffix in _ARCHIVE_SUFFIXES:
        if filename.endswith(suffix):
            return filename.removesuffix(suffix)
    return f"{filename}.unpacked"
