import numpy as np
import pytest
from scipy.special import expit

from terralapse.tasks.calibration import fit_temperature
from terralapse.tasks.metrics import expected_calibration_error, reliability


def drawn(temperature, size=200_000):
    """Logits that are too sure of themselves by a known factor, and labels drawn from the true odds."""
    rng = np.random.default_rng(0)
    true = rng.normal(-1.5, 1.5, size)
    label = (rng.random(size) < expit(true)).astype(np.uint8)
    return true * temperature, label


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_a_known_temperature_is_found_and_mends_the_calibration(temperature):
    logits, label = drawn(temperature)
    found = fit_temperature(logits, label)
    assert abs(found / temperature - 1) < 0.03
    assert expected_calibration_error(reliability(expit(logits / found), label)) < 0.005


def test_ignored_pixels_do_not_count():
    logits, label = drawn(2.0)
    with_noise = np.concatenate([logits, np.full(50_000, 30.0)])
    labels = np.concatenate([label, np.full(50_000, 255, np.uint8)])
    assert fit_temperature(with_noise, labels) == pytest.approx(fit_temperature(logits, label), rel=1e-6)


def test_shape_is_free_and_many_pixels_are_thinned():
    logits, label = drawn(2.0)
    square = fit_temperature(logits.reshape(400, 500), label.reshape(400, 500), most=50_000)
    assert abs(square / 2.0 - 1) < 0.06


@pytest.mark.parametrize("value", [0, 1])
def test_one_class_leaves_things_alone(value):
    assert fit_temperature(np.arange(5.0), np.full(5, value)) == 1.0
