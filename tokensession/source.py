"""Where tokens come from: the protocol that the middleware knows, and the source that manages one key.

`ManagedSource.token` is one look at one clock while the token is FRESH: no lock, no await, no checkpoint.
(The boot clock is never wrong about a duration. The wall clock can be, so it is read once a second.) When
the token is DUE, callers get it and a refresh starts in the background. When it is ENDING or EXPIRED, they
wait for the refresh.

State: what is remembered and what is running. `_refresh/cache.py` and `_refresh/coordinator.py` own it. It
belongs to one event loop and one process (`Home`), so a forked child begins with nothing, like a new process.
"""

from __future__ import annotations

import inspect
import sys
import warnings
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, NoReturn, Protocol, Self, runtime_checkable

from anyio import CancelScope

from ._validate import describe, implements
from .clock import Clock, SystemClock
from .errors import ConfigurationError, StoreError, TokenSessionError
from .home import THIS_PROCESS, Home, parents
from .observer import Event, Observer, emit
from .policy import WALL_CLOCK_CHECK, Freshness, Policy
from .providers.protocol import Credential, Provider, TokenTransport, sign_in_credential
from .snapshot import Snapshot
from .stores.protocol import Store
from .token import Token
from .transport import AiohttpTransport

if TYPE_CHECKING:
    from asyncio import Future

    from ._refresh.single_flight import SharedTask

__all__ = ["EphemeralStoreWarning", "ManagedSource", "RefreshableSource", "TokenSource"]

