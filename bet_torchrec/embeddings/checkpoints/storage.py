"""A checkpoint's tensors through torch.distributed.checkpoint, in files of our own.

DCP plans who writes and who reads what, over any sharding. Its own files are pickles; here a rank
writes one tensor file, and what DCP calls metadata is plain numbers in the checkpoint's index
(``StoredTensor``). Nothing that is read is unpickled.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    LoadPlanner,
    SavePlan,
    SavePlanner,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from ...files.tensors import CHECKSUM, ITEMSIZE, TensorFileError, open_file, write_file
from ...files.torch_tensors import entry, read_tensor
from .stored import DamagedCheckpointError, Piece, StoredTensor

_METADATA = {"format": "bet_torchrec.shard"}


@dataclass(frozen=True)
class Chunks:
    """What this rank holds of one tensor, for DCP.

    shape: of the whole. pieces: {where a piece begins in it: the piece}, none of them empty.
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


def write(
    chunks: Mapping[str, Chunks], folder: Path, pg: dist.ProcessGroup | None
) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """Write all ranks' chunks to a folder that they share; ranks that hold the same share work.

    Returns:
        On every rank: all tensors, and all files with their checksums.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that this is a single process, if it is
        metadata = dcp.save(
            dict(chunks),
            storage_writer=_Writer(folder),
            planner=_SavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False),
            process_group=pg,
            no_dist=pg is None,
        )
    written: list[_Written] = metadata.storage_data
    pieces: dict[str, list[Piece]] = {name: [] for name in chunks}
    for one in written:
        pieces[one.tensor].append(one.piece)
    stored = {name: StoredTensor(chunks[name].shape, tuple(own)) for name, own in pieces.items()}
    return stored, {one.piece.file: one.checksum for one in written}


def read(
    chunks: Mapping[str, Chunks],
    folder: Path,
    stored: Mapping[str, StoredTensor],
    pg: dist.ProcessGroup | None,
) -> None:
    """Fill this rank's chunks in place, whatever the cut they were written in."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        dcp.load(
            dict(chunks),
            storage_reader=_Reader(folder, stored),
            planner=_LoadPlanner(),
            process_group=pg,
            no_dist=pg is None,
        )


def check_file(folder: Path, name: str, sha256: str, stored: Mapping[str, StoredTensor]) -> None:
    """Raise DamagedCheckpointError unless a file is the one, and holds what it should."""
    told = {
        _entry_name(tensor, piece.offsets): (piece.dtype, piece.sizes)
        for tensor, whole in stored.items()
        for piece in whole.pieces
        if piece.file == name
    }
    try:
        file = open_file(folder / name)
        file.verify()
        if file.metadata[CHECKSUM] != sha256:
            raise TensorFileError("its checksum is not the one in the checkpoint's index")
        if told != {name: (one.dtype, one.shape) for name, one in file.tensors.items()}:
            raise TensorFileError("it holds other tensors than the checkpoint's index says")
    except (TensorFileError, OSError) as error:
        raise DamagedCheckpointError(
            f"{folder / name} should hold tensors of a checkpoint, but {error}: it was changed "
            "after it was written, take an older checkpoint"
        ) from error


@dataclass(frozen=True)
class _Written:
    """What a rank tells the others of one piece that it wrote."""

    tensor: str
    piece: Piece
    checksum: str


class _Writer(dcp.FileSystemWriter):
    """One tensor file a rank, and no ``.metadata``."""

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        done: Future[list[WriteResult]] = Future()
        name = f"{plan.storage_data.prefix}0.safetensors"
        entries = {}
        for item in plan.items:
            value = planner.resolve_data(item)
            assert isinstance(value, Tensor)  # Chunks have nothing else
            entries[item.index] = entry(_entry_name(item.index.fqn, item.index.offset), value)
        widest_first = sorted(entries.values(), key=lambda e: -ITEMSIZE[e.dtype])
        checksum = write_file(Path(self.path) / name, _METADATA, widest_first) if entries else ""
        results = []
        for index, one in entries.items():
            piece = Piece(tuple(index.offset or ()), one.shape, one.dtype, name)
            results.append(WriteResult(index, one.nbytes, _Written(index.fqn, piece, checksum)))
        done.set_result(results)
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        metadata.storage_data = [one.storage_data for rank in results for one in rank]


class _Reader(dcp.FileSystemReader):
    """Reads tensor files by an index that was checked."""

    def __init__(self, folder: Path, stored: Mapping[str, StoredTensor]) -> None:
        super().__init__(folder)
        self._stored = stored

    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        found: dict[str, TensorStorageMetadata | BytesStorageMetadata] = {}
        for name, whole in self._stored.items():
            chunks = [
                ChunkStorageMetadata(torch.Size(p.offsets), torch.Size(p.sizes))
                for p in whole.pieces
            ]
            shape = torch.Size(whole.shape)
            found[name] = TensorStorageMetadata(TensorProperties(), shape, chunks)
        return Metadata(found, storage_data={})

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        files = {
            _entry_name(name, piece.offsets): piece.file
            for name, whole in self._stored.items()
            for piece in whole.pieces
        }
        opened = {name: open_file(Path(self.path) / name) for name in set(files.values())}
        for item in plan.items:
            name = _entry_name(item.storage_index.fqn, item.storage_index.offset)
            whole = read_tensor(opened[files[name]], name)
            parts = zip(item.storage_offsets, item.lengths, strict=True)
            wanted = whole[tuple(slice(start, start + n) for start, n in parts)]
            planner.resolve_tensor(item).copy_(wanted)
        done: Future[None] = Future()
        done.set_result(None)
        return done


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


def _entry_name(tensor: str, offsets: Any) -> str:
    return f"{tensor}{list(offsets or ())}"
