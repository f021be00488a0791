"""The proof on a person's own machine: does the lab compute right here, how fast, and in how much memory?"""
