"""Where tokens come from: the protocol that the middleware knows, and the source that manages one key.

`ManagedSource.token` is one look at one clock while the token is FRESH: no lock, no await, no checkpoint.
(The boot clock is never wrong about a duration. The wall clock can be, so it is read once a second.) When
the token is DUE, callers get it and a refresh starts in the background. When it is ENDING or EXPIRED, they
wait for the refresh.

State: what is remembered and what is running. `_refresh/cache.py` and `_refresh/coordinator.py` own it.
"""

from __future__ import annotations

import inspect
import warnings
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self, runtime_checkable

from anyio import CancelScope

from . import events
from ._refresh.cache import Snapshot, TokenCache
from ._refresh.coordinator import RefreshCoordinator
from ._refresh.store_access import StoreAccess
from ._refresh.transaction import RefreshTransaction
from ._validate import describe, implements
from .clock import Clock, SystemClock
from .errors import ConfigurationError, TokenSessionError
from .policy import WALL_CLOCK_CHECK, Freshness, Policy
from .providers.protocol import Provider, TokenTransport, configured_credential
from .stores import MemoryStore, open_store
from .stores.protocol import Store
from .token import Token
from .transport import AiohttpTransport

__all__ = ["EphemeralStoreWarning", "ManagedSource", "RefreshableSource", "TokenSource"]

_POLICY = Policy()
_CLOCK = SystemClock()
_TRANSPORT = AiohttpTransport()


class TokenSource(Protocol):
    """Anything that has a token. This is all that `BearerAuth` needs."""

    async def token(self) -> Token:
        """A token to send now. Raises an error rather than return one that cannot be valid."""
        ...


@runtime_checkable
class RefreshableSource(Protocol):
    """A source that can also replace a token after a 401."""

    async def token(self) -> Token:
        """A token to send now."""
        ...

    async def refresh(self, unauthorized: Token | None = None) -> Token:
        """Another token than the one that got a 401, or the same one if another would not help now."""
        ...


class EphemeralStoreWarning(UserWarning):
    """The provider rotates its refresh tokens, and without a store the new ones are lost at exit."""


