"""Reading and writing through torch.distributed.checkpoint, without running what a file says.

DCP keeps its metadata in a pickle and reads other objects by pickle too. Here unpickling makes
DCP's own plain classes and nothing else, and whatever is not a tensor is refused.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import warnings
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
)
from torch.distributed.checkpoint.planner import (
    TensorWriteData,
    WriteItem,
    WriteItemType,
)

from ...errors import BetError

METADATA = ".metadata"

_DCP = "torch.distributed.checkpoint."
_HARMLESS = {
    f"{_DCP}metadata": {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    f"{_DCP}filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size"} | {n for n in dir(torch) if isinstance(getattr(torch, n), torch.dtype)},
    "pathlib": {"Path", "PosixPath", "PurePosixPath", "PureWindowsPath", "WindowsPath"},
}


class DamagedCheckpointError(BetError, ValueError):
    """Not all of a checkpoint is there, or what is there is none, or not a trustworthy one."""


@dataclass(frozen=True)
class Chunks:
    """What this rank holds of one tensor, for DCP.

    shape: of the whole. pieces: {where a piece begins in it: the piece}.
    """

    shape: tuple[int, ...]
    pieces: Mapping[tuple[int, ...], Tensor]

    def size(self) -> torch.Size:
        """DCP's question; it refuses to load another."""
        return torch.Size(self.shape)

    def at(self, index: MetadataIndex) -> Tensor:
        """The piece that DCP means."""
        return self.pieces[tuple(index.offset or ())]

    def __create_write_items__(self, fqn: str, _: Any) -> list[WriteItem]:
        return [
            WriteItem(
                index=MetadataIndex(fqn, chunk.offsets),
                type=WriteItemType.SHARD,
                tensor_data=TensorWriteData(
                    chunk=chunk,
                    properties=TensorProperties.create_from_tensor(self.pieces[chunk.offsets]),
                    size=self.size(),
                ),
            )
            for chunk in self.__create_chunk_list__()
        ]

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        return [
            ChunkStorageMetadata(torch.Size(offsets), piece.shape)
            for offsets, piece in self.pieces.items()
        ]


def write(chunks: Mapping[str, Chunks], folder: Path, pg: dist.ProcessGroup | None) -> None:
    """Write all ranks' chunks to a folder that they share; ranks that hold the same share work."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that this is a single process, if it is
        dcp.save(
            dict(chunks),
            storage_writer=dcp.FileSystemWriter(folder),
            planner=_SavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False),
            process_group=pg,
            no_dist=pg is None,
        )


def read(
    chunks: Mapping[str, Chunks], folder: Path, metadata: Metadata, pg: dist.ProcessGroup | None
) -> None:
    """Fill this rank's chunks in place, whatever the cut they were written in."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        dcp.load(
            dict(chunks),
            storage_reader=_Reader(folder, metadata),
            planner=_LoadPlanner(),
            process_group=pg,
            no_dist=pg is None,
        )


def read_metadata(folder: Path, sha256: str) -> Metadata:
    """What a folder holds, once it is sure that all of it is there.

    Raises:
        DamagedCheckpointError: it isn't, or it names anything that is not DCP's.
    """
    try:
        data = (folder / METADATA).read_bytes()
        if hashlib.sha256(data).hexdigest() != sha256:
            raise ValueError("its checksum does not match")
        metadata = _Unpickler(io.BytesIO(data)).load()
        _check_whole(folder, metadata)
    except Exception as error:  # a pickle's bytes can go wrong in any way
        raise DamagedCheckpointError(
            f"{folder / METADATA} should describe the tensors beside it, but {error}: take an "
            "older checkpoint"
        ) from error
    return metadata


def checksums(folder: Path, names: str) -> dict[str, int]:
    """{file: CRC-32} of the files that match; torch.load checks none."""
    return {path.name: _crc32(path) for path in folder.glob(names)}


def check_files(folder: Path, expected: Mapping[str, int]) -> None:
    """Raise DamagedCheckpointError unless files have these checksums."""
    for name, value in expected.items():
        if _crc32(folder / name) != value:
            raise DamagedCheckpointError(
                f"the checksum of {folder / name} does not match, it was changed after it was "
                "written: take an older checkpoint"
            )


def _crc32(path: Path) -> int:
    value = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            value = zlib.crc32(block, value)
    return value


def _check_whole(folder: Path, metadata: Any) -> None:
    if not isinstance(metadata, Metadata):
        raise ValueError(f"it holds a {type(metadata).__name__}")
    ends: dict[str, int] = {}
    for info in metadata.storage_data.values():
        ends[info.relative_path] = max(ends.get(info.relative_path, 0), info.offset + info.length)
    for name, end in ends.items():
        if Path(name).name != name:
            raise ValueError(f"it names a file elsewhere, {name!r}")
        size = (folder / name).stat().st_size
        if size < end:
            raise ValueError(f"{name} should have {end} bytes or more, got {size}")


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name not in _HARMLESS.get(module, ()):
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not DCP's")
        return super().find_class(module, name)


class _Reader(dcp.FileSystemReader):
    """Reads tensors only (torch.load with weights_only), by metadata that were checked."""

    def __init__(self, folder: Path, metadata: Metadata) -> None:
        super().__init__(folder)
        self._metadata = metadata

    def read_metadata(self) -> Metadata:
        return self._metadata


class _SavePlanner(dcp.DefaultSavePlanner):
    def lookup_object(self, index: MetadataIndex) -> Tensor:
        chunks: Chunks = self.state_dict[index.fqn]
        return chunks.at(index)


class _LoadPlanner(dcp.DefaultLoadPlanner):
    def __init__(self) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)

    def set_up_planner(
        self,
        state_dict: dict[str, Any],
        metadata: Metadata | None = None,
        is_coordinator: bool = False,
    ) -> None:
        self.original_state_dict = self.state_dict = state_dict
        self.metadata, self.is_coordinator = metadata, is_coordinator

    def lookup_tensor(self, index: MetadataIndex) -> Tensor:
        chunks: Chunks = self.state_dict[index.fqn]
        return chunks.at(index)

    def load_bytes(self, read_item: Any, value: io.BytesIO) -> None:
        raise DamagedCheckpointError(
            f"{read_item.dest_index.fqn!r} should be a tensor, got an object: not a checkpoint of "
            "this package"
        )
