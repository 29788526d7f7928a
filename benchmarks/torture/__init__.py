"""The torture command: processes that share one token, and everything that can happen to them.

    python -m benchmarks torture --minutes 10 --processes 8 --store sqlite:////tmp/x/tokens.db

| module | what it is |
|---|---|
| `decide` | how much of everything, and the policy |
| `worker` | one victim: a session that makes requests without pause |
| `told` | its endpoint and its store, which tell what it does |
| `clocks` | its clock, which is wrong |
| `fleet` | the victims as the supervisor sees them: started, killed, stopped, replaced |
| `provider` | the token server, which keeps books and does to a request what chaos has in mind |
| `exchange` | one token request there: spent, answered, or not |
| `chaos` | what is done, when and to whom, drawn from a seed |
| `book` | what has happened: entries in the order in which the supervisor learned of them |
| `verdict` | what the book says, and what must not be in it; pure |
| `watch` | looks at the stored record all the time |
| `supervisor` | puts it all together, and signs in again |
| `report` | the table and the JSON |
"""

from .command import main

__all__ = ["main"]
