import io
import itertools
import zipfile

import numpy as np
import pytest
from PIL import Image

from terralapse.data import change_pairs as cp
from terralapse.errors import FileMissingError


def rng(seed=0):
    return np.random.default_rng(seed)


def picture(seed=0, side=96):
    return rng(seed).integers(0, 256, (3, side, side)).astype(np.uint8)


def squares(side=96):
    """Three objects: 20 x 20, 16 x 30, and one of 4 pixels."""
    mask = np.zeros((side, side), bool)
    mask[5:25, 5:25] = mask[40:56, 50:80] = mask[80:82, 10:12] = True
    return mask


def masked(seed=0):
    return cp.Masked(picture(seed), squares(), 0.5)


def test_unrelated_is_the_exclusive_or():
    first = masked()
    moved = cp.Masked(picture(1), np.roll(squares(), 10, axis=1), 0.5)
    pair = cp.unrelated(first, moved)
    assert np.array_equal(pair.label == 1, first.objects ^ moved.objects)
    assert np.array_equal(pair.images[0], first.image)
    assert np.array_equal(pair.images[1], moved.image)
    assert not cp.unrelated(first, cp.Masked(picture(1), squares(), 0.5)).label.any()


def test_objects_are_whole_or_absent():
    mask = squares()
    sizes = {int(cp.objects_of(mask, rng(s), 0.5).sum()) for s in range(40)}
    assert sizes == {0, 400, 480, 880}  # the one of four pixels is never chosen
    assert cp.objects_of(mask, rng(), 1.0).sum() == 880
    assert not cp.objects_of(np.zeros((9, 9), bool), rng(), 1.0).any()


@pytest.mark.parametrize("date", [0, 1])
def test_paste_changes_one_date_where_it_says(date):
    base = cp.Pair(np.full((2, 3, 96, 96), 60, np.uint8), np.zeros((96, 96), np.uint8), 1.0)
    base.label[:10] = cp.IGNORE
    mask = squares()
    pair = cp.paste(base, np.full((3, 96, 96), 200, np.uint8), mask, rng(), date)
    assert np.array_equal(pair.images[1 - date], base.images[1 - date])
    assert (pair.images[date][:, mask] == 200).all()
    far = np.ones_like(mask)
    for row, col in np.argwhere(mask):
        far[max(0, row - 8) : row + 9, max(0, col - 8) : col + 9] = False
    assert (pair.images[date][:, far] == 60).all()
    assert (pair.label[:10] == cp.IGNORE).all()
    assert np.array_equal(pair.label[10:] == 1, mask[10:])
    assert not (base.label == 1).any()  # what was given stays as it was


def test_remove_hides_objects_before_and_keeps_the_rest():
    image = masked()
    image.image[:, image.objects] = 255
    pair = cp.remove(image, image.image, rng(), share=1.0)
    gone = pair.label == 1
    assert gone.sum() == 880
    assert np.array_equal(pair.images[1], image.image)
    assert (pair.images[0][:, gone] == 255).mean() < 0.35  # ground of elsewhere lies there
    assert (pair.images[0] == pair.images[1])[:, 72:].all()  # far from any object nothing happened
    assert not cp.remove(image, image.image, rng(), share=0.0).label.any()


def test_destroy_breaks_what_it_marks_and_only_that():
    image = masked(3)
    smooth = np.tile(np.linspace(60, 180, 96).astype(np.uint8), (3, 96, 1))
    image = cp.Masked(smooth, image.objects, 0.5)
    changed_share = []
    for seed in range(8):
        pair = cp.destroy(image, image.image, rng(seed))
        difference = np.abs(pair.images[1].astype(int) - pair.images[0]).sum(axis=0)
        assert set(np.unique(pair.label)) <= {0, 1, cp.IGNORE}
        if (pair.label == 1).any():
            assert (difference[pair.label == 1] > 10).mean() > 0.7
        assert (difference[pair.label == 0] > 10).mean() < 0.05
        changed_share.append((pair.label == 1).mean())
    assert max(changed_share) > 0.15


