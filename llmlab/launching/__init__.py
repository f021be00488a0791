"""Starts the processes of a run on several devices, and speaks for them where one of them fails."""
