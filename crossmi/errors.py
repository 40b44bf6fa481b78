"""What can go wrong when a service is asked."""

from collections.abc import Sequence
from dataclasses import dataclass


class CrossmiError(Exception):
    """Base of every error that the client raises on purpose."""


class UnreachableError(CrossmiError):
    """Nothing answers at the address, or not in time."""


class ArrayError(CrossmiError, ValueError):
    """An array cannot be sent as it is."""


@dataclass(frozen=True)
class FieldProblem:
    """One parameter that the service found wrong."""

    location: str
    message: str


class ServiceError(CrossmiError):
    """The service refused; its problem document (RFC 9457) as attributes."""

    def __init__(
        self, status: int, title: str, detail: str, errors: Sequence[FieldProblem] = ()
    ) -> None:
        super().__init__(f"{status} {title}: {detail}" if detail else f"{status} {title}")
        self.status = status
        self.title = title
        self.detail = detail
        self.errors = tuple(errors)
