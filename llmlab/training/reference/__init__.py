"""Reference log-probabilities: the scorer that computes them, the cache that keeps them."""
