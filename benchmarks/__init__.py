"""Measurements and ordeals of tokensession, run from a checkout: `python -m benchmarks`."""
