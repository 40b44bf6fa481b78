"""The limits of the service, from CROSSMI_... variables of the environment or the command line."""

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

MIB = 1 << 20


class Settings(BaseSettings):
    """What one request may bring and how many may wait.

    Memory for uploads is bounded by (max_waiting + 1) * max_body_bytes plus a few times
    max_decoded_bytes, since one request at a time is decoded.
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
    max_windows: int = Field(4096, gt=0, description="Patches that a similarity map may compare")
    max_waiting: int = Field(16, ge=0, description="Requests that wait while one is worked on")
    body_seconds: float = Field(30.0, gt=0, description="Time for a body to arrive")
    drain_seconds: int = Field(30, ge=0, description="Time for open requests to end after SIGTERM")
    api_key: SecretStr | None = Field(
        None, min_length=16, description="What a client sends as `Authorization: Bearer KEY`"
    )
