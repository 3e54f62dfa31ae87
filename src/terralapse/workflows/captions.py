"""Captions made of maps and images, written as shards with their provenance, and checked again.

A run holds one item in memory at a time and one shard of them in a file that gets its name when it is whole.
Shard k holds the items k x n to (k + 1) x n of the source, without those that there is nothing to say about,
so that a run that goes on knows what is done.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from terralapse import registry
from terralapse._version import __version__
from terralapse.cards import Status, Task
from terralapse.data.caption_items import VECTORS, Images, MapFolder, MapTiles, Source, scheme_of
from terralapse.data.shards import NAME, ShardWriter, key_of, read_shard, write_parquet
from terralapse.engine.output import OutputFolder
from terralapse.engine.parts import WORK
from terralapse.errors import (
    FileMissingError,
    NoValidDataError,
    ResumeMismatchError,
    SettingError,
    UnreadableFileError,
)
from terralapse.grid.sources import sha256_of
from terralapse.tasks.made_text import CaptionMaker, Item, faults, sentences, supported

Chat = Callable[[list[dict[str, Any]]], str]
Progress = Callable[[str, int, int], None]
_RETRY = (
    "These statements are not supported by what you were given: {list}. Write the whole answer again in the "
    "same form without such statements."
)


def make_captions(
    source: Path | str,
    output: Path | str,
    *,
    kind: str,
    scheme: str | None = None,
    image: Path | str | None = None,
    column: str | None = None,
    metadata: Path | str | None = None,
    about: Mapping[str, Any] | None = None,
    folder_tag: bool = False,
    licence: str = "",
    tile: int = 256,
    shard: int = 512,
    parquet: bool = False,
    seed: int = 0,
    chat: Chat | None = None,
    chat_name: str = "",
    build: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    resume: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Makes captions of every item of a source and publishes the folder whole.

    Args:
        source: a map of classes (raster, polygons, a folder of small maps), or a folder or zip of images.
        output: the folder to create: `captions-00000.tar` and so on, and `run.json`.
        kind: the slug of a system that makes captions: `chatearthnet` or `gaia`.
        scheme: what the values of a map mean: a slug of `terralapse.labels`, or `1=Wheat,2=Maize`.
        image: of a map: a scene of any grid, or for a folder of maps the folder of their images.
        column: of polygons: the column of the classes.
        metadata: of images: a table, see `terralapse.data.caption_items.Images`.
        about: what is known of all images (`satellite`, `sensor`, `modality`, `gsd`, `location`, ...).
        folder_tag: the name of an image's folder is its tag.
        licence: of the source, for the record.
        tile: side of the tiles of a large map, in pixels.
        shard: items in one tar.
        parquet: write each shard as a table too.
        seed: of the words that the rules choose among; item number i has seed + i.
        chat: a language model that rewrites; None for the rules alone. `chat_name` is for the record.
        build: options of the system's builder.
        overwrite, resume: of the folder.
        progress: called with ("captions", done, total).

    Returns:
        the content of `run.json`.

    Raises:
        SettingError: the system makes no captions, or an option makes no sense.
        NoValidDataError: there is nothing to say about any item.
        ResumeMismatchError: what is there was made with other settings.
        EndpointError, and others of the readers.
    """
    if shard < 1 or tile < 8:
        raise SettingError(f"shard={shard}, tile={tile}", "is too small", "Take 1 and 8 at least.")
    maker = _maker(kind, build)
    items = _source(
        Path(source),
        kind_of_items=kind,
        scheme=scheme,
        image=None if image is None else Path(image),
        column=column,
        metadata=None if metadata is None else Path(metadata),
        about=about,
        folder_tag=folder_tag,
        tile=tile,
    )
    try:
        with OutputFolder(Path(output), overwrite=overwrite, resume=resume) as folder:
            settings = {
                "kind": kind,
                "procedure": maker.version,
                "build": dict(build or {}),
                "writer": chat_name if chat is not None else "rules",
                "seed": seed,
                "shard": shard,
                "parquet": parquet,
                "licence": licence,
                "source": items.fingerprint(),
            }
            work = folder.staging / WORK
            _claim(work, settings, resume)
            for number in range(-(-len(items) // shard)):
                done = work / f"{number:05d}.json"
                if not _is_done(done):
                    found = _shard(work, number, items, maker, settings, chat, progress)
                    part = done.with_suffix(".tmp")
                    part.write_text(json.dumps(found), encoding="utf-8")
                    part.replace(done)
                if progress is not None:
                    progress("captions", min((number + 1) * shard, len(items)), len(items))
            result = _summed(work, settings, maker)
            if not result["samples"]:
                raise NoValidDataError(
                    source, "has nothing that a caption could say", "Check the classes and the nodata value."
                )
            text = json.dumps(result, indent=1, ensure_ascii=False) + "\n"
            for entry in result["files"]:
                (work / entry["file"]).replace(folder.staging / entry["file"])
            (folder.staging / "run.json").write_text(text, encoding="utf-8")
            folder.publish()
    finally:
        items.close()
    return result


def _maker(kind: str, build: Mapping[str, Any] | None) -> CaptionMaker:
    # A procedure has no parameters; a network is not built only to find that it is none.
    known = [c.slug for c in registry.cards() if c.task is Task.LANGUAGE and c.parameters is None]
    known = [slug for slug in known if registry.card(slug).status in (Status.RUNS, Status.REPRODUCED)]
    try:
        maker = registry.build(kind, **(build or {})) if kind in known else None
    except TypeError as error:  # an option that its builder has not
        raise SettingError(kind, f"takes no {', '.join(build or {})}", "Leave it out.") from error
    if not isinstance(maker, CaptionMaker):
        raise SettingError(f"kind={kind}", "makes no captions", "Choose chatearthnet or gaia.")
    return maker


def _source(
    path: Path,
    *,
    kind_of_items: str,
    scheme: str | None,
    image: Path | None,
    column: str | None,
    metadata: Path | None,
    about: Mapping[str, Any] | None,
    folder_tag: bool,
    tile: int,
) -> Source:
    if not path.exists():
        raise FileMissingError(path, "is not there", "Give a map, or a folder or zip of images.")
    of_maps = scheme is not None or column is not None or path.suffix.lower() in VECTORS
    if not of_maps and kind_of_items == "chatearthnet":
        raise SettingError(
            path, "needs --scheme, what the values of the map mean", "Give it, e.g. worldcover."
        )
    if of_maps:
        if metadata is not None or about or folder_tag:
            raise SettingError(path, "is a map, and metadata are of images", "Leave them out, or --scheme.")
        wanted = None if scheme is None else scheme_of(scheme)
        if path.is_dir():
            return MapFolder(path, wanted, image)
        return MapTiles(path, wanted, image, column, tile)
    if image is not None:
        raise SettingError(path, "is no map without --scheme", "Give --scheme, or leave --image out.")
    return Images(path, metadata, about, folder_tag)


def _claim(work: Path, settings: Mapping[str, Any], resume: bool) -> None:
    """Begins a run in an empty folder of work, or finds that the one there has the same settings."""
    work.mkdir(parents=True, exist_ok=True)
    path, text = work / "settings.json", json.dumps(settings, sort_keys=True, ensure_ascii=False)
    if resume and path.is_file():
        if path.read_text(encoding="utf-8") != text:
            raise ResumeMismatchError(
                work.parent,
                "was begun with other inputs or settings",
                "Give the same, or leave out --resume.",
            )
        return
    path.write_text(text, encoding="utf-8")


def _is_done(done: Path) -> bool:
    """Whether a shard was written whole, and its files are still there."""
    if not done.is_file():
        return False
    files = json.loads(done.read_text(encoding="utf-8"))["files"]
    return all((done.parent / entry["file"]).is_file() for entry in files)


# --- one shard -------------------------------------------------------------------------------------------
def _shard(
    folder: Path,
    number: int,
    items: Source,
    maker: CaptionMaker,
    settings: Mapping[str, Any],
    chat: Chat | None,
    progress: Progress | None,
) -> dict[str, Any]:
    size = settings["shard"]
    first, last = number * size, min((number + 1) * size, len(items))
    count: Counter[str] = Counter()
    path = folder / NAME.format(number)
    with ShardWriter(path) as shard:
        for index in range(first, last):
            found = items.read(index)
            item = Item(
                key_of(index, found["name"]), found["image"], found["labels"], found["scheme"], found["about"]
            )
            made = _made(maker, item, settings["seed"] + index, chat)
            if progress is not None:
                progress("captions", index + 1, len(items))
            if made is None:
                count["nothing to say"] += 1
                continue
            record, statistics, written, left_out = made
            count["samples"] += 1
            count[f"written by {written}"] += 1
            count["sentences left out"] += left_out
            provenance = {
                "system": maker.card.slug,
                "procedure": maker.version,
                "library": __version__,
                "writer": settings["writer"] if written == "model" else "rules",
                "sentences_left_out": left_out,
                "licence": settings["licence"],
                **found["source"],
            }
            whole = {**record, "statistics": statistics, "provenance": provenance}
            shard.add(item.key, item.image, record["captions"], whole)
    files = [path]
    if settings["parquet"]:
        files.append(path.with_suffix(".parquet"))
        write_parquet(files[1], list(read_shard(path)))
    if not count["samples"]:
        for file in files:
            file.unlink()
        files = []
    return {"count": dict(count), "files": [{"file": f.name, "sha256": sha256_of(f)} for f in files]}


Made = tuple[dict[str, Any], dict[str, Any], str, int]


def _made(maker: CaptionMaker, item: Item, seed: int, chat: Chat | None) -> Made | None:
    """The record of an item, its statistics, who wrote it and how many sentences of a model were left out."""
    if chat is not None and (first := maker.before(item)) is not None:
        item = replace(item, about={**item.about, "summary": _summary(chat(first))})
    statistics = maker.statistics(item)
    if statistics is None:
        return None
    captions = maker.write(statistics, seed)
    sheet = maker.sheet(statistics)
    if wrong := [f for c in captions for f in faults(c, sheet)]:
        raise UnreadableFileError(
            item.key,
            f"got the sentence {wrong[0].sentence!r} by the rules, which its statistics do not support",
            "Report this as a defect of the rules.",
        )
    if chat is None:
        return maker.record(statistics, captions), statistics, "rules", 0
    written, left_out = _rewritten(maker, item, statistics, captions, seed, chat)
    by = "model" if written is not None else "rules"
    return maker.record(statistics, written or captions), statistics, by, left_out


def _summary(reply: str) -> str:
    """The summary in a reply in JSON; the reply itself where it is plain text."""
    try:
        found = json.loads(reply[reply.index("{") : reply.rindex("}") + 1])
        return str(found["summary"])
    except (ValueError, KeyError, TypeError):
        return reply


def _rewritten(
    maker: CaptionMaker, item: Item, statistics: dict[str, Any], rules: list[str], seed: int, chat: Chat
) -> tuple[list[str] | None, int]:
    """The captions of a language model without what the statistics do not support, asked twice at most, and
    how many sentences that were; None where it gives none in the form that was asked for. A caption of which
    nothing is left is that of the rules."""
    sheet, messages = maker.sheet(statistics), maker.messages(statistics, item, seed)
    reply = chat(messages)
    said = maker.read(reply)
    wrong = [f for caption in said for f in faults(caption, sheet)]
    if not said or wrong:
        listed = "; ".join(f"{f.kind} {f.said!r}" for f in wrong[:12]) or "the form is not the one asked for"
        again = maker.read(
            chat(
                [
                    *messages,
                    {"role": "assistant", "content": reply[:8000]},
                    {"role": "user", "content": _RETRY.format(list=listed)},
                ]
            )
        )
        said = again or said
    if len(said) != len(rules):
        return None, 0
    kept, left_out = [], 0
    for caption, own in zip(said, rules, strict=True):
        text, found = supported(caption, sheet)
        left_out += len({f.sentence for f in found})
        kept.append(text or own)
    if all(k == r for k, r in zip(kept, rules, strict=True)):
        return None, left_out
    return kept, left_out


def _summed(work: Path, settings: Mapping[str, Any], maker: CaptionMaker) -> dict[str, Any]:
    """`run.json`: settings, counts, and the files with their hashes."""
    count: Counter[str] = Counter()
    files: list[dict[str, str]] = []
    for path in sorted(work.glob("[0-9]*.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        count.update(found["count"])
        files += found["files"]
    card = maker.card
    return {
        "made_by": {"terralapse": __version__, "system": card.slug, "paper": card.paper,
                    "procedure": maker.version},
        **settings,
        "samples": count.pop("samples", 0),
        "counts": dict(sorted(count.items())),
        "files": files,
    }  # fmt: skip


# --- checking what is there ------------------------------------------------------------------------------
def check_captions(folder: Path | str) -> dict[str, Any]:
    """Checks a folder of captions again: the hash of every file, and every sentence against the statistics
    that stand beside it.

    Returns:
        `samples`, `sentences`, and `faults`, one text each; empty when all is well.

    Raises:
        FileMissingError, UnreadableFileError: it is no such folder.
    """
    folder = Path(folder)
    if not (folder / "run.json").is_file():
        raise FileMissingError(folder / "run.json", "is not there", "Give a folder of captions.")
    try:
        run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        maker = _maker(run["kind"], run["build"])
        files = [(str(entry["file"]), str(entry["sha256"])) for entry in run["files"]]
    except (ValueError, KeyError, TypeError) as error:
        raise UnreadableFileError(
            folder / "run.json", f"is no record of captions ({error!r})", "Make it again."
        ) from error
    found: list[str] = []
    samples = said = 0
    for name, digest in files:
        path = folder / name
        if not path.is_file() or _hash(path) != digest:
            found.append(f"{name} is missing or not the file that run.json names")
            continue
        for sample in read_shard(path) if path.suffix == ".tar" else ():
            samples += 1
            try:
                sheet = maker.sheet(sample["record"]["statistics"])
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                fault = f"holds no statistics of {run['kind']} for {sample['key']} ({error!r})"
                raise UnreadableFileError(path, fault, "Make it again.") from error
            for caption in sample["captions"]:
                said += len(sentences(caption))
                found += [
                    f"{sample['key']}: {f.kind} {f.said!r} in {f.sentence!r}" for f in faults(caption, sheet)
                ]
    return {"samples": samples, "sentences": said, "faults": found}


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def first_captions(folder: Path | str, most: int = 3) -> Iterator[tuple[str, list[str]]]:
    """The key and the captions of the first samples of a folder."""
    for path in sorted(Path(folder).glob("*.tar")):
        for sample in read_shard(path):
            if most == 0:
                return
            most -= 1
            yield sample["key"], sample["captions"]
