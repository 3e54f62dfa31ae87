"""Class schemes: what the values of a class raster mean, and how they are drawn.

The table travels with every raster, so that no reader has to guess an order of classes.
"""

from __future__ import annotations

from colorsys import hsv_to_rgb
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class LabelClass:
    """One class: raster `value`, machine `name`, `title` for people, `colour` as #rrggbb."""

    value: int
    name: str
    title: str
    colour: str


@dataclass(frozen=True)
class ClassScheme:
    """An ordered set of classes with the value that means nodata."""

    slug: str
    title: str
    classes: tuple[LabelClass, ...]
    nodata: int = 255

    def by_value(self, value: int) -> LabelClass:
        """The class of a raster value; KeyError when the scheme has no such value."""
        for c in self.classes:
            if c.value == value:
                return c
        raise KeyError(value)

    def palette(self) -> dict[int, tuple[int, int, int, int]]:
        """Value to RGBA, as rasterio's `write_colormap` takes it."""
        return {
            c.value: (int(c.colour[1:3], 16), int(c.colour[3:5], 16), int(c.colour[5:7], 16), 255)
            for c in self.classes
        }


BINARY_CHANGE = ClassScheme(
    "binary-change",
    "Change",
    (
        LabelClass(0, "no_change", "No change", "#f2f0eb"),
        LabelClass(1, "change", "Change", "#d81b60"),
    ),
)


class Reason(IntEnum):
    """Why a pixel is masked, as stored in `valid.tif`. When several hold, the lowest non-zero code wins."""

    VALID = 0
    OUTSIDE_AOI = 1
    OUTSIDE_BEFORE = 2
    OUTSIDE_AFTER = 3
    NODATA_BEFORE = 4
    NODATA_AFTER = 5
    CLOUD_BEFORE = 6
    CLOUD_AFTER = 7
    SHADOW_BEFORE = 8
    SHADOW_AFTER = 9
    SNOW_BEFORE = 10
    SNOW_AFTER = 11
    SATURATED_BEFORE = 12
    SATURATED_AFTER = 13
    MISREGISTERED = 14


class SceneMask(IntEnum):
    """Why one pixel of one scene is masked, as the readers return it. 0 is usable."""

    VALID = 0
    OUTSIDE = 1
    NODATA = 2
    CLOUD = 3
    SHADOW = 4
    SNOW = 5
    SATURATED = 6


def pair_reason(mask: SceneMask, date: int) -> Reason:
    """The `Reason` for a scene's mask code at date 0 (before) or 1 (after)."""
    if mask == SceneMask.VALID:
        return Reason.VALID
    return Reason(2 * int(mask) + date)


VALIDITY = ClassScheme(
    "validity",
    "Why a pixel is masked",
    (
        LabelClass(0, "valid", "Compared", "#ffffff"),
        LabelClass(1, "outside_aoi", "Outside the area of interest", "#e8e8e8"),
        LabelClass(2, "outside_before", "Outside the image before", "#d0d0d0"),
        LabelClass(3, "outside_after", "Outside the image after", "#bdbdbd"),
        LabelClass(4, "nodata_before", "No data before", "#969696"),
        LabelClass(5, "nodata_after", "No data after", "#737373"),
        LabelClass(6, "cloud_before", "Cloud before", "#a6cee3"),
        LabelClass(7, "cloud_after", "Cloud after", "#6baed6"),
        LabelClass(8, "shadow_before", "Cloud shadow before", "#8c96c6"),
        LabelClass(9, "shadow_after", "Cloud shadow after", "#6a51a3"),
        LabelClass(10, "snow_before", "Snow before", "#c7e9e4"),
        LabelClass(11, "snow_after", "Snow after", "#80cdc1"),
        LabelClass(12, "saturated_before", "Saturated before", "#fdd0a2"),
        LabelClass(13, "saturated_after", "Saturated after", "#fdae6b"),
        LabelClass(14, "misregistered", "Dates do not align here", "#e6c229"),
    ),
)


SERIES_QUALITY = ClassScheme(
    "series-quality",
    "What is known of a pixel's series",
    (
        LabelClass(0, "modelled", "Modelled", "#ffffff"),
        LabelClass(1, "by_residuals", "Break without a model after it", "#fdae6b"),
        LabelClass(2, "unconfirmed", "Possible break at the end", "#e6c229"),
        LabelClass(10, "no_observation", "No observation", "#737373"),
        LabelClass(11, "too_few", "Too few observations", "#969696"),
        LabelClass(12, "unstable", "No stable period to start from", "#8c96c6"),
        LabelClass(13, "outside_aoi", "Outside the area of interest", "#e8e8e8"),
    ),
)
"""What `valid.tif` of a series holds: below `SERIES_UNUSABLE` the pixel was modelled from start to end, or up
to its break; from there on nothing is known about change."""
SERIES_UNUSABLE = 10


