"""Self-contained HTML pages about data, labels, trainings, models, and an index of them."""