class ManagedSource:
    """One key's token: stored, refreshed in time, with one token request for any number of callers.

    - `provider`: one of `tokensession.providers`, or your own.
    - `transport` sends the token requests. The default is `AiohttpTransport()`; pass
      `AiohttpTransport(ssl=..., proxy=...)` for a private certificate authority or a proxy.
    - `store`: a store, a URL for `open_store` such as `"sqlite:///tokens.db"`, or the `pathlib.Path` of an
      SQLite database. Without one, tokens live in memory.
    - `key` identifies the credential in the store. The default is made of the provider's name, environment,
      client and configured credential.
    - `policy`: the numbers of a token's life. `clock`: for tests. `observer` receives every event.

    A store that you pass in stays open. One that is opened here is closed by `aclose`, or by leaving
    `async with`. Making a source does no I/O and needs no event loop. It serves one event loop at a time.
    Raises `ConfigurationError` for arguments that cannot work.
    """

    __slots__ = (
        "__weakref__",
        "_boot",
        "_cache",
        "_clock",
        "_coordinator",
        "_observer",
        "_owned_store",
        "_transaction",
    )

    def __init__(
        self,
        provider: Provider,
        transport: TokenTransport | None = None,
        *,
        store: Store | str | Path | None = None,
        key: str | None = None,
        policy: Policy | None = None,
        clock: Clock | None = None,
        observer: events.Observer | None = None,
    ) -> None:
        if not implements(Provider, provider):
            raise ConfigurationError(  # not its repr: it may be the refresh token itself
                f"provider must be a provider, not {describe(provider)}.",
                todo="Pass an instance of one of tokensession.providers.",
            )
        if transport is not None and not callable(getattr(transport, "send", None)):
            raise ConfigurationError(
                f"transport must have a send method, and {describe(transport)} has none.",
                todo="Pass AiohttpTransport(), or leave it out.",
            )
        _check_settings(key, policy, clock, observer)
        name = provider.key if key is None else key
        if not name:
            raise ConfigurationError(
                "There is no key to store the token under.",
                todo='Give the provider a refresh_token or a code, or name the key: key="tenant-42".',
            )
        opened, self._owned_store = choose_store(store, provider)
        self._clock = clock or _CLOCK
        self._boot = self._clock.boot
        self._observer = observer
        rules, report = policy or _POLICY, self._report
        access = StoreAccess(name, opened, rules, self._clock, report)
        self._transaction = RefreshTransaction(
            access, provider, transport or _TRANSPORT, rules, self._clock, report
        )
        counts_sleep = getattr(self._clock, "boot_counts_sleep", False)
        self._cache = TokenCache(wall_check=WALL_CLOCK_CHECK if counts_sleep else 0.0)
        self._coordinator = RefreshCoordinator(self._transaction, self._cache, self._clock, self._report)

    # -- what callers use -------------------------------------------------------------------------

    @property
    def key(self) -> str:
        """The key in the store."""
        return self._transaction.key

    @property
    def provider(self) -> Provider:
        """The provider whose tokens these are."""
        return self._transaction.provider

    @property
    def origins(self) -> tuple[str, ...]:
        """Where this token may be sent: `scheme://host[:port]`."""
        return self._transaction.provider.origins

    async def token(self) -> Token:
        """A token to send now.

        Returns at once while there is a usable one. Otherwise waits for the one refresh that all callers
        share. Cancelling a caller does not disturb that refresh. Raises `SignInRequired`,
        `TokenUnavailable`, `ConfigurationError`, `StoreError` or `InvalidTokenResponse`.
        """
        cache = self._cache
        if self._boot() < cache.fresh_until:
            return cache.token  # type: ignore[return-value]  # `fresh_until` is long ago without a token
        return await self._slow_token()

    async def refresh(self, unauthorized: Token | None = None) -> Token:
        """A new token, although the current one may look valid. Raises as `token` does.

        Pass the token that the API answered 401 to as `unauthorized`. If a newer token is here already, you
        get that one; otherwise all callers share one refresh. You get the same token back if it came from
        such a refresh itself a moment ago: then the API rejects every token, and another one would not help.
        """
        if unauthorized is None:
            return await self._force_refresh()
        for _ in range(2):  # a refresh that is running may still end with the same token
            current = self._cache.token
            if current is not None and current.access_token != unauthorized.access_token:
                return await self.token()
            policy, boot = self._transaction.policy, self._boot()
            if current is not None and not self._cache.should_force_refresh(policy, boot):
                return current
            try:
                renewed = await self._coordinator.join("unauthorized").wait()
            except TokenSessionError:
                current = self._cache.token
                if current is None or current.access_token == unauthorized.access_token:
                    raise
                return await self.token()  # there has been a sign-in
            if renewed.access_token != unauthorized.access_token:
                return renewed
        return unauthorized

    async def sign_in(self, *, code: str | None = None, refresh_token: str | None = None) -> Token:
        """Redeem a new code or refresh token, and replace whatever is stored under the key.

        Supersedes a refresh that is running in any process. Finishes even if you are cancelled. Raises as
        `token` does; if it fails, the stored credentials are unchanged.
        """
        credential = configured_credential(code=code, refresh_token=refresh_token)
        if credential is None:
            raise ConfigurationError("sign_in needs a code or a refresh_token.", todo="Pass one of them.")
        return await self._coordinator.sign_in(credential).wait()

    async def sign_out(self) -> None:
        """Forget the token, here and in the store, until the next sign-in.

        Other processes notice when they next look at the store, at the latest when their token is due.
        Raises `StoreError` if the sign-out could not be stored: then the token is served as before.
        """
        await self._coordinator.sign_out().wait()

    def snapshot(self) -> Snapshot:
        """The state of this source, for people. Contains no secret."""
        running = self._coordinator
        return self._cache.snapshot(
            self.key, *self._now(), refreshing=running.refreshing, unsaved=running.unsaved
        )

    async def aclose(self) -> None:
        """Let what is running finish, for at most the policy's `close_timeout`, and close our own store.

        A running refresh is not cut off: its token may be the only copy. What has not finished by then is
        stopped and stored, which takes some seconds more only if the store hangs.

        A cancelled anyio scope does not cut this short. If `task.cancel()` does, call it again: it
        continues. Raises `StoreUnavailable` if a token could not be stored in time. You may use the source
        again afterwards.
        """
        with CancelScope(shield=True):
            try:
                await self._coordinator.close()
            finally:
                if self._owned_store is not None:
                    await self._owned_store.aclose()

    async def __aenter__(self) -> Self:
        """The source itself."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it: see `aclose`."""
        await self.aclose()

    def __repr__(self) -> str:
        state = self.snapshot()
        return (
            f"<ManagedSource {state.key} {state.freshness.value}{' refreshing' if state.refreshing else ''}>"
        )

    # -- behind it --------------------------------------------------------------------------------

    def _now(self) -> tuple[float, float]:
        return self._clock.wall(), self._clock.boot()

    async def _slow_token(self) -> Token:
        wall, boot = self._now()
        cache = self._cache
        freshness = cache.look(wall, boot)
        if cache.token is None or not freshness.usable:
            try:
                return await self._coordinator.join("expired").wait()
            except TokenSessionError:
                # ENDING comes a little before the end. If there is no other token, use this one until then.
                if (
                    cache.token is not None
                    and cache.deadlines.freshness(*self._now()) is not Freshness.EXPIRED
                ):
                    return cache.token
                raise
        if freshness is Freshness.DUE and boot >= cache.not_before:
            self._coordinator.start_background()
        return cache.token

    async def _force_refresh(self) -> Token:
        if self._cache.token is None:  # the store may know which token to replace
            requests, token = self._cache.counters.token_requests, await self.token()
            if self._cache.counters.token_requests > requests:
                return token
        return await self._coordinator.join("forced").wait()

    def _report(self, event: events.Event) -> None:
        events.emit(self._observer, event)


