import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from terralapse.errors import ModelInputError, NoValidDataError, WeightsMismatchError
from terralapse.grid.pair import ArrayPair, PairSample
from terralapse.grid.scene import Window
from terralapse.labels import Reason
from terralapse.models.change import lapsenet
from terralapse.sensors import Unit

CARDS = [lapsenet.RGB, lapsenet.S2]


def detector(card, seed=0):
    """A detector whose random weights react to their input: a usual start is nearly constant."""
    torch.manual_seed(seed)
    found = lapsenet.build(card, untrained=True)
    for module in found.network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 1.5)
    x = images(card, 64, 64, seed=9)
    logits = found.network(found.normalise(x, None, state(card)))
    head = found.network.head
    with torch.no_grad():
        head.weight.mul_(2 / logits.std())
        head.bias.copy_((head.bias - logits.mean()) * 2 / logits.std())
    return found


def state(card, **more):
    bands = list(range(len(card.inputs.bands)))
    stretch = {"stretch": {"low": [0.0] * len(bands), "high": [1.0] * len(bands)}}
    return {"bands": bands, "temperature": card.temperature} | (stretch if card is lapsenet.S2 else {}) | more


def images(card, height, width, seed=1):
    top = 255.0 if card is lapsenet.RGB else 1.0
    shape = (1, 2, len(card.inputs.bands), height, width)
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * top


def save(found, path):
    save_file({k: v.contiguous() for k, v in found.network.state_dict().items()}, path)


def predict(found, x, own_state):
    return found.predict(x, ~x.isnan().any(dim=2), own_state)


def sample(data, names, unit, reason=None):
    """Two blocks, so that what is fitted has to be gathered from several."""
    pair = ArrayPair(data, bands=names, unit=unit, reason=reason, name="place")
    height, width = pair.shape
    half = height // 2
    return PairSample(pair, [Window(0, 0, half, width), Window(half, 0, height - half, width)], 1.0)


# --- the network -------------------------------------------------------------------------------------
@pytest.mark.parametrize("card", CARDS, ids=lambda c: c.slug)
def test_shapes_and_size(card):
    found = detector(card)
    out = predict(found, images(card, 48, 72), state(card))
    assert out.shape == (1, 48, 72)
    assert out.dtype == torch.float32
    assert (out >= 0).all()
    assert (out <= 1).all()
    assert out.std() > 0.02  # else the tests below prove nothing
    assert card.parameters in (None, sum(p.numel() for p in found.network.parameters()))


@pytest.mark.parametrize("holes", [False, True])
@pytest.mark.parametrize("order", ["as it is", "turned around", "with more"])
@pytest.mark.parametrize("card", CARDS, ids=lambda c: c.slug)
def test_images_are_normalised_strip_by_strip_as_they_are_whole(card, order, holes, monkeypatch):
    monkeypatch.setattr("terralapse.layers.strips.STRIP_BYTES", 1 << 16)  # several strips
    found, x = detector(card), images(card, 64, 48)
    if holes:
        x[:, 1, 0, 10:30, 5:20] = torch.nan
    bands = state(card)["bands"]
    known = None if not holes else ~x.isnan().any(dim=(1, 2))
    with torch.inference_mode():
        whole = found.forward(found.normalise(x, known, state(card)), known).probability(card.temperature)
    given, own = x, state(card)
    if order == "turned around":
        given, own = x.flip(2), state(card, bands=bands[::-1])
    elif order == "with more":
        given = torch.cat([torch.full_like(x[:, :, :1], 7.0), x], dim=2)
        own = state(card, bands=[b + 1 for b in bands])
    before = given.clone()
    assert torch.allclose(predict(found, given, own), whole, atol=1e-6)
    assert torch.equal(given.nan_to_num(-1), before.nan_to_num(-1))  # the caller's pixels are not touched


@pytest.mark.parametrize("card", CARDS, ids=lambda c: c.slug)
def test_exchanging_the_dates_changes_nothing(card):
    found, x = detector(card), images(card, 64, 64)
    assert torch.allclose(predict(found, x, state(card)), predict(found, x.flip(1), state(card)), atol=1e-6)


@pytest.mark.parametrize("card", CARDS, ids=lambda c: c.slug)
def test_a_pixel_reaches_no_further_than_the_halo(card):
    """The exact reach, from gradients, is within what the card promises, and the card is not wasteful: no
    multiple less would do."""
    found = detector(card)
    halo, multiple = card.inputs.halo, card.inputs.size_multiple
    assert halo % multiple == 0
    side = 2 * halo + 4 * multiple
    x = images(card, side, side).double().requires_grad_()
    found.network.double()
    normal = found.normalise(x, None, state(card))
    logits = found.network(normal)
    reach = 0
    first = side // 2 // multiple * multiple
    for at in (first, first + multiple - 1):  # the outermost phases of the strides reach furthest
        (gradient,) = torch.autograd.grad(logits[0, at, at], x, retain_graph=True)
        seen = gradient.abs().sum(dim=(0, 1, 2)) > 0
        for axis in (0, 1):
            where = torch.nonzero(seen.any(dim=axis))
            reach = max(reach, at - int(where.min()), int(where.max()) - at)
    assert halo - multiple < reach <= halo


