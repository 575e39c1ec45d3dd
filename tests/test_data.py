"""Rows are a function of (seed, row), and every kind knows its truth."""

import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from job.config import Data
from job.data import Dataset, Split, load_data
from job.data.dataset import bytes_needed, chunk_rows, chunks
from job.data.synthetic import (
    friedman1,
    friedman2,
    friedman3,
    gaussians,
    linear,
    noise,
    teacher,
    xor,
)
from job.errors import OutOfMemory
from job.streams import Purpose, generator

Float64 = NDArray[np.float64]

Kind = Literal["noise", "linear", "friedman1", "friedman2", "friedman3", "teacher", "xor"]

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


def test_the_same_seed_gives_the_same_rows_of_the_later_kinds() -> None:
    found = {
        kind: load_data(Data(kind=kind, samples=1000), 0, PLENTY).training for kind in KNOWN_LATER
    }
    for kind, (x, y) in KNOWN_LATER.items():
        np.testing.assert_allclose(found[kind].x[0, :2], x, rtol=1e-6)
        np.testing.assert_allclose(found[kind].y[0], y, rtol=1e-5)


KNOWN_LATER: dict[Kind, tuple[list[float], float]] = {
    "friedman2": ([1.1546754837036133, 520.2652587890625], 57.67137908935547),
    "friedman3": ([1.1546754837036133, 520.2652587890625], 1.2400480508804321),
    "teacher": ([0.1592954695224762, -1.77418851852417], 0.7389026284217834),
    "xor": ([-0.9769064784049988, -0.5169016122817993], 0.0),
}
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
    x, f = linear(generator(0, Purpose.DATA, 0), 1000, 3, 1)
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
    alone = linear(generator(0, Purpose.DATA, 0), 1000, 3, 1)
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
    x, f = noise(generator(0, Purpose.DATA, 0), 1000, 3, 1)
    assert x.shape == (1000, 3)
    assert not f.any()


def test_friedman2_and_friedman3_are_their_formulas() -> None:
    """By complex numbers: the impedance's magnitude and phase."""
    x, magnitude = friedman2(generator(0, Purpose.DATA, 0), 1000, 6)
    other, phase = friedman3(generator(0, Purpose.DATA, 0), 1000, 6)
    assert np.array_equal(x, other)
    low, high = np.array([[0, 40 * np.pi, 0, 1, 0, 0], [100, 560 * np.pi, 1, 11, 1, 1]])
    assert (x >= low).all()
    assert (x < high).all()
    np.testing.assert_allclose(np.ptp(x, axis=0), high - low, rtol=0.02)
    impedance = x[:, 0] + 1j * (x[:, 1] * x[:, 2] - 1 / (x[:, 1] * x[:, 3]))
    np.testing.assert_allclose(magnitude[:, 0], np.abs(impedance), rtol=1e-12)
    np.testing.assert_allclose(phase[:, 0], np.angle(impedance), rtol=1e-12)


@pytest.mark.parametrize(("function", "std"), [(friedman2, 379), (friedman3, 0.32)])
def test_friedmans_spread_is_what_is_said(
    function: Callable[[np.random.Generator, int, int], tuple[Float64, Float64]], std: float
) -> None:
    f = function(generator(0, Purpose.DATA, 0), 100_000, 4)[1]
    assert f.std() == pytest.approx(std, rel=0.02)


def test_a_teacher_is_its_network_whatever_the_rows() -> None:
    """Unit by unit, in loops."""
    x, f = teacher(generator(0, Purpose.DATA, 0), 50, 3, 2, 5, 7)
    draw = generator(7, Purpose.TEACHER, 0)
    a, b, c = (draw.standard_normal(shape) for shape in ((3, 5), 5, (5, 2)))
    for row, answers in zip(x, f, strict=True):
        hidden = [
            max(0.0, b[j] + sum(row[i] * a[i, j] / 3**0.5 for i in range(3))) for j in range(5)
        ]
        for k in range(2):
            assert answers[k] == pytest.approx(sum(hidden[j] * c[j, k] / 5**0.5 for j in range(5)))
    again = teacher(generator(1, Purpose.DATA, 0), 50, 3, 2, 5, 7)
    assert not np.array_equal(again[0], x)
    assert not np.array_equal(teacher(generator(0, Purpose.DATA, 0), 50, 3, 2, 5, 8)[1], f)


