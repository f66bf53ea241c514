"""Tables: anything with the three fields, checked."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from bet_torchrec.errors import BetError, InvalidInputError
from bet_torchrec.planning.tables import TableSpec, table_specs


def test_any_object_with_the_fields_will_do():
    config = SimpleNamespace(name="user", num_embeddings=np.int64(5), embedding_dim=8, pooling=1)
    assert table_specs([config]) == (TableSpec("user", 5, 8),)
    assert TableSpec("user", 5, 8).parameters == 40


def test_torchrec_configs_fit():
    modules = pytest.importorskip("torchrec.modules.embedding_configs")
    config = modules.EmbeddingBagConfig(
        name="t", num_embeddings=10, embedding_dim=4, feature_names=["f"]
    )
    assert table_specs([config]) == (TableSpec("t", 10, 4),)


@pytest.mark.parametrize(
    ("tables", "says"),
    [
        ([], "at least one"),
        ([TableSpec("a", 1, 1), TableSpec("a", 2, 2)], "distinct names.*'a'"),
        ("user", "list of tables, got str"),
        (TableSpec("a", 1, 1), r"wrap a single one: \[table\]"),
        ([("a", 1, 1)], "tuple without name, num_embeddings"),
    ],
)
def test_wrong_tables_are_refused(tables, says):
    with pytest.raises(InvalidInputError, match=says):
        table_specs(tables)


@pytest.mark.parametrize("fields", [("", 1, 1), (3, 1, 1), ("a", 0, 1), ("a", 1, 0), ("a", 2.5, 1)])
def test_wrong_fields_are_refused(fields):
    with pytest.raises(ValueError, match="should be"):
        TableSpec(*fields)
    with pytest.raises(BetError):
        TableSpec(*fields)
