"""Clips of a file of prompts: wrong rows are named first, a clip has the bits that it has alone, a kill loses none."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import soundfile

from pipelines.inference.clip_list import ADDED, read_clip_list
from pipelines.inference.prompt_file import read_prompt_file
from pipelines.stages import generate
from pipelines.storage.filesystem import open_folder
from pipelines.storage.lease import LeaseHeldError, hold_lease
from presto_core.config.loader import ConfigError, load_config
from presto_core.config.sampling import GenerateConfig
from presto_core.config.schema import GenerateStage
from presto_core.errors import UserError
from presto_core.models.pretrained import DEFAULT_GENERATOR
from tests.support.pretrained_models import export_untrained

ROWS = "prompt,seed,steps,key\npiano,1,,Am\ndrums 120 bpm,,2,\npiano,1,,A minor\npiano,1,,Am\nピアノ,3,,\n"
CLIPS = 4  # one row is there twice; another spelling of a key is another clip's name
SETTINGS: dict[str, Any] = {"generate.steps": 1, "generate.seconds": 0.3, "inputs.generator": DEFAULT_GENERATOR}


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("package")
    export_untrained(str(folder / "store"), folder, name=DEFAULT_GENERATOR)
    return folder


@pytest.fixture(autouse=True)
def in_package(package: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PRESTO_PRETRAINED", str(package))
    monkeypatch.chdir(tmp_path)


def make_all(
    rows: str = ROWS, *, output: str = "out", settings: dict[str, Any] | None = None
) -> list[generate.ClipFiles]:
    Path("prompts.csv").write_text(rows)
    own = {"generate.prompts_file": "prompts.csv", "generate.output": output}
    return generate.run(load_config(GenerateStage, None, SETTINGS | own | (settings or {})))


def read_rows(output: str = "out") -> list[dict[str, str]]:
    with (Path(output) / "clips.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def without_times(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    return [{name: value for name, value in row.items() if name != "ms"} for row in rows]


WRONG = {
    "prompt,seed\na,-1": ("line 2", "seed", "-1"),
    "prompt,seed\na,1.5": ("line 2", "seed", "1.5"),
    "prompt,steps\na,1\nb,0": ("line 3", "steps", "0"),
    "prompt,seconds\na,nan": ("line 2", "seconds", "nan"),
    "prompt,tempo_bpm\na,3000": ("line 2", "tempo_bpm", "3000"),
    "prompt,key\na,H#": ("line 2", "key", "H#"),
    'prompt,seed\n"a\nb",x': ("line 2", "seed", "x"),
    'prompt\n"two\nlines"\n9999 bpm': ("line 4", "prompt", "9999"),
    "prompt,seed\n ,1": ("line 2", "prompt"),
    "prompt,seed\na,1,2": ("line 2", "3 cells"),
    "prompt,tempo\na,1": ("line 1", "column 2", "tempo_bpm"),
    "prompt,prompt\na,b": ("line 1", "column 2"),
    "seed\n1": ("line 1", "prompt"),
    'prompt\n"a" b\n': ("line 2", "CSV"),
    "prompt\n": ("no prompts",),
    "": ("line 1", "prompt"),
}


@pytest.mark.parametrize(("text", "named"), WRONG.items())
def test_a_wrong_row_is_named_with_line_and_column(text: str, named: tuple[str, ...]):
    with pytest.raises(ConfigError) as error:
        make_all(text)
    assert [part for part in ("prompts.csv", *named) if part not in str(error.value)] == []
    assert not Path("out").exists()


def test_all_wrong_rows_are_named_at_once_and_nothing_is_generated():
    with pytest.raises(ConfigError) as error:
        make_all("prompt,seed\nright,1\nwrong,x\n,2\n" + "more,x\n" * 20)
    assert all(part in str(error.value) for part in ("line 3", "line 4", "12 more"))
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"\xff\xfe", "line 1"),
        (b'{"prompt": "a"}\n{"prompt": 7}\n', "line 2"),
        (b'{"prompt": "a", "tempo": 7}', "tempo"),
        (b'{"prompt": "a", "seed": "x"}', "seed"),
        (b'{"prompt": "a", "seed": [1]}', "seed"),
        (b'{"prompt": "\\ud800"}', "line 1"),
        (b"[1]", "line 1"),
        (b"{" * 50, "line 1"),
    ],
)
def test_wrong_json_lines_are_named(content: bytes, named: str):
    Path("prompts.jsonl").write_bytes(content)
    with pytest.raises(ConfigError, match=named):
        read_prompt_file(Path("prompts.jsonl"), GenerateConfig())


def test_files_of_spreadsheets_and_json_say_the_same():
    """A byte order mark, semicolons, Windows line ends, empty lines and another order of columns."""
    wanted = [("piano, slow", 3, 4, 2.5), ("drums", 0, 4, None)]
    files = {
        "a.csv": 'prompt,seed,seconds\n"piano, slow",3,2.5\ndrums,,\n',
        "b.csv": "\ufeffSeconds;Prompt;Seed\r\n2.5;piano, slow;3\r\n\r\n;drums;\r\n",
        "c.tsv": "prompt\tseed\tseconds\npiano, slow\t3\t2.5\ndrums\n",
        "d.jsonl": '{"prompt": "piano, slow", "seed": 3, "seconds": 2.5}\n\n{"prompt": "drums", "seed": null}\n',
    }
    for name, text in files.items():
        Path(name).write_bytes(text.encode())
        found = read_prompt_file(Path(name), GenerateConfig())
        assert [(r.prompt, r.seed, r.steps, r.seconds) for r in found] == wanted, name


def test_a_list_of_an_earlier_version_counts():
    """It has no columns for what it could not set."""
    make_all()
    path = Path("out/clips.csv")
    listed = read_rows()
    old = [name for name in listed[0] if name not in ADDED]
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, old, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(listed)
    make_all()
    assert read_rows() == listed  # the milliseconds too: none was made again


def test_a_clip_of_a_batch_is_the_clip_that_it_is_alone():
    made = make_all()
    assert [clip.prompt for clip in made] == ["piano", "drums 120 bpm", "piano", "ピアノ"]
    alone = {**SETTINGS, "generate.output": "alone", "generate.prompts": ["drums 120 bpm"], "generate.steps": 2}
    (clip,) = generate.run(load_config(GenerateStage, None, alone))
    assert (made[1].wav.name, made[1].wav.read_bytes()) == (clip.wav.name, clip.wav.read_bytes())
    for row, files in zip(read_rows(), made, strict=True):
        assert row["sha256"] == hashlib.sha256(files.wav.read_bytes()).hexdigest()
        assert float(row["ms"]) > 0


def test_finished_clips_are_not_made_again_and_changed_ones_are():
    make_all()
    files = {row["file"]: Path("out", row["file"]).stat().st_mtime_ns for row in read_rows()}
    damaged, *_ = files
    content = Path("out", damaged).read_bytes()
    Path("out", damaged).write_bytes(content[:-1])
    make_all(ROWS + "strings,,,\n")
    assert len(read_rows()) == CLIPS + 1
    assert [row for row in read_rows() if Path("out", row["file"]).read_bytes() == content]
    kept = {name: Path("out", name).stat().st_mtime_ns for name in files if name != damaged}
    assert kept == {name: time for name, time in files.items() if name != damaged}


def test_a_list_that_is_cut_anywhere_loses_at_most_its_last_line():
    make_all()
    path, folder = Path("out/clips.csv"), Path("out")
    content, whole = path.read_bytes(), read_clip_list(folder).rows
    for end in range(0, len(content), 5):
        path.write_bytes(content[:end])
        found = read_clip_list(folder).rows
        assert all(whole[request] == row for request, row in found.items())
        assert len(found) >= content[:end].count(b"\n") - 1
    make_all()
    assert without_times(read_rows()) == without_times(list(whole.values()))


@pytest.mark.parametrize("content", [b"", b"\x00\xff" * 40, b"a,b\n1,2\n", b'prompt,file\n"', b"prompt,seed\n" * 3])
def test_another_list_in_the_folder_is_not_taken_for_clips(content: bytes):
    Path("out").mkdir()
    Path("out/clips.csv").write_bytes(content)
    assert read_clip_list(Path("out")).rows == {}


def test_one_process_at_a_time_works_in_a_folder():
    Path("out").mkdir()
    with hold_lease(open_folder(str(Path("out").absolute())).child(".clips-lease"), "x"), pytest.raises(LeaseHeldError):
        make_all()


def test_prompts_and_a_file_of_them_are_refused():
    with pytest.raises(UserError, match="bells"):
        make_all(settings={"generate.prompts": ["bells"]})


def test_a_killed_batch_continues_and_has_no_half_file(tmp_path: Path):
    """SIGKILL of the real process after its second clip; the result is that of a run that nobody killed."""
    count = 200
    rows = "prompt,seed\n" + "".join(f"piano,{seed}\n" for seed in range(count))
    Path("prompts.csv").write_text(rows)
    settings = SETTINGS | {"generate.prompts_file": "prompts.csv", "generate.output": "out"}
    script = (
        "import json, sys\nfrom pipelines.stages import generate\nfrom presto_core.config.loader import load_config\n"
        "from presto_core.config.schema import GenerateStage\n"
        "generate.run(load_config(GenerateStage, None, json.loads(sys.argv[1])))"
    )
    listed = tmp_path / "out" / "clips.csv"
    process = subprocess.Popen([sys.executable, "-c", script, json.dumps(settings)], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 300
        while not (listed.exists() and listed.read_bytes().count(b"\n") > 2):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.005)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    sounds = list((tmp_path / "out").glob("*.wav"))
    finished = read_clip_list(tmp_path / "out").rows
    assert 2 <= len(finished) < count
    assert len(finished) <= len(sounds) <= len(finished) + 1
    assert {soundfile.info(sound).frames for sound in sounds} == {round(0.3 * 44100)}
    times = {row["file"]: (tmp_path / "out" / row["file"]).stat().st_mtime_ns for row in finished.values()}
    some = "prompt,seed\n" + "".join(f"piano,{seed}\n" for seed in range(len(finished) + 2))  # the rest would be slow
    make_all(some)
    assert times == {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in times}
    make_all(some, output="fresh")
    assert without_times(read_rows("fresh")) == without_times(read_rows())


def test_what_a_row_cannot_have_is_refused_and_guidance_reaches_every_clip():
    for other in ({"generate.loop": True}, {"generate.sections": ["0:piano"]}):
        with pytest.raises(ConfigError, match="prompts_file"):
            make_all("prompt\npiano\n", settings=other)
    with pytest.raises(UserError, match=r"line 2.*guidance"):  # of a few-step generator
        make_all("prompt\npiano\n", settings={"generate.guidance_scale": 2})


def test_repeated_rows_are_counted(capsys: pytest.CaptureFixture[str]):
    make_all("prompt\npiano\npiano\npiano\n")
    assert "2 repeated rows of prompts.csv left out" in " ".join(capsys.readouterr().err.split())
    assert len(read_rows()) == 1


@pytest.mark.slow
@pytest.mark.ray
def test_actors_make_the_same_clips():
    make_all()
    make_all(output="ray", settings={"cluster.num_workers": 2, "cluster.cpus": 2})
    assert without_times(read_rows("ray")) == without_times(read_rows())
