"""IAM's reader on a made copy in IAM's own layout; no line or pixel of IAM is in it."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from mimodel.data.iam import KNOWN_BROKEN, Entry, read_iam, read_index, select
from mimodel.data.words import PAGE
from mimodel.errors import DataError

FORMS = {"a01-000u": "000", "a01-000x": "001", "b02-045": "001", "b02-046": "002"} | {
    "a01-117": "003", "c03-000a": "004"
}  # fmt: skip
"""Writer of each form; writer 001 has two."""
TEXTS = ("the", "The", "of", "M Ps", "1960", "rare", ",", ".")
"""A transcription may hold a space; marks of punctuation are words to IAM."""


@dataclass
class Copy:
    """What was written into a made copy."""

    folder: Path
    page: dict[str, npt.NDArray[np.uint8]] = field(default_factory=dict)
    """Of each word the page that it should become."""
    ok: dict[str, bool] = field(default_factory=dict)
    text: dict[str, str] = field(default_factory=dict)

    def writer(self, name: str) -> str:
        return FORMS["-".join(name.split("-")[:2])]

    def file(self, name: str) -> Path:
        group, form, *_ = name.split("-")
        return self.folder / "words" / group / f"{group}-{form}" / f"{name}.png"


@pytest.fixture
def copy(tmp_path: Path) -> Copy:
    rng = np.random.default_rng(3)
    made = Copy(tmp_path)
    lines = ["#--- words.txt ----#", "#", "# format: as the data below", "#"]
    for number, form in enumerate(FORMS):
        for line in range(3 + number):
            for place in range(6):
                name = f"{form}-{line:02d}-{place:02d}"
                text = str(rng.choice(TEXTS, p=(0.25, 0.1, 0.15, 0.1, 0.05, 0.05, 0.15, 0.15)))
                _write_word(made, name, text, rng, lines)
    (tmp_path / "words.txt").write_text("\n".join(lines) + "\n")
    forms = [f"{form} {writer} 2 prt 7 5 52 36" for form, writer in FORMS.items()]
    (tmp_path / "forms.txt").write_text("\n".join(["#--- forms.txt ---#", "#", *forms]) + "\n")
    return made


def _write_word(
    made: Copy, name: str, text: str, rng: np.random.Generator, lines: list[str]
) -> None:
    height, width = (int(side) for side in rng.integers((4, 9), (65, 257)))
    level = int(rng.integers(100, 200))
    grey = rng.integers(level - 2, level + 2, (height, width)).astype(np.uint8)
    made.ok[name] = bool(rng.random() < 0.8) or name in KNOWN_BROKEN
    made.text[name] = text = "the" if name in KNOWN_BROKEN else text
    page = np.ones(PAGE, np.uint8)
    top, left = (64 - height) // 2, (256 - width) // 2
    page[top : top + height, left : left + width] = np.where(grey < level, 0, 1)
    made.page[name] = page
    made.file(name).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(grey).save(made.file(name))
    if name in KNOWN_BROKEN:
        made.file(name).write_bytes(b"")
    state = "ok" if made.ok[name] else "err"
    lines.append(f"{name} {state} {level} 408 768 {width} {height} NN {text}")


def brute_force(made: Copy, classes: int, writers: int) -> dict[str, list[str]]:
    """Names that may be taken, by writer, counted one by one."""
    names = [n for n in made.page if made.ok[n] and n not in KNOWN_BROKEN]
    names = [n for n in names if made.text[n] not in (",", ".")]
    frequency = Counter(made.text[n] for n in names)
    vocabulary = sorted(frequency, key=lambda text: (-frequency[text], text))[:classes]
    by_writer: dict[str, list[str]] = {}
    for name in names:
        if made.text[name] in vocabulary:
            by_writer.setdefault(made.writer(name), []).append(name)
    most = sorted(by_writer, key=lambda writer: (-len(by_writer[writer]), writer))[:writers]
    return {writer: by_writer[writer] for writer in most}


@pytest.mark.parametrize(("classes", "writers", "per_writer"), [(4, 3, 100), (3, 4, 7), (5, 5, 1)])
def test_the_subset_is_the_one_counted_by_brute_force(
    copy: Copy, classes: int, writers: int, per_writer: int
) -> None:
    words = read_iam(copy.folder, seed=0, classes=classes, writers=writers, per_writer=per_writer)
    name_of = {page.tobytes(): name for name, page in copy.page.items()}
    assert len(name_of) == len(copy.page)
    names = [name_of[image.tobytes()] for image in words.images]
    assert len(set(names)) == len(names)
    allowed = brute_force(copy, classes, writers)
    taken = Counter(copy.writer(name) for name in names)
    assert taken == {who: min(per_writer, len(own)) for who, own in allowed.items()}
    assert set(names) <= {name for own in allowed.values() for name in own}
    assert [words.classes[c] for c in words.content] == [copy.text[name] for name in names]
    hands = sorted(allowed)
    assert [hands[w] for w in words.writer] == [copy.writer(name) for name in names]
    assert words.content_name == "word"
    assert "left out: 1" in words.description


def test_ties_are_broken_by_the_alphabet() -> None:
    texts = ("za", "ab", "ba", "za", "ab", "ba", "c")
    index = [
        Entry(f"a01-000-00-{i:02d}", i, True, 9, text, f"{9 - i % 3}{i % 3}")
        for i, text in enumerate(texts)
    ]
    rng = np.random.default_rng(0)
    chosen = select(index, classes=2, writers=2, per_writer=9, rng=rng)
    assert [entry.text for entry in chosen] == ["ab", "ba", "ab", "ba"]
    chosen = select(index, classes=3, writers=1, per_writer=9, rng=rng)
    assert {entry.writer for entry in chosen} == {"72"}


def test_seed_draws_words_and_split_and_nothing_else_does(copy: Copy) -> None:
    first, again, other = (
        read_iam(copy.folder, seed=seed, classes=4, writers=3, per_writer=8) for seed in (0, 0, 1)
    )
    assert first.digest == again.digest != other.digest
    assert {*first.split} == {"learn", "train", "test"}
    assert len(first.images) == len(other.images) == 24


def test_every_line_is_read_but_comments(copy: Copy) -> None:
    index = read_index(copy.folder)
    assert [entry.name for entry in index] == list(copy.page)
    assert [entry.text for entry in index] == list(copy.text.values())
    assert [entry.segmented for entry in index] == list(copy.ok.values())
    assert "M Ps" in {entry.text for entry in index}
    assert index[0].line == 5


Damage = Callable[[Copy], None]


def _append(line: str) -> Damage:
    def damage(copy: Copy) -> None:
        with (copy.folder / "words.txt").open("a") as words:
            words.write(line + "\n")

    return damage


def _cut_a_form(copy: Copy) -> None:
    with (copy.folder / "forms.txt").open("a") as forms:
        forms.write("d04-000 007\n")


def _sound(copy: Copy) -> Path:
    return copy.file(next(n for n in copy.page if copy.ok[n] and copy.text[n] == "the"))


DAMAGES: dict[str, tuple[Damage, str]] = {
    "no copy at all": (lambda c: (c.folder / "forms.txt").unlink(), "forms.txt.*expected a copy"),
    "no words.txt": (lambda c: (c.folder / "words.txt").unlink(), "words.txt.*expected a copy"),
    "a form cut short": (_cut_a_form, r"forms.txt, line 9: expected 8 fields, came 2"),
    "a line cut short": (
        _append("a01-000u-09-00 ok 154 408"),
        r"words.txt, line 203: expected 9 fields, came 4",
    ),
    "neither ok nor err": (
        _append("a01-000u-09-00 fine 154 1 1 9 9 AT A"),
        "line 203: expected ok or err, came 'fine'",
    ),
    "no grey level": (
        _append("a01-000u-09-00 ok AT 1 1 9 9 AT A"),
        "line 203: 'AT' is not a grey level",
    ),
    "no word": (_append("../a01-09-00 ok 154 1 1 9 9 AT A"), "line 203: .* is not a word"),
    "a form of another copy": (
        _append("z99-000-09-00 ok 154 1 1 9 9 AT A"),
        "line 203: form z99-000 is not in forms.txt",
    ),
    "an image that is missing": (lambda c: _sound(c).unlink(), r"\.png, named in words.txt, line"),
    "an image cut short": (
        lambda c: _sound(c).write_bytes(_sound(c).read_bytes()[:60]),
        r"\.png, named in words.txt, line",
    ),
    "an image that is none": (
        lambda c: _sound(c).write_bytes(b"not a picture"),
        r"\.png, named in words.txt, line",
    ),
}


@pytest.mark.parametrize("what", DAMAGES)
def test_damage_is_named_by_file_and_line(copy: Copy, what: str) -> None:
    damage, message = DAMAGES[what]
    damage(copy)
    with pytest.raises(DataError, match=message):
        read_iam(copy.folder, seed=0, classes=4, writers=5)


def test_a_copy_that_is_too_small_for_the_papers_rule_is_an_error(copy: Copy) -> None:
    with pytest.raises(DataError, match="6 word classes in this copy of IAM, and 100"):
        read_iam(copy.folder, seed=0)
    with pytest.raises(DataError, match="5 writers in this copy of IAM, and 50"):
        read_iam(copy.folder, seed=0, classes=4)
