"""Pages about runs: one file each, without scripts or anything from the network.

charts.py           curves as SVG, drawn by matplotlib
pages.py            what stands on a page, as data and words
page.html.jinja     the page: every text from outside is escaped by Jinja
"""

from llmlab.ui.report.pages import REPORT, comparison_page, run_page, write_page

__all__ = ["REPORT", "comparison_page", "run_page", "write_page"]
