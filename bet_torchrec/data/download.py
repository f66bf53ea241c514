"""Download of public files: resumed, checked, and in place only when whole.

A file grows under a name of its own (``NAME.part``) and gets its real one when size and checksum
are right, so that what is there can be trusted. Nothing in a file is ever run.
"""

from __future__ import annotations

import hashlib
import http.client
import logging
import os
import re
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ..files import holding, replacing
from .errors import DataError, DataNotFoundError, DownloadError
from .sources import SOURCES, Member, Source

_log = logging.getLogger(__name__)

_BLOCK, _LARGEST_MEMBER = 1 << 18, 1 << 30


class _Interrupted(Exception):
    """The connection ended early, what came is kept."""


def fetch(
    name: str,
    folder: str | Path,
    *,
    sources: Sequence[Source] | None = None,
    timeout: float = 30.0,
    progress: bool | None = None,
) -> Path:
    """Download a public data set's files into a folder, those that are missing.

    Args:
        name: "gowalla", "yelp2018", "ml-1m" or "ml-100k".
        sources: others than the public ones. timeout: seconds that a server may be silent.
        progress: show a bar; None shows it on a terminal only.

    Where several processes ask at once, one downloads and the others wait.

    Raises:
        DownloadError: no connection, not there, incomplete, or not the right file.
        DataNotFoundError: unknown name.
    """
    folder = Path(folder)
    if sources is None:
        if name not in SOURCES:
            raise DataNotFoundError(f"data set should be one of {', '.join(SOURCES)}, got {name!r}")
        sources = SOURCES[name]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with holding(folder, wait=True):
            for source in sources:
                _fetch_one(source, folder, timeout, progress)
    except DataError:
        raise  # some of ours are OSErrors too
    except OSError as error:
        raise DownloadError(
            f"{name} is not in {folder}, and could not be downloaded to it: {error}; choose "
            "another folder by data_dir= or BET_TORCHREC_DATA"
        ) from error
    return folder


def download(
    url: str,
    path: str | Path,
    *,
    checksum: str | None = None,
    size: int | None = None,
    timeout: float = 30.0,
    attempts: int = 4,
    progress: bool | None = None,
) -> Path:
    """Download one file by HTTP; a partial download is continued, here and in a later call.

    Args:
        path: where to; the folder exists. checksum: "sha256:...", "md5:..." or "git:...".
        size: in bytes; no more are taken. attempts: in a row that get no further than the best
            before, after a server failed.
        timeout: seconds that the server may be silent.

    Raises:
        DownloadError: no connection, the server has no such file, the wrong size or checksum (the
            file is deleted), or the connection kept breaking (the part is kept).
    """
    path = Path(path)
    if urlsplit(url).scheme not in ("http", "https"):
        raise DataError(f"url should be http or https, got {url!r}")
    part = path.with_name(path.name + ".part")
    # Only what is more than ever before is progress: a server that sends all again each time, or
    # wrong files by turns, must come to an end.
    failures, furthest = 0, _size(part)
    resumed = furthest > 0
    while True:
        try:
            _continue(url, part, size, timeout, progress)
            wrong = _mismatch(part, checksum, size)
            if wrong is None:
                os.replace(part, path)
                return path
            part.unlink()
            if not resumed:
                raise DownloadError(
                    f"{url} is not the expected file: {wrong}. It was deleted; if it happens again "
                    "the file has changed at its source, or something on the way replaces it"
                )
            # What was there before may have been of another version: once more from the start.
            _log.warning("%s: %s after resuming; starting again", url, wrong)
            resumed = False
        except _Interrupted as error:
            failures = 1 if _size(part) > furthest else failures + 1
            furthest = max(furthest, _size(part))
            if failures >= attempts:
                raise DownloadError(
                    f"{url}: {error}; {_size(part):,} bytes are kept, the same call continues "
                    "from them"
                ) from error
            resumed = True
            time.sleep(min(0.2 * 2**failures, 5.0))


def check_sum(path: Path, checksum: str) -> str | None:
    """None where a file has the checksum, else what it has instead."""
    kind, _, expected = checksum.partition(":")
    if kind == "git":
        digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    elif kind in ("sha256", "md5"):
        digest = hashlib.new(kind, usedforsecurity=False)
    else:
        raise DataError(f"checksum should start with sha256:, md5: or git:, got {checksum!r}")
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    found = digest.hexdigest()
    return None if found == expected.lower() else f"{kind} should be {expected}, got {found}"


