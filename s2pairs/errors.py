"""The errors of s2pairs. Each message says what was expected, what came and what to try."""


class S2PairsError(Exception):
    """Base of every error that s2pairs raises on purpose; the CLI prints it and exits with 2.

    `tile` and `product` are those that it is about, for reports; the message names them too.
    """

    def __init__(self, message: str, *, tile: str = "", product: str = "") -> None:
        super().__init__(message)
        self.tile = tile
        self.product = product


class TileError(S2PairsError):
    """A tile list or a tile id is not what it should be."""


class SourceError(S2PairsError):
    """A source of scenes cannot be read, or does not hold what was asked for."""


class SceneError(S2PairsError):
    """One product is unreadable or incomplete."""


class CubeError(S2PairsError):
    """A cube is missing, incomplete, damaged, or not one of ours."""
