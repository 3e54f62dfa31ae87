"""Questions over real and made runs with their right answers, which come from arrays, see `ask_runs`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np

from ask_runs import (
    CLASSES,
    GRADES,
    NINTHS,
    Check,
    Truth,
    area,
    cannot,
    contains,
    is_,
    names,
    number,
    objects,
    share,
)

Row = tuple[str, str, str, Check]  # run, type, question, check
THIRDS = tuple(f"{p}ern third" for p in ("north", "south", "west", "east"))
WORDS = {  # as CDVQA calls the classes
    "low_vegetation": "low vegetation",
    "non_vegetated_ground": "non-vegetated ground surface",
    "tree": "trees",
    "water": "water",
    "building": "buildings",
    "playground": "playgrounds",
}


def of_places(run: str, t: Truth) -> Iterator[Row]:
    """Whether, how much, which share and how many, in each ninth and third."""
    found = [m & t.compared for m in objects(t.changed, 4)] if run == "zones" else []
    phrases = {n: f"the {n}" for n in NINTHS if n not in ("north", "south", "west", "east")}
    phrases |= {p: f"the {p.removesuffix('ern third')}" for p in THIRDS}
    for k, (place, said) in enumerate(phrases.items()):
        inside = t.inside(place)
        changed, compared = t.area(t.changed & inside), t.area(t.compared & inside)
        asks = (
            f"How much changed in {said}?",
            f"what is the size of the changed area in {said}",
            f"How large is the change in {said}?",
        )
        yield run, "area", asks[k % 3], area(changed)
        asks = (
            f"What percentage of {said} changed?",
            f"Which share of {said} has changed?",
            f"How much of {said} was affected, in percent?",
        )
        yield run, "share", asks[k % 3], share(changed / compared)
        asks = (f"Has {said} changed?", f"Is there any change in {said}?", f"did anything happen in {said}")
        yield run, "binary", asks[k % 3], is_(changed > 0)
        if run == "zones":  # blocks: the ninth of a block is that of its middle
            held = sum(bool(inside[tuple(int(v) for v in np.argwhere(m).mean(0))]) for m in found)
            asks = (f"How many objects are there in {said}?", f"count the changes in {said}")
            yield run, "count", asks[k % 2], number(held)


def of_change(run: str, t: Truth) -> Iterator[Row]:
    """The scene as a whole, in all units and many words."""
    changed, compared = t.area(t.changed), t.area(t.compared)
    for ask in (
        "How much changed?",
        "What is the total changed area?",
        "How big is the change?",
        "hw much aera chnaged?",
        "size of the changed area please",
        "Could you tell me how much land has changed?",
    ):
        yield run, "area", ask, area(changed)
    if t.pixel != 1:
        for unit, size in (
            ("hectares", 1e4),
            ("acres", 4046.8564224),
            ("square feet", 0.09290304),
            ("km2", 1e6),
            ("m²", 1.0),
            ("sq ft", 0.09290304),
            ("square kilometres", 1e6),
            ("ha", 1e4),
            ("sq km", 1e6),
        ):
            yield run, "area", f"How much changed in {unit}?", number(changed / size)
        yield run, "area", "How many acres have changed?", number(changed / 4046.8564224)
        yield run, "area", "Give me the changed area in square miles.", number(changed / 2589988.110336)
    for ask in (
        "What is the percentage of changed areas?",
        "How much of the area has changed?",
        "What is the change ratio?",
        "what fraction of the scene changed",
        "What proportion of the image is different?",
    ):
        yield run, "share", ask, share(changed / compared)
    for ask in (
        "What is the percentage of unchanged areas?",
        "How much of the area has not changed?",
        "What is the non-change ratio of the imagery?",
        "What is the percentage of non-change regions?",
    ):
        yield run, "share", ask, share(1 - changed / compared)
    for ask in (
        "Did anything change?",
        "Please judge whether these two images have changed. Please answer yes or no.",
        "Are there any changes?",
        "is there a difference betwen the images",
        "Has the scene been altered?",
    ):
        yield run, "binary", ask, is_(changed > 0)
    yield run, "binary", "Are the two images identical?", is_(changed == 0)
    yield run, "binary", "is everything still the same", is_(changed == 0)
    where = {n for n in NINTHS if (t.changed & t.inside(n)).any()}
    for ask in (
        "Where did it change?",
        "In which parts of the grid are the changes?",
        "Locate the changes.",
        "Show me where things changed",
    ):
        yield run, "localisation", ask, names(where)
    by = {n: t.area(t.changed & t.inside(n)) for n in NINTHS}
    for ask in (
        "Which part changed most?",
        "Where is most of the change?",
        "which ninth of the scene is affected most",
    ):
        if run != "zones":  # there the parts are the zones
            yield run, "localisation", ask, is_(max(by, key=lambda n: by[n]))
    north, south = (t.area(t.changed & t.inside(p)) for p in ("northern third", "southern third"))
    more = "north" if north > south else "south"
    yield run, "open", "Is there more change in the north or in the south?", is_(more)
    yield run, "open", "Did the north change more than the south?", is_(more)
    yield run, "caption", "What changed?", contains("%")
    yield run, "caption", "Please briefly describe the changes in these two images.", contains("changed")
    yield run, "caption", "give me a summary", contains("compared")


def of_objects(t: Truth) -> Iterator[Row]:
    """Counts, sizes and distances of the blocks of the run with zones."""
    found = objects(t.changed, 4)
    sizes = [t.area(m) for m in found]
    for ask in (
        "How many objects changed?",
        "Count the changes.",
        "What is the number of changed patches?",
        "how many seperate changes are there",
        "how many polygons did you find?",
    ):
        yield "zones", "count", ask, number(len(found))
    for text, least, most in (
        ("larger than 1 ha", 1e4, None),
        ("of more than 5 hectares", 5e4, None),
        ("bigger than 10000 m2", 1e4, None),
        ("smaller than 1 ha", None, 1e4),
        ("under 2 hectares", None, 2e4),
        ("over 2 acres", 8093.7, None),
        ("of at least 0.05 km2", 5e4, None),
        ("above 100,000 sq ft", 9290.3, None),
    ):
        # Outlines are rounded a little at corners, so no bound here is near the size of a block.
        held = sum((least is None or s > least) and (most is None or s < most) for s in sizes)
        yield "zones", "count", f"How many objects are {text}?", number(held)
    yield "zones", "count", "How many objects larger than 1 ha are in the north?", number(1)
    held = sum(1e4 < s < 1e5 for s in sizes)
    yield "zones", "count", "How many objects are between 1 ha and 10 ha?", number(held)
    yield "zones", "count", "How many objects of 1 ha are there?", cannot("no-bound")
    for ask in (
        "How large is the largest object?",
        "What is the biggest change?",
        "tell me about the largest patch",
        "how big is object 1?",
    ):
        yield "zones", "object", ask, area(sizes[0], 0.02)
    yield "zones", "object", "How big is the second largest object?", area(sizes[1], 0.02)
    yield "zones", "object", "how large is the 3rd largest change", area(sizes[2], 0.02)
    yield "zones", "object", "What does the smallest object cover?", area(sizes[-1], 0.1)
    yield "zones", "object", "What is the average size of an object?", area(float(np.mean(sizes)), 0.02)
    yield "zones", "object", "Where is the largest change?", is_("north")
    yield "zones", "object", "Where is the second biggest object?", is_("south-west")
    middle = [np.argwhere(m).mean(0) * np.sqrt(t.pixel) for m in found]
    apart = float(np.hypot(*(middle[0] - middle[1])))
    for ask in ("How far apart are the two largest objects?", "distance between object 1 and object 2"):
        yield "zones", "distance", ask, number(apart, 0.01, apart if apart < 1000 else apart / 1000)
    yield (
        "zones",
        "distance",
        "How far is it from object 1 to object 2 in feet?",
        number(apart / 0.3048, 0.01),
    )
    near = min(float(np.hypot(*(middle[0] - m))) for m in middle[1:])
    yield (
        "zones",
        "distance",
        "How far is the nearest object from the largest one?",
        number(near, 0.01, near if near < 1000 else near / 1000),
    )
    yield "zones", "object", "What is the size of object 99?", cannot("no-object")


def of_zones(t: Truth) -> Iterator[Row]:
    """The polygons of the user."""
    held = {}
    for name, (left, right) in t.more["zones"].items():
        inside = np.zeros_like(t.changed)
        inside[:, left:right] = True
        changed, compared = t.area(t.changed & inside), t.area(t.compared & inside)
        held[name] = changed
        yield "zones", "zone", f"How much changed in {name}?", area(changed, 2e-3)
        yield "zones", "zone", f"What percentage of {name} changed?", share(changed / compared, 2e-3)
        yield "zones", "zone", f"Is there any change in {name}?", is_(changed > 0)
        yield "zones", "zone", f"How many objects are in {name}?", cannot("objects-in-zone")
    top = max(held, key=lambda n: held[n])
    yield "zones", "zone", "Which zone changed most?", is_(top)
    yield "zones", "zone", "which district has the largest changed area?", is_(top)
    yield "zones", "zone", "Which zone changed least?", is_(min(held, key=lambda n: held[n]))
    yield (
        "zones",
        "zone",
        "did Mill change more than Harbour?",
        is_("Mill" if held["Mill"] > held["Harbour"] else "Harbour"),
    )
    yield "zones", "zone", "How much changed in zone Atlantis?", cannot("no-zone")
    yield "zones", "zone", "How much changed in zone 7?", cannot("no-zone")


def of_classes(t: Truth) -> Iterator[Row]:
    """CDVQA's eight types by its rules, in its words and in others."""
    before, after, size = t.more["before"], t.more["after"], t.changed.size
    lost = {n: int((before == v).sum()) for v, n in CLASSES.items()}
    gained = {n: int((after == v).sum()) for v, n in CLASSES.items()}
    for v, name in CLASSES.items():
        word = WORDS[name]
        yield (
            "classes",
            "change_or_not",
            f"Have the areas of {word} changed?",
            is_(lost[name] + gained[name] > 0),
        )
        yield (
            "classes",
            "change_or_not",
            f"Did the regions of {word} change in the pre-event image?",
            is_(lost[name] > 0),
        )
        yield (
            "classes",
            "change_or_not",
            f"Have the areas of {word} changed in the second image?",
            is_(gained[name] > 0),
        )
        yield (
            "classes",
            "increase_or_not",
            f"Did the regions of {word} increase?",
            is_(gained[name] > lost[name]),
        )
        yield "classes", "increase_or_not", f"Is there more {word} now?", is_(gained[name] > lost[name])
        yield (
            "classes",
            "decrease_or_not",
            f"Have the areas of {word} decreased?",
            is_(gained[name] < lost[name]),
        )
        yield (
            "classes",
            "change_ratio_types",
            f"What is the change proportion of {word} in the first image?",
            share(lost[name] / size),
        )
        yield (
            "classes",
            "change_ratio_types",
            f"What is the change ratio of {word} in the post-change image?",
            share(gained[name] / size),
        )
        yield "classes", "area", f"How much {word} was lost?", number(lost[name])
        yield "classes", "area", f"How much new {word} is there?", number(gained[name])
        if lost[name]:
            to = Counter(after[before == v].tolist()).most_common(1)[0][0]
            yield (
                "classes",
                "change_to_what",
                f"What have the areas of {word} in the first image mainly changed to?",
                is_(CLASSES[to]),
            )
            yield "classes", "change_to_what", f"What did the {word} become?", is_(CLASSES[to])
            of = Counter(before[after == v].tolist()).most_common(1)[0][0]
            yield "classes", "came", f"What was there before the new {word}?", is_(CLASSES[of])
        if gained[name]:
            _, many = patches(before, after, v)
            yield "classes", "quantification", f"How many new {word} are there?", number(many)
    both = {n: lost[n] + gained[n] for n in lost}
    for side, held in (("", both), (" in the pre-event image", lost), (" in the post-change image", gained)):
        some = {n: v for n, v in held.items() if v}
        yield (
            "classes",
            "largest_change",
            f"What type of change is the largest{side}?",
            is_(max(some, key=lambda n: some[n])),
        )
        yield (
            "classes",
            "largest_change",
            f"What is the largest change{side}?",
            is_(max(some, key=lambda n: some[n])),
        )
        yield (
            "classes",
            "smallest_change",
            f"What type of change is the smallest{side}?",
            is_(min(some, key=lambda n: some[n])),
        )
        yield (
            "classes",
            "smallest_change",
            f"What is the smallest change{side}?",
            is_(min(some, key=lambda n: some[n])),
        )
    for a in (3, 4, 5):
        for b in (1, 3, 5):
            if a != b:
                held = int(((before == a) & (after == b)).sum())
                ask = f"How much {WORDS[CLASSES[a]]} became {WORDS[CLASSES[b]]}?"
                yield "classes", "transition", ask, number(held)
    building = {n for n in NINTHS if ((after == 5) & t.inside(n)).any()}
    yield "classes", "localisation", "In which parts of the grid are the new buildings?", names(building)
    yield "classes", "localisation", "Where did houses appear?", names(building)
    held = int(((before == 3) & t.inside("northern third")).sum())
    yield "classes", "area", "How much woodland was lost in the north?", number(held)
    yield "classes", "class", "How many roads have changed?", cannot("no-class")
    yield "classes", "class", "How many trees were lost?", cannot("lost-objects")
    _, many = patches(before, after, 5)
    both = "How many roads and buildings have changed?"
    yield "classes", "quantification", both, number(many)
    yield "classes", "quantification", both, contains("no class for roads", f"{many} new patches of building")
    yield "classes", "class", "Did the cropland increase?", cannot("no-class")
    yield "classes", "class", "How much water was there before?", cannot("class-totals")
    yield "classes", "unit", "How much changed in hectares?", cannot("no-unit")


