"""Benchmarks and stress tests of tokensession. From a checkout: `python -m benchmarks`."""
