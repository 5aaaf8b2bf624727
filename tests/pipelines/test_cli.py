import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import yaml
from typer.testing import CliRunner

from nan_merge.errors import NanMergeError, OutputError
from pipelines.cli import app
from pipelines.results import write_results

RECIPE = "base: ./b\nmodels: [./m1, ./m2]\nmethod: ties\n"
RUN = "name: q\nmodels: [./m1, ./m2]\nbase: ./b\nevaluate: {benchmarks: [digits]}\n"
COMMANDS = [
    "run",
    "finetune",
    "merge",
    "plan",
    "coefficients",
    "inspect",
    "verify",
    "show",
    "schema",
]
CLI = [sys.executable, "-m", "pipelines.cli"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("NAN_MERGE_DEBUG", raising=False)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    (tmp_path / "run.yaml").write_text(RUN)
    return tmp_path


@pytest.fixture
def calls(monkeypatch):
    """What the commands passed on; `calls.error` makes every command raise it."""
    calls = SimpleNamespace(arguments=[], options={}, error=None)

    def record(*arguments, **options):
        calls.arguments, calls.options = list(arguments), options
        if calls.error is not None:
            raise calls.error

    fakes = {
        "pipelines.run": {"run_config": record},
        "pipelines.merge": {"merge_command": record, "verify_command": record},
        "pipelines.plan": {"plan_command": record},
        "pipelines.coefficients": {"coefficients_command": record},
        "pipelines.inspect_models": {"inspect_command": record},
    }
    for name, members in fakes.items():
        module = ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)
    return calls


def invoke(*arguments: str):
    return CliRunner().invoke(app, list(arguments))


def test_run_passes_the_checked_config_that_tells_itself(folder, calls):
    result = invoke("run", "run.yaml", "seed=3", "evaluate.batch_size=7", "--seeds", "2")
    assert result.exit_code == 0, result.output
    (config,) = calls.arguments
    assert (config.seed, config.evaluate.batch_size, calls.options["seeds"]) == (3, 7, 2)
    content = yaml.safe_load(config.text())
    assert content["seed"] == 3
    assert content["evaluate"] == {"benchmarks": ["digits"], "batch_size": 7}
    assert type(config).model_validate(content) == config


def test_the_address_of_run_is_the_clusters(folder, calls):
    result = invoke("run", "run.yaml", "cluster.num_workers=3", "--address", "auto")
    assert result.exit_code == 0, result.output
    cluster = calls.arguments[0].cluster
    assert (cluster.address, cluster.num_workers) == ("auto", 3)


def test_merge_passes_recipe_and_folder(folder, calls):
    result = invoke("merge", "recipe.yaml", "out", "method.density=0.5")
    assert result.exit_code == 0, result.output
    recipe, output, _ = calls.arguments
    assert (recipe.method.density, output, calls.options) == (0.5, "out", {"staging": None})


def test_plan_passes_the_recipe(folder, calls):
    assert invoke("plan", "recipe.yaml").exit_code == 0
    recipe, output, _ = calls.arguments
    assert (recipe.method.name, output) == ("ties", None)


@pytest.mark.parametrize(
    ("arguments", "output", "seed"),
    [
        (["out"], "out", 0),
        (["out", "seed=3"], "out", 3),
        (["seed=3"], None, 3),
        (["./a=b", "seed=3"], "./a=b", 3),
        (["/tmp/a=b"], "/tmp/a=b", 0),
        (["s3://bucket/a=b", "seed=3"], "s3://bucket/a=b", 3),
    ],
)
def test_plan_tells_a_folder_from_a_change(folder, calls, arguments, output, seed):
    result = invoke("plan", "recipe.yaml", *arguments)
    assert result.exit_code == 0, result.output
    recipe, found, _ = calls.arguments
    assert (found, recipe.seed) == (output, seed)


def test_coefficients_passes_recipe_and_options(folder, calls):
    result = invoke("coefficients", "recipe.yaml", "seed=3", "--all", "--json", "c.json")
    assert result.exit_code == 0, result.output
    assert calls.arguments[0].seed == 3
    assert calls.options == {"show_all": True, "json_file": Path("c.json")}