# --- classes of the data sets --------------------------------------------------------------------------
# SECOND has no official order of classes. ChangeMamba and Mamba-FCS number them in one way, Bi-SRNet and
# SCanNet in another; a network trained with one and read with the other looks right and is wrong.
SECOND_MAMBA = ClassScheme(
    "second-mamba",
    "SECOND, in the order of ChangeMamba and Mamba-FCS",
    (
        LabelClass(0, "unchanged", "Unchanged", "#ffffff"),
        LabelClass(1, "low_vegetation", "Low vegetation", "#008000"),
        LabelClass(2, "non_vegetated_ground", "Non-vegetated ground", "#808080"),
        LabelClass(3, "tree", "Tree", "#00ff00"),
        LabelClass(4, "water", "Water", "#0000ff"),
        LabelClass(5, "building", "Building", "#800000"),
        LabelClass(6, "playground", "Playground", "#ff0000"),
    ),
)
SECOND_SCANNET = ClassScheme(
    "second-scannet",
    "SECOND, in the order of Bi-SRNet and SCanNet",
    (
        LabelClass(0, "unchanged", "Unchanged", "#ffffff"),
        LabelClass(1, "water", "Water", "#0000ff"),
        LabelClass(2, "non_vegetated_ground", "Non-vegetated ground", "#808080"),
        LabelClass(3, "low_vegetation", "Low vegetation", "#008000"),
        LabelClass(4, "tree", "Tree", "#00ff00"),
        LabelClass(5, "building", "Building", "#800000"),
        LabelClass(6, "playground", "Playground", "#ff0000"),
    ),
)
LANDSAT_SCD = ClassScheme(
    "landsat-scd",
    "Landsat-SCD",
    (
        LabelClass(0, "unchanged", "Unchanged", "#ffffff"),
        LabelClass(1, "farmland", "Farmland", "#009b00"),
        LabelClass(2, "desert", "Desert", "#ffa500"),
        LabelClass(3, "building", "Building", "#e61e64"),
        LabelClass(4, "water", "Water", "#00aaf0"),
    ),
)
DAMAGE = ClassScheme(
    "xbd-damage",
    "Building damage, in the grades of xBD",
    (
        LabelClass(0, "background", "No building", "#f2f0eb"),
        LabelClass(1, "none", "No damage", "#4daf4a"),
        LabelClass(2, "minor", "Minor damage", "#ffd92f"),
        LabelClass(3, "major", "Major damage", "#ff7f00"),
        LabelClass(4, "destroyed", "Destroyed", "#b2182b"),
    ),
)
BUILDINGS = ClassScheme(
    "buildings",
    "Building mask",
    (
        LabelClass(0, "background", "No building", "#f2f0eb"),
        LabelClass(1, "building", "Building", "#d81b60"),
    ),
)
ISPRS = ClassScheme(
    "isprs",
    "ISPRS Potsdam and Vaihingen",
    (
        LabelClass(0, "impervious", "Impervious surface", "#ffffff"),
        LabelClass(1, "building", "Building", "#0000ff"),
        LabelClass(2, "low_vegetation", "Low vegetation", "#00ffff"),
        LabelClass(3, "tree", "Tree", "#00ff00"),
        LabelClass(4, "car", "Car", "#ffff00"),
        LabelClass(5, "clutter", "Clutter", "#ff0000"),
    ),
)
LOVEDA = ClassScheme(  # the files hold 0 for no data and 1..7; the reader subtracts one
    "loveda",
    "LoveDA",
    (
        LabelClass(0, "background", "Background", "#ffffff"),
        LabelClass(1, "building", "Building", "#ff0000"),
        LabelClass(2, "road", "Road", "#ffff00"),
        LabelClass(3, "water", "Water", "#0000ff"),
        LabelClass(4, "barren", "Barren", "#9f81b7"),
        LabelClass(5, "forest", "Forest", "#00ff00"),
        LabelClass(6, "agriculture", "Agriculture", "#ffc380"),
    ),
)

