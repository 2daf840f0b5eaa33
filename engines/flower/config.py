"""Configuration of a run of a Flower app: the packed app and overrides of its own configuration."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, field_validator

from ...core.session import Code
from ...wire.encodings import parse
from .archive import ARCHIVE_CHARACTERS

#: A value in an app's run configuration.
Value = bool | int | float | str


class FlowerRun(BaseModel):
    """Settings of the workload ``flower``, which ``farshore run flower --app DIR`` fills in."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    archive: str = Field(max_length=ARCHIVE_CHARACTERS, repr=False, description="the app's files, packed by --app DIR")
    digest: str = Field(pattern="^[0-9a-f]{64}$", description="SHA-256 of the app's files, which operators accept")
    run_config: dict[str, Value] = Field({}, description="overrides of the app's own configuration")
    down_encoding: str = Field("raw", description="encoding of float32 arrays to the nodes: raw, fp16, int8 …")
    up_encoding: str = Field("raw", description="encoding of float32 arrays to the server")

    @property
    def code(self) -> Code:
        """The code that operators must accept."""
        return Code(self.digest, "a Flower app")

    @field_validator("down_encoding", "up_encoding")
    @classmethod
    def _known(cls, name: str) -> str:
        parse(name)
        return name
