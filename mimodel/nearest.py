"""Exact search for the nearest of those vectors that are eligible, by faiss, a piece at a time."""

from collections.abc import Iterator, Sequence
from typing import Any, final

import numpy as np
import numpy.typing as npt

from mimodel.errors import PatchIndexError

_QUERIES = 16
"""Queries of one search. From 20 on faiss multiplies matrices, which is less exact near 0."""
_ROWS = 1 << 16
"""Vectors that are looked at between two pieces of other work."""

Vectors = npt.NDArray[np.float32]


def flat_index(dimension: int) -> Any:
    """faiss's exact index of squared distances, empty; `PatchIndexError` where faiss is missing."""
    try:
        import faiss
    except ModuleNotFoundError as error:
        raise PatchIndexError("search needs faiss; run pip install 'crossmi[service]'") from error
    return faiss.IndexFlatL2(dimension)


def joined(parts: Sequence[Vectors]) -> Vectors:
    """Points (N, dimension) of several representations, whose squared distance is their mean."""
    if len(parts) == 1:
        return parts[0]
    return np.concatenate(parts, axis=1) / np.float32(len(parts) ** 0.5)


@final
class Nearest:
    """The `count` rows of `flats` that are nearest to each point, of those that are eligible.

    `flats` are the indexes of one or more representations with the same rows; of several, points
    are `joined`. Nothing is copied but what a step looks at.
    """

    def __init__(
        self, flats: Sequence[Any], points: Vectors, rows: npt.NDArray[np.int64], count: int
    ) -> None:
        self._flats = flats
        self._points = points
        self._rows = rows
        self._count = min(count, len(rows))
        self._squares = [np.empty(0, np.float32) for _ in points]
        self._found = [np.empty(0, np.int64) for _ in points]

    def steps(self) -> Iterator[None]:
        """Do the work, some hundred milliseconds at most between two steps."""
        for start in range(0, len(self._rows), _ROWS):
            rows = self._rows[start : start + _ROWS]
            for first in range(0, len(self._points), _QUERIES):
                points = np.ascontiguousarray(self._points[first : first + _QUERIES])
                squares, found = self._among(rows, points, min(self._count, len(rows)))
                for at in range(len(points)):
                    self._add(first + at, squares[at], found[at])
                yield

    def found(self) -> list[tuple[Vectors, npt.NDArray[np.int64]]]:
        """Squared distances and rows for each point, when all steps are done; of equal distances
        the lower row stands first."""
        return list(zip(self._squares, self._found, strict=True))

    def _among(
        self, rows: npt.NDArray[np.int64], points: Vectors, count: int
    ) -> tuple[Vectors, npt.NDArray[np.int64]]:
        import faiss

        if len(self._flats) == 1:
            chosen = faiss.SearchParameters(sel=faiss.IDSelectorArray(rows))  # type: ignore[call-arg]
            squares, found = self._flats[0].search(points, count, params=chosen)
            return squares, found
        vectors = joined([flat.reconstruct_batch(rows) for flat in self._flats])
        squares, at = faiss.knn(points, vectors, count)
        return squares, rows[at]

    def _add(self, point: int, squares: Vectors, rows: npt.NDArray[np.int64]) -> None:
        real = rows >= 0
        squares = np.concatenate([self._squares[point], squares[real]])
        rows = np.concatenate([self._found[point], rows[real]])
        best = np.lexsort((rows, squares))[: self._count]
        self._squares[point], self._found[point] = squares[best], rows[best]
