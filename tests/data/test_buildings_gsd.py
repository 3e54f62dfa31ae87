from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from terralapse.data.buildings import Buildings
from terralapse.errors import SettingError


@pytest.mark.parametrize(("gsd", "side"), [(1.2, 16), (0.15, 128), (None, 64)])
def test_images_and_masks_come_at_the_pixel_size_that_is_asked_for(
    tmp_path: Path, gsd: float | None, side: int
) -> None:
    image, mask = np.full((64, 64, 3), 60, np.uint8), np.zeros((64, 64), bool)
    image[16:48, 8:40], mask[16:48, 8:40] = 200, True
    for name, array in (("images/a.png", image), ("masks/a.png", mask)):
        path = tmp_path / "inria/train" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(path)
    (found,) = Buildings(tmp_path, "train", sets=["inria/train"], gsd=gsd)
    assert found.image.shape == (3, side, side)
    assert found.gsd == (gsd or 0.3)
    assert found.label.sum() == side * side // 4
    assert ((found.image[0] > 130) == (found.label == 1)).all()


def test_a_pixel_size_is_positive(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="gsd"):
        Buildings(tmp_path, gsd=0)
