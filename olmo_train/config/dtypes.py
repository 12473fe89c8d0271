"""Names of number formats, shared by the sections of the config."""

from enum import StrEnum


class FloatType(StrEnum):
    """A floating-point format."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


class MomentType(StrEnum):
    """A format of an optimizer's moments."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    INT8 = "int8"
    """8-bit codes with one float32 scale per 256 entries of a row."""