def unpack(archive: Path, folder: Path, members: Sequence[Member]) -> None:
    """Write the named members of a zip archive under their given names, checked.

    Paths in the archive are looked up, never followed.
    """
    try:
        with zipfile.ZipFile(archive) as file:
            for member in members:
                info = file.getinfo(member.path)
                if info.file_size > _LARGEST_MEMBER:
                    raise DownloadError(
                        f"{member.path} in {archive} should be below 1 GiB, got "
                        f"{info.file_size:,} bytes"
                    )
                target = folder / Path(member.name).name
                with file.open(info) as data, replacing(target) as out:
                    while block := data.read(_BLOCK):
                        out.write(block)
                    out.flush()
                    wrong = member.checksum and check_sum(Path(out.name), member.checksum)
                    if wrong:
                        raise DownloadError(f"{member.path} in {archive}: {wrong}")
    except KeyError as error:
        raise DownloadError(f"{archive} should contain {member.path}, and does not") from error
    except (DataError, OSError) as error:
        if isinstance(error, DataError) or error.errno is not None:
            raise  # the disk's; bz2 has no errors of its own
        raise DownloadError(f"{archive} is no zip archive, or a damaged one: {error}") from error
    except Exception as error:  # four decompressors, each with errors of its own
        raise DownloadError(f"{archive} is no zip archive, or a damaged one: {error}") from error


def _fetch_one(source: Source, folder: Path, timeout: float, progress: bool | None) -> None:
    wanted = [member.name for member in source.members] or [source.name]
    if all((folder / name).is_file() for name in wanted):
        return
    path = folder / source.name
    missing: list[str] = []
    for url in source.urls:
        _log.info("downloading %s to %s", url, path)
        checks: dict[str, Any] = {"checksum": source.checksum, "size": source.size}
        try:
            download(url, path, timeout=timeout, progress=progress, **checks)
            break
        except DownloadError as error:
            missing.append(str(error))
    else:
        raise DownloadError(
            f"{source.name} could not be downloaded: {'; '.join(missing)}. Without a connection, "
            f"put the file into {folder} by hand, or name a folder that has it by data_dir= or "
            "BET_TORCHREC_DATA"
        )
    if source.members:
        try:
            unpack(path, folder, source.members)
        finally:
            path.unlink(missing_ok=True)


def _continue(
    url: str, part: Path, size: int | None, timeout: float, progress: bool | None
) -> None:
    """Append what is missing of a file to its part, up to one block more than its size."""
    have = _size(part)
    # identity: bytes counted and resumed must be the file's own, not those of a compressed form.
    headers = {"User-Agent": "bet_torchrec", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    came = 0
    try:
        request = urllib.request.Request(url, headers=headers)
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            start = _start(answer, have)
            length = answer.headers.get("Content-Length")
            total = start + int(length) if length and length.isdigit() else None
            with open(part, "r+b" if start else "wb") as file, _bar(part, total, progress) as bar:
                file.seek(start)
                bar.update(start)
                # read1 hands over what has come; read would lose it where the connection breaks.
                while block := answer.read1(_BLOCK):
                    file.write(block)
                    came += len(block)
                    bar.update(len(block))
                    if size is not None and start + came > size:
                        total = None  # it is another file, however long
                        break
                file.truncate()
        if total is not None and start + came < total:
            raise _Interrupted(f"the connection ended at {start + came:,} of {total:,}")
    except urllib.error.HTTPError as error:
        _explain(error, url, part, have)
    except urllib.error.URLError as error:
        if have or came:
            raise _Interrupted(f"no connection ({error.reason})") from error
        raise DownloadError(f"{url}: no connection ({error.reason})") from error
    except (http.client.HTTPException, TimeoutError, ConnectionError) as error:
        why = str(error) or type(error).__name__
        raise _Interrupted(f"the connection broke ({why})") from error


def _start(answer: Any, have: int) -> int:
    """Where the server's bytes start: at what was asked for, or at 0 if it sends everything."""
    if answer.status != 206:
        return 0
    match = re.match(r"bytes (\d+)-", answer.headers.get("Content-Range") or "")
    if match is None or int(match[1]) > have:
        raise DownloadError(
            f"{answer.url} answered a request for bytes from {have} with Content-Range "
            f"{answer.headers.get('Content-Range')!r}"
        )
    return int(match[1])


def _explain(error: urllib.error.HTTPError, url: str, part: Path, have: int) -> None:
    error.close()
    if error.code == 416 and have:
        # Nothing after what we have: it is whole, or of another version. The checks will say.
        total = re.fullmatch(r"bytes \*/(\d+)", error.headers.get("Content-Range") or "")
        if total is None or int(total[1]) != have:
            part.unlink(missing_ok=True)
            raise _Interrupted("the partial file was longer than the file") from error
        return
    if error.code >= 500 or error.code in (408, 429):
        raise _Interrupted(f"the server answered {error.code} {error.reason}") from error
    raise DownloadError(f"{url}: the server answered {error.code} {error.reason}") from error


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _mismatch(path: Path, checksum: str | None, size: int | None) -> str | None:
    have = path.stat().st_size
    if size is not None and have != size:
        return f"it should have {size:,} bytes, got {have:,}"
    if have == 0:
        return "it is empty"
    return None if checksum is None else check_sum(path, checksum)


def _bar(part: Path, total: int | None, progress: bool | None) -> Any:
    from tqdm import tqdm

    hide = None if progress is None else not progress
    return tqdm(total=total, unit="B", unit_scale=True, desc=part.stem, disable=hide, leave=False)
