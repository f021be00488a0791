"""Floor 2: how models are trained. One engine, one module a method."""
