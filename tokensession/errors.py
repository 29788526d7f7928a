"""Every error tokensession raises, split by whose turn it is to act.

::

    TokenSessionError
    ├── SignInRequired          a person (or the configuration) must sign in again
    │   ├── GrantRejected       the provider refused the refresh token or code
    │   ├── GrantLost           a reply was lost, and its one replay is used up
    │   └── SignedOut           sign_out() was called for this key
    ├── TokenUnavailable        try later: .retry_after says when
    │   ├── NotSent             the token request never left this machine
    │   ├── OutcomeUnknown      it was sent, and no answer says what became of it
    │   ├── RateLimited         the provider asked for a pause
    │   └── ClaimTimeout        another holder has been refreshing for too long
    ├── ConfigurationError      fix the configuration (also a ValueError)
    │   ├── ClientRejected      the provider refused this client, not this grant
    │   └── ForeignOrigin       the URL is outside the origins a token may go to
    ├── StoreError              the token store is in trouble
    │   ├── StoreUnavailable    it cannot be reached, read or written
    │   ├── StoreCorrupt        what it holds cannot be understood
    │   ├── StoreInsecure       its files could be read or replaced by others
    │   └── Superseded          a newer record is stored: nothing was overwritten
    └── InvalidTokenResponse          the provider answered something that is no answer

Each message has three parts: what happened, what is still intact, what to do next. None holds a
secret: what a provider wrote is passed through `redact` before it gets here.
"""

from __future__ import annotations

from typing import Any, Self, TypeVar

__all__ = [
    "ClaimTimeout",
    "ClientRejected",
    "ConfigurationError",
    "ForeignOrigin",
    "GrantLost",
    "GrantRejected",
    "InvalidTokenResponse",
    "NotSent",
    "OutcomeUnknown",
    "RateLimited",
    "SignInRequired",
    "SignedOut",
    "StoreCorrupt",
    "StoreError",
    "StoreInsecure",
    "StoreUnavailable",
    "Superseded",
    "TokenSessionError",
    "TokenUnavailable",
]


class TokenSessionError(Exception):
    """The root of the tree.

    `happened` is one sentence; `intact` and `todo` default to the class's own, so that no error can
    be raised without saying what is still good and what to do next.
    """

    intact: str = "Nothing that was stored has changed."
    todo: str = "See the error's cause."

    def __init__(self, happened: str, *, intact: str | None = None, todo: str | None = None) -> None:
        super().__init__(happened)
        if intact is not None:
            self.intact = intact
        if todo is not None:
            self.todo = todo

    def __str__(self) -> str:
        return " ".join(part for part in (self.args[0], self.intact, self.todo) if part)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.args, dict(self.__dict__))

    def again(self) -> Self:
        """A fresh copy for one more caller, with this one as its cause.

        One exception object raised in many tasks would collect all their tracebacks.
        """
        copy = _rebuild(type(self), self.args, dict(self.__dict__))
        copy.__cause__ = self
        return copy


_E = TypeVar("_E", bound=TokenSessionError)


def _rebuild(kind: type[_E], args: tuple[Any, ...], state: dict[str, Any]) -> _E:
    error = kind.__new__(kind, *args)
    error.__dict__.update(state)
    if notes := state.get("__notes__"):
        error.__notes__ = list(notes)  # add_note() on a copy must not write on the original
    return error


class SignInRequired(TokenSessionError):
    """The grant is gone. Waiting does not help; a new sign-in does."""

    todo = "Sign in again: configure a new refresh token or code, or call source.sign_in(...)."


class GrantRejected(SignInRequired):
    """The provider refused this refresh token or code for good. `code` is its own error code."""

    intact = "The refusal is remembered for this refresh token only, and it is not sent again."

    def __init__(self, happened: str, *, code: str = "", todo: str | None = None) -> None:
        super().__init__(happened, todo=todo)
        self.code = code


class GrantLost(SignInRequired):
    """A refresh token was sent, the answer never came, and the one permitted replay is used up."""

    intact = "The last known token is still stored."


class SignedOut(SignInRequired):
    """`sign_out()` was called for this key, here or in another process."""

    intact = "The sign-out is stored; no late refresh can undo it."


class TokenUnavailable(TokenSessionError):
    """No token can be had now, and the grant is good. `retry_after` is in seconds, or None."""

    intact = "The stored credentials are unchanged."
    todo = "Try again later."

    def __init__(self, happened: str, *, retry_after: float | None = None, todo: str | None = None) -> None:
        super().__init__(happened, todo=todo)
        self.retry_after = retry_after

    def __str__(self) -> str:
        text = super().__str__()
        return text if self.retry_after is None else f"{text} (retry_after={self.retry_after:.1f} s)"


class NotSent(TokenUnavailable):
    """The connection could not be opened: the provider has seen nothing."""


class OutcomeUnknown(TokenUnavailable):
    """The request was sent and no answer came that says what became of it.

    Where refresh tokens rotate, the grant may be spent.
    """


class RateLimited(TokenUnavailable):
    """The provider asked for a pause of `retry_after` seconds."""


class ClaimTimeout(TokenUnavailable):
    """Somebody else has held the claim for longer than this caller was willing to wait."""


class ConfigurationError(TokenSessionError, ValueError):
    """Something that was passed in, or registered at the provider, must be put right."""

    todo = "Put the configuration right, then start again."


class ClientRejected(ConfigurationError):
    """The provider refused the client or the request, not the grant. `code` is its error code."""

    intact = "The stored credentials are unchanged."

    def __init__(self, happened: str, *, code: str = "", todo: str | None = None) -> None:
        super().__init__(happened, todo=todo)
        self.code = code


class ForeignOrigin(ConfigurationError):
    """The URL is outside the origins a token may go to; nothing was sent."""

    intact = "Nothing was sent."


class StoreError(TokenSessionError):
    """The token store is in trouble."""

    todo = "Look at the store; the message above says where."


class StoreUnavailable(StoreError):
    """The store cannot be reached, read or written now."""


class StoreCorrupt(StoreError):
    """What is stored cannot be understood. The next sign-in overwrites it."""

    intact = "The stored bytes were left as they are."
    todo = "Restore them from a copy, or sign in again: that replaces them."


class StoreInsecure(StoreError):
    """Others could read or replace the store's files, so they are not used."""

    intact = "Nothing was read or written."


class Superseded(StoreError):
    """A commit or conditional write found another version than the one it expected.

    `record` is the newer record, or None if the key was deleted.
    """

    todo = "Use the newer record."

    def __init__(self, happened: str, *, record: Any = None) -> None:
        super().__init__(happened, intact="Nothing was overwritten.")
        self.record = record


class InvalidTokenResponse(TokenSessionError):
    """The provider answered something that is no token and no documented error.

    `granted` is True if it was a success that may have carried a token: then the grant may be spent.
    """

    intact = "The stored credentials are unchanged."
    todo = "Check base_url, then the provider's status page."

    def __init__(self, happened: str, *, granted: bool = False, todo: str | None = None) -> None:
        super().__init__(happened, todo=todo)
        self.granted = granted
