"""A registered model as an MLflow pyfunc: prompts in, WAV files out; loaded from code, never from a pickle.

MLflow runs this code to load or serve a model; the artifact is stored with it and verified before it is used.
"""

from __future__ import annotations

import base64
import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow.models import ModelSignature
from mlflow.pyfunc import PythonModel
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema

from pipelines.registry.local_artifact import read_local_manifest
from presto_core.artifacts.manifest_schema import content_hash
from presto_core.config.device_name import AUTO

PROMPT, WAV, RATE, SECONDS = "prompt", "wav_base64", "sample_rate_hz", "seconds"
PACKAGE = "presto-distill"
DEVICE_VAR = "PRESTO_DEVICE"  # for `mlflow models serve`, which takes no model_config
PARAMS: dict[str, int | float] = {"steps": 4, "seed": 0, "seconds": 0.0}


class MusicModel(PythonModel):  # type: ignore[misc]
    """A generator, or a teacher, behind MLflow's pyfunc interface."""

    def load_context(self, context: Any) -> None:
        """Open the artifact stored with the model.

        MLflow's `model_config` names the device, else $PRESTO_DEVICE, else auto; and folders of weights that are not in
        the package: codec_folder, text_folder.

        Raises:
            StoreError, UnsafeArtifactError: it is damaged.
            DeviceError: there is no such device.
        """
        from pipelines.inference.generator import open_generator
        from presto_core.models.recorded_components import OwnFolders

        given = getattr(context, "model_config", None) or {}
        self.generator = open_generator(
            context.artifacts["artifact"],
            device=given.get("device") or os.environ.get(DEVICE_VAR) or AUTO,
            folders=OwnFolders(given.get("codec_folder", ""), given.get("text_folder", "")),
            content=given.get("content", ""),
        )

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Generate one clip per prompt: a 16-bit WAV as base64, its sample rate and length.

        Args:
            params: steps of the sampler; seed; seconds per clip, 0 for the length the model was trained on.

        Raises:
            UserError: a prompt is missing or not a text, or a parameter is out of range.
        """
        settings = PARAMS | (params or {})
        clips = self.generator.generate(
            model_input[PROMPT].tolist(),
            steps=int(settings["steps"]),
            seed=int(settings["seed"]),
            seconds=float(settings["seconds"]) or None,
        )
        rows = []
        for clip in clips:
            encoded = base64.b64encode(clip.to_wav()).decode()
            rows.append({WAV: encoded, RATE: clip.sample_rate_hz, SECONDS: clip.seconds})
        return pd.DataFrame(rows, columns=[WAV, RATE, SECONDS])


def save(artifact: Path, folder: Path) -> None:
    """Write an artifact's folder as an MLflow model."""
    long, double, text = DataType.long, DataType.double, DataType.string
    signature = ModelSignature(
        inputs=Schema([ColSpec(text, PROMPT)]),
        outputs=Schema([ColSpec(text, WAV), ColSpec(long, RATE), ColSpec(double, SECONDS)]),
        params=ParamSchema(
            [ParamSpec("steps", long, 4), ParamSpec("seed", long, 0), ParamSpec("seconds", double, 0.0)]
        ),
    )
    mlflow.pyfunc.save_model(
        str(folder),
        python_model=str(Path(__file__).with_name("mlflow_entrypoint.py")),
        artifacts={"artifact": str(artifact)},
        signature=signature,
        input_example=(pd.DataFrame({PROMPT: ["string quartet, slow, A minor"]}), PARAMS),
        pip_requirements=[_make_requirement()],
        # of a key that is not here, MLflow ignores the value that is given when the model is loaded
        model_config={
            "device": "",
            "codec_folder": "",
            "text_folder": "",
            "content": content_hash(read_local_manifest(artifact)),
        },
    )


def _make_requirement() -> str:
    """Return what `pip` must install to serve the model: the code that stored it, and never just any version.

    Without an installation, no version exists that would fit, and `pip` refuses.
    """
    try:
        return f"{PACKAGE}=={version(PACKAGE)}"
    except PackageNotFoundError:
        return f"{PACKAGE}==0+not.installed"