def patches(before: np.ndarray, after: np.ndarray, value: int) -> tuple[np.ndarray, int]:
    """New patches of a class from 4 pixels on, over corners too."""
    from scipy import ndimage

    labels, n = ndimage.label((after == value) & (before != value), np.ones((3, 3)))
    return labels, int((np.bincount(labels.ravel(), minlength=n + 1)[1:] >= 3.5).sum())


def of_damage(t: Truth) -> Iterator[Row]:
    """DisasterM3's counts: buildings by grade."""
    from scipy import ndimage

    counts = {n: ndimage.label(t.more["damage"] == v)[1] for v, n in GRADES.items()}
    total = sum(counts.values())
    phrases = {
        "destroyed": ("destroyed", "completely destroyed"),
        "major": ("heavily damaged", "severely damaged"),
        "minor": ("lightly damaged", "slightly damaged"),
        "none": ("undamaged", "intact"),
    }
    for grade, words in phrases.items():
        yield "classes", "damage", f"How many buildings are {words[0]}?", number(counts[grade])
        yield "classes", "damage", f"how many houses were {words[1]}", number(counts[grade])
        yield "classes", "damage", f"What share of the buildings is {words[0]}?", share(counts[grade] / total)
    hurt = total - counts["none"]
    for ask in ("How many buildings are damaged?", "What is the number of damaged buildings?"):
        yield "classes", "damage", ask, number(hurt)
    yield (
        "classes",
        "damage",
        "How severe is the damage?",
        contains(str(hurt), str(total), str(counts["destroyed"])),
    )
    yield (
        "classes",
        "report",
        "Write a disaster report.",
        contains("BUILDING:", "ROAD: I cannot tell", "CONCLUSION:"),
    )


