"""The client of a crossmi service: numpy or xarray in, xarray with coordinates out.

    import crossmi

    with crossmi.Client("http://127.0.0.1:8000") as service:
        embedded = service.embed(cube.reflectance)                  # shared (patch, date, ...)
        alike = service.search(crossmi.Look(patch=12, date=3), place="other", months=[6, 7])

It knows HTTP and arrays, and nothing of models or cubes. docs/api.md says what the service answers.
"""

from crossmi.client import Client, Look
from crossmi.errors import ArrayError, CrossmiError, ServiceError, UnreachableError

__all__ = ["ArrayError", "Client", "CrossmiError", "Look", "ServiceError", "UnreachableError"]
