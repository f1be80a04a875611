"""The code that MLflow stores with a model and runs to load it: it names the class of the model."""

import mlflow

from pipelines.inference.mlflow_model import MusicModel

mlflow.models.set_model(MusicModel())
