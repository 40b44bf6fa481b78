"""The limits of the service, from CROSSMI_... variables of the environment or the command line."""

import math
from typing import Literal

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

MIB = 1 << 20
_KEY_LENGTH = 16


class Settings(BaseSettings):
    """What one request may bring, how many may wait, how long things may take.

    Memory for uploads is bounded by max_waiting_bytes of bodies, as much again of unpacked pixels,
    and a few times max_decoded_bytes for the one upload that is being unpacked.
    """

    model_config = SettingsConfigDict(env_prefix="CROSSMI_", frozen=True, extra="forbid")

    max_body_bytes: int = Field(32 * MIB, gt=0, description="Bytes of a request body")
    max_decoded_bytes: int = Field(
        64 * MIB,
        gt=0,
        description="Bytes of the pixels that a GeoTIFF, or one of its blocks, holds, "
        "and that lists in JSON take while they are read, 64 a value",
    )
    max_patches: int = Field(512, gt=0, description="Patches of an embed or classify request")
    max_pixels: int = Field(1024 * 1024, gt=0, description="Height times width of an image")
    max_windows: int = Field(
        4096,
        gt=0,
        description="Patches that a map or a grid may be made of",
    )
    max_queries: int = Field(256, gt=0, description="Query pixels that a map may average")
    max_products: int = Field(
        12 * 1024 * 1024,
        gt=0,
        description="Hidden layers that the scores of a map may take: for each place and query "
        "pixel 12 of a 9 x 9 model (20 with a stride) and 52 of a 64 x 64 one, with mode=fast "
        "2 (10) and 26",
    )
    max_scores: int = Field(
        1024 * 1024,
        gt=0,
        description="Numbers of an answer that has a layer for each query pixel",
    )
    max_maps: int = Field(16, gt=0, description="Similarity maps that are worked on at once")
    map_cache_bytes: int = Field(
        256 * MIB,
        ge=0,
        description="Bytes of the images of maps and of their features, kept for further queries",
    )
    map_cache_seconds: float = Field(
        600.0, ge=0, description="Time that such an image is kept after it was last asked about"
    )
    max_compared: int = Field(
        1 << 28, gt=0, description="Query patches of a search times the looks that it may find"
    )
    max_batch: int = Field(64, gt=0, description="Patches that the model takes at a time")
    max_waiting: int = Field(128, ge=0, description="Requests that wait while one is worked on")
    max_waiting_bytes: int = Field(
        256 * MIB,
        gt=0,
        description="Bytes of all bodies that wait, of all unpacked pixels, and of "
        "all answers that are not taken",
    )
    max_rate: float = Field(
        0.0, ge=0, description="Requests a second of one key, or address without keys; 0 for any"
    )
    body_seconds: float = Field(30.0, gt=0, description="Time for a body to arrive")
    answer_seconds: float = Field(120.0, gt=0, description="Time from a body to its answer")
    taken_seconds: float = Field(60.0, gt=0, description="Time for an answer to be taken")
    notice_seconds: float = Field(
        1.0, ge=0, description="Time after SIGTERM in which new requests are still answered"
    )
    watch_seconds: float = Field(
        5.0, ge=0, description="Time between looks for a new artifact in the folder; 0 for none"
    )
    backend: Literal["folded", "eager", "onnxruntime", "openvino"] = Field(
        "folded", description="How the encoders are computed"
    )
    api_key: SecretStr | None = Field(
        None,
        description="What a client sends as `Authorization: Bearer KEY`; several with commas "
        "between them",
    )

    @field_validator("api_key")
    @classmethod
    def _long_enough(cls, given: SecretStr | None) -> SecretStr | None:
        # An empty variable is a key that was lost on its way, and no wish to serve without one.
        if given is not None and any(len(key) < _KEY_LENGTH for key in _listed(given)):
            raise ValueError(f"every key should have at least {_KEY_LENGTH} characters")
        return given

    @property
    def drain_seconds(self) -> int:
        """Time for open requests to end: all that any of them may take, so that none is cut."""
        return math.ceil(self.body_seconds + self.answer_seconds + self.taken_seconds)

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of which a client must send one; none: it need not."""
        return _listed(self.api_key) if self.api_key is not None else ()


def _listed(keys: SecretStr) -> tuple[str, ...]:
    """Without the blanks and line ends around each, which a client's header cannot have."""
    return tuple(key.strip() for key in keys.get_secret_value().split(","))
