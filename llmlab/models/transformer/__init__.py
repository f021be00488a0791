"""The transformer's parts, and the model composed of them by its config."""
