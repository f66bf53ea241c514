"""Downloads from a server on this machine: whole, broken, wrong, and in a zip."""

from __future__ import annotations

import hashlib
import io
import os
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from file_server import Site, serve

from bet_torchrec.data import DataError, DataNotFoundError, DownloadError
from bet_torchrec.data.download import check_sum, download, fetch, unpack
from bet_torchrec.data.sources import SOURCES, Member, Source

CONTENT = bytes(range(256)) * 1000
MD5 = "md5:" + hashlib.md5(CONTENT).hexdigest()


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr("time.sleep", lambda _: None)
    with serve({"/a.bin": CONTENT}) as running:
        yield running


def get(site: Site, folder: Path, **options: object) -> Path:
    return download(f"{site.url}/a.bin", folder / "a.bin", progress=False, **options)  # type: ignore[arg-type]


def test_a_file_comes_whole_and_leaves_nothing_else(site: Site, tmp_path: Path):
    assert get(site, tmp_path, checksum=MD5).read_bytes() == CONTENT
    assert os.listdir(tmp_path) == ["a.bin"]
    assert site.asked == ["/a.bin"]


def test_a_broken_connection_is_tried_again(site: Site, tmp_path: Path):
    site.cut = [1000, 5000]
    assert get(site, tmp_path, checksum=MD5).read_bytes() == CONTENT
    assert len(site.asked) == 3
    site.cut = [1000] * 9
    with pytest.raises(DownloadError, match="ended at 1,000 of 256,000 bytes, 4 times"):
        get(site, tmp_path)
    assert len(site.cut) == 5
    assert (tmp_path / "a.bin").read_bytes() == CONTENT  # the old one stays
    assert os.listdir(tmp_path) == ["a.bin"]


