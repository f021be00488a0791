"""A run from config to result: its folder, resuming, snapshots, processes."""
