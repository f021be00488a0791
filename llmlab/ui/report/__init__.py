"""Pages about runs and evaluations: one file each, without scripts or anything from the network.

charts.py           curves as SVG, drawn by matplotlib
pages.py            what stands on a page about runs, as data and words
evaluations.py      what stands on a page about an evaluation
page.html.jinja     the page: every text from outside is escaped by Jinja
"""

from llmlab.ui.report.evaluations import evaluation_page
from llmlab.ui.report.pages import REPORT, comparison_page, run_page, write_page

__all__ = ["REPORT", "comparison_page", "evaluation_page", "run_page", "write_page"]
