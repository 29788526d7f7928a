"""Token stores: where a token is kept, and who may refresh it."""
