"""Self-contained HTML pages about data, labels and models."""

from polarmask.report.data import data_page
from polarmask.report.evaluation import evaluation_page
from polarmask.report.labels import labels_page

__all__ = ["data_page", "evaluation_page", "labels_page"]
