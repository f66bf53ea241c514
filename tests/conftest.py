"""What all tests share: where the data sets are, and which machines a test needs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Small tensors: one thread is faster, and much faster on a busy machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")

REPOSITORY = Path(__file__).resolve().parent.parent


def _find_data() -> Path | None:
    named = os.environ.get("BET_TORCHREC_DATA")
    folder = Path(named) if named else REPOSITORY.parent / "shared" / "data"
    return folder if folder.is_dir() else None


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder that holds gowalla/, yelp2018/, ml-1m/; skips the test where there is none."""
    folder = _find_data()
    if folder is None:
        pytest.skip(
            "no data sets here: set BET_TORCHREC_DATA to the folder of gowalla/ and the rest"
        )
    return folder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked gpu on a machine without a CUDA device."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
