"""What was made is made once, unless it is damaged or depends on something else."""

from pathlib import Path

import pytest

from mimodel.kept import kept


class Maker:
    """Counts how often it is asked."""

    def __init__(self, made: bytes = b"model") -> None:
        self.made = made
        self.times = 0

    def __call__(self) -> bytes:
        self.times += 1
        return self.made


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "crossmi"


def test_it_is_made_once_for_a_key(folder: Path) -> None:
    first, other = Maker(), Maker(b"other")
    assert [kept(["a", "b"], ".x", first) for _ in range(3)] == [b"model"] * 3
    assert kept(["ab"], ".x", other) == b"other"
    assert kept(["a", "c"], ".x", other) == b"other"
    assert (first.times, other.times) == (1, 2)
    assert len(list(folder.iterdir())) == 3
    assert folder.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "longer"])
def test_a_damaged_file_is_made_again(folder: Path, damage: str) -> None:
    kept(["a"], "", Maker())
    (file,) = folder.iterdir()
    whole = file.read_bytes()
    flipped = whole[:-1] + bytes([whole[-1] ^ 1])
    file.write_bytes(
        {"flipped": flipped, "cut": whole[:20], "empty": b"", "longer": whole + b"x"}[damage]
    )
    again = Maker()
    assert kept(["a"], "", again) == kept(["a"], "", again) == b"model"
    assert again.times == 1
    assert file.read_bytes() == whole


def test_where_nothing_can_be_kept_it_is_made_every_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file stands where the folder should be: as on a read-only file system, for root too."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    maker = Maker()
    assert kept(["a"], "", maker) == kept(["a"], "", maker) == b"model"
    assert maker.times == 2


def test_a_file_that_cannot_be_written_is_no_error(folder: Path) -> None:
    kept(["a"], "", Maker())
    (file,) = folder.iterdir()
    file.unlink()
    file.mkdir()
    (file / "in the way").write_text("")
    maker = Maker()
    assert kept(["a"], "", maker) == b"model"
    assert [path.name for path in folder.iterdir()] == [file.name]


def test_a_folder_that_others_may_write_is_not_believed(folder: Path) -> None:
    kept(["a"], "", Maker(b"mine"))
    folder.chmod(0o777)
    assert kept(["a"], "", Maker(b"again")) == b"again"
    folder.chmod(0o700)
    assert kept(["a"], "", Maker(b"again")) == b"mine"
