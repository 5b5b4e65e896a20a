"""What readers are given: numbers of numpy, filters and states of every kind; or a clear error."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from pipeline import CodeStream, CodeTable
from pipeline.codes.errors import MissingColumn, StateMismatch
from tests.code_archives import make


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make(str(tmp_path_factory.mktemp("codes") / "a"), [7, 9, 5, 11])


def stream(made, **options) -> CodeStream:
    return CodeStream(made.store.root, **{"batch_size": 4, **options})


def images(batches) -> int:
    return sum(len(batch) for batch in batches)


def test_numbers_of_numpy_and_torch_are_those_of_python(made):
    for kind in (np.int64, np.uint8, torch.tensor):
        options = {"rank": kind(1), "world_size": kind(2), "seed": kind(3), "batch_size": kind(5)}
        one, other = (
            stream(made, **options),
            stream(made, **{k: int(v) for k, v in options.items()}),
        )
        next(iter(one)), next(iter(other))
        state = json.loads(json.dumps(one.state_dict()))
        assert state == json.loads(json.dumps(other.state_dict()))
        resumed = stream(made, **options)
        resumed.load_state_dict(state)
        assert images(resumed) == images(one._iterate(0, 0, 1, {})) - 5
        one.set_epoch(kind(7))
        assert one.epoch == 7 and type(one.epoch) is int


@pytest.mark.parametrize(
    ("options", "says"),
    [({"rank": -1}, "rank -1: from 0"), ({"rank": 1}, "rank 1 of 1"),
     ({"world_size": 0}, "world_size 0: from 1"), ({"batch_size": 0}, "batch_size 0: from 1"),
     ({"batch_size": 2.5}, "batch_size must be a whole number, not 2.5"),
     ({"batch_size": None}, "batch_size must be"), ({"batch_size": "4"}, "batch_size must be"),
     ({"seed": -1}, "seed -1: from 0"), ({"seed": None}, "seed must be"),
     ({"grid": 5}, "grid 5: "), ({"grid": "22"}, "grid '22'"), ({"grid": (1, 2, 3)}, "grid ")],
)  # fmt: skip
def test_numbers_that_cannot_be_are_named(made, options, says):
    with pytest.raises(ValueError, match=says):
        stream(made, **options)


def test_epochs_that_cannot_be_are_named(made):
    for epoch in (-1, 1.5, "x", None):
        codes = stream(made)
        with pytest.raises(ValueError, match="epoch"):
            codes.set_epoch(epoch)
        assert codes.epoch == 0 and images(codes) == len(made.ok)


@pytest.mark.parametrize(
    "where",
    [[("width", ">=", "wide")], [("width", "in", 3)], [("txt", "in", "caption")],
     [("txt", "<", 3)], [("width", "=", None)], [("width", "is valid", "x")], {"width": 3},
     "width", [("width", "~", 3)], 7],
)  # fmt: skip
def test_filters_that_mean_nothing_are_refused_and_no_table_is_called_damaged(made, where):
    with pytest.raises(MissingColumn, match="where"):
        stream(made, where=where)


def test_filters_and_columns_of_every_form(made):
    every = len(made.ok)
    for where in (None, (), [], ("width", ">=", 0), ["width", ">=", 0], [["width", ">=", 0.5]],
                  [("width", "in", {32, 7})], [("width", "=", np.int64(32))],
                  [("txt", "!=", "nobody"), ("txt", "is valid", True)]):  # fmt: skip
        wanted = every if not where or "txt" not in str(where) else None
        assert images(stream(made, where=where)) == (
            wanted or sum(row.kept["txt"] is not None for row in made.ok)
        )
    for columns in (None, (), "key", ["width", "width"], ["key", "json.label"]):
        names = [columns] if isinstance(columns, str) else dict.fromkeys(columns or ())
        assert list(next(iter(stream(made, columns=columns))).columns) == list(names)
        one = CodeTable(made.store.root, columns=columns)[3]
        assert set(one) == {"key", "codes", *names} and one["key"] == made.ok[3].key


@pytest.mark.parametrize("state", [None, [], "x", {}, {"epoch": 3}])
def test_states_that_are_none_are_refused(made, state):
    codes = stream(made)
    with pytest.raises(StateMismatch):
        codes.load_state_dict(state)
    for name in ("epoch", "cursors"):
        part = {k: v for k, v in codes.state_dict().items() if k != name}
        with pytest.raises(StateMismatch, match="of no epoch"):
            codes.load_state_dict(part)
    assert images(codes) == len(made.ok)


def test_an_epoch_that_is_empty_is_said(made, caplog):
    with caplog.at_level(logging.WARNING):
        assert images(stream(made, where=("width", "<", 0))) == 0
    assert "an empty epoch: no image passes (('width', '<', 0),)" in caplog.text


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_an_early_break_costs_no_later_epoch_with_workers_that_stay(made, workers):
    codes = stream(made)
    loader = DataLoader(codes, batch_size=None, num_workers=workers,
                        persistent_workers=workers > 0)  # fmt: skip
    found = []
    for epoch in range(3):
        found.append(0)
        for number, batch in enumerate(loader):
            found[-1] += len(batch)
            if epoch == 1 and number == 1:
                break
    assert found == [len(made.ok), 8, len(made.ok)] and codes.epoch == 3