def _check_settings(
    key: str | None, policy: Policy | None, clock: Clock | None, observer: events.Observer | None
) -> None:
    if key is not None and not isinstance(key, str):
        raise ConfigurationError(f"key must be a string, not {describe(key)}.")
    if policy is not None and not isinstance(policy, Policy):
        raise ConfigurationError(f"policy must be a Policy, not {describe(policy)}.")
    if clock is not None and not implements(Clock, clock):
        raise ConfigurationError(f"clock must be a Clock, not {describe(clock)}.")
    if observer is not None and (not callable(observer) or inspect.iscoroutinefunction(observer)):
        kind = "a coroutine function" if callable(observer) else describe(observer)
        raise ConfigurationError(f"observer must be a callable that returns at once, not {kind}.")


def choose_store(
    store: Store | str | Path | None, provider: Provider, *, stacklevel: int = 3
) -> tuple[Store, Store | None]:
    """The store to use, and the same one again if it was opened here. `stacklevel` is for the warning."""
    if store is None:
        if getattr(provider, "rotates", False):
            warnings.warn(
                f"{type(provider).__name__} rotates its refresh tokens, and without a store the new ones are "
                'lost when this program ends. Pass store="sqlite:///tokens.db". If you do want to lose them, '
                'pass store="memory:".',
                EphemeralStoreWarning,
                stacklevel=stacklevel,
            )
        memory = MemoryStore()
        return memory, memory
    if isinstance(store, str | Path):
        opened = open_store(store)
        return opened, opened
    if not implements(Store, store):
        raise ConfigurationError(
            f"store must be a store, a URL or a Path, not {describe(store)}.",
            todo='Pass one of tokensession.stores, or a URL such as "sqlite:///tokens.db".',
        )
    return store, None