@pytest.mark.parametrize("card", CARDS, ids=lambda c: c.slug)
@pytest.mark.parametrize("offset", [(1, 3), (5, 2)])
def test_tile_equals_the_whole_image(card, offset):
    """A core cut out at odd multiples of the size multiple, with the halo around it."""
    found, multiple, halo = detector(card), card.inputs.size_multiple, card.inputs.halo
    core = 3 * multiple
    row, col = (halo + n * multiple for n in offset)
    x = images(card, row + core + halo + multiple, col + core + halo + 2 * multiple)
    whole = predict(found, x, state(card))[0, row : row + core, col : col + core]
    window = (slice(row - halo, row + core + halo), slice(col - halo, col + core + halo))
    tile = predict(found, x[..., window[0], window[1]], state(card))[0, halo:-halo, halo:-halo]
    assert (whole - tile).abs().max() < 1e-4
    assert whole.std() > 0.01


@pytest.mark.parametrize("card", CARDS, ids=lambda c: c.slug)
def test_result_does_not_depend_on_the_batch(card):
    found = detector(card)
    x = torch.cat([images(card, 32, 32, seed) for seed in range(3)])
    together = predict(found, x, state(card))
    alone = torch.cat([predict(found, part[None], state(card)) for part in x])
    assert torch.allclose(together, alone, atol=1e-5)


# --- missing pixels ----------------------------------------------------------------------------------
@pytest.mark.parametrize("card", CARDS, ids=lambda c: c.slug)
def test_a_missing_pixel_stays_within_itself(card):
    found, x = detector(card), images(card, 48, 48)
    x[0, 0, 0, 20, 21] = torch.nan  # one band of one date
    out = predict(found, x, state(card))
    assert torch.isfinite(out).all()
    clean = predict(found, images(card, 48, 48), state(card))
    changed = (out - clean).abs()[0] > 1e-6
    assert changed[20, 21]
    rows, cols = torch.nonzero(changed, as_tuple=True)
    assert (rows - 20).abs().max() <= card.inputs.halo
    assert (cols - 21).abs().max() <= card.inputs.halo
    assert (out - clean).abs().mean() < 0.01  # it is one pixel less, not a hole


@pytest.mark.parametrize("card", CARDS, ids=lambda c: c.slug)
def test_the_edge_of_the_data_is_the_edge_of_the_image(card):
    """Padding with nothing, as the engine does at the edge of a scene, changes nothing."""
    found, x, halo = detector(card), images(card, 48, 64), card.inputs.halo
    bare = predict(found, x, state(card))
    padded = torch.nn.functional.pad(x, (halo,) * 4, value=torch.nan)
    assert (predict(found, padded, state(card))[:, halo:-halo, halo:-halo] - bare).abs().max() < 1e-4
    assert bare.std() > 0.01


@pytest.mark.parametrize("card", CARDS, ids=lambda c: c.slug)
def test_what_is_under_a_mask_has_no_influence(card):
    found, x = detector(card), images(card, 48, 48)
    valid = torch.ones(1, 2, 48, 48, dtype=torch.bool)
    valid[0, 1, 10:30, 10:30] = False
    y = x.clone()
    y[0, :, :, 10:30, 10:30] = torch.nan
    assert torch.equal(found.predict(x, valid, state(card)), found.predict(y, valid, state(card)))


# --- fit ---------------------------------------------------------------------------------------------
def test_rgb_of_bytes_is_taken_as_it_is():
    data = images(lapsenet.RGB, 40, 40).numpy()[0]
    found = detector(lapsenet.RGB).fit(sample(data, ["red", "green", "blue"], Unit.RGB255))
    assert "stretch" not in found


def test_bands_are_found_by_name_whatever_their_order():
    own = detector(lapsenet.RGB)
    x = images(lapsenet.RGB, 40, 40)
    extra = torch.cat([torch.full_like(x[:, :, :1], torch.pi), x.flip(2)], dim=2)  # nir, blue, green, red
    fitted = own.fit(sample(extra.numpy()[0], ["nir", "blue", "green", "red"], Unit.RGB255))
    assert fitted["bands"] == [3, 2, 1]
    assert torch.equal(predict(own, extra, fitted), predict(own, x, state(lapsenet.RGB)))


