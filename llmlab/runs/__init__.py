"""Floor 1: what happened. Run folders, seals, finding checkpoints. No torch."""
