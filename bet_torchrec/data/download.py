"""Download of public files, some megabytes each: checked, and in place only when whole.

A file grows under a temporary name and gets its real one when its length and checksum are right,
so that what is there can be trusted. Nothing in a file is ever run.
"""

from __future__ import annotations

import hashlib
import http.client
import logging
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from ..files import holding, replacing
from .errors import DataError, DataNotFoundError, DownloadError
from .sources import SOURCES, Member, Source

_log = logging.getLogger(__name__)

_BLOCK, _LARGEST = 1 << 18, 1 << 30


class _Interrupted(Exception):
    """The server or the connection failed; asking again may help."""


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
    timeout: float = 30.0,
    attempts: int = 4,
    progress: bool | None = None,
) -> Path:
    """Download one file by HTTP.

    Args:
        path: where to; the folder exists. checksum: "sha256:...", "md5:..." or "git:...".
        attempts: how often to ask a server that fails. timeout: seconds that it may be silent.

    Raises:
        DownloadError: no connection, the server has no such file, the wrong checksum, or the
            connection kept breaking.
    """
    path = Path(path)
    if urlsplit(url).scheme not in ("http", "https"):
        raise DataError(f"url should be http or https, got {url!r}")
    with replacing(path) as file:
        for attempt in range(1, attempts + 1):
            try:
                _get(url, file, timeout, progress)
                break
            except _Interrupted as error:
                if attempt == attempts:
                    raise DownloadError(f"{url}: {error}, {attempts} times") from error
                time.sleep(0.2 * 2**attempt)
        file.flush()
        empty = "it is empty" if file.tell() == 0 else None
        wrong = empty or (check_sum(Path(file.name), checksum) if checksum else None)
        if wrong:
            raise DownloadError(
                f"{url} is not the expected file: {wrong}. It was deleted; if it happens again the "
                "file has changed at its source, or something on the way replaces it"
            )
    return path


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
                if info.file_size > _LARGEST:
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
    _log.info("downloading %s to %s", source.url, path)
    try:
        download(source.url, path, checksum=source.checksum, timeout=timeout, progress=progress)
    except DownloadError as error:
        raise DownloadError(
            f"{source.name} could not be downloaded: {error}. Without a connection, put the file "
            f"into {folder} by hand, or name a folder that has it by data_dir= or BET_TORCHREC_DATA"
        ) from error
    if source.members:
        try:
            unpack(path, folder, source.members)
        finally:
            path.unlink(missing_ok=True)


def _get(url: str, file: BinaryIO, timeout: float, progress: bool | None) -> None:
    """Write what a server sends, all of it, from the file's beginning."""
    file.seek(0)
    file.truncate()
    # identity: the bytes that are counted must be the file's own, not those of a compressed form.
    headers = {"User-Agent": "bet_torchrec", "Accept-Encoding": "identity"}
    try:
        request = urllib.request.Request(url, headers=headers)
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            length = answer.headers.get("Content-Length")
            total = int(length) if length and length.isdigit() else None
            with _bar(url, total, progress) as bar:
                while block := answer.read1(_BLOCK):
                    file.write(block)
                    bar.update(len(block))
                    if file.tell() > _LARGEST:
                        raise DownloadError(f"{url} should be below 1 GiB, the answer goes on")
                came = file.tell()
        if total is not None and came < total:
            raise _Interrupted(f"the connection ended at {came:,} of {total:,} bytes")
    except urllib.error.HTTPError as error:
        error.close()
        why = f"the server answered {error.code} {error.reason}"
        if error.code >= 500 or error.code in (408, 429):
            raise _Interrupted(why) from error
        raise DownloadError(f"{url}: {why}") from error
    except urllib.error.URLError as error:
        raise DownloadError(f"{url}: no connection ({error.reason})") from error
    except (http.client.HTTPException, TimeoutError, ConnectionError) as error:
        raise _Interrupted(
            f"the connection broke ({str(error) or type(error).__name__})"
        ) from error


def _bar(url: str, total: int | None, progress: bool | None) -> Any:
    from tqdm import tqdm

    hide = None if progress is None else not progress
    return tqdm(
        total=total,
        unit="B",
        unit_scale=True,
        desc=url.rsplit("/", 1)[-1],
        disable=hide,
        leave=False,
    )
