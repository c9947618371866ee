"""The report of a finished job: one self-contained HTML page."""

from tuner.report.page import render_report as render_report
