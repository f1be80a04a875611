"""Names in the sources: functions are verbs, every word is the one the field uses, and replaced names stay away.

To allow a name, add it to `ALLOWED_FUNCTIONS` or `ALLOWED_IDENTIFIERS` with the reason.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("presto_core", "pipelines", "tune_spaces", "infra", "tests")

# --- functions are verbs: `planned`, `_checked` or `known_tracks` read as adjectives, `make_plan` and `check` do not

PARTICIPLE = re.compile(
    r"""\w+(ed|en|own|awn|ung|aught|ought) | begun | bent | bound | built | done | felt | found | gone | held | kept |
    laid | left | lent | lost | made | meant | met | paid | said | seen | sent | shot | sold | spent | spun | stood |
    stuck | struck | sunk | told | understood | won | worn""",
    re.VERBOSE,
)
NO_PARTICIPLE = re.compile(
    r"""children | down | embed | exceed | feed | flatten | lengthen | len | listen | need | open | proceed | reopen |
    screen | seed | shed | shorten | spawn | speed | succeed | token | widen""",
    re.VERBOSE,
)
ALLOWED_FUNCTIONS = {
    "_broken_chord": "a term of music, as `open_fifth`",
    "created_at": "a property, named as in MLflow and GitHub",
    "integrated_loudness": "the term of ITU-R BS.1770",
    "teardown": "a method of hypothesis' state machines",
    "squared_distances": "a mathematical function is named by what it returns",
}

# --- words: what to use instead

BANNED = {
    "said": "text, message, value, payload",
    "told": "conditions, info, value, message",
    "says": "message, description",
    "asked": "requested",
    "heard": "decoded, reference",
    "mend": "fix, hint",
    "mends": "fixes",
    "mended": "fixed",
    "sentence": "message",
    "sentences": "messages",
    "life": "attempt",
    "lives": "attempts, is_alive",
    "judge": "validator, validate",
    "judges": "validators",
    "judged": "validated, scored",
    "judging": "validating",
    "hush": "quiet",
    "folk": "processes, workers",
    "kin": "related",
    "withheld": "dropped",
    "doubles": "duplicates",
    "deviation": "std",
    "verb": "command",
    "verbs": "commands",
    "register": "registry; the verb comes first: `register_model`",
    "near": "local, cached",
    "far": "remote",
    "place": "path, folder, context, position",
    "places": "paths, positions",
    "here": "local, in_process",
}
BANNED_IN = {"infra": {"words": "args"}}  # elsewhere, words are those of captions
ALLOWED_IDENTIFIERS = {
    "judged_s": "a field of the trial records that sweeps store",
    "place_frozen": "a verb: moves a module to its device",
    "place_motif": "a verb: puts a motif at a beat",
}

# --- names that were replaced, by the folder they were in; generic words (`run`, `step`, `Work`) are left out

REPLACED = {
    "pipelines/cluster": """
        JUDGE_CPUS Needs Stop TAKEN_OVER TOLD TakenOverError _Guarded _asked_for _covers beside_this_process for_tune
        interruptible joined_address least_workers own_attempt preempted reads_with_ray require_room require_room_here
        with_actors""",
    "pipelines/storage": "Objects Parts SPARE _connected _no_keys _objects_of _surroundings near_copy",
    "pipelines/tracking": """
        Journal PASSING PATIENCE_S POINTS_HELD _hurry _news _send_on answering give_up new_experiment patiently
        report_missed settle""",
    "pipelines/data": """
        AHEAD Examples Held Loaded Piece READERS Reading Rows Share Source _Augment _Draws _cut _places ahead gathered
        number_of_lanes quarantined read_here verified""",
    "pipelines/ingest": """
        Bad Content Curated DIED Encoding End Entry Failure Fetched Listing Numbered Part Pool RECIPE ROUND Seen
        ShardAssembler _Counter _blank _died _ended _is_settled _note _own_name _rows_of _told_apart curated doubles
        fetched find_listing found_facts require_few_bad stem_of unknown_tracks""",
    "pipelines/evaluate": """
        FLOOR Judge Judging Sampled System _Lazily _floor_cells _measured _unpack compared_systems hidden_variances
        judge_of judging_actor labels_of measured_costs require_judgeable system_of""",
    "pipelines/inference": "budget_at frames_of sample_base sample_student",
    "pipelines/registry": """
        CLAIM_S Check Decision Entry Garbage Record SIGNALS _against _exactly _exclusively _made _place _point _tell
        _yardstick _youngest everything garbage method_of named named_alike of_artifacts of_runs patient problems_of
        require_layers_of require_sound require_teacher_of""",
    "pipelines/train": """
        ANSWER_S Board ENDING Job Line Messages Resume Snapshots StageWork Validation Watcher Work _InBackground
        _checked _known_damaged _layer_spread _line_of _no_judge _said _validated device_called device_named
        is_at_work keep_only origin run_job settle_stored stepped under_way work""",
    "pipelines/stages": "Workplace _placed place require_places",
    "pipelines/sweep": """
        EndsInOrder Learned Listed MISSES Plan Reporter SweepWatch _Seen _kept _near _over _quoted _require_reported
        _sentence _spend _tidy _why_none as_words held_back planned ranked summarised tuned value_of walk""",
    "pipelines/workflows": """
        Claim EACH_SEED FLOW ONCE Step _base_best _reading _say_where_things_are base_trained described""",
    "pipelines/doctor": "Check Finding LEAST_FREE_BYTES RayProbe _tried examine hidden",
    "presto_core/artifacts": "RefusedError copy_out may_pass persist read_checked require_names write_listed",
    "presto_core/audio": "_Forward _mixed _refusal _up_to cut",
    "presto_core/config": "ELSEWHERE READS UNHASHED even_shares judged_alike",
    "presto_core/metrics": "Expected breaches watched",
    "presto_core/networks": "_filtered _tapped _through_mixed enters_every_block kept_blocks",
    "presto_core/training": """
        ALONE Adversary Distribute Draws Generated _generated _good _judging _make_room _pull_back _trained_pass
        accumulated any_rank before_backward diagnosis frozen joined noised observed placed_like whole_on_first""",
    "tune_spaces": "Kinds as_words joined walk",
    "infra": """
        ALWAYS_OUT HELPS Head Line Outlook Pace Parcel Question View Work _unhindered carry_out configured_uris denied
        hides outlook packed published question require_no_secrets to_the_end uris_of warn_of_plain_http""",
    "tests/servers": "Plane",
    "tests/support": "Home Life Place Watcher",
}
OLD_NAMES = {folder: frozenset(names.split()) for folder, names in REPLACED.items()}

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
NAME_FIELDS = {  # of the nodes that define a name, or pass it as a keyword
    ast.FunctionDef: "name",
    ast.AsyncFunctionDef: "name",
    ast.ClassDef: "name",
    ast.Name: "id",
    ast.Attribute: "attr",
    ast.arg: "arg",
    ast.keyword: "arg",
    ast.alias: "asname",
    ast.ExceptHandler: "name",
    ast.MatchAs: "name",
    ast.MatchStar: "name",
}


def is_pytest_function(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether pytest calls it: tests are statements, and fixtures are named by what they give."""
    return node.name.startswith("test_") or any("fixture" in ast.unparse(d) for d in node.decorator_list)