REGRESSIONS: list[tuple[Kind, int]] = [
    *(("friedman1", 1), ("friedman2", 1), ("friedman3", 1), ("linear", 1), ("linear", 3)),
    *(("noise", 1), ("teacher", 1), ("teacher", 3)),
]


def within_5_standard_errors(values: NDArray[Any], mean: float) -> bool:
    """Is the mean over the rows what it is said to be? By chance it is not once in 2 million."""
    return bool(abs(values.mean() - mean) <= 5 * values.std() / len(values) ** 0.5 + 1e-6)


@pytest.mark.parametrize(("kind", "outputs"), REGRESSIONS)
@pytest.mark.parametrize("sigma", [0.0, 0.5, 2.0])
def test_the_floor_is_what_the_truth_itself_reaches(kind: Kind, outputs: int, sigma: float) -> None:
    config = Data(kind=kind, samples=100_000, noise=sigma, outputs=outputs)
    data = load_data(config, 5, PLENTY)
    rows = data.training
    assert rows.truth is not None
    errors = rows.y - rows.truth
    rounding = 1e-7 * float(np.abs(rows.y).max())
    for name, losses in (
        ("mse", np.square(errors).mean(axis=1)),
        ("mae", np.abs(errors).mean(axis=1)),
    ):
        std = data.stds[name]
        assert losses.std() == pytest.approx(std, rel=0.02, abs=rounding)
        within = 5 * std / len(losses) ** 0.5 + rounding
        assert losses.mean() == pytest.approx(data.floor[name], abs=within)


@pytest.mark.parametrize(("kind", "outputs"), REGRESSIONS)
def test_no_function_of_x_comes_nearer_than_the_truth(kind: Kind, outputs: int) -> None:
    """f(x) is the mean of y given x, by Monte Carlo: y - f(x) is 0 in the mean, whatever function
    of x it is weighted with, so that f(x) plus any of them is further away."""
    rows = load_data(Data(kind=kind, samples=100_000, outputs=outputs), 5, PLENTY).training
    assert rows.truth is not None
    errors = rows.y - rows.truth
    scaled = (rows.x - rows.x.mean(axis=0)) / rows.x.std(axis=0)
    weights = [np.ones(len(errors)), rows.truth[:, 0], *scaled.T, *np.sin(3 * scaled).T]
    for weight in (*weights, scaled[:, 0] * scaled[:, 1]):
        for error in errors.T:
            assert within_5_standard_errors(weight * error, 0)


def class_rows(config: Data) -> tuple[Dataset, Split, Float64]:
    data = load_data(config, 5, PLENTY)
    assert data.training.truth is not None
    return data, data.training, data.training.truth


CLASS_KINDS = [
    *(Data(kind="gaussians", samples=200_000, noise=sigma) for sigma in (0.4, 0.7, 1.0, 4.0)),
    *(Data(kind="gaussians", samples=200_000, noise=0.8, classes=k) for k in (3, 5, 10)),
    *(Data(kind="xor", samples=200_000, label_noise=p) for p in (0.0, 0.1, 0.35, 0.5)),
]


@pytest.mark.parametrize("config", CLASS_KINDS, ids=str)
def test_the_floor_of_classes_is_what_the_truth_itself_reaches(config: Data) -> None:
    data, rows, truth = class_rows(config)
    y = rows.y[:, 0].astype(int)
    with np.errstate(divide="ignore"):
        losses = -np.log(truth[np.arange(len(y)), y])
    assert losses.std() == pytest.approx(data.stds["log_loss"], rel=0.05, abs=1e-12)
    assert within_5_standard_errors(losses, data.floor["log_loss"])
    right = truth.argmax(axis=1) == y
    assert within_5_standard_errors(
        right if right.std() else truth.max(axis=1), data.floor["accuracy"]
    )


@pytest.mark.parametrize("config", CLASS_KINDS, ids=str)
def test_classes_are_as_likely_as_the_truth_says(config: Data) -> None:
    """By Monte Carlo: the class seen minus its probability is 0 in the mean, whatever function of x
    it is weighted with."""
    data, rows, truth = class_rows(config)
    assert data.classes == list(range(truth.shape[1]))
    np.testing.assert_allclose(truth.sum(axis=1), 1, rtol=1e-12)
    m = rows.x.mean(axis=1)
    weights = (np.ones(len(m)), m, np.sign(m), np.sin(3 * m), rows.x[:, 0] * rows.x[:, 1])
    for k in data.classes:
        surprise = (rows.y[:, 0] == k) - truth[:, k]
        for weight in weights:
            assert within_5_standard_errors(weight * surprise, 0)


