"""The stand-ins for IAM: words of digits that say which image they are, and words of fonts."""

import gzip
import hashlib
import os
import shutil
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
import numpy.typing as npt
import pytest
import torch

from mimodel.data import mnist
from mimodel.data.font_words import WORDS, Hand, font_words, written
from mimodel.data.fonts import FONTS, fetch_fonts, open_font
from mimodel.data.words import PAGE, WordPairs, labelled_words
from mimodel.data.writer_digits import BOX, LABELS, pages, read_writer_digits, read_writers
from mimodel.errors import DataError

BLOCK = 4
CODE = 16
"""Bits of a made digit: 12 of its row in the file, 4 of its class."""
WRITERS = {2154: 45, 7: 60, 400: 31, 12: 38, 99: 20}
"""Digits by each made writer; the last has too few for words in every split."""


def write_handwriting(folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, np.ndarray]:
    """MNIST and QMNIST of made digits, each a grid of blocks; also who wrote which."""
    rng = np.random.default_rng(5)
    writer = rng.permutation(np.repeat(list(WRITERS), list(WRITERS.values())))
    label = rng.integers(0, 10, len(writer))
    code = np.arange(len(writer)) * 16 + label
    bits = code[:, None] >> np.arange(CODE) & 1
    blocks = np.zeros((len(writer), 49), np.uint8)
    blocks[:, 0], blocks[:, 1 : 1 + CODE] = 1, bits  # the first block is ink in every digit
    grey = np.kron(blocks.reshape(-1, 7, 7), np.full((1, BLOCK, BLOCK), 200, np.uint8))
    bodies = {
        "train-images-idx3-ubyte": struct.pack(">4i", 2051, len(label), 28, 28) + grey.tobytes(),
        "train-labels-idx1-ubyte": struct.pack(">2i", 2049, len(label))
        + label.astype(np.uint8).tobytes(),
    }
    for name, body in bodies.items():
        (folder / f"{name}.gz").write_bytes(gzip.compress(body))
        digest = hashlib.md5(body, usedforsecurity=False).hexdigest()
        monkeypatch.setitem(mnist.FILES, name, digest)
    table = np.zeros((len(label), 8), ">i4")
    table[:, 0], table[:, 2] = label, writer
    write_labels(folder, table)
    return folder, writer


def write_labels(folder: Path, table: npt.NDArray[np.generic]) -> None:
    header = struct.pack(">3i", 0x0C02, *table.shape)
    (folder / LABELS).write_bytes(gzip.compress(header + table.tobytes()))


