"""Reading a checksummed safetensors file with numpy alone, its tensors left in a memory map."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from ..errors import BetError
from ..files.tensors import TensorFileError, open_file


@dataclass(frozen=True)
class Kind:
    """What a file should be. format, version: as its metadata say; older versions are read.

    holds: the words for an error, as "tables saved by export_tables". error: its class.
    """

    format: str
    version: int
    holds: str
    error: type[BetError]

    def damaged(self, path: Path, why: str) -> BetError:
        """To be raised."""
        return self.error(
            f"{path} should hold {self.holds}, but {why}; the file is damaged or something else: "
            "save it again"
        )


def open_container(
    path: Path, kind: Kind, *, verify: bool = True
) -> tuple[Any, dict[str, NDArray[Any]]]:
    """A file's JSON header, and its tensors in a memory map.

    verify: read the whole file once and compare its checksum.

    Raises:
        kind.error: corrupted, foreign, or written by a newer version.
        FileNotFoundError: no such file.
    """
    try:
        file = open_file(path)
        metadata = file.metadata
        if metadata.get("format") != kind.format:
            raise kind.error(
                f"{path} should hold {kind.holds}, got a safetensors file of "
                f"{metadata.get('format', 'something else')!r}"
            )
        version = metadata.get("version", "")
        if version != str(kind.version):
            raise kind.error(
                f"{path} should have format version {kind.version} or older, got {version!r}; "
                "upgrade bet_torchrec to read it"
            )
        if verify:
            file.verify()
        arrays = {name: file.array(name) for name in file.tensors}
        return json.loads(metadata["header"]), arrays
    except (TensorFileError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, kind.error):
            raise
        raise kind.damaged(path, str(error)) from error