def of_runs(t: dict[str, Truth]) -> Iterator[Row]:
    """The images, what was masked, how sure it is."""
    for ask in ("When were the images taken?", "What are the dates?", "Which dates are compared?"):
        yield "zones", "dates", ask, contains("10 May 2023", "2 June 2024")
    yield "zones", "dates", "When was the second image taken?", contains("2 June 2024")
    yield "zones", "dates", "What is the date of the first image?", contains("10 May 2023")
    yield (
        "zones",
        "dates",
        "How many days are between the images?",
        number(389.4375, 1e-6, 13),
    )  # read as 13 months
    yield "joplin", "dates", "When were the images taken?", cannot("undated")
    yield "joplin", "dates", "How much time is between them?", cannot("undated")
    reason = t["zones"].more["reason"]
    hidden = (reason > 0).mean()
    for ask in (
        "How much was masked?",
        "What share of the area could not be compared?",
        "Was anything excluded?",
    ):
        yield "zones", "masked", ask, share(float(hidden))
    yield "zones", "masked", "Were there clouds?", is_(True)
    yield "joplin", "masked", "Were there any clouds?", is_(False)
    for ask in ("How sure are you?", "Can I trust this?", "How reliable is the result?"):
        yield "zones", "confidence", ask, number(0.9, 1e-2)
        yield "joplin", "confidence", ask, contains("not calibrated")
    yield "zones", "about", "Which model was used?", is_("testnet/rgb")
    yield "joplin", "about", "How was the change detected?", is_("cva")
    yield "joplin", "about", "What is the pixel size?", number(3.0, 1e-3)
    yield "zones", "about", "What is the resolution of the grid?", number(10.0, 1e-3)
    yield "zones", "about", "Are the images well aligned?", contains("aligned within 0.2 px")
    yield "zones", "about", "Are there any warnings?", contains("larger than those of training")
    yield "joplin", "about", "Where on earth is this?", contains("° N", "° W")