def test_inspect_passes_models_and_options(folder, calls):
    result = invoke("inspect", "a", "b", "--base", "c", "--layers", "--plot", "p.svg")
    assert result.exit_code == 0, result.output
    assert calls.arguments[:2] == [["a", "b"], "c"]
    assert calls.options == {"show_layers": True, "plot": Path("p.svg"), "json_file": None}


def test_verify_passes_the_folder(folder, calls):
    assert invoke("verify", "out").exit_code == 0
    assert calls.arguments[0] == "out"


def test_show_prints_the_table_of_a_finished_run(folder, tiny):
    write_results(tiny, folder / "runs")
    result = invoke("show", "runs")
    assert result.exit_code == 0, result.output
    assert "TIES" in result.stdout


def test_show_prints_markdown_and_the_spread_over_seeds(folder, tiny):
    write_results(tiny, folder / "one")
    write_results(replace(tiny, seed=tiny.seed + 1), folder / "two")
    single = invoke("show", "one", "--markdown")
    assert single.stdout.startswith("| model ")
    several = invoke("show", "one", "two", "--markdown")
    assert "sample standard deviation over seeds" in several.stdout


def test_show_refuses_one_seed_twice(folder, tiny):
    write_results(tiny, folder / "one")
    result = invoke("show", "one", "one")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: one and one are both of seed 0")


@pytest.mark.parametrize(
    ("files", "words"),
    [({}, "holds no finished run: results.json is missing"), ({"results.json": "{"}, "damaged")],
)
def test_show_refuses_other_folders(folder, files, words):
    for name, content in files.items():
        (folder / name).write_text(content)
    result = invoke("show", ".")
    assert result.exit_code == 2
    assert words in result.stderr


@pytest.mark.parametrize(("name", "key"), [("run", "evaluate"), ("recipe", "method")])
def test_schema_prints_json(name, key):
    result = invoke("schema", name)
    assert result.exit_code == 0
    assert key in json.loads(result.stdout)["properties"]


def test_version():
    assert invoke("--version").stdout.startswith("nan-merge ")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_examples(command):
    result = invoke(command, "--help")
    assert result.exit_code == 0
    assert f"nan-merge {command} " in result.stdout


def test_a_wrong_file_is_one_message_and_exit_code_2(folder, calls):
    result = invoke("plan", "recipe.yaml", "sead=1")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("error: override 'sead=1': sead: unknown key")
    assert calls.arguments == []


def test_messages_are_not_read_as_markup(folder, calls):
    calls.error = OutputError("[red]x[/red] [/nonsense] :smile:")
    result = invoke("plan", "recipe.yaml")
    assert result.stderr == "error: [red]x[/red] [/nonsense] :smile:\n"
    assert result.exit_code == 2


def test_an_error_from_a_worker_shows_its_cause_only(folder, calls):
    error = NanMergeError("traceback of the worker")
    error.cause = OutputError("the disk is full")  # as Ray does
    calls.error = error
    assert invoke("plan", "recipe.yaml").stderr == "error: the disk is full\n"


def test_our_own_mistakes_are_one_line(folder, calls):
    calls.error = ZeroDivisionError("division\nby zero")
    result = invoke("plan", "recipe.yaml")
    assert result.exit_code == 2
    assert result.stderr == (
        "internal error: ZeroDivisionError: division by zero; "
        "rerun with --debug for the traceback and report it\n"
    )


@pytest.mark.parametrize("arguments", [["--debug", "plan"], ["plan", "--debug"]])
def test_debug_shows_the_traceback(folder, calls, monkeypatch, arguments):
    monkeypatch.setenv("NAN_MERGE_DEBUG", "0")  # so that monkeypatch takes back what --debug sets
    calls.error = ZeroDivisionError("division by zero")
    result = invoke(*arguments, "recipe.yaml")
    assert result.exit_code == 2
    assert "Traceback (most recent call last)" in result.stderr


def test_debug_by_environment(folder, calls, monkeypatch):
    monkeypatch.setenv("NAN_MERGE_DEBUG", "1")
    calls.error = OutputError("taken")
    assert "Traceback (most recent call last)" in invoke("plan", "recipe.yaml").stderr


def test_a_missing_library_names_its_extra(folder, calls):
    calls.error = ModuleNotFoundError("No module named 'ray'", name="ray.util")
    result = invoke("plan", "recipe.yaml")
    assert result.exit_code == 2
    assert result.stderr == "error: ray is not installed: pip install 'nan-merge[cluster]'\n"


