"""The byte-pair encoding of CLIP, from the files that come with its weights.

Source: Sennrich et al. 2016, in the form of Radford et al. 2021: lower case, bytes written as printable
characters, `</w>` at the end of a word, merges in the order of their file.
"""

from __future__ import annotations

import gzip
import html
import re
from functools import cache, cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np

from terralapse.errors import FileMissingError, UnreadableFileError

# Letters, one digit, or anything else that is no blank; the underscore counts as the latter.
_PARTS = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d|[^\W\d_]+|\d|(?:[^\s\w]|_)+")
MERGES = 49152 - 256 - 2  # of those in the file


@cache
def _characters() -> dict[int, str]:
    """Each byte as a character that can be printed."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in shown]
    return {b: chr(b) for b in shown} | {b: chr(256 + i) for i, b in enumerate(rest)}


class Bpe:
    """Texts to ids.

    Args:
        path: `bpe_simple_vocab_16e6.txt.gz` (or unpacked) of OpenAI and OpenCLIP, or `merges.txt` of
            `transformers`, or a folder that holds one of them.

    Raises:
        FileMissingError, UnreadableFileError: no such file, or something else is in it.
    """

    def __init__(self, path: Path | str) -> None:
        path = Path(path)
        if path.is_dir():
            names = ("merges.txt", "bpe_simple_vocab_16e6.txt.gz", "bpe_simple_vocab_16e6.txt")
            path = next((path / n for n in names if (path / n).is_file()), path / names[0])
        if not path.is_file():
            raise FileMissingError(
                path, "is not there", "Give merges.txt or bpe_simple_vocab_16e6.txt.gz of CLIP."
            )
        try:
            content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
            lines = content.decode("utf-8").split("\n")
        except (OSError, ValueError, EOFError) as error:
            raise UnreadableFileError(
                path, f"is no list of merges ({error})", "Get the file again."
            ) from error
        pairs = [tuple(line.split()) for line in lines[1 : MERGES + 1] if line.strip()]
        if not lines[0].lstrip('"').startswith(("#version", "bpe_simple_vocab")) or any(
            len(p) != 2 for p in pairs
        ):
            raise UnreadableFileError(path, "is no list of merges", "Give the file that came with CLIP.")
        self._rank = {(p[0], p[1]): i for i, p in enumerate(pairs)}
        # The ids follow the order of the printed bytes: those that are shown as they are come first.
        single = [c for b, c in _characters().items() if chr(b) == c] + [
            c for b, c in _characters().items() if chr(b) != c
        ]
        names = [*single, *(c + "</w>" for c in single), *("".join(p) for p in pairs)]
        self._ids = {name: i for i, name in enumerate(names)}
        self.start, self.end = len(names), len(names) + 1
        self._known: dict[str, list[int]] = {}

    @cached_property
    def size(self) -> int:
        """Number of ids."""
        return self.end + 1

    def encode(self, text: str, length: int = 77) -> np.ndarray:
        """Ids int64 [length]: start, the text, end, and 0 after it; a longer text is cut before the end."""
        plain = " ".join(html.unescape(html.unescape(text)).split()).lower()
        found = [i for part in _PARTS.findall(plain) for i in self._word(part)][: length - 2]
        row = np.zeros(length, np.int64)
        row[: len(found) + 2] = [self.start, *found, self.end]
        return row

    def _word(self, word: str) -> list[int]:
        if word not in self._known:
            parts = [_characters()[b] for b in word.encode("utf-8")]
            parts[-1] += "</w>"
            while len(parts) > 1:
                ranks = [self._rank.get(p, MERGES) for p in pairwise(parts)]
                best = min(ranks)
                if best == MERGES:
                    break
                pair = next(p for p in pairwise(parts) if self._rank.get(p) == best)
                merged, i = [], 0
                while i < len(parts):
                    two = i + 1 < len(parts) and (parts[i], parts[i + 1]) == pair
                    merged.append("".join(pair) if two else parts[i])
                    i += 2 if two else 1
                parts = merged
            self._known[word] = [self._ids[p] for p in parts]
        return self._known[word]
