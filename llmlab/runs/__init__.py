"""What happened: run folders, manifests, finding checkpoints. No torch."""
