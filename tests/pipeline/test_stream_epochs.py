"""Iterating is an epoch, whoever iterates: DataLoader or ``batches``, with workers or without."""

from __future__ import annotations

import copy
import json
import multiprocessing
import pickle
from collections import Counter
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, get_worker_info

from pipeline.codes.by_number import CodeBatch, CodeStream, NotHere, StateMismatch, TooFewImages
from pipeline.codes.order import Cursor
from pipeline.codes.stream import Consumed
from tests.code_archives import make

GRIDS = ((2, 2), (3, 2), (1, 4))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make(str(tmp_path_factory.mktemp("codes") / "a"), [300] * 3 + [1100, 0, 7], GRIDS)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """One grid, failed images in every table."""
    return make(str(tmp_path_factory.mktemp("codes") / "b"), [1100, 90, 0, 41, 7, 400])


def stream(made, **options) -> CodeStream:
    return CodeStream(made.store.root, **{"batch_size": 16, "buffer_bytes": 6000, **options})


def keys(batches) -> list[str]:
    return [key for batch in batches for key in batch.key]


def loader(codes: CodeStream, workers: int, **options) -> DataLoader:
    return DataLoader(codes, batch_size=None, num_workers=workers, **options)


def epoch(codes: CodeStream, way: str, workers: int) -> Iterator[CodeBatch]:
    if way == "batches":
        yield from codes.batches(workers)
        return
    for batch in loader(codes, workers):
        if way == "marked":
            codes.mark(batch)
        yield batch


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("way", ["batches", "marked", "plain"])
def test_every_iteration_is_the_next_epoch_with_its_own_order(made, way, workers):
    codes, ok = stream(made), Counter(row.key for row in made.ok)
    epochs = [keys(epoch(codes, way, workers)) for _ in range(3)]
    assert all(Counter(one) == ok for one in epochs) and codes.epoch == 3
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    again = stream(made)
    again.set_epoch(1)
    assert keys(again.batches(workers)) == epochs[1] and again.epoch == 2


@pytest.mark.parametrize("workers", [0, 2])
def test_looking_at_one_batch_costs_nothing_later(made, workers):
    codes = stream(made)
    first = next(iter(loader(codes, workers)))
    next(codes.batches(workers))
    assert len(first) and Counter(keys(loader(codes, workers))) == Counter(r.key for r in made.ok)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("way", ["batches", "marked"])
def test_a_state_of_the_very_end_is_the_beginning_of_the_next_epoch(made, way, workers):
    codes, states = stream(made), []
    for _ in epoch(codes, way, workers):
        states.append(codes.state_dict())
    following = keys(epoch(codes, way, workers))
    for state in (states[-1], json.loads(json.dumps(states[-1]))):
        rest = stream(made)
        rest.load_state_dict(state)
        assert keys(epoch(rest, way, workers)) == following and rest.epoch == 2
    rest.load_state_dict(states[-2])
    assert 0 < len(keys(epoch(rest, way, workers))) <= 16
    assert keys(epoch(rest, way, workers)) == following


@pytest.mark.parametrize("workers", [0, 2])
def test_behind_what_is_left_of_an_epoch_comes_the_next_one(made, workers):
    codes, seen = stream(made), list[str]()
    for batch in loader(codes, workers):
        codes.mark(batch)
        seen += batch.key
        if len(seen) > 700:
            break
    rest = stream(made)
    rest.load_state_dict(codes.state_dict())
    reading = loader(rest, workers)
    assert Counter(seen + keys(reading)) == Counter(row.key for row in made.ok)
    codes.set_epoch(1)
    assert keys(reading) == keys(codes.batches(workers))


def test_a_state_of_other_workers_is_refused_and_stays(made):
    codes = stream(made)
    next(codes.batches(2))
    rest = stream(made)
    rest.load_state_dict(codes.state_dict())
    for _ in range(2):
        with pytest.raises(StateMismatch, match="2 workers, this DataLoader has 1"):
            next(iter(loader(rest, 1)))
    assert rest.state_dict() == codes.state_dict()


def test_persistent_workers_hear_of_epochs_and_states(made):
    codes, ok = stream(made), Counter(row.key for row in made.ok)
    reading = loader(codes, 2, persistent_workers=True)
    epochs = [keys(reading) for _ in range(3)]
    assert all(Counter(one) == ok for one in epochs) and epochs[0] != epochs[1]
    codes.set_epoch(1)
    assert keys(reading) == epochs[1]
    for batch in reading:
        codes.mark(batch)
        state = codes.state_dict()
    codes.load_state_dict(state)
    assert keys(reading) not in epochs and codes.epoch == 4


def test_a_seed_that_is_set_again_before_every_epoch_changes_nothing(made):
    codes, epochs = stream(made), []
    for _ in range(2):
        torch.manual_seed(0)
        epochs.append(keys(loader(codes, 2)))
    assert epochs[0] != epochs[1] and Counter(epochs[0]) == Counter(epochs[1])


def test_copies_and_forked_ranks_do_not_count_on_each_other(made):
    codes = stream(made)
    first = keys(loader(codes, 1))
    copies = [copy.deepcopy(codes), pickle.loads(pickle.dumps(codes))]
    fork = multiprocessing.get_context("fork")
    queue = fork.SimpleQueue()

    def rank() -> None:
        queue.put([keys(loader(codes, 1)), codes.epoch])

    ranks = [fork.Process(target=rank) for _ in range(2)]
    for one in ranks:
        one.start()
    second = keys(loader(codes, 1))
    assert second != first and codes.epoch == 2
    assert all(keys(loader(one, 1)) == second and one.epoch == 2 for one in copies)
    assert [queue.get() for _ in ranks] == [[second, 2]] * 2
    for one in ranks:
        one.join(60)


