"""How Sphinx makes the pages of this folder into a site: `make docs`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from llmlab import __version__

project = "llmlab"
author = "the llmlab authors"
copyright = "the llmlab authors; Apache-2.0"
version = release = __version__
extensions = ["myst_parser", "sphinx_external_toc"]
source_suffix = {".md": "markdown"}
external_toc_path = "_toc.yml"  # the order of the pages; the pages themselves are plain Markdown
exclude_patterns = ["_build"]
myst_heading_anchors = 4  # links such as dpo.md#one-model-in-memory, as on a code host
html_theme = "furo"
html_title = "llmlab"
html_show_sourcelink = False