def test_an_endless_answer_is_cut(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("bet_torchrec.data.download._LARGEST", 1_000_000)
    site.endless = True
    with pytest.raises(DownloadError, match="below 1 GiB, the answer goes on"):
        get(site, tmp_path, timeout=5)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("checksum", ["md5:" + "0" * 32, "sha256:" + "0" * 64, "git:" + "0" * 40])
def test_wrong_content_is_deleted_and_told(site: Site, tmp_path: Path, checksum: str):
    with pytest.raises(DownloadError, match="is not the expected file.*should"):
        get(site, tmp_path, checksum=checksum)
    assert os.listdir(tmp_path) == []


def test_an_empty_answer_is_no_file(site: Site, tmp_path: Path):
    site.files["/a.bin"] = b""
    with pytest.raises(DownloadError, match="it is empty"):
        get(site, tmp_path)


def test_no_such_file_is_told_at_once(site: Site, tmp_path: Path):
    with pytest.raises(DownloadError, match=r"/b.bin: the server answered 404"):
        download(f"{site.url}/b.bin", tmp_path / "b.bin", progress=False)
    assert len(site.asked) == 1
    assert os.listdir(tmp_path) == []


def test_a_busy_server_is_asked_again(site: Site, tmp_path: Path):
    site.status = [503, 429]
    assert get(site, tmp_path).read_bytes() == CONTENT
    site.status = [500] * 9
    with pytest.raises(DownloadError, match="answered 500"):
        get(site, tmp_path)
    assert len(site.status) == 5


def test_nobody_there(site: Site, tmp_path: Path):
    with serve({}) as gone:
        url = gone.url
    with pytest.raises(DataNotFoundError, match="no connection"):
        download(f"{url}/a", tmp_path / "a", progress=False)


def test_a_silent_server_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import socket

    monkeypatch.setenv("no_proxy", "*")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/a"
        with pytest.raises(DownloadError, match="timed out"):
            download(url, tmp_path / "a", timeout=0.2, attempts=1, progress=False)


def test_only_http(tmp_path: Path):
    with pytest.raises(DataError, match="should be http or https"):
        download("file:///etc/hostname", tmp_path / "a")


def test_git_blob_checksum(tmp_path: Path):
    path = tmp_path / "hello"
    path.write_bytes(b"hello\n")
    # git hash-object of "hello\n"
    assert check_sum(path, "git:ce013625030ba8dba906f756967f9e9ca394464a") is None
    assert "git should be" in str(check_sum(path, "git:" + "0" * 40))
    with pytest.raises(DataError, match="checksum should start with"):
        check_sum(path, "crc:0")


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def test_fetch_unpacks_members_and_leaves_the_rest(site: Site, tmp_path: Path):
    site.files["/ml.zip"] = zipped({"ml/ratings.dat": b"1::1", "../evil": b"x", "ml/README": b"r"})
    member = Member(path="ml/ratings.dat", name="ratings.dat")
    source = Source(url=f"{site.url}/ml.zip", name="ml.zip", members=(member,))
    for _ in range(2):  # the second finds it there
        folder = fetch("ml", tmp_path / "new" / "ml", sources=[source], progress=False)
    assert (folder / "ratings.dat").read_bytes() == b"1::1"
    assert sorted(os.listdir(folder)) == [".lock", "ratings.dat"]
    assert not (tmp_path / "new" / "evil").exists()
    assert len(site.asked) == 1


@pytest.mark.parametrize(
    ("member", "says"),
    [
        (Member(path="gone", name="g"), "should contain gone"),
        (Member(path="a", name="a", checksum="git:" + "0" * 40), "git should be"),
    ],
)
def test_an_archive_without_the_right_member(tmp_path: Path, member: Member, says: str):
    (tmp_path / "a.zip").write_bytes(zipped({"a": b"x"}))
    with pytest.raises(DownloadError, match=says):
        unpack(tmp_path / "a.zip", tmp_path, [member])
    assert os.listdir(tmp_path) == ["a.zip"]


def noisy(method: int) -> bytes:
    """One member whose compressed bytes are noise."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        archive.writestr("a", CONTENT)
    data = bytearray(buffer.getvalue())
    data[60:120] = bytes(range(60, 120))
    return bytes(data)


@pytest.mark.parametrize(
    "content",
    [
        b"<html>",
        zipped({"a": CONTENT * 4})[:-40],
        noisy(zipfile.ZIP_LZMA),
        noisy(zipfile.ZIP_BZIP2),
        noisy(zipfile.ZIP_DEFLATED),
    ],
)
def test_a_damaged_archive(tmp_path: Path, content: bytes):
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(DownloadError, match="no zip archive, or a damaged one"):
        unpack(tmp_path / "a.zip", tmp_path, [Member(path="a", name="a")])


def test_a_members_name_cannot_leave_the_folder(tmp_path: Path):
    (tmp_path / "a.zip").write_bytes(zipped({"a": b"x"}))
    inner = tmp_path / "inner"
    inner.mkdir()
    unpack(tmp_path / "a.zip", inner, [Member(path="a", name="../up")])
    assert os.listdir(inner) == ["up"]


def test_two_at_once_download_once(site: Site, tmp_path: Path):
    source = Source(url=f"{site.url}/a.bin", name="a.bin", checksum=MD5)

    def one() -> None:
        fetch("a", tmp_path, sources=[source], progress=False)

    threads = [threading.Thread(target=one) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "a.bin").read_bytes() == CONTENT
    assert len(site.asked) == 1


def test_a_folder_that_cannot_be_made(site: Site, tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DownloadError, match="choose another folder by data_dir"):
        fetch("gowalla", tmp_path / "file" / "gowalla", sources=[], progress=False)


def test_sources_are_public_https_and_checked_where_a_checksum_is_known():
    for sources in SOURCES.values():
        for source in sources:
            assert source.url.startswith("https://")
            for checksum in (source.checksum, *(member.checksum for member in source.members)):
                if checksum is not None:
                    kind, digest = checksum.split(":")
                    assert len(digest) == {"git": 40, "md5": 32}[kind]
    with pytest.raises(DataNotFoundError, match="should be one of gowalla"):
        fetch("netflix", "unused")
