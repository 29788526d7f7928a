"""What all benchmarks share.

| module | what it is |
|---|---|
| `environment` | the machine and the versions |
| `rounds` | contestants taken in turn, and their figures: medians, spread, ratios |
| `results` | a result: rows, goals, environment; printed as a table, saved as JSON |
| `command` | the options that all commands have; printing and saving a result |
| `server` | a token server with an API behind it, in its own process, and its remote control |
"""