_NO_ROTATION = "\nOr rotates=False, if the server documents that a refresh token stays valid after use."
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
    `async with`. Making a source does no I/O and needs no event loop. It serves one event loop at a time:
    while that runs, refreshing or closing in another one raises RuntimeError. In a forked child it begins
    with what is stored. Raises `ConfigurationError` for arguments that cannot work.
    """

    __slots__ = (
        "__weakref__",
        "_boot",
        "_cache",
        "_clock",
        "_coordinator",
        "_home",
        "_observer",
        "_owned_store",
        "_record",
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
        observer: Observer | None = None,
    ) -> None:
        check_provider("provider", provider)
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
        self._clock = clock or _CLOCK
        opened, self._owned_store = _choose_store(store, provider, self._clock)
        self._boot = self._clock.boot
        self._observer = observer
        self._home = Home("source")
        self._begin(name, opened, provider, transport or _TRANSPORT, policy or _POLICY)

    # -- what callers use -------------------------------------------------------------------------

    @property
    def key(self) -> str:
        """The key in the store."""
        return self._record.key

    @property
    def provider(self) -> Provider:
        """The provider whose tokens these are."""
        return self._record.provider

    @property
    def origins(self) -> tuple[str, ...]:
        """Where this token may be sent: `scheme://host[:port]`."""
        return self._record.provider.origins

    async def token(self) -> Token:
        """A token to send now.

        Returns at once while there is a usable one. Otherwise waits for the one refresh that all callers
        share. Cancelling a caller does not disturb that refresh. Raises `SignInRequired`,
        `TokenUnavailable`, `ConfigurationError`, `StoreError` or `InvalidTokenResponse`.
        """
        cache = self._cache
        if self._boot() < cache.fresh_until:
            return cache.token  # type: ignore[return-value]  # `fresh_until` is long ago without a token
        self._enter()
        while True:
            found = self._look()
            if isinstance(found, Token):
                return found
            # A crowd waits here: each caller awaits a future itself, and not a coroutine that does.
            uses = cache.uses
            token = self._came_of(found, await self._joined(found))
            if token is not None and (cache.uses is None or cache.take() or cache.uses is uses):
                return token

    async def refresh(self, unauthorized: Token | None = None, *, force: bool = False) -> Token:
        """A new token, although the current one may look valid. Raises as `token` does.

        Pass the token that the API answered 401 to as `unauthorized`. If a newer token is here or in the
        store already, you get that one; otherwise all callers share one refresh. You get the same token back
        if it came from such a refresh itself a moment ago: then the API rejects every token, and another one
        would not help. You also get the current token back if its refresh token may be spent, because a token
        request got no answer: it is left alone until the access token ends.

        `force=True` makes one token request although a rejection or a pause is remembered, at most one a
        minute over all processes: a server's rejection can be a mistake. It does not undo a sign-out, and
        does not ignore a pause that the server has asked for.
        """
        self._enter()
        if unauthorized is None:
            return await self._force_refresh(force=force)
        for _ in range(2):  # a refresh that is running may still end with the same token
            current = self._cache.token
            if current is not None and current.access_token != unauthorized.access_token:
                return await self.token()
            if current is not None and self._boot() < self._cache.same_until:
                return current
            try:
                renewed = await self._coordinator.join("unauthorized")
            except TokenSessionError:
                current = self._cache.token
                if current is None or current.access_token == unauthorized.access_token:
                    raise
                return await self.token()  # there has been a sign-in
            if renewed.access_token != unauthorized.access_token:
                return renewed if self._cache.take() else await self.token()
        return unauthorized

    async def check(self) -> Snapshot:
        """Whether there is a token or a way to get one: for a readiness probe. Sends no token request.

        Looks at the store once, and returns the snapshot. Raises what `token` would raise without a token
        request: `SignInRequired`, `ConfigurationError`, `StoreError`, or `TokenUnavailable` while token
        requests are paused and there is no valid token.
        """
        self._enter()
        await self._coordinator.check()
        return self.snapshot()

    async def sign_in(
        self,
        *,
        code: str | None = None,
        refresh_token: str | None = None,
        device_code: str | None = None,
        code_verifier: str | None = None,
        redirect_uri: str | None = None,
    ) -> Token:
        """Redeem a new code or refresh token, and replace whatever is stored under the key.

        A code may come with the `code_verifier` (RFC 7636) and the `redirect_uri` that belong to it. With the
        client credentials grant, pass nothing. For a device code, use `grants.DeviceSignIn`: until a person
        has approved it, this raises `AuthorizationPending`.

        A code, or a refresh token that works once, is sent once, however often you bring it: the second time
        you get the token that came of it, or `SignInRequired`. Supersedes a refresh that is running in any
        process. Finishes even if you are cancelled. Raises as `token` does; if it fails, the stored
        credentials are unchanged.
        """
        credential = sign_in_credential(
            self.provider.credential,
            code=code,
            refresh_token=refresh_token,
            device_code=device_code,
            code_verifier=code_verifier,
            redirect_uri=redirect_uri,
        )
        self._enter()
        token = await self._coordinator.sign_in(credential).wait()
        if self._freshness() is Freshness.EXPIRED and (token.lifetime is None or token.lifetime > 0):
            return await self.token()  # it was brought before, and its token has expired since
        return token

    async def sign_out(self) -> None:
        """Forget the token, here and in the store, until the next sign-in.

        Leaves a tombstone, so that no other process writes its own copy back. (A record that you delete from
        the store yourself looks like a loss of data, and is restored.) Other processes notice when they next
        look at the store: at the latest when their token is due.

        Then, if the provider has a revocation endpoint (RFC 7009), revokes the refresh token, or the access
        token if there is no other. If that fails, you are signed out all the same: it is logged, and reported
        as `events.RevocationFailed`.
        Raises `StoreError` if the sign-out could not be stored: then the token is served as before.
        """
        self._enter()
        await self._coordinator.sign_out().wait()

    def snapshot(self) -> Snapshot:
        """The state of this source, for people. Contains no secret."""
        self._leave_parent()
        running = self._coordinator
        return self._cache.snapshot(
            self.key, *self._now(), refreshing=running.refreshing, unsaved=running.unsaved
        )

    async def aclose(self) -> None:
        """Let what is running finish, save what is unsaved, and close our own store.

        All of it takes at most the policy's `close_timeout`. A running refresh is not cut off before: its
        token may be the only copy. A wait of more than a second is logged.

        A cancelled anyio scope does not cut this short. If `task.cancel()` does, call it again: it
        continues. Raises `StoreUnavailable` if a token could not be stored in time. It is kept in memory
        then: if you use the source again, it goes on from there. Raises RuntimeError, and closes nothing, if
        the source is in use in another running event loop.
        """
        self._enter()
        with CancelScope(shield=True):
            store = self._owned_store
            try:
                await self._coordinator.close(store.aclose if store is not None else None)
            except StoreError:  # it is closed all the same
                self._home.loop = None
                raise
        self._home.loop = None

    async def __aenter__(self) -> Self:
        """The source itself."""
        self._enter()
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

    def __reduce__(self) -> NoReturn:
        """Neither pickled nor copied: two of them would each refresh the token that is in memory."""
        raise TypeError(
            "A ManagedSource cannot be pickled or copied, because it has a token in memory and may be "
            "refreshing it. Pass the provider and the store, or the store's URL, and make a source from them."
        )

    # -- behind it --------------------------------------------------------------------------------

    def _begin(
        self, key: str, store: Store, provider: Provider, transport: TokenTransport, policy: Policy
    ) -> None:
        """Begin with nothing in memory."""
        # With the first source, not with the package: a program that only imports it need not wait for them.
        from ._refresh.cache import TokenCache
        from ._refresh.coordinator import RefreshCoordinator
        from ._refresh.pending_writes import PendingWrites
        from ._refresh.record import KeyRecord
        from ._refresh.request import TokenRequests
        from ._refresh.store_access import StoreAccess
        from ._refresh.uses import Count

        counts_sleep = getattr(self._clock, "boot_counts_sleep", False)
        limit = getattr(provider, "max_requests", None)
        count = Count(limit) if limit else None
        self._cache = TokenCache(wall_check=WALL_CLOCK_CHECK if counts_sleep else 0.0, count=count)
        access = StoreAccess(key, store, policy, self._clock)
        report = self._report
        self._record = KeyRecord(
            access,
            TokenRequests(provider, transport, policy, self._clock),
            self._cache,
            PendingWrites(access, report),
            report,
        )
        self._coordinator = RefreshCoordinator(self._record)

    def _enter(self) -> None:
        """Be used in the running event loop. Raises RuntimeError if that cannot be."""
        home = self._home
        loop = home.check()
        if home.loop is not loop:
            self._leave_parent()
            home.move(loop)
            self._coordinator.enter()

    def _leave_parent(self) -> None:
        """In a forked child, forget what is the parent's: tokens in memory, refreshes, claims."""
        home = self._home
        if home.forked:
            parents.append((self._coordinator, home.loop))
            access, requests = self._record.access, self._record.requests
            self._begin(access.key, access.store, requests.provider, requests.transport, access.policy)
            home.pid, home.loop = THIS_PROCESS.pid, None

    def _now(self) -> tuple[float, float]:
        return self._clock.wall(), self._clock.boot()

    def _fresh(self) -> tuple[Token, str] | None:
        """The token and its header while it is FRESH, else None: for the middleware, without a coroutine."""
        cache = self._cache
        return cache.ready or cache.make_ready() if self._boot() < cache.fresh_until else None

    def _look(self) -> Token | SharedTask[Token]:
        """The token, or the refresh to wait for. Starts the refresh of a token that is DUE, too."""
        wall, boot = self._now()
        cache, running = self._cache, self._coordinator
        freshness = cache.look(wall, boot)
        if cache.token is not None and freshness.usable:
            if freshness is Freshness.DUE and boot >= cache.not_before:
                running.start_background()
            cache.take()
            return cache.token
        try:
            return running.refresh("expired", patient=freshness is Freshness.EXPIRED)
        except TokenSessionError:
            if (token := self._last()) is None:
                raise
            return token

    def _joined(self, refresh: SharedTask[Token]) -> Future[bool]:
        return refresh.join(patient=self._freshness() is Freshness.EXPIRED)

    def _came_of(self, refresh: SharedTask[Token], in_time: bool) -> Token | None:
        """Its token, or None if that is not the one to use any more.

        A crowd wakes in turns. For the last of it counts, too, what has happened since the refresh ended.
        """
        try:
            token = self._coordinator.outcome(refresh, in_time)
        except TokenSessionError:
            if (last := self._last()) is None:
                raise
            return last
        current = self._cache.token
        return token if current is not None and current.access_token == token.access_token else None

    def _last(self) -> Token | None:
        """ENDING comes a little before the end. If there is no other token, use this one until then."""
        return None if self._freshness() is Freshness.EXPIRED else self._cache.token

    def _freshness(self) -> Freshness:
        return self._cache.deadlines.freshness(*self._now())

    async def _force_refresh(self, *, force: bool) -> Token:
        if self._cache.token is None:  # the store may know which token to replace
            requests = self._cache.counters.token_requests
            token = await (self._coordinator.join("forced", force=True) if force else self.token())
            if self._cache.counters.token_requests > requests:
                return token
        return await self._coordinator.join("forced", force=force)

    def _report(self, event: Event) -> None:
        emit(self._observer, event)


