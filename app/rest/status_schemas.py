"""What REST API v1 takes and returns about terminals: queries, their results, and the events of streams."""

from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, Field

from app.core import queries
from app.domain.statuses import Liveness, Source, Status
from app.rest.schemas import Addresses, At, Request, Requester, example

# Terminals.


class TerminalStatus(BaseModel):
    """A terminal's status, and when the presence server stated it."""

    address: str = Field(
        description="The terminal's address in canonical form: scheme, host and parameters in lower case, a telephone "
        "number without visual separators. May differ from the request's; equal terminals have equal canonical forms."
    )
    status: Status = Field(
        description="`REACHABLE`: registered, and not known to be busy. `UNREACHABLE`: not registered. `BUSY`: "
        "registered, and the user is busy, as on a call. Treat an unknown value as an unknown status."
    )
    observe_time: At = Field(
        description="When the presence server stated the status, by the gateway's clock (RFC 3339, UTC)."
    )
    source: Source = Field(
        description="Where the status came from. `FETCH`: from a query to the presence server. `WATCH`: from the "
        "gateway's own subscription at the presence server."
    )
    revision: int = Field(
        description="Number of the terminal's stored status, from 1; each change adds 1. 0: the status is not stored."
    )


class TerminalError(BaseModel):
    """Why one terminal of a request failed."""

    code: str = Field(description="The error's code, as `code` of a Problem.")
    detail: str = Field(description="What happened, for people. The wording may change.")
    retryable: bool = Field(description="Whether the same request may succeed later.")
    retry_after_s: float | None = Field(description="Seconds to wait before the next attempt; null if unknown.")
    details: dict[str, str] = Field(description="Short strings for machines, such as the SIP code.")


class NotifiedError(BaseModel):
    """Why a terminal of a subscription, or the whole subscription, failed."""

    code: str = Field(description="The error's code, as `code` of a Problem.")
    detail: str = Field(description="What happened, for people. The wording may change.")


class QueryRequest(Request):
    """A query for many terminals."""

    model_config = example({"addresses": ["sip:alice@example.com", "tel:+15551234567"], "max_age_s": 5})

    addresses: Addresses
    max_age_s: float = Field(
        0, ge=0, le=86_400, description="The accepted age of a status, in seconds. 0 queries the presence server now."
    )
    requester: Requester = ""


class TerminalResult(BaseModel):
    """The result of a query for one terminal."""

    address: str = Field(description="The terminal's address in canonical form; never a group's.")
    retrieval_status: queries.RetrievalStatus = Field(
        description="`RETRIEVED`: `status` is present. `NOT_RETRIEVED`: not queried, or no answer in time; a repeated "
        "query may succeed. `ERROR`: the terminal is unknown, or the presence server refuses the answer."
    )
    status: TerminalStatus | None = Field(description="Present if RETRIEVED, otherwise null.")
    error: TerminalError | None = Field(description="Why the status is null; null if RETRIEVED.")


class QueryResults(BaseModel):
    """The results of a query, one for each terminal."""

    results: list[TerminalResult] = Field(description="The results, in no particular order.")


class WatchedTerminal(BaseModel):
    """Data of `snapshot-item`: the current state of a watched terminal. It replaces all that the client knows of it."""

    address: str = Field(description="The terminal's address in canonical form.")
    status: TerminalStatus | None = Field(description="The last known status; null before the first.")
    liveness: Liveness = Field(
        description="`LIVE`: the presence server reports each change. `STALE`: contact is lost, and the status is the "
        "last known one. `UNKNOWN`: no status was observed yet."
    )
    liveness_reason: str = Field(description="Why the liveness is not LIVE, for people; else empty.")
    liveness_time: At = Field(description="When this liveness began (RFC 3339, UTC).")


class LivenessChange(BaseModel):
    """Data of `liveness-change`: a terminal's liveness has changed; its status has not."""

    address: str = Field(description="The terminal's address in canonical form.")
    liveness: Liveness = Field(description="The new liveness, as in WatchedTerminal.")
    liveness_reason: str = Field(description="Why the liveness is not LIVE, for people; else empty.")
    liveness_time: At = Field(description="When this liveness began (RFC 3339, UTC).")
    error: TerminalError | None = Field(
        description="The error, if the presence server refuses the watch or does not know the terminal, or if its last "
        "presence document cannot be read; else null.",
    )


class ResumeToken(BaseModel):
    """Data of `bookmark`; the event's `id` has the same token."""

    resume_token: str = Field(description="Resumes the stream after this event.")


class SnapshotComplete(ResumeToken):
    """Data of `snapshot-complete`: every terminal has been sent; changes follow."""

    reset: bool = Field(
        description="Whether the client's last event id could not be used, since it comes from an older gateway, from "
        "a stream of other terminals, or from before the database was restored or replaced. The snapshot then has "
        "every terminal: discard what you know and keep the snapshot, even if its revisions are smaller."
    )
    bookmark_interval_ms: int = Field(
        description="The longest time until the next event, in milliseconds: a `bookmark` is sent if nothing changes."
    )


class StreamEnd(BaseModel):
    """Data of `end`, the last event."""

    reason: Literal["GATEWAY_STOPPING", "NOTHING_TO_WATCH", "CREDENTIALS_EXPIRED", "MAX_AGE"] = Field(
        description="Open the stream again after GATEWAY_STOPPING and MAX_AGE. Later versions may add reasons."
    )
    message: str = Field(description="Why the stream ended, for people.")
    resume_token: str = Field(description="Resumes the stream; empty if opening it again is pointless.")


class TerminalRemoved(BaseModel):
    """Data of `removed`: the terminal left the group through which it was watched."""

    address: str = Field(description="The terminal's address in canonical form.")


STREAMED: Mapping[str, type[BaseModel]] = {
    "snapshot-item": WatchedTerminal,
    "snapshot-complete": SnapshotComplete,
    "change": TerminalStatus,
    "liveness-change": LivenessChange,
    "terminal-removed": TerminalRemoved,
    "bookmark": ResumeToken,
    "end": StreamEnd,
}
"""The data of a stream's events by event name."""