def test_missing_band_is_named():
    data = images(lapsenet.RGB, 40, 40).numpy()[0]
    with pytest.raises(ModelInputError, match="nir is missing"):
        detector(lapsenet.S2).fit(sample(data, ["blue", "green", "red"], Unit.REFLECTANCE))


def test_stretch_is_of_both_dates_and_of_valid_pixels_only():
    rng = np.random.default_rng(0)
    data = rng.uniform(0.0, 0.2, (2, 4, 50, 50)).astype(np.float32)
    data[1] += 0.4
    reason = np.zeros((50, 50), np.uint8)
    reason[:10] = Reason.CLOUD_AFTER
    data[:, :, :10] = 9.0
    own = detector(lapsenet.S2)
    names = ["nir", "red", "green", "blue"]
    fitted = own.fit(sample(data, names, Unit.REFLECTANCE, reason))
    picked = data[:, ::-1, 10:].swapaxes(0, 1).reshape(4, -1)
    low, high = np.percentile(picked, (2, 98), axis=1)
    assert np.allclose(fitted["stretch"]["low"], low)
    assert np.allclose(fitted["stretch"]["high"], high)
    assert low.max() < 0.02
    assert high.min() > 0.58
    assert own.fit(sample(data, names, Unit.REFLECTANCE, reason)) == fitted


@pytest.mark.parametrize("card", CARDS, ids=lambda c: c.slug)
def test_gain_and_offset_of_the_scene_cancel_where_it_is_stretched(card):
    own = detector(card)
    x = images(card, 40, 40).numpy()
    out = []
    for data in (x, x * 3e-4 + 0.1):
        fitted = own.fit(sample(data[0], list(card.inputs.bands), Unit.REFLECTANCE))
        out.append(predict(own, torch.from_numpy(data.astype(np.float32)), fitted))
    assert torch.allclose(*out, atol=1e-3)
    assert out[0].std() > 0.01


def test_constant_band_is_no_division_by_zero():
    data = np.full((2, 4, 40, 40), 0.3, np.float32)
    own = detector(lapsenet.S2)
    fitted = own.fit(sample(data, list(lapsenet.S2.inputs.bands), Unit.REFLECTANCE))
    assert torch.isfinite(predict(own, torch.from_numpy(data)[None], fitted)).all()


def test_nothing_valid_is_said():
    data = np.full((2, 4, 40, 40), np.nan, np.float32)
    reason = np.full((40, 40), int(Reason.NODATA_BEFORE), np.uint8)
    with pytest.raises(NoValidDataError, match="place-before"):
        detector(lapsenet.S2).fit(sample(data, list(lapsenet.S2.inputs.bands), Unit.REFLECTANCE, reason))


def test_temperature_of_the_state_is_applied():
    found, x = detector(lapsenet.RGB), images(lapsenet.RGB, 32, 32)
    one, two = (predict(found, x, state(lapsenet.RGB, temperature=t)) for t in (1.0, 2.0))
    sure = (one > 0.01) & (one < 0.99)
    assert sure.any()
    assert torch.allclose(torch.logit(one)[sure], 2 * torch.logit(two)[sure], atol=1e-3)


# --- weights -----------------------------------------------------------------------------------------
def test_weights_of_the_other_variant_are_refused(tmp_path):
    path = tmp_path / "s2.safetensors"
    save(detector(lapsenet.S2), path)
    with pytest.raises(WeightsMismatchError, match=r"stem\.conv\.weight"):
        lapsenet.build(lapsenet.RGB, weights=path)


def test_own_weights_are_used(tmp_path):
    other, path = detector(lapsenet.RGB, seed=5), tmp_path / "own.safetensors"
    save(other, path)
    x = images(lapsenet.RGB, 32, 32)
    found = lapsenet.build(lapsenet.RGB, weights=str(path))
    assert torch.equal(predict(found, x, state(lapsenet.RGB)), predict(other, x, state(lapsenet.RGB)))


@pytest.mark.parametrize("card", CARDS, ids=lambda c: c.slug)
def test_shipped_weights_load_and_say_no_change_of_the_same_image_twice(card):
    found = lapsenet.build(card)
    assert card.parameters == sum(p.numel() for p in found.network.parameters())
    x = images(card, 64, 64)
    x[:, 1] = x[:, 0]
    assert predict(found, x, state(card)).max() < card.threshold
    pasted = x.clone()
    pasted[:, 1, :, 16:48, 16:48] = x.amax()
    assert (
        predict(found, pasted, state(card))[0, 24:40, 24:40].mean() > 2 * predict(found, x, state(card)).max()
    )
