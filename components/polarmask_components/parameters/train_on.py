"""Values of the pipeline's parameter `train_on`: where a run trains."""

HERE = "here"
"""In the step itself."""
PYTORCHJOB, TRAINJOB = "pytorchjob", "trainjob"
"""As a job on the cluster: of the training operator (v1), or of its successor, Kubeflow Trainer."""
AUTO = "auto"
"""As a job of the kind that the cluster has; preflight finds it out."""

ALL = (AUTO, PYTORCHJOB, TRAINJOB, HERE)