def read_back(page: npt.NDArray[np.uint8]) -> list[tuple[int, int]]:
    """Row in the file and class of each digit on a page, from the middles of its blocks."""
    length = 5 if (page[:, : (PAGE[1] - 4 * BOX) // 2] == 0).any() else 4
    left = (PAGE[1] - length * BOX) // 2
    middle = ((np.arange(7) + 0.5) * BOX / 7).astype(int)
    digits = []
    for place in range(length):
        box = page[8 : 8 + BOX, left + place * BOX : left + (place + 1) * BOX]
        bits = 1 - box[np.ix_(middle, middle)].ravel().astype(int)
        assert bits[0] == 1
        code = int(bits[1 : 1 + CODE] @ (1 << np.arange(CODE)))
        digits.append((code // 16, code % 16))
    return digits


def test_every_digit_of_a_word_can_be_read_back_and_is_its_writers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, writer = write_handwriting(tmp_path, monkeypatch)
    words = read_writer_digits(folder, folder, seed=0, writers=4)
    _, label = mnist.read_in_file_order(folder, "train")
    most = [7, 2154, 12, 400]
    used: dict[tuple[int, str], set[int]] = {}
    sheets: dict[tuple[int, str, int], list[int]] = {}
    lengths = set()
    for i, page in enumerate(words.images):
        digits = read_back(page)
        lengths.add(len(digits))
        assert words.content[i] == digits[0][1]
        for row, digit in digits:
            assert digit == label[row]
            assert writer[row] == most[words.writer[i]]
        key = int(words.writer[i]), str(words.split[i])
        used.setdefault(key, set()).update(row for row, _ in digits)
        sheets.setdefault((*key, int(words.sheet[i])), []).extend(row for row, _ in digits)
    assert lengths == {4, 5}
    assert set(used) == {(w, s) for w in range(4) for s in ("learn", "train", "test")}
    for who in range(4):
        learn, train, test = (used[who, split] for split in ("learn", "train", "test"))
        assert not (learn | train) & test
        assert not learn & train
    # A digit stands once on a sheet, so that the two words of a pair never have one in common.
    assert all(len(rows) == len(set(rows)) for rows in sheets.values())
    assert words.content_name == "first digit"


def test_pairs_of_writer_digits_share_no_digit_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, writer = write_handwriting(tmp_path, monkeypatch)
    words = read_writer_digits(folder, folder, seed=0, writers=4)
    batch = WordPairs(words, seed=0).batch(0, 64)
    for x, y in zip(batch.x, batch.y, strict=True):
        ours, others = (
            {row for row, _ in read_back((page[0].numpy() > 0).astype(np.uint8))} for page in (x, y)
        )
        assert not ours & others
        assert len({writer[row] for row in ours | others}) == 1


def test_digits_are_enlarged_and_cut_at_the_middle_grey() -> None:
    grey = np.random.default_rng(0).integers(0, 256, (6, 28, 28)).astype(np.uint8)
    digits = torch.tensor([[3, 1, 0, 5, -1], [2, 2, 4, 1, 0]])
    made = pages(torch.from_numpy(grey), digits)
    # Bilinear by hand: pixel centres of the large grid among those of the small one.
    at = np.clip((np.arange(BOX) + 0.5) * 28 / BOX - 0.5, 0, 27)
    weight = np.maximum(0, 1 - np.abs(at[:, None] - np.arange(28)))
    large = weight @ grey.astype(float) @ weight.T
    clear = np.abs(large - 127.5) > 1e-3
    assert clear.mean() > 0.999
    for page, row, left in ((made[0], [3, 1, 0, 5], 32), (made[1], [2, 2, 4, 1, 0], 8)):
        right = left + BOX * len(row)
        line = np.concatenate([large[d] <= 127.5 for d in row], 1)
        sure = np.concatenate([clear[d] for d in row], 1)
        assert (page[8:56, left:right] == line)[sure].all()
        outside = page.copy()
        outside[8:56, left:right] = 1
        assert outside.all()


def test_writer_digits_are_a_function_of_the_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = write_handwriting(tmp_path, monkeypatch)
    first, again, other = (
        read_writer_digits(folder, folder, seed=seed, writers=4).digest for seed in (0, 0, 1)
    )
    assert first == again != other


def test_other_labels_than_mnists_are_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = write_handwriting(tmp_path, monkeypatch)
    with pytest.raises(DataError, match="4 writers have 25 digits or more, and 5 are asked for"):
        read_writer_digits(folder, folder, seed=0, writers=5)
    _, label = mnist.read_in_file_order(folder, "train")
    table = np.zeros((len(label), 8), ">i4")
    table[:, 0] = label.roll(1)
    write_labels(folder, table)
    with pytest.raises(DataError, match="name another digit than MNIST's labels, the first is row"):
        read_writers(folder, label)
    write_labels(folder, table[:-1])
    with pytest.raises(DataError, match=f"expected an idx file of {len(label)} rows"):
        read_writers(folder, label)
    (folder / LABELS).write_bytes(b"no gzip")
    with pytest.raises(DataError, match=r"cannot read.*facebookresearch/qmnist"):
        read_writers(folder, label)


@pytest.mark.realdata
def test_real_writers_of_real_digits(crossmi_data: Path) -> None:
    words = read_writer_digits(crossmi_data / "mnist", crossmi_data / "mnist_writers", seed=0)
    _, label = mnist.read_in_file_order(crossmi_data / "mnist", "train")
    writer = read_writers(crossmi_data / "mnist_writers", label)
    who, count = np.unique(writer, return_counts=True)
    assert (len(who), count.min(), count.max()) == (539, 19, 131)
    assert len(np.unique(words.writer)) == 50
    sizes = [(words.split == part).sum() for part in ("learn", "train", "test")]
    # About as many as the paper has of IAM, and every class at the first place of every split.
    np.testing.assert_allclose(sizes, [6711, 1427, 612], rtol=0.2)
    for part in ("learn", "train", "test"):
        assert len(np.unique(words.content[words.split == part])) == 10
    ink = (words.images == 0).mean((1, 2))
    assert 0.01 < ink.min() < ink.max() < 0.35


DEJAVU = ("DejaVuSans", "DejaVuSerif", "DejaVuSansMono")


@pytest.fixture(scope="module")
def fonts() -> Path:
    """Fonts that come with matplotlib."""
    return Path(matplotlib.get_data_path()) / "fonts" / "ttf"


def test_each_font_writes_each_word_once(fonts: Path) -> None:
    texts = WORDS[:20]
    words = font_words(fonts, seed=0, fonts=DEJAVU, words=texts)
    cells = set(zip(words.writer.tolist(), words.content.tolist(), strict=True))
    assert cells == {(w, c) for w in range(3) for c in range(20)}
    assert words.classes == texts
    assert len({page.tobytes() for page in words.images}) == 60
    assert [(words.split == part).sum() for part in ("learn", "train", "test")] == [46, 10, 4]
    assert set(np.unique(words.images)) == {0, 1}
    # Longer words are wider, and none touches more than the page has.
    width = [np.ptp((page == 0).any(0).nonzero()[0]) for page in words.images[:20]]
    assert width[texts.index("animal")] > width[texts.index("boat")] > width[texts.index("air")]
    data = labelled_words(words)
    assert set(data.factors) == {"writer", "word"}
    WordPairs(words, seed=0).batch(0, 4)


def test_font_words_are_a_function_of_the_seed(fonts: Path) -> None:
    first, again, other = (
        font_words(fonts, seed=seed, fonts=DEJAVU, words=WORDS[:4]) for seed in (0, 0, 1)
    )
    assert first.digest == again.digest != other.digest


def test_a_hundred_words_and_77_fonts_none_twice() -> None:
    assert len(set(WORDS)) == len(WORDS) == 100
    assert len(set(FONTS)) == len(FONTS) == 77


def test_a_hand_leans_thickens_and_enlarges(fonts: Path) -> None:
    font = open_font(fonts, "DejaVuSans", 80)
    upright, leaning, thick, large = (
        written("l", font, hand)
        for hand in (Hand(0, 0, 1), Hand(0.5, 0, 1), Hand(0, 2, 1), Hand(0, 0, 2))
    )
    height, width = upright.shape
    assert upright.all()  # DejaVu's l is a bar
    # A bar of that height leans over half as many columns, to the right at its top.
    assert leaning.shape[1] == pytest.approx(width + height / 2, abs=2)
    assert leaning[0].nonzero()[0].mean() > leaning[-1].nonzero()[0].mean() + height / 2 - 3
    # Two half pixels on each side.
    assert thick.shape == (height + 2, width + 2)
    np.testing.assert_allclose(large.shape, [2 * height, 2 * width], atol=1)


def test_fonts_that_are_missing_or_damaged_say_what_to_do(fonts: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"alex-brush.*mimodel data font-words --to"):
        font_words(tmp_path, seed=0)
    (tmp_path / "alex-brush.woff2").write_bytes(b"no font")
    with pytest.raises(DataError, match="cannot open the font"):
        font_words(tmp_path, seed=0)
    with pytest.raises(DataError, match="draws nothing for ' '"):
        written(" ", open_font(fonts, "DejaVuSans", 40), Hand(0, 0, 1))


NPM = """#!{python}
import io, pathlib, sys, tarfile
font = pathlib.Path({font!r}).read_bytes()
for spec in sys.argv[3:]:
    name = spec.split("/")[1].split("@")[0]
    if name == "refused":
        sys.exit("404 no such package")
    data = b"damaged" if name == "damaged" else font
    with tarfile.open(name + ".tgz", "w:gz") as tar:
        for subset in ("latin", "latin-ext"):
            member = tarfile.TarInfo(f"package/files/{{name}}-{{subset}}-400-normal.woff2")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    with open({log!r}, "a") as log:
        log.write(spec + " ")
"""


@pytest.fixture
def packed(fonts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """A program `npm` before the real one, which packs a font it has; says what it was asked."""
    log = tmp_path / "asked"
    program = tmp_path / "bin" / "npm"
    program.parent.mkdir()
    font = str(fonts / "DejaVuSans.ttf")
    program.write_text(NPM.format(python=sys.executable, font=font, log=str(log)))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    return lambda: log.read_text().split() if log.exists() else []


def test_fonts_are_fetched_once_and_open(packed: Callable[[], list[str]], tmp_path: Path) -> None:
    out = tmp_path / "fonts"
    fetch_fonts(out, lambda _: None, ("caveat", "condiment"))
    fetch_fonts(out, lambda _: None, ("caveat", "condiment", "itim"))
    said: list[str] = []
    fetch_fonts(out, said.append, ("caveat", "condiment", "itim"))
    assert packed() == [
        "@fontsource/caveat@5.3.0", "@fontsource/condiment@4.5.1", "@fontsource/itim@5.3.0"
    ]  # fmt: skip
    assert said == [f"{out} has all 3 fonts already, 3 as they came, verified"]
    assert sorted(file.name for file in out.iterdir()) == [
        "SHA256SUMS", "caveat.woff2", "condiment.woff2", "itim.woff2"
    ]  # fmt: skip
    assert len(font_words(out, seed=0, fonts=("caveat", "itim"), words=("sea",)).images) == 2


def test_a_font_that_is_not_what_came_is_said(
    packed: Callable[[], list[str]], fonts: Path, tmp_path: Path
) -> None:
    out = tmp_path / "fonts"
    fetch_fonts(out, lambda _: None, ("caveat",))
    shutil.copy(fonts / "DejaVuSerif.ttf", out / "caveat.woff2")
    with pytest.raises(DataError, match=r"caveat.woff2 is not what it was when it came"):
        fetch_fonts(out, lambda _: None, ("caveat",))
    assert len(packed()) == 1


@pytest.mark.parametrize(
    ("name", "message"), [("refused", "404 no such package"), ("damaged", "does not open")]
)
def test_what_npm_cannot_give_is_an_error(
    packed: Callable[[], list[str]], tmp_path: Path, name: str, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        fetch_fonts(tmp_path / "fonts", lambda _: None, (name,))


def test_without_npm_the_error_says_what_to_put_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match=r"npm is not installed; put a file such as caveat.woff2"):
        fetch_fonts(tmp_path / "fonts", lambda _: None, ("caveat",))
