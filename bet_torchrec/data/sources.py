"""The data sets known by name: what they hold, and where the public has them.

``fingerprint`` is that of all pairs sorted by user and item, the same whatever file they come in,
so that a copy of any origin is checked in full. Checksums of files: a git blob's SHA-1 where the
file was seen in a git repository, GroupLens' published MD5 for its archives.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

_LIGHTGCN = "https://raw.githubusercontent.com/gusye1234/LightGCN-PyTorch/master/data"
_GROUPLENS = "https://files.grouplens.org/datasets/movielens"


@dataclass(frozen=True, kw_only=True)
class Member:
    """A file to take out of a zip archive: its path inside, the name it gets, its checksum."""

    path: str
    name: str
    checksum: str | None = None


@dataclass(frozen=True, kw_only=True)
class Source:
    """A file to download.

    checksum: "git:HEX" (a git blob's SHA-1), "md5:HEX" or "sha256:HEX", None where none is known.
    members: of a zip archive, what to unpack; the archive itself is not kept.
    """

    url: str
    name: str
    checksum: str | None = None
    members: tuple[Member, ...] = ()


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """A data set known by name.

    users, items, interactions, test: how many there are; test is the published test part's.
    files: what its folder may hold, first choice first; test.txt belongs to train.txt.
    sources: where to download them.
    """

    name: str
    users: int
    items: int
    interactions: int
    fingerprint: str
    test: int | None = None
    files: tuple[str, ...]
    sources: tuple[Source, ...]


def _lightgcn(name: str, test_blob: str) -> tuple[Source, ...]:
    # Not verified from here: train.txt's checksum (no published one is known), and that this
    # repository has the very test.txt whose blob is given, which was seen in kuandeng/LightGCN
    # (and, for Gowalla, here too). The fingerprint of the pairs decides in any case.
    folder = f"{_LIGHTGCN}/{name}"
    return (
        Source(url=f"{folder}/train.txt", name="train.txt"),
        Source(url=f"{folder}/test.txt", name="test.txt", checksum=f"git:{test_blob}"),
    )


_SETS = (
    DataSet(
        name="gowalla",
        users=29_858,
        items=40_981,
        interactions=1_027_370,
        test=217_242,
        fingerprint="092573a38e6da114",
        files=("interactions.npz", "train.txt"),
        sources=_lightgcn("gowalla", "9ed5af4b5d21511f33740b4e22e3852f45671800"),
    ),
    DataSet(
        name="yelp2018",
        users=31_668,
        items=38_048,
        interactions=1_561_406,
        test=324_147,
        fingerprint="dab1252f0bf234c5",
        files=("interactions.npz", "train.txt"),
        sources=_lightgcn("yelp2018", "30dfbc3437b27b74cb2970b435a5ec93ad9f2468"),
    ),
    DataSet(
        name="ml-1m",
        users=6_040,
        items=3_706,
        interactions=1_000_209,
        fingerprint="d817e370cb030b76",
        # ratings.dat has times, the npz may not
        files=("ratings.dat", "ratings.dat.gz", "ratings.npz", "ratings.csv"),
        sources=(
            # The MD5 is the one GroupLens publishes; the archive itself was not seen here.
            Source(
                url=f"{_GROUPLENS}/ml-1m.zip",
                name="ml-1m.zip",
                checksum="md5:c4d9eecfca2ab87c1945afe126590906",
                members=(
                    Member(
                        path="ml-1m/ratings.dat",
                        name="ratings.dat",
                        checksum="git:77a7c4b150f588c23bb9e1f068aa996c0b413695",
                    ),
                    # Clicks are joined with who rated and what was rated.
                    Member(path="ml-1m/users.dat", name="users.dat"),
                    Member(path="ml-1m/movies.dat", name="movies.dat"),
                ),
            ),
        ),
    ),
    DataSet(
        name="ml-100k",
        users=943,
        items=1_682,
        interactions=100_000,
        fingerprint="d64f8faf4a0692bd",
        files=("u.data", "u.data.gz"),
        sources=(
            # As above: GroupLens' published MD5, the archive not seen here.
            Source(
                url=f"{_GROUPLENS}/ml-100k.zip",
                name="ml-100k.zip",
                checksum="md5:0e33842e24a9c977be4e0107933c0723",
                members=(Member(path="ml-100k/u.data", name="u.data"),),
            ),
        ),
    ),
)

DATASETS: Mapping[str, DataSet] = {data_set.name: data_set for data_set in _SETS}
SOURCES: Mapping[str, tuple[Source, ...]] = {known.name: known.sources for known in _SETS}
