"""The module that MLflow versions logged before the rooms import; kept so that they still load."""

from pipelines.inference.mlflow_model import MusicModel as MusicModel
