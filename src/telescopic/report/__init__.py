"""What people look at: a family's page, and the plots in it."""

from telescopic.report.page import write_report as write_report
