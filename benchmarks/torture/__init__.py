"""The torture command: processes that share one token, and everything that can happen to them.

    python -m benchmarks torture --minutes 10 --processes 8 --store sqlite:////tmp/x/tokens.db

| module | what it is |
|---|---|
| `plan` | how much of everything, and the policy |
| `worker` | one worker process: a session that makes requests without pause |
| `instrumented` | its transport and its store, which report what they do |
| `clocks` | its clock, which is wrong |
| `fleet` | the workers as the supervisor sees them: started, killed, stopped, replaced |
| `provider` | the token server, which logs what happens and injects faults |
| `exchange` | one token request there: spent, answered, or not |
| `chaos` | what is done, when and to which worker, drawn from a seed |
| `event_log` | what has happened, in the order in which the supervisor learned of it |
| `verdict` | what the event log shows, and what it must not show; pure |
| `excuses` | why a spent refresh token may come again, and why a sign-in may be lost; pure |
| `watch` | reads the stored record all the time, puts older ones back, deletes it |
| `supervisor` | puts it all together, and signs in again |
| `report` | the table and the JSON |
"""

from .command import main

__all__ = ["main"]
