"""What all benchmarks stand on.

| module | what it is |
|---|---|
| `environment` | what it ran on |
| `rounds` | contestants taken in turn, and what their figures come to: medians, spread, ratios |
| `results` | a result: rows, verdicts, environment; printed as a table, saved as JSON |
| `command` | the options that all commands have, and what becomes of a result |
| `server` | a token server with an API behind it, in a process of its own, and its remote control |
"""
