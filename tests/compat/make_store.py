"""Make the store that test_compat.py reads, with the code of commit eeee681: `python make_store.py CHECKOUT OUT`."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import sqlite3
import subprocess
import sys
import tarfile
import tempfile
from contextlib import closing
from importlib import metadata
from pathlib import Path
from typing import Any

from tests.support.processor import read_cpu_vendor

COMMIT = "eeee681"
DATABASE = ".presto/mlflow.db"
ROOT = "/PRESTO-STORE"  # placeholder for the store's absolute path in the archived database
# Select the same instructions on every x86-64 CPU, so that results agree bit for bit.
ENVIRONMENT = {
    "ATEN_CPU_CAPABILITY": "default",
    "MKL_CBWR": "COMPATIBLE",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "OMP_NUM_THREADS": "1",
}
STORAGE = "storage.root=store"
TRAIN_LOCALLY = (STORAGE, "cluster.num_workers=0")
USE_RAY = (*TRAIN_LOCALLY, "cluster.cpus=1", "cluster.data_workers=1")  # ingest and evaluate need a Ray session
CORPUS = ("corpus.minutes=1.2", "corpus.clip_seconds=9", "corpus.held_out_fraction=0.34", "cluster.cpus=1")
# The evaluation's embedding needs clips of 3 s, which are 66 latent frames.
INGEST = ("ingest.chunk_frames=66", "ingest.rows_per_shard=5", "text.max_tokens=8")
TEACHER = (
    "network.dim=4", "network.depth=3", "network.heads=2", "network.filter_taps=3", "teacher.steps=10",
    "teacher.global_batch_size=4", "teacher.optim.warmup_steps=2", "teacher.optim.learning_rate=0.01",
    "teacher.ema_decay=0.5", "loop.log_every=2", "loop.checkpoint_every=5",
)  # fmt: skip
LAYERS = (
    "inputs.teacher=presto-teacher@v1", "layers.steps=10", "layers.global_batch_size=4",
    "layers.optim.warmup_steps=2", "layers.optim.learning_rate=0.01", "layers.ema_decay=0.5", "loop.log_every=2",
    "loop.checkpoint_every=5",
)  # fmt: skip
STEPS = (
    "inputs.teacher=presto-teacher@v1", "steps.generator_updates=6", "steps.fake_updates_per_generator_update=2",
    "steps.global_batch_size=4", "steps.gan.head_layers=1", "steps.gan.head_channels=8",
    "steps.generator_optim.learning_rate=0.001", "steps.ema_decay=0.5", "loop.log_every=4",
    "loop.checkpoint_every=11",
)  # fmt: skip
EVALUATE = (
    "inputs.teacher=presto-teacher@v1", "inputs.generator=candidate-s", "inputs.compared=[candidate-l]",
    "evaluate.num_samples=6", "evaluate.batch_size=6", "evaluate.base=[{steps: 2}]", "evaluate.layers=[{steps: 2}]",
    "evaluate.student_steps=[1]", "evaluate.save_audio=0", "evaluate.nearest_k=2",
)  # fmt: skip
PROMOTE = ("promote.require_health=false", "promote.max_fd_ratio=1e9", "promote.max_latency_ratio=1e9", STORAGE)
# stage -> settings, algorithm class, step of the only checkpoint, step before which the process is killed;
# checkpoints lie inside an epoch, between logged rows and, for distill-steps, inside a cycle of updates
UNFINISHED = {
    "train-teacher": (TEACHER, "presto_core.training.teacher:TeacherTraining", 5, 7),
    "distill-layers": (LAYERS, "presto_core.training.layers:LayerDistillation", 5, 7),
    "distill-steps": (STEPS, "presto_core.training.steps:StepDistillation", 11, 14),
}
# Runs a command and kills its own process at a given step, once the checkpoint is committed.
RUN_AND_KILL = """
import importlib, os, signal, sys, time
from pathlib import Path
place, saved, killed_at, *words = sys.argv[1:]
module, name = place.split(":")
algorithm = getattr(importlib.import_module(module), name)
update = algorithm.update
from tests.support.processor import read_cpu_vendor

def update_or_die(self, batch, *, generator):
    if self.state.total_step == int(killed_at):
        while not list(Path("store/runs").glob(f"*/checkpoints/step-{int(saved):09d}/manifest.json")):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGKILL)
    return update(self, batch, generator=generator)

