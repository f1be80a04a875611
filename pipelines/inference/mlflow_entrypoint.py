"""The code that MLflow stores with a model and runs where it is loaded: it names the class that does the work."""

import mlflow

from pipelines.inference.mlflow_model import MusicModel

mlflow.models.set_model(MusicModel())
