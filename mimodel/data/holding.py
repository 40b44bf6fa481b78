"""Where the looks of a split are while one trains: on the disk, in memory, or on the device itself.

A look is one place at one date. Each class gives the same standardised tensors.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, final

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from mimodel.errors import DataError

Stored = npt.NDArray[np.uint16]
Standardise = Callable[[Stored], npt.NDArray[np.float32]]
Places = npt.NDArray[np.integer[Any]]


class Looks(ABC):
    """The looks of a split, by place and date."""

    @abstractmethod
    def take(self, place: Places, date: Places) -> Float[Tensor, "look band row col"]:
        """Standardised images of these places (n,) at these dates (n,)."""


@final
class OnDisk(Looks):
    """Read when they are asked for: memory is that of the batches under way."""

    def __init__(self, read: Callable[[Places, Places], Stored], standardise: Standardise) -> None:
        self._read = read
        self._standardise = standardise

    def take(self, place: Places, date: Places) -> Float[Tensor, "look band row col"]:
        return torch.from_numpy(self._standardise(self._read(place, date)))


@final
class InMemory(Looks):
    """Stored values (place, date, band, row, col), two bytes each."""

    def __init__(self, stored: Stored, standardise: Standardise) -> None:
        self._stored = stored
        self._standardise = standardise

    def take(self, place: Places, date: Places) -> Float[Tensor, "look band row col"]:
        return torch.from_numpy(self._standardise(self._stored[place, date]))


@final
class OnDevice(Looks):
    """Stored values on a GPU, two bytes each, chosen and standardised there: a batch moves nothing
    but its indices."""

    def __init__(
        self,
        stored: Stored,
        device: str,
        *,
        factor: npt.NDArray[np.float32],
        offset: npt.NDArray[np.float32],
        no_data: int,
    ) -> None:
        """An image is stored × `factor` + `offset`, band by band, and 0 where there is no data."""
        gigabytes = stored.nbytes / 1e9
        try:
            # signed, because a GPU cannot index unsigned numbers of two bytes
            self._stored = torch.from_numpy(stored.view(np.int16)).to(torch.device(device))
        except (RuntimeError, AssertionError) as error:
            raise DataError(
                f"cannot hold {gigabytes:.1f} GB of patches on {device}: {error}; leave "
                "data.device out, or use a smaller cube or fewer bands"
            ) from error
        self._factor, self._offset = (
            torch.from_numpy(each)[:, None, None].to(self._stored.device)
            for each in (factor, offset)
        )
        self._no_data = no_data

    def take(self, place: Places, date: Places) -> Float[Tensor, "look band row col"]:
        where = (torch.from_numpy(each).to(self._stored.device) for each in (place, date))
        stored = self._stored[*where].to(torch.int32) & 0xFFFF
        return torch.where(stored == self._no_data, 0.0, stored * self._factor + self._offset)
