"""What leaves the lab: a model card, a push to the hub, other formats."""
