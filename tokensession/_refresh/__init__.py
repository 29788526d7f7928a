"""The refresh: one valid token for each key, with one token request for each expiry.

How a caller gets a token, from top to bottom, and which module holds which part:

    source.token()
      │   FRESH or DUE: return the token in memory              cache.py, schedule.py
      ▼
    coordinator     join the running refresh, or start one      coordinator.py, single_flight.py
      ▼
    transaction     decide → claim → decide → request → commit  transaction.py
      │               ├── what to do about what is known        decide.py
      │               ├── what an outcome leads to              outcomes.py
      │               └── the stored state and its bytes        state.py, store_access.py
      ▼
    pending writes  a token that could not be stored            pending_writes.py

Theory
------
*One state, in order.* A state has a sign-in number and a generation. Of two states of one key, the higher
counts, wherever it is: in the store, or in a process that has seen more than the store (because a write
failed, because the store was set back, because someone deleted the record). So nothing that a process knows
is lost as long as it lives, and a late write never replaces a newer one.

*One credential, one request at a time.* A credential is sent only under the claim, after a look at the record
under it. Just before the request leaves, the claim is marked. So the next holder of a claim whose holder was
killed knows whether something was sent.

*Until there is an answer.* A request without an answer may have spent its refresh token. It is repeated, with
pauses, until the provider says yes or no. Giving up earlier would protect nothing: without an answer, a
person has to sign in in any case.

*Pauses belong to the credential.* After a failure that concerns everyone, the store holds a pause, so that N
processes send hardly more requests than one. Callers wait through a short failure.

The states of one key:

    signed out ◄──── sign_out() ──── a token ◄──────────────────────────┐
        │                            │  ▲                               │
        └───── sign_in() ────────────┼──┘                               │ commit
                                     ▼                                  │
                                  redeeming: one token request under the claim ◄──┐
                                     │                                            │ after a pause
                                     ├── outcome unknown, or a failure ───────────┘
                                     └── rejected: this request is never made again. If the error may
                                         mean something else: every 15 minutes, and later every 6 hours

`decide`, `outcomes`, `schedule` and `cache` are pure: they read no clock and await nothing, so tables of
cases test them. The other modules act.
"""
