"""IAM (Marti and Bunke 2002): words by many writers, read from the user's own copy.

IAM is free for non-commercial research after registration at its home page, so nothing here fetches
it. A copy is `forms.txt`, `words.txt` and `words/a01/a01-000u/a01-000u-00-00.png`, as its archives
unpack.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mimodel.data.words import Words, on_page, random_split
from mimodel.errors import DataError

KNOWN_BROKEN = ("a01-117-05-02", "r06-022-03-05")
"""Words whose image files are damaged in IAM itself."""

_NAME = re.compile(r"(?P<form>(?P<group>\w+)-\w+)-\d+-\d+")
_FORM_FIELDS, _WORD_FIELDS = 8, 9


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of `words.txt`, with the writer that `forms.txt` names."""

    name: str
    line: int
    segmented: bool
    """False where IAM calls the segmentation into words an error."""
    level: int
    """Grey level from which on a pixel is paper."""
    text: str
    writer: str


def read_iam(
    folder: Path, *, seed: int, classes: int = 100, writers: int = 50, per_writer: int = 150
) -> Words:
    """The paper's subset of IAM (`select`), binarised by each word's own level, on pages.

    Section 1.3 of the supplement says 150 words of each of 50 writers and 8,750 images, which is
    175 of each; `per_writer` is the number in words. `seed` draws which words of a writer with
    more are taken, and the split. Anything missing or damaged is a `DataError`.
    """
    index = read_index(folder)
    sound = [entry for entry in index if entry.name not in KNOWN_BROKEN]
    rng = np.random.default_rng([seed, 8])
    chosen = select(sound, classes=classes, writers=writers, per_writer=per_writer, rng=rng)
    vocabulary, content = np.unique([entry.text for entry in chosen], return_inverse=True)
    hands, writer = np.unique([entry.writer for entry in chosen], return_inverse=True)
    return Words(
        images=np.stack([_page(folder, entry) for entry in chosen]),
        writer=writer,
        content=content,
        sheet=np.zeros(len(chosen), np.int64),
        split=random_split(len(chosen), rng),
        classes=tuple(vocabulary.tolist()),
        content_name="word",
        description=f"IAM, {len(chosen)} words of {len(vocabulary)} classes by {len(hands)} "
        f"writers (files known to be broken and left out: {len(index) - len(sound)})",
    )


def select(
    index: Sequence[Entry],
    *,
    classes: int,
    writers: int,
    per_writer: int,
    rng: np.random.Generator,
) -> list[Entry]:
    """The paper's rule, in this order: well segmented words with a letter or a digit in them; of
    these the most frequent `classes`; of what is left the `writers` with most words; of each
    writer up to `per_writer`, drawn at random. In the order of `index`.

    Which 100 classes the paper took it does not say: the most frequent ones, upper and lower case
    apart, are ours. Classes come first, so that a writer's words are counted that can be used.
    `DataError` where there are fewer classes or writers.
    """
    usable = [e for e in index if e.segmented and any(map(str.isalnum, e.text))]
    vocabulary = set(_top(Counter(e.text for e in usable), classes, "word classes"))
    usable = [e for e in usable if e.text in vocabulary]
    chosen: list[Entry] = []
    for writer in _top(Counter(e.writer for e in usable), writers, "writers"):
        own = [e for e in usable if e.writer == writer]
        taken = rng.choice(len(own), min(per_writer, len(own)), replace=False)
        chosen += [own[i] for i in taken]
    return sorted(chosen, key=lambda e: e.line)


def read_index(folder: Path) -> list[Entry]:
    """Every line of `words.txt`; `DataError` names the file and the line that is not as it was."""
    writer_of = {fields[0]: fields[1] for _, fields in _lines(folder / "forms.txt", _FORM_FIELDS)}
    source = folder / "words.txt"
    return [
        _entry(source, line, fields, writer_of) for line, fields in _lines(source, _WORD_FIELDS)
    ]


def _entry(source: Path, line: int, fields: Sequence[str], writer_of: Mapping[str, str]) -> Entry:
    name, segmentation, level, *_, text = fields
    match = _NAME.fullmatch(name)
    if match is None:
        raise DataError(f"{source}, line {line}: {name!r} is not a word such as a01-000u-00-00")
    if segmentation not in ("ok", "err"):
        raise DataError(f"{source}, line {line}: expected ok or err, came {segmentation!r}")
    if not level.isdecimal() or int(level) > 255:
        raise DataError(f"{source}, line {line}: {level!r} is not a grey level from 0 to 255")
    if match["form"] not in writer_of:
        raise DataError(
            f"{source}, line {line}: form {match['form']} is not in forms.txt; are both files of "
            "one copy of IAM?"
        )
    return Entry(name, line, segmentation == "ok", int(level), text, writer_of[match["form"]])


def _lines(file: Path, count: int) -> Iterator[tuple[int, list[str]]]:
    """Number and `count` fields of each line that is no comment; the last may hold spaces."""
    try:
        content = file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise DataError(
            f"cannot read {file}: {error}; expected a copy of IAM with forms.txt, words.txt and "
            "the folder words"
        ) from error
    for number, line in enumerate(content.splitlines(), start=1):
        if line.startswith("#") or not line.strip():
            continue
        fields = line.split(" ", count - 1)
        if len(fields) < count:
            raise DataError(f"{file}, line {number}: expected {count} fields, came {len(fields)}")
        yield number, fields


def _top(counts: Counter[str], number: int, what: str) -> list[str]:
    """The `number` most frequent, ties in the order of the alphabet."""
    if len(counts) < number:
        raise DataError(
            f"{len(counts)} {what} in this copy of IAM, and {number} are asked for; is it whole?"
        )
    return sorted(counts, key=lambda name: (-counts[name], name))[:number]


def _page(folder: Path, entry: Entry) -> npt.NDArray[np.uint8]:
    from PIL import Image

    match = _NAME.fullmatch(entry.name)
    assert match is not None
    file = folder / "words" / match["group"] / match["form"] / f"{entry.name}.png"
    try:
        with Image.open(file) as image:
            grey = np.asarray(image.convert("L"))
    except (OSError, SyntaxError, ValueError) as error:  # Pillow has a SyntaxError for broken PNGs
        raise DataError(
            f"cannot read {file}, named in words.txt, line {entry.line}: {error}"
        ) from error
    return on_page(grey < entry.level)
