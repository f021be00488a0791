"""Training: the table of methods, the methods, the engine that runs them."""
