"""What a run of a Flower app is told: the app itself, as an archive, and what is changed of its configuration."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, field_validator

from ...core.session import Code
from ...wire.encodings import parse
from .archive import ARCHIVE_CHARACTERS

#: A value of an app's run configuration.
Value = bool | int | float | str


class FlowerRun(BaseModel):
    """Configuration of the method; ``farshore run flower --app DIR`` fills it in."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    archive: str = Field(max_length=ARCHIVE_CHARACTERS, repr=False, description="the app's files, packed by --app DIR")
    digest: str = Field(pattern="^[0-9a-f]{64}$", description="SHA-256 of the app's files: what operators accept it by")
    run_config: dict[str, Value] = Field({}, description="what is changed of the app's own configuration")
    down_encoding: str = Field("raw", description="how float32 arrays travel to the nodes: raw, fp16, int8 …")
    up_encoding: str = Field("raw", description="how float32 arrays travel to the server")

    @property
    def code(self) -> Code:
        """What operators are asked to accept."""
        return Code(self.digest, "a Flower app")

    @field_validator("down_encoding", "up_encoding")
    @classmethod
    def _known(cls, name: str) -> str:
        parse(name)
        return name