DYNAMICEARTHNET = ClassScheme(  # the files hold a seventh, snow and ice, which nobody scores
    "dynamicearthnet",
    "DynamicEarthNet",
    (
        LabelClass(0, "impervious", "Impervious surface", "#606060"),
        LabelClass(1, "agriculture", "Agriculture", "#cccc00"),
        LabelClass(2, "vegetation", "Forest and other vegetation", "#007a00"),
        LabelClass(3, "wetland", "Wetland", "#000080"),
        LabelClass(4, "soil", "Soil", "#804000"),
        LabelClass(5, "water", "Water", "#0080ff"),
    ),
)
HRSCD = ClassScheme(  # the files hold 0 for no information and 1..5; the reader subtracts one
    "hrscd",
    "HRSCD",
    (
        LabelClass(0, "artificial", "Artificial surface", "#a03232"),
        LabelClass(1, "agriculture", "Agricultural area", "#e6d24b"),
        LabelClass(2, "forest", "Forest", "#2d8c3c"),
        LabelClass(3, "wetland", "Wetland", "#a08cdc"),
        LabelClass(4, "water", "Water", "#3c8cdc"),
    ),
)
LEVIR_MCI = ClassScheme(  # the files hold 0, 128 and 255
    "levir-mci",
    "LEVIR-MCI, what changed",
    (
        LabelClass(0, "no_change", "No change", "#f2f0eb"),
        LabelClass(1, "road", "Changed road", "#ffff00"),
        LabelClass(2, "building", "Changed building", "#ff0000"),
    ),
)
RULES = ClassScheme(
    "rules",
    "What an RGB image shows by fixed rules",
    (
        LabelClass(0, "vegetation", "Vegetation", "#3c8c3c"),
        LabelClass(1, "dark", "Water or shadow", "#283c64"),
        LabelClass(2, "bright", "Bright built-up", "#e6e6e6"),
        LabelClass(3, "soil", "Bare soil", "#b48c5a"),
        LabelClass(4, "other", "Other", "#969696"),
    ),
)


def of_changes(scheme: ClassScheme) -> ClassScheme:
    """The scheme for maps of what changed: "unchanged" first, and each class one higher."""
    return ClassScheme(
        f"{scheme.slug}-change",
        f"{scheme.title}, where something changed",
        (
            LabelClass(0, "unchanged", "Unchanged", "#ffffff"),
            *(LabelClass(c.value + 1, c.name, c.title, c.colour) for c in scheme.classes),
        ),
        scheme.nodata,
    )


DYNAMICEARTHNET_CHANGE = of_changes(DYNAMICEARTHNET)
HRSCD_CHANGE = of_changes(HRSCD)
FUSU = ClassScheme(  # as the README numbers them; the list in the authors' code exchanges park and orchard
    "fusu",
    "FUSU, land use by level 1 of GB/T 21010-2017",
    (
        LabelClass(0, "unlabelled", "Background, not labelled", "#ffffff"),
        LabelClass(1, "traffic", "Traffic land", "#e98585"),
        LabelClass(2, "inland_water", "Inland water", "#089ae6"),  # printed as (8, 514, 230)
        LabelClass(3, "residential", "Residential land", "#ff001e"),
        LabelClass(4, "cropland", "Cropland", "#7ed321"),
        LabelClass(5, "agricultural_construction", "Agricultural construction", "#877e14"),
        LabelClass(6, "blank", "Blank", "#5e2f04"),
        LabelClass(7, "industrial", "Industrial land", "#0a524d"),
        LabelClass(8, "orchard", "Orchard", "#b8e986"),
        LabelClass(9, "park", "Park", "#dbaae6"),
        LabelClass(10, "public_service", "Public management and service", "#ffc702"),
        LabelClass(11, "commercial", "Commercial land", "#fce805"),
        LabelClass(12, "public_construction", "Public construction", "#f56b00"),
        LabelClass(13, "special", "Special", "#f3e5b0"),
        LabelClass(14, "forest", "Forest", "#036400"),
        LabelClass(15, "storage", "Storage", "#7f7b7f"),
        LabelClass(16, "wetland", "Wetland", "#34cdf9"),
        LabelClass(17, "grass", "Grass", "#12e3b4"),
    ),
)
WORLDCOVER = ClassScheme(
    "worldcover",
    "ESA WorldCover",
    (
        LabelClass(10, "tree", "Tree cover", "#006400"),
        LabelClass(20, "shrub", "Shrubland", "#ffbb22"),
        LabelClass(30, "grass", "Grassland", "#ffff4c"),
        LabelClass(40, "crop", "Cropland", "#f096ff"),
        LabelClass(50, "developed", "Built-up", "#fa0000"),
        LabelClass(60, "bare", "Bare or sparse vegetation", "#b4b4b4"),
        LabelClass(70, "snow", "Snow and ice", "#f0f0f0"),
        LabelClass(80, "water", "Permanent water bodies", "#0064c8"),
        LabelClass(90, "wetland", "Herbaceous wetland", "#0096a0"),
        LabelClass(95, "mangroves", "Mangroves", "#00cf75"),
        LabelClass(100, "moss", "Moss and lichen", "#fae6a0"),
    ),
    nodata=0,
)
CHATEARTHNET = ClassScheme(  # the colours are those of its label files
    "chatearthnet",
    "ChatEarthNet",
    (
        LabelClass(0, "unlabelled", "Background", "#000000"),
        LabelClass(1, "water", "Water", "#0000ff"),
        LabelClass(2, "developed", "Developed area", "#ff0000"),
        LabelClass(3, "tree", "Tree", "#00c000"),
        LabelClass(4, "shrub", "Shrub", "#c8aa78"),
        LabelClass(5, "grass", "Grass", "#00ff00"),
        LabelClass(6, "crop", "Crop", "#ffff00"),
        LabelClass(7, "bare", "Bare land", "#808080"),
        LabelClass(8, "snow", "Snow", "#ffffff"),
        LabelClass(9, "wetland", "Wetland", "#00ffff"),
        LabelClass(10, "mangroves", "Mangroves", "#ff00ff"),
        LabelClass(11, "moss", "Moss", "#800080"),
    ),
)
NOT_COUNTED = ("unchanged", "unlabelled")  # names of classes 0 that say nothing