def starts_with_participle(name: str) -> bool:
    word = name.strip("_").split("_")[0]
    return bool(PARTICIPLE.fullmatch(word)) and not NO_PARTICIPLE.fullmatch(word)


def split_words(name: str) -> list[str]:
    """Split at underscores and capitals, in lower case."""
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)]


def get_defined_name(node: ast.AST) -> str:
    """Return the name that a node defines or passes as a keyword, or ""."""
    field = NAME_FIELDS.get(type(node))
    if field is None or isinstance(getattr(node, "ctx", None), ast.Load):
        return ""
    return getattr(node, field) or ""


def find_banned_words(name: str, banned: dict[str, str]) -> list[str]:
    words = split_words(name)
    if words[0] == "register" and name[0].islower():  # the verb
        words = words[1:]
    return [word for word in words if word in banned and name not in ALLOWED_IDENTIFIERS]


def find_bad_names(source: str, path: str) -> list[str]:
    """Return `path:line: name: rule` for every name in a file that breaks a rule."""
    banned = BANNED | BANNED_IN.get(path.split("/")[0], {})
    is_banned = re.compile("|".join(banned), re.IGNORECASE).search  # quick, and finds too many
    replaced = frozenset().union(*(names for folder, names in OLD_NAMES.items() if path.startswith(f"{folder}/")))
    tree = ast.parse(source)
    problems: list[tuple[int, str, str]] = []
    for node in ast.walk(tree):
        name = get_defined_name(node)
        if not name:
            continue
        rules = []
        if is_banned(name):
            rules = [f"contains {word!r}; use {banned[word]}" for word in find_banned_words(name, banned)]
        if name in replaced and (isinstance(node, (*FUNCTIONS, ast.ClassDef)) or name.isupper()):
            rules.append("was replaced by another name, see REPLACED")
        if (
            isinstance(node, FUNCTIONS)
            and starts_with_participle(name)
            and name not in ALLOWED_FUNCTIONS
            and not is_pytest_function(node)
        ):
            rules.append("starts with a participle; use a verb")
        problems += [(getattr(node, "lineno", 0), name, rule) for rule in rules]
    return [f"{path}:{line}: {name}: {rule}" for line, name, rule in sorted(problems)]


