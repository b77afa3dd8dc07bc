"""What `gpupipe bench` measured, for people: tables of text, one HTML page, and what changed since another run.

It reads the JSON that `bench` writes, measures nothing, and uses nothing of gpupipe but its errors and stage names.

`results` reads and compares measurements, `tables` makes tables of them, `circumstances` tells what to know beside the
times, `page` makes the HTML, with `plots` and `style`.
"""

from gpupipe.report.page import html_page
from gpupipe.report.results import add_arguments, failures, load_all, wrong
from gpupipe.report.tables import text

__all__ = ["add_arguments", "failures", "html_page", "load_all", "text", "wrong"]
