"""Deliberate flaws in the refresh and in the store. The model must find each of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import _store
import pytest

from tokensession import OutcomeUnknown, Policy
from tokensession._refresh import decide, record, request, sign_ins, transaction
from tokensession._refresh.cache import TokenCache
from tokensession._refresh.decide import Restore, View
from tokensession._refresh.record import KeyRecord
from tokensession._refresh.state import TokenState

Patch = Callable[[pytest.MonkeyPatch], None]


def claims_are_not_exclusive(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(_store.ModelStore, "is_free", lambda _self: True)


def commits_compare_nothing(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(_store.ModelClaim, "may_write", lambda _self: True)


def a_killed_holder_leaves_no_mark(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(_store.ModelStore, "interrupted_by", lambda _self: None)


def there_is_no_wait_for_the_request_of_a_killed_process(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(KeyRecord, "orphan_wait", lambda *_: 0.0)


def no_second_look_after_that_wait(patch: pytest.MonkeyPatch) -> None:
    real = KeyRecord.look

    async def look(self: KeyRecord) -> Any:
        store: Any = self.access.store
        holder = store.world.holder
        if self.cache.state is not None and holder is not None and holder.store is store:
            return self.known()
        return await real(self)

    patch.setattr(KeyRecord, "look", look)


def a_lower_state_is_adopted(patch: pytest.MonkeyPatch) -> None:
    def learn(self: TokenCache, state: TokenState, version: str | None, boot: float) -> None:
        self.state, self.version, self.seen_at, self.missing_since = state, version, boot, None

    patch.setattr(TokenCache, "learn", learn)


def a_lost_record_is_not_restored(patch: pytest.MonkeyPatch) -> None:
    real = decide.decide

    def forgetful(view: View) -> Any:
        step = real(view)
        return real(replace(view, memory=None, has_served=False)) if isinstance(step, Restore) else step

    patch.setattr(record, "decide", forgetful)


def a_code_is_not_noted_before_it_leaves(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(request, "redeeming", lambda state, _credential, _now: state.redeemed)


def a_redeemed_credential_is_forgotten(patch: pytest.MonkeyPatch) -> None:
    for module in (sign_ins, transaction, request):
        patch.setattr(module, "redeeming", lambda state, *_: state.redeemed, raising=False)


def an_unknown_outcome_is_forgotten(patch: pytest.MonkeyPatch) -> None:
    real: Any = vars(transaction)["noted"]

    def noted(*args: Any) -> Any:
        state = real(*args)
        return replace(state, failures=state.failures and replace(state.failures, unknown=0))

    patch.setattr(transaction, "noted", noted)


def a_pause_is_not_shared(patch: pytest.MonkeyPatch) -> None:
    async def note(self: KeyRecord, claim: Any, state: TokenState, sending: Any = None) -> None:
        await self.access.abandon(claim)
        self.cache.note(state)

    patch.setattr(KeyRecord, "note", note)


def the_identity_is_not_checked(patch: pytest.MonkeyPatch) -> None:
    for module in (decide, record, sign_ins):
        patch.setattr(module, "foreign", lambda *_: None)


def a_late_answer_is_dropped(patch: pytest.MonkeyPatch) -> None:
    real: Any = vars(request)["within"]

    async def impatient(clock: Any, seconds: float, work: Any, **more: Any) -> Any:
        return await real(clock, min(seconds, Policy().caller_timeout), work, **more)

    patch.setattr(request, "within", impatient)


def a_refresh_raises_no_generation(patch: pytest.MonkeyPatch) -> None:
    real: Any = vars(transaction)["renewed"]

    def renewed(step: Any, *args: Any) -> Any:
        state = real(step, *args)
        return state if step.starts is not None else replace(state, generation=step.state.generation)

    patch.setattr(transaction, "renewed", renewed)


def a_sign_out_raises_no_number(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(sign_ins, "next_number", lambda highest, _wall: highest)


def a_code_is_sent_until_there_is_an_answer(patch: pytest.MonkeyPatch) -> None:
    real = request.TokenRequests.send

    async def send(self: Any, *args: Any) -> Any:
        for _ in range(3):
            try:
                return await real(self, *args)
            except OutcomeUnknown as error:
                lost = error
        raise lost

    patch.setattr(request.TokenRequests, "send", send)


FLAWS: list[Patch] = [
    each
    for name, each in list(vars().items())
    if getattr(each, "__module__", "") == __name__ and name[0] != "_"
]