def test_names_are_clean():
    problems = [
        problem
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
        for problem in find_bad_names(path.read_text(encoding="utf-8"), path.relative_to(ROOT).as_posix())
    ]
    assert not problems, "\n".join(["bad names:", *problems])


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("def planned(): ...", "x/y.py:1: planned: starts with a participle; use a verb"),
        ("class A:\n    @property\n    def _known(self): ...", "x/y.py:3: _known: starts with a participle"),
        ("def f():\n    def taken_rows(): ...", "x/y.py:2: taken_rows: starts with a participle"),
        ("async def told(): ...", "x/y.py:1: told: contains 'told'"),
        ("def f(said): ...", "x/y.py:1: said: contains 'said'; use text"),
        ("def test_it_says_no(): ...", "test_it_says_no: contains 'says'"),
        ("self.near_copy = 1", "near_copy: contains 'near'"),
        ("class JudgePool: ...", "JudgePool: contains 'judge'"),
        ("f(std_deviation=1)", "std_deviation: contains 'deviation'"),
        ("the_register = 1", "the_register: contains 'register'"),
        ("import a as verbs", "verbs: contains 'verbs'"),
        ("for place in (): ...", "place: contains 'place'"),
    ],
)
def test_bad_names_are_found(source: str, problem: str):
    assert problem in "\n".join(find_bad_names(source, "x/y.py"))


def test_replaced_names_are_refused_in_their_folder_only():
    source = "class Job: ...\nTAKEN_OVER = 1"
    assert [p.split(": ")[1] for p in find_bad_names(source, "pipelines/train/spec.py")] == ["Job"]
    assert [p.split(": ")[1] for p in find_bad_names(source, "pipelines/cluster/session.py")] == ["TAKEN_OVER"]
    assert find_bad_names(source, "presto_core/errors.py") == []


@pytest.mark.parametrize(
    "source",
    [
        "def embed(): ...",
        "def _open_file(): ...",
        "def flatten(): ...",
        "def read_rows(): ...",
        "def register_model(register_as): ...",
        "@pytest.fixture\ndef joined(): ...",
        "def test_made_rows_are_read(): ...",
        "def __enter__(self): ...",
        "nearest = placement = adhere = alive = replaced = farthest = 1",
        "self.x = a.lives.near",  # used, not defined: may be a library's
    ],
)
def test_good_names_are_accepted(source: str):
    assert find_bad_names(source, "x/y.py") == []
