"""Rows are a function of (seed, row), and every kind knows its truth."""

import numpy as np
import pytest

from job.config import Data
from job.data import load_data
from job.data.dataset import chunk_rows, chunks
from job.data.synthetic import friedman1, linear, noise
from job.errors import OutOfMemory
from job.streams import Purpose, generator

PLENTY = 2**40
CHUNK = chunk_rows(10)


def test_any_range_of_rows_can_be_made_alone() -> None:
    config = Data(samples=3 * CHUNK)
    whole = np.concatenate([part.x for _, part in chunks(config, 1, 0, 3 * CHUNK)])
    start, stop = CHUNK + 7, 3 * CHUNK - 5
    parts = list(chunks(config, 1, start, stop))
    assert parts[0][0] == start
    assert np.array_equal(np.concatenate([part.x for _, part in parts]), whole[start:stop])


def test_a_row_does_not_depend_on_how_many_rows_there_are() -> None:
    few = load_data(Data(samples=1000), 3, PLENTY)
    many = load_data(Data(samples=2000), 3, PLENTY)
    assert np.array_equal(few.training.x, many.training.x[:800])
    assert np.array_equal(few.training.y, many.training.y[:800])


def test_seeds_give_different_rows() -> None:
    a, b = (load_data(Data(samples=1000), seed, PLENTY) for seed in (0, 1))
    assert a.sha256 != b.sha256
    assert not (a.training.x == b.training.x).all(axis=1).any()


def test_the_splits_are_all_rows_once() -> None:
    config = Data(samples=1003, validation=0.25, test=0.1)
    data = load_data(config, 0, PLENTY)
    splits = (data.training, data.validation, data.test)
    assert [len(split.x) for split in splits] == [652, 251, 100]
    (_, rows) = next(chunks(config, 0, 0, 1003))
    assert np.array_equal(np.concatenate([split.x for split in splits]), rows.x)


def test_the_same_seed_gives_the_same_numbers_on_every_machine() -> None:
    """Known answers: a change of these is a change of every seed's meaning."""
    data = load_data(Data(kind="noise", samples=1000), 0, PLENTY)
    assert data.sha256 == KNOWN_NOISE
    first = load_data(Data(samples=1000), 0, PLENTY).training
    np.testing.assert_allclose(first.x[0, :3], KNOWN_X, rtol=1e-7)
    np.testing.assert_allclose(first.y[0], KNOWN_Y, rtol=1e-6)


KNOWN_NOISE = "e52a7535bdabe62f1d279fa26b9aee7ce162ad74bf9fd24bab3b106ae6e72d2c"
KNOWN_X = [0.011546754278242588, 0.24154919385910034, 0.11142585426568985]
KNOWN_Y = [10.952630043029785]


def test_friedman1_is_its_formula() -> None:
    x, f = friedman1(generator(0, Purpose.DATA, 0), 1000, 7)
    assert x.min() >= 0
    assert x.max() < 1
    row = x[17]
    by_hand = (
        10 * np.sin(np.pi * row[0] * row[1]) + 20 * (row[2] - 0.5) ** 2 + 10 * row[3] + 5 * row[4]
    )
    assert f[17, 0] == pytest.approx(by_hand, rel=1e-14)


def test_linear_is_its_formula() -> None:
    x, f = linear(generator(0, Purpose.DATA, 0), 1000, 3)
    row = x[5]
    assert f[5, 0] == pytest.approx(1 + row[0] + row[1] / 2 + row[2] / 3, rel=1e-14)


def test_noise_has_nothing_to_do_with_x() -> None:
    x, f = noise(generator(0, Purpose.DATA, 0), 1000, 3)
    assert x.shape == (1000, 3)
    assert not f.any()


@pytest.mark.parametrize("kind", ["friedman1", "linear", "noise"])
@pytest.mark.parametrize("sigma", [0.0, 0.5, 2.0])
def test_the_floor_is_what_the_truth_itself_reaches(kind: str, sigma: float) -> None:
    config = Data(kind=kind, samples=100_000, noise=sigma)  # type: ignore[arg-type]
    data = load_data(config, 5, PLENTY)
    reached = float(np.mean(np.square(data.training.y - data.training.truth)))
    error = data.floor["mse"] * (2 / len(data.training.y)) ** 0.5
    assert reached == pytest.approx(data.floor["mse"], abs=4 * error + 1e-9)


def test_golden_rows_are_test_rows_and_never_fewer_than_32() -> None:
    narrow = load_data(Data(samples=5000), 0, PLENTY)
    assert np.array_equal(narrow.golden_input, narrow.test.x[:256])
    wide = load_data(Data(kind="noise", samples=400, features=65_536, noise=0.0), 0, PLENTY)
    assert len(wide.golden_input) == 32


def test_rows_that_cannot_fit_are_refused_with_the_sum() -> None:
    with pytest.raises(
        OutOfMemory, match=r"2000000 rows of 10 features need about .* GiB and 0\.1 GiB"
    ):
        load_data(Data(samples=2_000_000), 0, 2**27)


def test_streams_of_different_purposes_share_no_number() -> None:
    draws = [generator(0, purpose, 0).random(1000) for purpose in Purpose]
    draws.append(generator(0, Purpose.DATA, 1).random(1000))
    draws.append(generator(1, Purpose.DATA, 0).random(1000))
    everything = np.concatenate(draws)
    assert len(np.unique(everything)) == everything.size
