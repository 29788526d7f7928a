"""Processes that share a store and have no usable token when the token endpoint fails for some seconds.

A part of `python -m benchmarks outage`; see `--kinds` and `--long` there.

| module | what it is |
|---|---|
| `experiment` | the outages, the rows and the goals |
| `worker` | one process: a source, and callers that ask for its token until they have it |

The token server has a process of its own (`harness.server`). It counts the requests that reach it, and notes
the moment at which the outage ends. All processes of a machine share CLOCK_MONOTONIC.
"""