algorithm.update = update_or_die
from infra.cli import main
sys.argv = ["presto", *words]
main()
"""
MODELS = ("models:/presto-teacher/1", "models:/presto-generator/1", "models:/presto-generator/2")
# Prints [samples, sample rate, root mean square] of one clip of each model, loaded through MLflow's pyfunc flavour.
PREDICT = """
import base64, io, json, os, sys
import mlflow, numpy, pandas, soundfile
mlflow.set_tracking_uri("sqlite:///" + os.path.abspath(".presto/mlflow.db"))
clips = {}
for uri in sys.argv[1:]:
    model = mlflow.pyfunc.load_model(uri)
    output = model.predict(pandas.DataFrame({"prompt": ["solo piano"]}), params={"steps": 2, "seed": 3})
    samples, rate = soundfile.read(io.BytesIO(base64.b64decode(output["wav_base64"][0])))
    clips[uri] = [len(samples), rate, float(numpy.sqrt(numpy.square(samples).mean()))]
print(json.dumps(clips))
"""
Runs = dict[str, dict[str, Any]]


class Home:
    """A working directory for the old code: artifacts in store/, MLflow's database in .presto/."""

    def __init__(self, checkout: Path, folder: Path) -> None:
        self.checkout, self.folder = checkout, folder

    def run_python(self, *arguments: str, status: int = 0) -> str:
        """Run Python with the old code, require an exit status, and return standard output."""
        print("+", *arguments[-8:], flush=True)
        foreign = ("AWS_", "RAY_", "MLFLOW_", "PRESTO_")
        env = {k: v for k, v in os.environ.items() if not k.startswith(foreign)} | ENVIRONMENT
        env |= {"PYTHONPATH": str(self.checkout), "PRESTO_CACHE": str(self.folder / "cache"), "LOGNAME": "presto"}
        command = [sys.executable, *arguments]
        done = subprocess.run(command, cwd=self.folder, env=env, stdout=subprocess.PIPE, text=True)
        if done.returncode != status:
            raise SystemExit(f"exit status {done.returncode} instead of {status}")
        return done.stdout

    def run_presto(self, *words: str) -> str:
        return self.run_python("-m", "infra.cli", *words)

    def list_versions(self) -> list[dict[str, Any]]:
        versions: list[dict[str, Any]] = json.loads(self.run_presto("registry", "list", "--json", STORAGE))
        return versions

    def list_run_ids(self) -> set[str]:
        return {path.name for path in (self.folder / "store/runs").glob("*")}

    def hash_weights(self, run_id: str) -> str:
        weights = self.folder / "store/artifacts" / run_id / "weights.safetensors"
        return hashlib.sha256(weights.read_bytes()).hexdigest()

    def read_history(self, run_id: str, metric: str) -> list[list[float]]:
        """Read [step, value] of a run's metric in the order in which MLflow got them."""
        query = "SELECT m.step, m.value FROM metrics m JOIN tags t USING (run_uuid) "
        query += "WHERE t.key = 'presto.run_id' AND t.value = ? AND m.key = ? ORDER BY m.rowid"
        with closing(sqlite3.connect(self.folder / DATABASE)) as database:
            return [list(row) for row in database.execute(query, (run_id, metric))]

    def dump_database(self, root: str) -> str:
        """Dump MLflow's database as SQL with another root folder; absolute paths occur nowhere else in the store."""
        with closing(sqlite3.connect(self.folder / DATABASE)) as database:
            return "\n".join(database.iterdump()).replace(str(self.folder), root)

    def copy(self, folder: Path) -> Home:
        shutil.copytree(self.folder, folder)
        (folder / DATABASE).unlink()
        with closing(sqlite3.connect(folder / DATABASE)) as database:
            database.executescript(self.dump_database(str(folder)))
        return Home(self.checkout, folder)


def make_finished(home: Home) -> None:
    """Make a data set, one model of each kind and a report, and promote one model."""
    home.run_presto("corpus", "build", *CORPUS)
    home.run_presto("ingest", *INGEST, *USE_RAY)
    home.run_presto("train-teacher", *TEACHER, *TRAIN_LOCALLY)
    home.run_presto("distill-layers", *LAYERS, *TRAIN_LOCALLY)
    home.run_presto("distill-steps", *STEPS, *TRAIN_LOCALLY)
    home.run_presto("evaluate", *EVALUATE, *USE_RAY)
    home.run_presto("registry", "promote", "candidate-s", *PROMOTE, "--why", "the first one")


