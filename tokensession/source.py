"""The source that manages one key's token.

`ManagedSource.token` is one look at one clock while the token is FRESH: no lock, no await, no checkpoint.
(The boot-time clock cannot be wrong about a duration; the wall clock, which can, is looked at once a
second.) When the token is DUE, the caller gets it all the same and a refresh starts; when it is EXPIRED,
callers wait for the refresh.

State: what is held, and what is under way; `held.py` and `refreshes.py` own it.
"""

from __future__ import annotations

from . import events
from .clock import Clock, SystemClock
from .errors import ConfigurationError, TokenSessionError
from .freshness import Policy, Verdict
from .held import Held, Snapshot
from .protocols import keeps
from .providers import checks
from .providers.base import Provider, TokenEndpoint
from .refreshes import Refreshes
from .renewal import Renewal
from .storage import Storage
from .stores.base import Store, check_key
from .token import Token

__all__ = ["ManagedSource"]

_BETWEEN_LOOKS = 1.0  # seconds in which a step of the wall clock may go unnoticed; the boot clock goes on
_POLICY = Policy()
_CLOCK = SystemClock()


class ManagedSource:
    """One key's token: kept in a store, refreshed in time, by one request however many ask.

    `endpoint` sends the token requests (`tokensession.AiohttpEndpoint()`). `key` names the credential
    in the store; the default is the provider's own, made of its name, environment, client and seed.
    The store is borrowed: closing the source does not close it.
    """

    __slots__ = (
        "__weakref__",
        "_boot",
        "_clock",
        "_held",
        "_observer",
        "_refreshes",
        "_renewal",
    )

    def __init__(
        self,
        provider: Provider,
        endpoint: TokenEndpoint,
        *,
        store: Store,
        key: str | None = None,
        policy: Policy | None = None,
        clock: Clock | None = None,
        observer: events.Observer | None = None,
    ) -> None:
        if not keeps(Provider, provider):
            raise ConfigurationError(  # not by its repr: it may be the refresh token itself
                f"A {type(provider).__name__} is no provider.",
                todo="Pass an instance of one of tokensession.providers.",
            )
        if not keeps(Store, store):
            raise ConfigurationError(
                f"A {type(store).__name__} is no store.",
                todo='Pass one of tokensession.stores, or open_store("sqlite:///tokens.db").',
            )
        name = provider.key if key is None else key
        if not name:
            raise ConfigurationError(
                "There is no key to keep the token under.",
                todo='Give the provider a refresh_token or a code, or name the key: key="tenant-42".',
            )
        self._clock = clock or _CLOCK
        self._boot = self._clock.boot
        self._observer = observer
        rules, report = policy or _POLICY, self._report
        storage = Storage(check_key(name), store, rules, self._clock, report)
        self._renewal = Renewal(storage, provider, endpoint, rules, self._clock, report)
        counts_sleep = getattr(self._clock, "boot_counts_sleep", False)
        self._held = Held(between_looks=_BETWEEN_LOOKS if counts_sleep else 0.0)
        self._refreshes = Refreshes(self._renewal, self._held, self._clock, self._report)

    # -- what callers use -------------------------------------------------------------------------

    @property
    def key(self) -> str:
        """The key in the store."""
        return self._renewal.key

    @property
    def provider(self) -> Provider:
        """The provider whose tokens these are."""
        return self._renewal.provider

    @property
    def origins(self) -> tuple[str, ...]:
        """Where this token may go."""
        return self._renewal.provider.origins

    async def token(self) -> Token:
        """A token to send now.

        Returns at once while there is a usable one. Otherwise waits for the one refresh that all
        callers share; being cancelled does not disturb it. Raises `SignInRequired`,
        `TokenUnavailable`, `ConfigurationError`, `StoreError` or `MalformedReply`.
        """
        held = self._held
        if self._boot() < held.sure_until:
            return held.token  # type: ignore[return-value]  # there is one: else `sure_until` is long ago
        return await self._stale()

    async def refresh(self, rejected: Token | None = None) -> Token:
        """A new token, although the current one may look good.

        With `rejected`, the token that the API answered 401 to: if a newer one is here already, that
        one; else one refresh, shared by all who ask. The same token comes back if a 401 has just
        produced it: then the API is saying no, and another token would not change its mind.
        """
        if rejected is None:
            return await self._asked()
        for _ in range(2):  # a refresh under way may yet end with the rejected token
            current = self._held.token
            if current is not None and current.access_token != rejected.access_token:
                return await self.token()
            if current is not None and not self._held.refused(self._renewal.policy, self._now()[1]):
                return current
            try:
                renewed = await self._refreshes.joined("refused").wait()
            except TokenSessionError:
                current = self._held.token
                if current is None or current.access_token == rejected.access_token:
                    raise
                return await self.token()  # somebody has signed in meanwhile
            if renewed.access_token != rejected.access_token:
                return renewed
        return rejected

    async def sign_in(self, *, code: str | None = None, refresh_token: str | None = None) -> Token:
        """Redeem a new code or refresh token, and replace whatever is stored under the key.

        A refresh under way anywhere is superseded. The sign-in is finished even if the caller is
        cancelled. Raises as `token` does; if it fails, the stored credentials are unchanged.
        """
        credential = checks.seed(code=code, refresh_token=refresh_token)
        if credential is None:
            raise ConfigurationError("Signing in takes a code or a refresh_token.", todo="Pass one of them.")
        return await self._refreshes.sign_in(credential).wait()

    async def sign_out(self) -> None:
        """Forget the token, here and in the store, until somebody signs in again.

        Other processes notice when they next look at the store: at the latest when their token is due.
        Raises `StoreError` if it could not be stored, or gave no answer; then the token is served as before.
        """
        await self._refreshes.sign_out().wait()

    def snapshot(self) -> Snapshot:
        """The state of this source, for people."""
        under_way = self._refreshes
        return self._held.snapshot(
            self.key, *self._now(), in_flight=under_way.in_flight, unsaved=under_way.unsaved
        )

    async def aclose(self) -> None:
        """Let what is under way finish, for at most the policy's grace period.

        A refresh is not cut off: its token may be the only copy. What is left then is stopped and stored,
        which takes some seconds more only if the store hangs. Raises `StoreUnavailable` if a token
        could still not be stored when time was up. The source may be used again.
        """
        await self._refreshes.close()

    def __repr__(self) -> str:
        state = self.snapshot()
        return f"<ManagedSource {state.key} {state.verdict.value}{' in flight' if state.in_flight else ''}>"

    # -- behind it --------------------------------------------------------------------------------

    def _now(self) -> tuple[float, float]:
        return self._clock.wall(), self._clock.boot()

    async def _stale(self) -> Token:
        wall, boot = self._now()
        held = self._held
        verdict = held.look(wall, boot)
        if held.token is None or verdict is Verdict.EXPIRED:
            try:
                return await self._refreshes.joined("expired").wait()
            except TokenSessionError:
                # EXPIRED comes a little before the end. If no other token can be had, live until then.
                if held.token is not None and held.deadlines.alive(*self._now()):
                    return held.token
                raise
        if verdict is Verdict.DUE and boot >= held.not_before:
            self._refreshes.ahead()
        return held.token

    async def _asked(self) -> Token:
        if self._held.token is None:  # which token it is that should be replaced, the store may know
            requests, token = self._held.counts.token_requests, await self.token()
            if self._held.counts.token_requests > requests:
                return token
        return await self._refreshes.joined("asked").wait()

    def _report(self, event: events.Event) -> None:
        events.emit(self._observer, event)