def test_an_error_of_a_worker_that_is_ours_is_one_line_too(folder, calls):
    error = RuntimeError("ray::_call()\n  File x, line 1\nZeroDivisionError: division by zero")
    error.cause = ZeroDivisionError("division by zero")  # type: ignore[attr-defined]
    calls.error = error
    result = invoke("plan", "recipe.yaml")
    assert result.stderr.startswith("internal error: ZeroDivisionError: division by zero; rerun")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("debug", [[], ["--debug"]])
def test_no_message_shows_a_password(folder, calls, debug):
    calls.error = OutputError("cannot reach http://me:secret@host/x?token=hidden")
    result = invoke("plan", "recipe.yaml", *debug)
    assert "http://***@host/x?token=***" in result.stderr
    assert "secret" not in result.stderr + result.stdout
    assert "hidden" not in result.stderr + result.stdout


def test_ctrl_c_says_how_to_continue(folder, calls):
    calls.error = KeyboardInterrupt()
    result = invoke("plan", "recipe.yaml")
    assert result.exit_code == 130
    assert result.stderr == "Interrupted. Run the same command again to continue.\n"


def test_wrong_usage_is_exit_code_2():
    assert invoke("nope").exit_code == 2
    assert invoke("run").exit_code == 2


@pytest.mark.parametrize("section", ["", "sweep: {merges: [{method: ties}]}\n"])
def test_a_run_file_in_a_recipes_place_names_the_command_that_takes_it(folder, section):
    (folder / "a run.yaml").write_text(RUN + section)
    command = "sweep" if section else "run"
    for arguments in (["merge", "a run.yaml", "out"], ["plan", "a run.yaml"]):
        result = invoke(*arguments)
        assert result.exit_code == 2
        assert "a run.yaml is a run file" in result.stderr
        assert f"`nan-merge {command} 'a run.yaml'`" in result.stderr


@pytest.mark.parametrize("text", [RECIPE, "merge_method: ties\nmodels: [{model: ./m1}]\n"])
def test_a_recipe_in_a_run_files_place_names_the_command_that_takes_it(folder, text):
    (folder / "recipe.yaml").write_text(text)
    for arguments in (["run"], ["sweep"], ["submit", "--address", "http://head:1"], ["gate"]):
        result = invoke(*arguments, "recipe.yaml")
        assert result.exit_code == 2
        assert "recipe.yaml is a recipe with one merge" in result.stderr
        assert "`nan-merge merge recipe.yaml OUT`" in result.stderr


def test_help_imports_nothing_heavy():
    code = (
        "import sys, pipelines.cli as cli\n"
        "try: cli.main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'ray', 'mlflow', 'numpy', 'pydantic', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code, "--help"], check=True, capture_output=True)


def test_exit_codes_of_the_real_process(folder):
    done = subprocess.run(
        [*CLI, "plan", "nowhere.yaml"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: nowhere.yaml: no such file\n"
    assert subprocess.run([*CLI, "--help"], capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("form", [[], ["--markdown"]])
def test_output_that_cannot_be_written_is_no_internal_error(folder, tiny, form):
    write_results(tiny, folder / "one")
    command = [*CLI, "show", "one", *form]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: No space left on the disk")
    assert done.stderr.count("\n") == 1

    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as gone:
        done = subprocess.run(command, stdout=gone, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "")


@pytest.mark.parametrize("form", [[], ["--markdown"]])
def test_a_terminal_that_knows_ascii_alone(folder, tiny, form):
    write_results(tiny, folder / "one")
    done = subprocess.run(
        [*CLI, "show", "one", *form],
        capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "TIES" in done.stdout


def test_sigint_of_the_real_process(folder):
    # A stand-in for the merge, because the real one may be done before the signal comes.
    (folder / "slow.py").write_text(
        "import signal, sys, time, types\n"
        "import pipelines.cli as cli\n"
        "def plan_command(recipe, output, console, *, staging):\n"
        "    print('started', flush=True)\n"
        "    time.sleep(60)\n"
        "sys.modules['pipelines.plan'] = types.SimpleNamespace(plan_command=plan_command)\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in background jobs\n"
        "cli.main()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "slow.py", "plan", "recipe.yaml"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, message = process.communicate(timeout=30)
    assert process.returncode == 130
    assert message == "Interrupted. Run the same command again to continue.\n"
