"""Bodies that strangers send, and the answers' shapes for the OpenAPI document."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from thumbtune.records import VoteKind
from thumbtune.store.votes import Status

MAX_MESSAGES = 1_000
MAX_DEPTH = 64
"""How deep a body may be nested; tool schemas have some ten levels."""


class ChatMessage(BaseModel):
    """One message; further keys (`tool_calls`, `name` …) are kept as they are."""

    model_config = ConfigDict(extra="allow")
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[dict[str, Any]] | None = None


class StreamOptions(BaseModel):
    include_usage: bool = False


class ChatRequest(BaseModel):
    """OpenAI's chat request. A `user` in it is ignored: who asks is known from the key."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)
    model: str = Field("champion", max_length=200)
    messages: list[ChatMessage] = Field(min_length=1, max_length=MAX_MESSAGES)
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=8)] = 1
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    stop: str | Annotated[list[str], Field(max_length=4)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    tools: Annotated[list[dict[str, Any]], Field(max_length=128)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _check_texts(cls, value: Any) -> Any:
        value = check_texts(value)
        # null means "not said" in OpenAI's requests
        return (
            {name: item for name, item in value.items() if item is not None}
            if isinstance(value, dict)
            else value
        )

    def as_messages(self) -> list[dict[str, Any]]:
        """The messages as plain dicts, with the keys that were sent."""
        return [message.model_dump(exclude_unset=True) for message in self.messages]


class Feedback(BaseModel):
    """One press. Who presses is known from the vote token or the key, never from here: other fields are refused."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    completion_id: str = Field(min_length=1, max_length=64)
    vote_token: str | None = Field(
        None, max_length=1_000, description="Came with the answer; not needed beside a key."
    )
    label: bool | None = Field(None, description="true = 👍, false = 👎.")
    score: float | None = Field(None, description="Instead of a label: above 0 is 👍, below 0 is 👎.")
    retract: bool = Field(False, description="Take an earlier press of this kind back.")
    kind: VoteKind = Field(
        "explicit", description="edit, retry and copy are implicit, with a label of their own."
    )
    reason: str | None = Field(None, min_length=1, max_length=64)
    comment: str | None = Field(None, max_length=10_000)
    correction: str | None = Field(None, min_length=1, max_length=100_000, description="The better answer.")
    idempotency_key: str | None = Field(None, min_length=1, max_length=128)

    @model_validator(mode="before")
    @classmethod
    def _check_texts(cls, value: Any) -> Any:
        return check_texts(value)

    @model_validator(mode="after")
    def _check_choice(self) -> Feedback:
        given = [self.label is not None, self.score is not None, self.retract].count(True)
        if self.kind == "explicit" and given != 1:
            raise ValueError("give exactly one of label, score and retract")
        if self.kind != "explicit" and (self.label is not None or self.score is not None):
            raise ValueError(f"a press of kind {self.kind} has a label of its own: leave label and score out")
        if self.kind == "edit" and self.correction is None and not self.retract:
            raise ValueError("a press of kind edit needs the correction")
        if self.score == 0:
            raise ValueError("a score of 0 is neither 👍 nor 👎: leave the vote out, or retract it")
        return self


class VoteReceipt(BaseModel):
    """The press is on disk."""

    object: Literal["thumbtune.vote"] = "thumbtune.vote"
    completion_id: str
    kind: VoteKind
    label: bool | None
    status: Status


class ImportedCompletion(BaseModel):
    """An answer that was served elsewhere."""

    model_config = ConfigDict(extra="forbid")
    source_id: str = Field(min_length=1, max_length=200)
    user: str = Field(
        min_length=1, max_length=200, description="Who asked, as the source names them; kept as an HMAC."
    )
    messages: list[ChatMessage] = Field(min_length=1, max_length=MAX_MESSAGES)
    completion: str = Field(min_length=1, max_length=1_000_000)
    model: str = Field("unknown", min_length=1, max_length=160)
    finish_reason: str = Field("stop", min_length=1, max_length=32)
    created: float = Field(ge=0, le=4e9, description="Seconds since 1970, UTC.")


class ImportedVote(BaseModel):
    """A press that was made elsewhere, on an imported completion."""

    model_config = ConfigDict(extra="forbid")
    source_id: str = Field(min_length=1, max_length=200)
    completion_source_id: str = Field(min_length=1, max_length=200)
    user: str = Field(min_length=1, max_length=200)
    label: bool
    kind: VoteKind = "explicit"
    reason: str | None = Field(None, min_length=1, max_length=64)
    comment: str | None = Field(None, max_length=10_000)
    correction: str | None = Field(None, min_length=1, max_length=100_000)
    created: float = Field(ge=0, le=4e9)


class ImportRequest(BaseModel):
    """A batch from another product: the same batch twice changes nothing."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    source: str = Field(min_length=1, max_length=64, pattern=r"^[a-z0-9][a-z0-9._-]*$")
    completions: list[ImportedCompletion] = Field(default_factory=list, max_length=1_000)
    votes: list[ImportedVote] = Field(default_factory=list, max_length=1_000)

    @model_validator(mode="before")
    @classmethod
    def _check_texts(cls, value: Any) -> Any:
        return check_texts(value)

    @model_validator(mode="after")
    def _check_source(self) -> ImportRequest:
        if self.source == "gateway":
            raise ValueError(
                "the source 'gateway' is this gateway itself: name the product that the rows come from"
            )
        return self


class ImportReceipt(BaseModel):
    """What became of each row."""

    n_completions_new: int
    n_completions_known: int
    votes: dict[str, int] = Field(
        description="Votes by status: recorded, changed, repeated, unknown_completion …"
    )


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """OpenAI's shape of an error."""

    error: ErrorDetail


class ThumbtuneInfo(BaseModel):
    """What a vote needs."""

    completion_id: str
    vote_token: str
    model_version: str


class Choice(BaseModel):
    model_config = ConfigDict(extra="allow")
    index: int
    message: dict[str, Any]
    finish_reason: str | None
    thumbtune: ThumbtuneInfo


class ChatCompletion(BaseModel):
    """OpenAI's answer with `thumbtune` beside it, for the answer and for each choice."""

    model_config = ConfigDict(extra="allow")
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[Choice]
    thumbtune: ThumbtuneInfo


class Model(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Model]


def check_texts(value: Any) -> Any:
    """The value as it is; raises for what no database and no UTF-8 document can hold, and for nesting without end."""
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [child for item in level for child in _check_one(item)]
        if not level:
            return value
    raise ValueError(f"the body is nested more than {MAX_DEPTH} levels deep")


def _check_one(item: Any) -> Iterable[Any]:
    if isinstance(item, str):
        if "\x00" in item:
            raise ValueError("a text holds the character U+0000, which cannot be stored")
        try:
            item.isascii() or item.encode()
        except UnicodeEncodeError:
            raise ValueError("a text holds half of a surrogate pair, which is no character") from None
    elif isinstance(item, dict):
        return [*item.keys(), *item.values()]
    elif isinstance(item, list):
        return item
    elif isinstance(item, float) and not math.isfinite(item):
        raise ValueError("NaN and infinity are no JSON numbers")
    return ()
