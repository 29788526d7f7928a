"""tokensession."""
