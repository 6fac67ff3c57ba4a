"""The paper's own ray labels, whole pixels and faults included."""