def make_unfinished(home: Home) -> Runs:
    """Start one run of each training stage and kill it half-way."""
    runs: Runs = {}
    for stage, (settings, algorithm, saved, killed_at) in UNFINISHED.items():
        known, words = home.list_run_ids(), [stage, *settings, "seed=1", *TRAIN_LOCALLY]
        home.run_python("-c", RUN_AND_KILL, algorithm, str(saved), str(killed_at), *words, status=-9)
        (run_id,) = home.list_run_ids() - known
        runs[stage] = {"run_id": run_id, "words": words, "resumed_at": saved, "killed_at": killed_at}
    return runs


def finish_runs(home: Home, runs: Runs, results: Path) -> None:
    """Resume all runs, and add to `runs` what they become; copy their artifacts' main files to `results`."""
    known = {(v["name"], v["version"]) for v in home.list_versions()}
    for run in runs.values():
        home.run_presto(*run["words"])
        run["weights_sha256"] = home.hash_weights(run["run_id"])
        run["dsm_loss"] = home.read_history(run["run_id"], "dsm_loss")
        artifact, target = home.folder / "store/artifacts" / run["run_id"], results / run["run_id"]
        target.mkdir(parents=True)
        for file in ("weights.safetensors", "manifest.json"):
            shutil.copy(artifact / file, target / file)
    versions = [v for v in home.list_versions() if (v["name"], v["version"]) not in known]
    for run in runs.values():
        (version,) = [v for v in versions if v["id"] == run["run_id"]]
        run |= {key: version[key] for key in ("name", "version", "kind", "method")}


def require_same_bits(home: Home, runs: Runs) -> None:
    """Run the same commands without interruption; being killed and resumed must not have changed a bit."""
    shutil.rmtree(home.folder / "store/runs")
    for stage, run in runs.items():
        home.run_presto(*run["words"])
        if home.hash_weights(run["run_id"]) != run["weights_sha256"]:
            raise SystemExit(f"{stage}: the resumed run has other weights than an uninterrupted one")


def delete_unneeded(home: Home) -> None:
    """Delete audio, the cache of encoded audio and plots: most of the space, and not read by any later stage."""
    for folder in ("store/encoded", ".presto/corpus", ".presto/reports", "cache"):
        shutil.rmtree(home.folder / folder, ignore_errors=True)
    for plot in (home.folder / ".presto/mlartifacts").rglob("*.png"):
        plot.unlink()


def write_archive(home: Home, results: Path, out: Path) -> None:
    """Pack the store with the database as SQL, in which ROOT stands for the store's folder."""
    (home.folder / DATABASE).with_suffix(".sql").write_text(home.dump_database(ROOT))
    for path in home.folder.rglob("*"):
        if path.is_file() and path != home.folder / DATABASE and str(home.folder).encode() in path.read_bytes():
            raise SystemExit(f"{path} contains the path of its store, which cannot be relocated")
    with tarfile.open(out, "w:xz", preset=9) as tar:
        tar.add(home.folder / "store", "store", filter=select_entry)
        tar.add(home.folder / ".presto", ".presto", filter=select_entry)
        tar.add(results, "expected", filter=select_entry)


def select_entry(info: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """Drop owners, and the database itself."""
    info.uid = info.gid = 0
    info.uname = info.gname = ""
    return None if ".db" in info.name else info


def main() -> None:
    checkout, out = Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve()
    commit = subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=checkout, text=True).strip()
    if not commit.startswith(COMMIT):
        raise SystemExit(f"{checkout} is at {commit}, not at {COMMIT}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary).resolve()
        home, results = Home(checkout, folder / "made"), folder / "results"
        home.folder.mkdir()
        make_finished(home)
        runs = make_unfinished(home)
        delete_unneeded(home)
        versions = [{k: v for k, v in version.items() if k != "uri"} for version in home.list_versions()]
        clips = json.loads(home.run_python("-c", PREDICT, *MODELS))
        finish_runs(home.copy(folder / "finished"), runs, results)
        require_same_bits(home.copy(folder / "uninterrupted"), runs)
        write_archive(home, results, out / f"store_{COMMIT}.tar.xz")
    packages = {name: metadata.version(name) for name in ("torch", "numpy", "mlflow", "safetensors")}
    expected = {
        "made_from": commit,
        "made_with": {
            "python": platform.python_version(),
            "machine": platform.machine(),
            "cpu_vendor": read_cpu_vendor(),
            **packages,
        },
        "environment": ENVIRONMENT,
        "root": ROOT,
        "versions": versions,
        "evaluate": ["evaluate", *EVALUATE, *USE_RAY],
        "promote": PROMOTE,
        "clips": clips,
        "runs": runs,
    }
    (out / "expected.json").write_text(json.dumps(expected, indent=2) + "\n")


if __name__ == "__main__":
    main()
