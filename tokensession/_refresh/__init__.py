"""The refresh: one valid token for each key, with one token request for each expiry.

How a caller gets a token, from top to bottom, and which module holds which part:

    source.token()
      │   FRESH or DUE: return the token in memory              cache.py, schedule.py
      ▼
    coordinator     join the running refresh, or start one      coordinator.py, single_flight.py
      ▼
    transaction     claim → look → decide → request → commit    transaction.py
      │               ├── decide what to do, as data            decide.py
      │               ├── store calls with deadlines            store_access.py
      │               └── the stored state and its bytes        state.py
      ▼
    pending writes  what could not be stored is written again   pending_writes.py

The states of one key:

    signed out ◄──── sign_out() ──── a token ◄───────────────┐
        │                            │  ▲                    │
        └───── sign_in() ────────────┼──┘                    │ commit
                                     ▼                       │
                                  redeeming: one token request under the claim
                                     │
                                     ├── rejected: this credential is never sent again
                                     └── outcome unknown: sent at most once more

`decide`, `schedule` and `cache` are pure: they read no clock and await nothing, so tables of cases test
them. The other modules act.
"""
