"""`python -m llmlab` is the same program as `llmlab`."""

from llmlab.cli import main

main()