@pytest.mark.chaos  # each worker imports torch anew
def test_spawned_workers_count_too(made):
    codes = stream(made, where=("width", ">", 16))
    epochs = [keys(loader(codes, 2, multiprocessing_context="spawn")) for _ in range(2)]
    assert Counter(epochs[0]) == Counter(epochs[1]) and epochs[0] != epochs[1]


class Told:
    """What a stateful DataLoader does: every worker is given its own state back."""

    def __init__(self, states: list[dict]) -> None:
        self.states = states

    def __call__(self, worker: int) -> None:
        get_worker_info().dataset.load_state_dict(self.states[worker])


def test_states_that_workers_are_told(made):
    codes, seen, states = stream(made), list[str](), {}
    for batch in loader(codes, 2):
        alone = stream(made)
        alone._progress = Consumed(0, 2, None, {batch.place.worker: batch.place.cursor})
        states[batch.place.worker] = alone.state_dict()
        seen += batch.key
        if len(seen) > 500:
            break
    rest = stream(made)
    found = keys(loader(rest, 2, worker_init_fn=Told([states[0], states[1]])))
    assert Counter(seen + found) == Counter(row.key for row in made.ok) and rest.epoch == 1


def test_a_batch_size_of_the_dataloader_gets_a_sentence(made):
    for reading in (DataLoader(stream(made)), DataLoader(stream(made), 8, num_workers=1)):
        with pytest.raises(NotHere, match="batch_size=None"):
            next(iter(reading))


# Numbers of batches and rows -------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"drop_last": True}, {"where": ("json.label", "<", 7)}])
@pytest.mark.parametrize("workers", [0, 2])
def test_len_is_what_comes(plain, workers, options):
    for rank in range(3):
        codes = stream(plain, rank=rank, world_size=3, **options)
        reading = loader(codes, workers)
        expected = len(reading)
        sizes = [len(batch) for batch in reading]
        assert len(sizes) == expected == len(codes)
        assert sum(size < 16 for size in sizes) <= (0 if "drop_last" in options else 1)


def test_grids_that_are_named_are_not_looked_for(plain, made, monkeypatch):
    from pipeline.codes import counts

    expected = len(stream(plain))
    with pytest.raises(TypeError, match="several grids"):
        len(stream(made))
    monkeypatch.setattr(counts.RowCounts, "grids", None)
    assert len(stream(plain, grid=[2, 2])) == expected
    assert len(keys(stream(plain, grid=[2, 2], drop_last=True).batches())) // 16 == expected - 1


@pytest.mark.parametrize("drop", [False, True])
def test_ranks_with_equally_many_batches(made, drop):
    options = {"world_size": 5, "even_batches": True, "drop_last": drop}
    numbers = [
        len(list(stream(made, rank=rank, **options).batches(workers)))
        for rank, workers in zip(range(5), [2] * 5, strict=True)
    ]
    assert len(set(numbers)) == 1 and numbers[0] > 10


def test_more_ranks_than_images_are_refused(plain):
    few = ("json.label", "=", 3)
    images = len(keys(stream(plain, where=[few]).batches()))
    assert 100 < images < 200
    assert keys(stream(plain, where=few, rank=images - 1, world_size=images).batches())
    with pytest.raises(TooFewImages, match=f"{images} images for {images + 1} ranks"):
        stream(plain, where=few, world_size=images + 1)


@given(
    st.integers(1, 64),
    st.integers(1, 4),
    st.integers(0, 5),
    st.booleans(),
    st.booleans(),
    st.data(),
)
@settings(max_examples=60, deadline=None)
def test_from_any_place_comes_the_same_remainder(made, world, workers, epoch, drop, even, data):
    """The workers of a rank one after the other, in this process."""
    rank = data.draw(st.integers(0, world - 1))
    codes = stream(made, rank=rank, world_size=world, drop_last=drop, even_batches=even)
    worker = data.draw(st.integers(0, workers - 1))
    whole = list(codes._iterate(epoch, worker, workers, {}))
    if whole:
        assert [b.place.cursor.last for b in whole] == [False] * (len(whole) - 1) + [True]
        at = data.draw(st.integers(0, len(whole) - 1))
        state = json.loads(json.dumps(whole[at].place.cursor.to_state()))
        rest = list(codes._iterate(epoch, worker, workers, {worker: Cursor.from_state(state)}))
        assert [b.key for b in rest] == [b.key for b in whole[at + 1 :]]


@pytest.mark.parametrize(("world", "workers"), [(1, 3), (3, 2), (8, 1), (64, 4)])
def test_all_ranks_together_give_every_row_once(made, world, workers):
    ranks = [
        sum((keys(codes._iterate(2, worker, workers, {})) for worker in range(workers)), [])
        for codes in (stream(made, rank=rank, world_size=world) for rank in range(world))
    ]
    assert Counter(sum(ranks, [])) == Counter(row.key for row in made.ok)
    assert max(map(len, ranks)) - min(map(len, ranks)) <= 1
