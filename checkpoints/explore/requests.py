"""What a browser may ask, typed; everything else is refused with 422."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

MAX_INT = 2**63 - 1
Count = Annotated[int, Field(ge=0, le=MAX_INT)]


def _characters(text: str) -> str:
    """JSON can spell half a character out, which no tokenizer reads."""
    if any(0xD800 <= ord(char) < 0xE000 for char in text):
        raise ValueError("has half of a surrogate pair, which is no character")
    return text


Text = Annotated[str, AfterValidator(_characters)]


class Request(BaseModel):
    """Unknown names and other types are errors."""

    model_config = ConfigDict(extra="forbid", strict=True)


class GenerateRequest(Request):
    """Continue a prompt with one checkpoint."""

    step: Count
    prompt: Text = ""
    max_tokens: Annotated[int, Field(ge=1)] = 100
    temperature: Annotated[float, Field(ge=0, le=100)] = 0.8
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.95
    seed: Count = 0


class TraceRequest(Request):
    """Find a text in the training data; documents are ranked against prompt and text."""

    text: Text
    prompt: Text = ""


class BeliefRequest(Request):
    """How probable a part of a text was at each checkpoint."""

    text: Text
    span: Text
    """Part of the text."""
    place: Annotated[str, Field(pattern=r"^[0-9]{1,9}:[0-9]{1,9}:[0-9]{1,18}$")] | None = None
    """corpus:file:offset, where the span stands; None: the occurrence that was learned first."""
    context: Literal["row", "document", "text"] | None = None
    """None: the row's, where there is one."""
    steps: Annotated[list[Count], Field(min_length=1, max_length=10_000)] | None = None
    """None: all saved, spread to the limit."""