def numbered(slug: str, title: str, names: str) -> ClassScheme:
    """A scheme of the classes 0, 1, ... in the order of `names` (machine names separated by blanks), with
    hues spread so that neighbours differ."""
    classes: list[LabelClass] = []
    for value, name in enumerate(names.split()):
        red, green, blue = hsv_to_rgb(
            value * 0.618034 % 1.0, (0.55, 0.8)[value % 2], (0.9, 0.7)[value // 2 % 2]
        )
        colour = f"#{round(red * 255):02x}{round(green * 255):02x}{round(blue * 255):02x}"
        classes.append(LabelClass(value, name, name.replace("_", " ").capitalize(), colour))
    return ClassScheme(slug, title, tuple(classes))


EUROSAT = numbered(
    "eurosat",
    "EuroSAT, alphabetical by folder",
    "annual_crop forest herbaceous_vegetation highway industrial pasture permanent_crop residential river "
    "sea_lake",
)
UCMERCED = numbered(
    "ucmerced",
    "UC Merced, alphabetical by folder",
    "agricultural airplane baseball_diamond beach buildings chaparral dense_residential forest freeway "
    "golf_course harbor intersection medium_residential mobile_home_park overpass parking_lot river runway "
    "sparse_residential storage_tanks tennis_court",
)
AID = numbered(
    "aid",
    "AID, alphabetical by folder",
    "airport bare_land baseball_field beach bridge center church commercial dense_residential desert "
    "farmland forest industrial meadow medium_residential mountain park parking playground pond port "
    "railway_station resort river school sparse_residential square stadium storage_tanks viaduct",
)
RESISC45 = numbered(
    "resisc45",
    "NWPU-RESISC45, alphabetical by folder",
    "airplane airport baseball_diamond basketball_court beach bridge chaparral church circular_farmland "
    "cloud commercial_area dense_residential desert forest freeway golf_course ground_track_field harbor "
    "industrial_area intersection island lake meadow medium_residential mobile_home_park mountain overpass "
    "palace parking_lot railway railway_station rectangular_farmland river roundabout runway sea_ice ship "
    "snowberg sparse_residential stadium storage_tank tennis_court terrace thermal_power_station "
    "wetland",
)

# The order of the lists that RSMamba and DynamicVis are trained with; checkpoints of both follow it.
UCMERCED_RSMAMBA = numbered(
    "ucmerced-rsmamba",
    "UC Merced, in the order of the lists of RSMamba",
    "harbor parking_lot buildings medium_residential sparse_residential forest agricultural overpass "
    "golf_course freeway baseball_diamond beach intersection runway mobile_home_park chaparral airplane "
    "river storage_tanks tennis_court dense_residential",
)
AID_RSMAMBA = numbered(
    "aid-rsmamba",
    "AID, in the order of the lists of RSMamba",
    "port square river pond playground mountain park airport sparse_residential stadium industrial church "
    "dense_residential parking farmland desert viaduct forest storage_tanks center meadow "
    "medium_residential school bare_land commercial baseball_field railway_station resort bridge beach",
)
RESISC45_RSMAMBA = numbered(
    "resisc45-rsmamba",
    "NWPU-RESISC45, in the order of the lists of RSMamba",
    "river terrace snowberg stadium parking_lot thermal_power_station rectangular_farmland cloud "
    "intersection meadow palace ground_track_field commercial_area beach church baseball_diamond ship "
    "industrial_area bridge freeway medium_residential circular_farmland mobile_home_park railway forest "
    "sparse_residential harbor wetland mountain airport golf_course overpass dense_residential chaparral "
    "basketball_court airplane tennis_court runway storage_tank island railway_station lake sea_ice "
    "desert roundabout",
)

# Answers to questions, in the order of the logits.
_SHARES = "0 " + " ".join(f"{10 * i}_to_{10 * i + 10}" for i in range(10))
CDVQA_ANSWERS = numbered(
    "cdvqa-answers",
    "The answers of CDVQA",
    f"yes no NVG_surface low_vegetation trees buildings water playgrounds {_SHARES}",
)
DAMAGE_ANSWERS = numbered(
    "damage-answers",
    "Answers on damaged buildings",
    f"yes no intact damaged destroyed none 1_to_5 6_to_20 21_to_50 more_than_50 {_SHARES}",
)
BUILDING_ANSWERS = numbered(
    "building-answers",
    "Answers on changed buildings",
    "yes no none few several many small medium large upper_left upper_middle upper_right middle_left center "
    "middle_right lower_left lower_middle lower_right left right upper lower",
)

SCHEMES = {
    s.slug: s
    for s in (
        BINARY_CHANGE,
        VALIDITY,
        SECOND_MAMBA,
        SECOND_SCANNET,
        LANDSAT_SCD,
        DAMAGE,
        BUILDINGS,
        ISPRS,
        LOVEDA,
        DYNAMICEARTHNET,
        DYNAMICEARTHNET_CHANGE,
        HRSCD,
        HRSCD_CHANGE,
        FUSU,
        WORLDCOVER,
        CHATEARTHNET,
        RULES,
        EUROSAT,
        UCMERCED,
        AID,
        RESISC45,
        UCMERCED_RSMAMBA,
        AID_RSMAMBA,
        RESISC45_RSMAMBA,
        CDVQA_ANSWERS,
        DAMAGE_ANSWERS,
        BUILDING_ANSWERS,
    )
}


def scheme(slug: str) -> ClassScheme:
    """The scheme of a slug; KeyError lists the known slugs."""
    if slug not in SCHEMES:
        raise KeyError(f"{slug}; known are {', '.join(sorted(SCHEMES))}")
    return SCHEMES[slug]


def crosswalk(values: np.ndarray, from_scheme: ClassScheme, to_scheme: ClassScheme) -> np.ndarray:
    """Class values of one scheme in another, class by class of the same machine name; nodata stays nodata.

    Args:
        values: unsigned integers of any shape, each a value of `from_scheme` or its nodata.

    Returns:
        uint8 of the same shape.

    Raises:
        ValueError: a value that `from_scheme` does not have, or whose class `to_scheme` does not have.
    """
    import numpy as np  # here, so that what only reads cards stays light

    found = np.unique(values).tolist()
    known = {c.value: c.name for c in from_scheme.classes}
    targets = {c.name: c.value for c in to_scheme.classes}
    strange = [v for v in found if v != from_scheme.nodata and v not in known]
    if strange:
        raise ValueError(f"{from_scheme.slug} has no class {', '.join(map(str, strange))}")
    lost = [known[v] for v in found if v != from_scheme.nodata and known[v] not in targets]
    if lost:
        raise ValueError(f"{to_scheme.slug} has no class {', '.join(lost)} of {from_scheme.slug}")
    table = np.full(max([*found, 0]) + 1, to_scheme.nodata, np.uint8)
    for value in found:
        if value != from_scheme.nodata:
            table[value] = targets[known[value]]
    return table[values]
