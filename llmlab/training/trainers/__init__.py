"""Subclasses of the libraries' trainers."""
