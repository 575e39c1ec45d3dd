"""Rows are a function of (seed, row), and every kind knows its truth."""

import math
from typing import Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from job.config import Data
from job.data import Split, load_data
from job.data.dataset import chunk_rows, chunks
from job.data.synthetic import friedman1, gaussians, linear, noise
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


def test_the_same_seed_gives_the_same_classes_and_lines_on_every_machine() -> None:
    classes = load_data(Data(kind="gaussians", samples=1000), 0, PLENTY).training
    assert "".join(f"{y:.0f}" for y in classes.y[:24, 0]) == KNOWN_CLASSES
    np.testing.assert_allclose(classes.x[0, :3], KNOWN_CLASS_X, rtol=1e-6)
    line = load_data(Data(kind="linear", samples=1000), 0, PLENTY).training
    np.testing.assert_allclose(line.x[0, :3], KNOWN_LINE_X, rtol=1e-6)
    np.testing.assert_allclose(line.y[0], KNOWN_LINE_Y, rtol=1e-6)


KNOWN_NOISE = "e52a7535bdabe62f1d279fa26b9aee7ce162ad74bf9fd24bab3b106ae6e72d2c"
KNOWN_X = [0.011546754278242588, 0.24154919385910034, 0.11142585426568985]
KNOWN_Y = [10.952630043029785]
KNOWN_CLASSES = "001000011110110110001110"
KNOWN_CLASS_X = [-0.6414285898208618, -0.9858287572860718, -0.398901104927063]
KNOWN_LINE_X = [0.1592954695224762, -1.77418851852417, 1.3265118598937988]
KNOWN_LINE_Y = [1.8896327018737793]


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


def test_each_output_of_linear_is_its_formula() -> None:
    x, f = linear(generator(0, Purpose.DATA, 0), 1000, 3, 4)
    assert f.shape == (1000, 4)
    row = x[5]
    by_hand = [
        1 + row[0] + row[1] / 2 + row[2] / 3,
        2 + row[1] + row[2] / 2 + row[0] / 3,
        3 + row[2] + row[0] / 2 + row[1] / 3,
        4 + row[0] + row[1] / 2 + row[2] / 3,
    ]
    np.testing.assert_allclose(f[5], by_hand, rtol=1e-14)
    alone = linear(generator(0, Purpose.DATA, 0), 1000, 3)
    assert np.array_equal(alone[0], x)
    assert np.array_equal(alone[1], f[:, :1])


def test_outputs_have_noise_of_their_own_and_names() -> None:
    data = load_data(Data(kind="noise", samples=20_000, outputs=3), 1, PLENTY)
    assert (data.targets, data.training.y.shape) == (["y0", "y1", "y2"], (16_000, 3))
    np.testing.assert_allclose(np.corrcoef(data.training.y.T), np.eye(3), atol=0.04)
    assert load_data(Data(samples=1000), 1, PLENTY).targets == ["y"]


def test_many_outputs_are_drawn_in_smaller_chunks() -> None:
    config = Data(kind="noise", samples=400, features=1, outputs=2**16)
    sizes = [len(part.x) for _, part in chunks(config, 0, 0, 64)]
    assert sizes == [16] * 4


def test_noise_has_nothing_to_do_with_x() -> None:
    x, f = noise(generator(0, Purpose.DATA, 0), 1000, 3)
    assert x.shape == (1000, 3)
    assert not f.any()


@pytest.mark.parametrize(
    ("kind", "outputs"), [("friedman1", 1), ("linear", 1), ("linear", 3), ("noise", 1)]
)
@pytest.mark.parametrize("sigma", [0.0, 0.5, 2.0])
def test_the_floor_is_what_the_truth_itself_reaches(
    kind: Literal["friedman1", "linear", "noise"], outputs: int, sigma: float
) -> None:
    config = Data(kind=kind, samples=100_000, noise=sigma, outputs=outputs)
    data = load_data(config, 5, PLENTY)
    errors = data.training.y - data.training.truth
    for name, losses in (
        ("mse", np.square(errors).mean(axis=1)),
        ("mae", np.abs(errors).mean(axis=1)),
    ):
        std = data.stds[name]
        assert losses.std() == pytest.approx(std, rel=0.02, abs=1e-6)
        within = 4 * std / len(losses) ** 0.5 + 1e-6
        assert losses.mean() == pytest.approx(data.floor[name], abs=within)


def test_gaussians_are_their_formula() -> None:
    """Bayes' rule by hand, from the two normal densities."""
    x, y, truth = gaussians(generator(0, Purpose.DATA, 0), 1000, 4, 0.7)
    m = np.full(4, 0.5)
    density = [np.exp(-np.square(x - sign * m).sum(axis=1) / (2 * 0.7**2)) for sign in (-1, 1)]
    np.testing.assert_allclose(truth[:, 1], density[1] / (density[0] + density[1]), rtol=1e-10)
    np.testing.assert_allclose(truth.sum(axis=1), 1, rtol=1e-15)
    assert set(y[:, 0]) == {0.0, 1.0}
    centre = x[y[:, 0] == 1].mean(axis=0)
    np.testing.assert_allclose(centre, m, atol=4 * 0.7 / 500**0.5)


def log_losses(rows: Split) -> NDArray[np.float64]:
    losses: NDArray[np.float64] = -np.log(
        rows.truth[np.arange(len(rows.y)), rows.y[:, 0].astype(int)]
    )
    return losses


@pytest.mark.parametrize("sigma", [0.4, 0.7, 1.0, 4.0])
def test_the_floor_of_gaussians_is_what_the_truth_itself_reaches(sigma: float) -> None:
    config = Data(kind="gaussians", samples=200_000, noise=sigma)
    data = load_data(config, 5, PLENTY)
    rows, n = data.training, len(data.training.y)
    losses = log_losses(rows)
    assert losses.std() == pytest.approx(data.stds["log_loss"], rel=0.1)
    assert losses.mean() == pytest.approx(
        data.floor["log_loss"], abs=4 * data.stds["log_loss"] / n**0.5
    )
    right = np.mean(rows.truth.argmax(axis=1) == rows.y[:, 0])
    best = data.floor["accuracy"]
    assert right == pytest.approx(best, abs=4 * (best * (1 - best) / n) ** 0.5)


def test_the_floor_of_gaussians_by_other_means() -> None:
    """Gauss-Hermite quadrature, where it is good: the floor has no closed form."""
    floor = load_data(Data(kind="gaussians", samples=100, test=0.4, noise=2.0), 0, PLENTY).floor
    g, weight = np.polynomial.hermite_e.hermegauss(80)
    wanted = (weight * np.log1p(np.exp(-(1 + 2 * g) / 2))).sum() / math.sqrt(2 * math.pi)
    assert floor["log_loss"] == pytest.approx(wanted, rel=1e-9)
    assert floor["accuracy"] == pytest.approx(0.691462461274013, rel=1e-12)  # Phi(1/2), tables


@pytest.mark.parametrize("sigma", [0.0, 1e-200, 1e30])
def test_gaussians_without_and_with_nothing_but_noise(sigma: float) -> None:
    data = load_data(Data(kind="gaussians", samples=1000, noise=sigma), 0, PLENTY)
    assert np.isfinite(data.training.truth).all()
    sure = sigma < 1
    assert data.floor["log_loss"] == pytest.approx(0.0 if sure else math.log(2))
    assert data.floor["accuracy"] == pytest.approx(1.0 if sure else 0.5)


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