def of_refusals() -> Iterator[Row]:
    """What the facts do not hold."""
    for run in ("joplin", "zones"):
        for ask, reason in (
            ("Did the buildings change?", "no-classes"),
            ("How many roads are new?", "no-classes"),
            ("How much forest was lost?", "no-classes"),
            ("How many houses were destroyed?", "no-damage"),
            ("Why did it change?", "cause"),
            ("What caused the change?", "cause"),
            ("What will change next?", "future"),
            ("How many people died?", "people"),
            ("What did it cost?", "people"),
            ("What colour are the roofs?", "look"),
            ("What type of disaster is this?", "disaster"),
            ("What is your recovery advice?", "recovery"),
            ("What kind of scene is this?", "scene"),
            ("How much changed in the northern half?", "no-place"),
            ("Wie viel Fläche hat sich verändert?", "other-language"),
            ("Combien de bâtiments ont changé?", "other-language"),
            ("¿Cuánto ha cambiado en el norte?", "other-language"),
            ("変化した面積はどれくらいですか", "other-language"),
            ("сколько изменилось", "other-language"),
            ("asdf qwer zxcv", "not-understood"),
            ("What is the capital of France?", "unknown-word"),
            ("How much is the fish?", "unknown-word"),
            ("", "empty"),
            ("?!", "empty"),
            ("How much changed? " + "x" * 10_000, "too-long"),
            ("What changed in 1995?", "undated"),
            ("Is the change getting faster?", "series-only"),
        ):
            if reason == "undated" and run == "zones":
                reason = "series-only"
            yield run, "refusal", ask, cannot(reason)


