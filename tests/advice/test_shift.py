"""How far two sets of images lie apart, to a network."""

import numpy as np
import pytest
from small import small_backbone, with_head

import tlkeras as tlk
from tlkeras.advice.shift import _energy


@pytest.fixture(scope="module")
def model():
    return with_head(small_backbone())


def images(low, count=60, seed=0):
    rng = np.random.default_rng(seed)
    return rng.uniform(low, low + 0.4, (count, 16, 16, 3)).astype("float32")


def test_halves_of_one_set_are_alike_and_brighter_images_differ(model):
    first, second = np.split(images(0.0, 120), 2)
    same, other = (tlk.measure_shift(model, first, new) for new in (second, images(0.6)))
    assert not same.differs and repr(same).startswith("alike")
    assert other.differs and repr(other).startswith("different")
    assert other.interval[0] < other.distance < other.interval[1]


def test_it_grows_with_the_difference_and_is_the_same_for_the_same_seed(model):
    source = images(0.0)
    little, much = (tlk.measure_shift(model, source, images(low)) for low in (0.1, 0.6))
    assert little.distance < much.distance
    assert tlk.measure_shift(model, source, images(0.1)) == little


def test_the_energy_distance_of_two_pairs_of_points():
    points = np.array([0.0, 1.0, 4.0, 6.0])  # between 4.5 on average, within 1 and 2
    apart = np.abs(points[:, None] - points)
    assert _energy(apart, np.array([0, 1]), np.array([2, 3])) == pytest.approx((9 - 3) / 9)


def test_too_few_images_are_refused(model):
    with pytest.raises(ValueError, match="found 60 and 19"):
        tlk.measure_shift(model, images(0.0), images(0.0, 19))
