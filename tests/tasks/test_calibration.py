import numpy as np
import pytest
from scipy.special import expit

from terralapse.tasks.calibration import fit_scaling
from terralapse.tasks.metrics import expected_calibration_error, reliability


def drawn(temperature, offset, size=200_000):
    """Logits that are wrong by a known factor and offset, and labels drawn from the true odds."""
    rng = np.random.default_rng(0)
    true = rng.normal(-1.5, 1.5, size)
    label = (rng.random(size) < expit(true)).astype(np.uint8)
    return (true - offset) * temperature, label


@pytest.mark.parametrize(("temperature", "offset"), [(0.5, 0.0), (1.0, -1.2), (2.5, 0.7)])
def test_a_known_scaling_is_found_and_mends_the_calibration(temperature, offset):
    logits, label = drawn(temperature, offset)
    t, b = fit_scaling(logits, label)
    assert t == pytest.approx(temperature, rel=0.03)
    assert b == pytest.approx(offset, abs=0.04)
    mended = expit(logits / t + b)
    assert expected_calibration_error(reliability(mended, label)) < 0.005
    assert mended.mean() == pytest.approx(label.mean(), abs=1e-4)


def test_ignored_pixels_do_not_count():
    logits, label = drawn(2.0, 0.3)
    with_noise = np.concatenate([logits, np.full(50_000, 30.0)])
    labels = np.concatenate([label, np.full(50_000, 255, np.uint8)])
    assert fit_scaling(with_noise, labels) == pytest.approx(fit_scaling(logits, label), rel=1e-6)


def test_shape_is_free_and_many_pixels_are_thinned():
    logits, label = drawn(2.0, 0.0)
    t, _ = fit_scaling(logits.reshape(400, 500), label.reshape(400, 500), most=50_000)
    assert t == pytest.approx(2.0, rel=0.06)


@pytest.mark.parametrize("value", [0, 1])
def test_one_class_leaves_things_alone(value):
    assert fit_scaling(np.arange(5.0), np.full(5, value)) == (1.0, 0.0)