def of_nothing(t: dict[str, Truth]) -> Iterator[Row]:
    """A run without change, and one without anything to compare."""
    yield "empty", "binary", "Did anything change?", is_(False)
    yield "empty", "area", "How much changed?", number(0)
    yield "empty", "count", "How many objects are there?", number(0)
    yield "empty", "localisation", "Where did it change?", names(set())
    for ask in ("What is the largest change?", "How far apart are the objects?", "Which part changed most?"):
        yield "empty", "none", ask, contains("No change was found")
    yield "empty", "caption", "What changed?", contains("no change was found")
    for ask in (
        "Did anything change?",
        "How much changed?",
        "How many objects are there?",
        "Where did it change?",
        "What percentage changed in the north?",
        "What is the largest change?",
        "How sure are you?",
    ):
        yield "masked", "none", ask, cannot("nothing-compared")
    yield "masked", "masked", "How much was masked?", share(1.0)


def of_series(t: Truth) -> Iterator[Row]:
    """A stack of dates: when, how much by year."""
    years = t.more["years"]
    held = {int(y): t.area(years == y) for y in np.unique(years[years > 0])}
    top = max(held, key=lambda y: held[y])
    for ask in ("When did it happen?", "In which year did most of it change?", "when was the worst break"):
        yield "series", "when", ask, is_(top)
    for ask in (f"How much broke in {top}?", f"What happened in {top}?"):
        yield "series", "year", ask, area(held[top])
    falling = t.area((years == top) & (t.more["magnitude"] < 0)) / held[top]
    yield "series", "year", f"How much of the breaks fell in {top}?", share(falling)
    yield "series", "year", "How much broke in 1990?", cannot("no-year")
    yield "series", "area", "How much changed?", area(t.area(t.changed))
    yield "series", "binary", "Did anything change?", is_(True)
    yield "series", "trend", "How did it evolve over time?", contains(str(top))
    yield "series", "dates", "When were the images taken?", contains("3 January 2018")
    yield "series", "count", "How many objects are there?", number(len(objects(t.changed, 3.5)))
    yield "series", "localisation", "Where did it change?", names({"centre"})
    yield "series", "refusal", "How much changed in the north?", cannot("not-in-series")


def every(t: dict[str, Truth]) -> list[Row]:
    rows = [r for run in ("joplin", "zones", "classes") for r in of_change(run, t[run])]
    rows += [r for run in ("joplin", "zones") for r in of_places(run, t[run])]
    rows += [
        *of_objects(t["zones"]),
        *of_zones(t["zones"]),
        *of_classes(t["classes"]),
        *of_damage(t["classes"]),
    ]
    rows += [*of_runs(t), *of_refusals(), *of_nothing(t), *of_series(t["series"])]
    return rows
