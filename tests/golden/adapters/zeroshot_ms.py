"""Zero-shot multi-spectral: the six pictures, the other way to show NDVI, the indices, and the colours."""

from __future__ import annotations

import numpy as np

from golden.case import Case, Result
from terralapse.models.language import zeroshot_ms as z
from terralapse.sensors import SENTINEL2


def run(case: Case) -> Result:
    spec = case.input_spec("cube")
    order = spec["band_order"]
    assert "key=801" in spec["recipe"]
    rng = np.random.Generator(np.random.Philox(key=801))
    cube = rng.integers(0, 4000, tuple(spec["shape"])).astype(np.float64)
    at = {name: order.index(name) for name in order}
    cube[0, 0] = 0
    cube[0, 1, at["B04"]], cube[0, 1, at["B08"]] = 0, 2000
    cube[0, 2, at["B04"]] = cube[0, 2, at["B08"]] = 1500
    cube[1, 0, at["B03"]], cube[1, 0, at["B08"]] = 1800, 200
    cube[1, 1, at["B8A"]], cube[1, 1, at["B11"]] = 400, 3600
    cube[1, 2, at["B8A"]], cube[1, 2, at["B12"]] = 3600, 400
    bands = {b.name: cube[..., at[b.id]] for b in SENTINEL2.bands}
    shown, found = z.pictures(bands, top=3000), z.indices(bands)
    names = {"rgb": "rgb", "false_color": "false_color"} | {
        n: f"{n}_image" for n in ("ndvi", "ndwi", "ndmi_b11", "ndmi_b12")
    }
    table = z.ramp(z._RDYLGN)
    places = [p for p, *_ in case.spec["lut_rgba"]["RdYlGn"]]
    colours = [z.coloured(np.array([[p]]), table)[0, 0].tolist() for p in places]
    return Result(
        outputs={
            **{names[n]: picture for n, picture in shown.items()},
            **found,
            "ndvi_rescaled_image": z.pictures(bands, ndvi="rescaled", top=3000)["ndvi"],
        },
        values={
            ("lut_rgba", "RdYlGn"): [[p, *c, 255] for p, c in zip(places, colours, strict=True)],
        },
    )
