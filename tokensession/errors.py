"""Every error that tokensession raises, grouped by who has to act.

::

    TokenSessionError
    ├── SignInRequired          a person (or your configuration) must sign in again
    │   ├── GrantRejected       the provider rejected the refresh token or code
    │   │   └── GrantLost       … after a request without an answer, which has probably spent it
    │   └── SignedOut           sign_out() was called for this key
    ├── TokenUnavailable        try again later: .retry_after says when
    │   ├── NotSent             the token request never left this machine
    │   ├── OutcomeUnknown      it was sent, and got no answer that says what happened
    │   ├── RateLimited         the provider asked for a pause
    │   ├── AuthorizationPending  a person has not answered on the other device yet
    │   ├── UnexplainedRefusal  the provider refused without an error code that we know
    │   └── ClaimTimeout        another holder has been refreshing for too long
    ├── ConfigurationError      fix the configuration (also a ValueError)
    │   ├── ClientRejected      the provider rejected this client or request, not the credential
    │   └── ForeignOrigin       the URL is outside the origins that the token may go to
    ├── StoreError              the token store failed
    │   ├── StoreUnavailable    it cannot be reached, read or written
    │   ├── StoreCorrupt        its content cannot be understood
    │   ├── StoreInsecure       other users could read or replace its files
    │   └── Superseded          a newer record is stored: nothing was overwritten
    └── InvalidTokenResponse    the provider's answer is neither a token nor a known error

A message has up to three parts: what happened, what is still intact, what to do next. No part contains a
secret: text from a provider goes through `redact` first.
"""

from __future__ import annotations

from typing import Any, Self, TypeVar

__all__ = [
    "AuthorizationPending",
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
    "UnexplainedRefusal",
]


class TokenSessionError(Exception):
    """Base class of all errors.

    `happened` is one sentence. `intact` (what is still good) and `todo` (what to do next) are the class's
    own, unless you pass others. `str()` joins the three.
    """

    intact: str = "What is stored has not changed."
    """What is still good, in one sentence, or ""."""
    todo: str = "See the error's cause."
    """What to do next, in one sentence, or ""."""

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
        """A copy for another caller, with the same cause.

        One exception object raised in many tasks would collect all their tracebacks. This error is not the
        copy's cause, because a traceback would then print the same sentences twice.
        """
        copy = _rebuild(type(self), self.args, dict(self.__dict__))
        copy.__cause__ = self.__cause__
        return copy


_E = TypeVar("_E", bound=TokenSessionError)


def _rebuild(kind: type[_E], args: tuple[Any, ...], state: dict[str, Any]) -> _E:
    error = kind.__new__(kind, *args)
    error.__dict__.update(state)
    if notes := state.get("__notes__"):
        error.__notes__ = list(notes)  # add_note() on a copy must not change the original
    return error


class SignInRequired(TokenSessionError):
    """There is no credential left to get a token with. Waiting does not help; a new sign-in does."""

    todo = "Sign in again: configure a new refresh token or code, or call source.sign_in(...)."


class GrantRejected(SignInRequired):
    """The provider rejected this refresh token or code, usually with `invalid_grant`.

    `code` is the provider's own error code, or "". If `certain`, the credential is not sent again. If not,
    the code may mean something else too: one process tries again every 15 minutes, and later every 6 hours.
    """

    intact = "This refresh token or code is not sent again. Other accounts are not affected."
    todo = (
        "Sign in again: configure a new refresh token or code, or call source.sign_in(...). Programs that "
        "use one account need one store and one key."
    )
    code: str
    certain: bool

    def __init__(
        self,
        happened: str,
        *,
        code: str = "",
        certain: bool = True,
        intact: str | None = None,
        todo: str | None = None,
    ) -> None:
        if not certain and intact is None:
            intact = "This one is tried again from time to time. Other accounts are not affected."
        super().__init__(happened, intact=intact, todo=todo)
        self.code = code
        self.certain = certain


class GrantLost(GrantRejected):
    """The provider rejected this refresh token or code, and an earlier request with it got no answer.

    That request has probably spent it, and its answer had the next one.
    """


class SignedOut(SignInRequired):
    """`sign_out()` was called for this key, here or in another process."""

    intact = "The sign-out is stored, and a late refresh cannot undo it."


