"""Provider strategies: what each OAuth server wants to hear, and how it answers."""
