"""SHA256SUMS of a folder: what was verified when it came can be verified again.

The format is that of `sha256sum --check`.
"""

import hashlib
from pathlib import Path

from mimodel.errors import DataError
from mimodel.whole import write_whole

_FILE = "SHA256SUMS"


def sha256(file: Path) -> str:
    """Digest of a file's content, in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def note_sum(file: Path) -> None:
    """Remember what is in a file now, in the list of its folder."""
    sums = {**_sums(file.parent), file.name: sha256(file)}
    text = "".join(f"{digest}  {name}\n" for name, digest in sorted(sums.items()))
    write_whole(file.parent / _FILE, lambda stream: stream.write(text.encode()))


def check_sum(file: Path) -> bool:
    """Whether the list has the file, which then is what it was; `DataError` if it is not."""
    noted = _sums(file.parent).get(file.name)
    if noted is not None and sha256(file) != noted:
        raise DataError(
            f"{file} is not what it was when it came: {_FILE} beside it has another digest; delete "
            "the file and fetch or make it again"
        )
    return noted is not None


def _sums(folder: Path) -> dict[str, str]:
    path = folder / _FILE
    lines = path.read_text().splitlines() if path.exists() else []
    return {name: digest for digest, _, name in (line.partition("  ") for line in lines) if name}
