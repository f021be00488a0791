"""Floor 2: how good a model is, on what it has not seen."""