def check_provider(name: str, provider: object) -> None:
    """Raise `ConfigurationError` if this is not a provider."""
    if implements(Provider, provider):
        return
    todo = "Pass an instance of one of tokensession.providers."
    if isinstance(provider, type):
        todo = f"Pass an instance: {provider.__name__}(...)."
    if inspect.iscoroutine(provider):
        provider.close()  # else Python warns, too
        todo = "Await it first: await OAuth2.discover(...)."
    # Not its repr: it may be the refresh token itself.
    raise ConfigurationError(f"{name} must be a provider, not {describe(provider)}.", todo=todo)


def _check_settings(
    key: str | None, policy: Policy | None, clock: Clock | None, observer: Observer | None
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


def _choose_store(
    store: Store | str | Path | None, provider: Provider, clock: Clock
) -> tuple[Store, Store | None]:
    """The store to use, and the same one again if it was opened here."""
    if store is None:
        if getattr(provider, "rotates", False):
            name, credential = type(provider).__name__, getattr(provider, "credential", None)
            if isinstance(credential, Credential):
                raise ConfigurationError(
                    f"{name} rotates its refresh tokens, so the configured one works once, and the next one "
                    "would be lost when this program ends.",
                    todo='Pass store="sqlite:///tokens.db".\nOr store="memory:", if you do want to lose it.'
                    + (_NO_ROTATION if "rotates" in inspect.signature(type(provider)).parameters else ""),
                )
            warnings.warn(
                f"{name} rotates its refresh tokens, and without a store those of a sign-in are lost when "
                'this program ends. Pass store="sqlite:///tokens.db", or store="memory:" to lose them.',
                EphemeralStoreWarning,
                stacklevel=_frames_of_ours(),
            )
        from .stores import MemoryStore

        memory = MemoryStore(clock=clock)
        return memory, memory
    if isinstance(store, str | Path):
        from .stores import open_store

        opened = open_store(store, clock=clock)
        return opened, opened
    if not implements(Store, store):
        raise ConfigurationError(
            f"store must be a store, a URL or a Path, not {describe(store)}.",
            todo='Pass one of tokensession.stores, or a URL such as "sqlite:///tokens.db".',
        )
    return store, None


def _frames_of_ours() -> int:
    """How many frames of this package are on the stack, so that a warning points at your line."""
    frame, count = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(__package__ or ""):
        frame, count = frame.f_back, count + 1
    return count