class TokenUnavailable(TokenSessionError):
    """There is no token now, but the credential is good. Try again after `retry_after` seconds.

    `retry_after` is None if it is not known how long to wait.
    """

    intact = "The stored credentials are unchanged."
    todo = "Try again later."
    retry_after: float | None

    def __init__(self, happened: str, *, retry_after: float | None = None, todo: str | None = None) -> None:
        super().__init__(happened, todo=todo)
        self.retry_after = retry_after

    def __str__(self) -> str:
        text = super().__str__()
        return text if self.retry_after is None else f"{text} (retry_after={self.retry_after:.1f} s)"


class NotSent(TokenUnavailable):
    """The token request never left: no connection, or a secret that could not be read.

    The provider has seen nothing.
    """


class OutcomeUnknown(TokenUnavailable):
    """The token request was sent, and got no answer that says what happened.

    If the provider rotates refresh tokens, this one may be spent. It is tried again until there is an answer.
    """

    intact = "Whether the refresh token or code still works is not known."


class RateLimited(TokenUnavailable):
    """The provider asked for a pause of `retry_after` seconds."""


class AuthorizationPending(TokenUnavailable):
    """A person has not approved the sign-in on the other device yet (RFC 8628, 3.5). Nothing is spent.

    `slow_down`: the server asks for five seconds more between two requests.
    """

    intact = "The device code is still good."
    todo = "Try again after the interval."
    slow_down: bool

    def __init__(
        self,
        happened: str,
        *,
        slow_down: bool = False,
        retry_after: float | None = None,
        todo: str | None = None,
    ) -> None:
        super().__init__(happened, retry_after=retry_after, todo=todo)
        self.slow_down = slow_down


class UnexplainedRefusal(TokenUnavailable):
    """The provider refused (400 or 401) without an error code that we know: an empty body, or a page.

    A gateway may answer like this, and a provider that rejects a refresh token. So it is tried again. After
    three in a row, over at least a minute, it counts as a rejection (`GrantRejected`, not `certain`).
    """


class ClaimTimeout(TokenUnavailable):
    """Another task or process held the claim for longer than the time-out."""


class ConfigurationError(TokenSessionError, ValueError):
    """An argument is wrong, or your registration at the provider is."""

    intact = ""
    todo = ""


class ClientRejected(ConfigurationError):
    """The provider rejected the client or the request, not the refresh token or code.

    `code` is the provider's own error code, or "".
    """

    intact = "The stored credentials are unchanged."
    todo = "Check the client's credentials and permissions, and the address (token_url or base_url)."
    code: str

    def __init__(self, happened: str, *, code: str = "", todo: str | None = None) -> None:
        super().__init__(happened, todo=todo)
        self.code = code


class ForeignOrigin(ConfigurationError):
    """The URL is outside the origins that the token may go to. Nothing was sent."""

    intact = "Nothing was sent."


class StoreError(TokenSessionError):
    """The token store failed."""

    todo = "Check the store."


class StoreUnavailable(StoreError):
    """The store cannot be reached, read or written now."""


class StoreCorrupt(StoreError):
    """The stored record cannot be understood. The next sign-in overwrites it."""

    intact = "The stored bytes are unchanged."
    todo = "Restore them from the newest backup, or sign in again: that replaces them."


class StoreInsecure(StoreError):
    """Other users could read or replace the store's files, so they are not used."""

    intact = "Nothing was read or written."


class Superseded(StoreError):
    """A commit or conditional write found another version than the one it expected.

    `record` is the newer `Record`, or None if the key was deleted.
    """

    intact = "Nothing was overwritten."
    todo = "Use the newer record."
    record: Any

    def __init__(self, happened: str, *, record: Any = None) -> None:
        super().__init__(happened)
        self.record = record


_MAY_BE_SPENT = "If refresh tokens rotate here, the one that was sent may be spent."


class InvalidTokenResponse(TokenSessionError):
    """The provider's answer is neither a token nor a known error.

    `granted` is True if it may have carried a token. Then the refresh token or code may be spent.
    """

    intact = "The stored credentials are unchanged."
    todo = "Check token_url or base_url, then the provider's status page."
    granted: bool

    def __init__(
        self, happened: str, *, granted: bool = False, intact: str | None = None, todo: str | None = None
    ) -> None:
        super().__init__(happened, intact=intact, todo=todo)
        self.granted = granted

    def __str__(self) -> str:
        text = super().__str__()
        return f"{text} {_MAY_BE_SPENT}" if self.granted else text
