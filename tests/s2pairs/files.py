"""What lies in a folder, byte for byte."""

from pathlib import Path


def bytes_of(path: Path) -> dict[str, bytes]:
    return {str(f.relative_to(path)): f.read_bytes() for f in path.rglob("*") if f.is_file()}