def test_xor_is_its_formula() -> None:
    x, y, truth = xor(generator(0, Purpose.DATA, 0), 1000, 3, 0.25)
    assert np.abs(x).max() < 1
    assert x.min() < -0.9
    differ = x[:, 0] * x[:, 1] < 0
    np.testing.assert_array_equal(truth[:, 1], np.where(differ, 0.75, 0.25))
    kept = y[:, 0] == differ
    assert kept.mean() == pytest.approx(0.75, abs=5 * (0.75 * 0.25 / 1000) ** 0.5)
    exact = xor(generator(0, Purpose.DATA, 0), 1000, 3, 0.0)
    np.testing.assert_array_equal(exact.y[:, 0], differ)


def test_gaussians_are_their_formula() -> None:
    """Bayes' rule by hand, from the two normal densities."""
    x, y, truth = gaussians(generator(0, Purpose.DATA, 0), 1000, 4, 0.7, 2)
    m = np.full(4, 0.5)
    density = [np.exp(-np.square(x - sign * m).sum(axis=1) / (2 * 0.7**2)) for sign in (-1, 1)]
    np.testing.assert_allclose(truth[:, 1], density[1] / (density[0] + density[1]), rtol=1e-10)
    np.testing.assert_allclose(truth.sum(axis=1), 1, rtol=1e-15)
    assert set(y[:, 0]) == {0.0, 1.0}
    centre = x[y[:, 0] == 1].mean(axis=0)
    np.testing.assert_allclose(centre, m, atol=4 * 0.7 / 500**0.5)


@pytest.mark.parametrize("classes", [3, 4])
def test_more_gaussians_are_their_formula(classes: int) -> None:
    """Bayes' rule by hand, from the normal densities around -(K - 1), ..., K - 1."""
    x, y, truth = gaussians(generator(0, Purpose.DATA, 0), 1000, 4, 0.7, classes)
    centres = [np.full(4, c / 2) for c in range(1 - classes, classes, 2)]
    density = [np.exp(-np.square(x - c).sum(axis=1) / (2 * 0.7**2)) for c in centres]
    np.testing.assert_allclose(truth, np.transpose(density / np.sum(density, axis=0)), rtol=1e-9)
    for k, centre in enumerate(centres):
        np.testing.assert_allclose(x[y[:, 0] == k].mean(axis=0), centre, atol=5 * 0.7 / 200**0.5)


def test_the_floor_of_gaussians_by_other_means() -> None:
    """Gauss-Hermite quadrature, where it is good: the floor has no closed form."""
    floor = load_data(Data(kind="gaussians", samples=100, test=0.4, noise=2.0), 0, PLENTY).floor
    g, weight = np.polynomial.hermite_e.hermegauss(80)
    wanted = (weight * np.log1p(np.exp(-(1 + 2 * g) / 2))).sum() / math.sqrt(2 * math.pi)
    assert floor["log_loss"] == pytest.approx(wanted, rel=1e-9)
    assert floor["accuracy"] == pytest.approx(0.691462461274013, rel=1e-12)  # Phi(1/2), tables


@pytest.mark.parametrize("sigma", [0.0, 1e-200, 1e30])
def test_gaussians_without_and_with_nothing_but_noise(sigma: float) -> None:
    data, _, truth = class_rows(Data(kind="gaussians", samples=1000, noise=sigma))
    assert np.isfinite(truth).all()
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


def test_what_is_said_to_be_needed_is_what_was_measured() -> None:
    """docs/performance.md: the largest process with ten features and a target."""
    for rows, gib in ((10_000_000, 1.45), (30_000_000, 3.85)):
        needed = bytes_needed(rows, rows * 8 // 10, 10, 1, 1)
        assert needed / 2**30 == pytest.approx(gib, rel=0.06)


def test_streams_of_different_purposes_share_no_number() -> None:
    draws = [generator(0, purpose, 0).random(1000) for purpose in Purpose]
    draws.append(generator(0, Purpose.DATA, 1).random(1000))
    draws.append(generator(1, Purpose.DATA, 0).random(1000))
    everything = np.concatenate(draws)
    assert len(np.unique(everything)) == everything.size