def test_rubble_is_finer_than_a_roof_and_of_the_colours_of_the_place():
    red = np.zeros((3, 128, 128), np.uint8)
    red[0] = rng().integers(120, 220, (128, 128))
    field = cp.rubble(red, np.zeros((128, 128), bool), rng()).astype(float)
    assert field[0].mean() > 3 * field[1].mean()
    steps = np.abs(np.diff(field[0], axis=1)).mean()
    assert steps > 0.3 * field[0].std()  # neighbours differ almost as much as any two pixels


@pytest.mark.parametrize("share", [0.2, 0.6])
def test_blobs_cover_the_share(share):
    assert abs(cp.blobs((200, 200), rng(), share, 12.0).mean() - share) < 0.01


def test_everything_is_repeatable():
    for make in (
        lambda g: cp.destroy(masked(), picture(2), g),
        lambda g: cp.remove(masked(), picture(2), g, 1.0),
    ):
        first, second, other = make(rng(2)), make(rng(2)), make(rng(3))
        assert np.array_equal(first.images, second.images)
        assert np.array_equal(first.label, second.label)
        assert not np.array_equal(first.images, other.images)


# --- readers -----------------------------------------------------------------------------------------
def test_building_masks_are_read_by_set(tmp_path):
    for kind in ("images", "masks"):
        (tmp_path / "a/b" / kind).mkdir(parents=True)
    Image.fromarray(picture().transpose(1, 2, 0)).save(tmp_path / "a/b/images/x.jpg", quality=95)
    Image.fromarray(squares()).save(tmp_path / "a/b/masks/x.png")
    (found,) = cp.read_building_masks(tmp_path, {"a/b": 0.3})
    assert found.image.shape == (3, 96, 96)
    assert np.array_equal(found.objects, squares())
    with pytest.raises(FileMissingError, match="no-such"):
        cp.read_building_masks(tmp_path, {"no-such": 0.3})


def test_revisits_are_grouped_by_place_in_order_of_year(tmp_path):
    with zipfile.ZipFile(tmp_path / "r.zip", "w") as archive:
        for name, value in (("long_beach_2020_1", 3), ("long_beach_2016_1", 1), ("long_beach_2018_10", 9)):
            buffer = io.BytesIO()
            Image.fromarray(np.full((8, 8, 4), value, np.uint8)).save(buffer, "TIFF")
            archive.writestr(f"images/{name}.tif", buffer.getvalue())
        archive.writestr("points/long_beach_2020_1.csv", "x,y\n")
    places = cp.read_revisits(tmp_path / "r.zip")
    assert [[int(i.max()) for i in place] for place in places] == [[1, 3], [9]]
    assert places[0][0].shape == (3, 8, 8)
    with pytest.raises(FileMissingError):
        cp.read_revisits(tmp_path / "none.zip")


def test_images_without_masks(tmp_path):
    Image.fromarray(picture().transpose(1, 2, 0)).save(tmp_path / "x.jpg")
    (found,) = cp.read_images(tmp_path, 0.2)
    assert not found.objects.any()
    with pytest.raises(FileMissingError):
        cp.read_images(tmp_path / "nothing", 0.2)


def test_real_revisits_are_registered(shared_data):
    places = cp.read_revisits(shared_data / "trees_naip_multiyear" / "train.zip")
    assert len(places) == 20
    assert all(len(p) == 3 for p in places)
    agreement, chance = [], []
    for place, other in itertools.pairwise(places):
        first, second, elsewhere = (x[1].astype(float).ravel() for x in (place[0], place[1], other[1]))
        agreement.append(np.corrcoef(first, second)[0, 1])
        chance.append(np.corrcoef(first, elsewhere)[0, 1])
    assert np.median(agreement) > 0.5
    assert np.median(np.abs(chance)) < 0.2
