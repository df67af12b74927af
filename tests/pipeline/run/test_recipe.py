"""Recipes and the user code that they name: every fault is one line that says what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from growpipe.graph_ops.errors import UsageError
from growpipe.run.locate import shipped_recipes
from growpipe.run.recipe import load_recipe
from growpipe.run.recipe_limits import budget_of, growth_of, rounds_of
from growpipe.user_code import call_user_code, hash_user_files, load_reference

MINIMAL = 'name = "mine"\nmodel = "net.py:build"\ndata = "data.py:loaders"\n'


TABLE = "[budget.table]\nlimit = 2\n"
RATE = 'terms = [{ groups = ["a"], rate = 1 }]\n'


def write(folder: Path, text: str) -> str:
    path = folder / "recipe.toml"
    path.write_text(text)
    return str(path)


def test_a_minimal_recipe_has_the_documented_defaults(tmp_path: Path) -> None:
    recipe, folder = load_recipe(write(tmp_path, MINIMAL))
    assert folder == tmp_path
    assert (recipe.task, recipe.train.optimizer, recipe.growth.scheme) == ("classification", "adamw", "m4")
    assert recipe.budget.parameters is None


def test_every_shipped_recipe_is_valid() -> None:
    assert "digits" in shipped_recipes()
    for name in shipped_recipes():
        recipe, folder = load_recipe(name)
        assert recipe.name == name
        assert folder is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (MINIMAL + "modle = 1\n", "unknown key 'modle'; did you mean 'model'?"),
        (MINIMAL + "[growth]\nround = 3\n", "unknown key 'growth.round'; did you mean 'rounds'?"),
        (MINIMAL + "[train]\nlr = 0.1\n", "unknown key 'train.lr'; did you mean 'learning_rate'?"),
        (MINIMAL + 'criterion = "MSELoss"\n', "unknown key 'criterion'; did you mean 'loss'?"),
        (
            MINIMAL + 'metric = "rmse"\n',
            "a classification task has no metric 'rmse'; the metrics are accuracy, f1",
        ),
        (MINIMAL + 'metric = "m.py:mine"\n', "set lower_is_better = true or false, for the metric m.py:mine"),
        (MINIMAL + "lower_is_better = true\n", "of a metric of your own; remove them"),
        (MINIMAL + '[train]\nepochs = "ten"\n', "wrong at 'train.epochs'.*integer"),
        (MINIMAL + "[growth]\nc = 0.5\n", "wrong at 'growth.c'.*greater than or equal to 1"),
        (MINIMAL.replace("net.py:build", "net.py"), "wrong at 'model'"),
        ('name = "mine"\n', "wrong at 'model'.*required"),
        (MINIMAL + "[budget]\nmilliseconds = 0\n", "wrong at 'budget.milliseconds'.*greater than 0"),
        (MINIMAL + "[budget]\nmillisecond = 1\n", "'budget.millisecond'; did you mean 'milliseconds'?"),
        (
            MINIMAL + "[budget]\nmilliseconds = 1\n" + TABLE + RATE,
            "'budget'.*or a table, not both",
        ),
        (MINIMAL + "[budget]\nthreads = 2\n", "'budget'.*threads are of a budget of milliseconds"),
        (MINIMAL + TABLE, "wrong at 'budget.table.terms'.*required"),
        (
            MINIMAL + TABLE + 'terms = [{ groups = ["a"] }]',
            "'budget.table.terms.0'.*give a rate, or one group",
        ),
        (
            MINIMAL + TABLE + RATE.replace("rate", "widths = [1, 2], rate"),
            "a rate, or widths and costs, not both",
        ),
        (MINIMAL + '[control]\nrival = "uniforms"\n', "wrong at 'control.rival'.*'uniform' or 'none'"),
        (
            MINIMAL + '[growth]\nfinish = "rival"\n[control]\nrival = "none"\n',
            r'finish = "rival" needs a rival; remove control\.rival = "none"',
        ),
        ("name = \n", "not TOML"),
    ],
)
def test_a_faulty_recipe_is_refused_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        load_recipe(write(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_a_missing_recipe_names_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="did you mean 'digits'"):
        load_recipe("digit")
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        load_recipe(str(tmp_path / "absent.toml"))
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="not UTF-8"):
        load_recipe(str(tmp_path / "binary.toml"))


def test_user_code_can_import_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "neighbour_of_net.py").write_text("WIDTH = 5\n")
    (tmp_path / "net.py").write_text("from neighbour_of_net import WIDTH\ndef build():\n    return WIDTH\n")
    assert load_reference("net.py:build", tmp_path)() == 5


def test_every_file_of_the_users_code_is_in_its_hashes(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "width_of_mine.py").write_text("WIDTH = 5\n")
    (tmp_path / "mine.py").write_text(
        "from parts.width_of_mine import WIDTH\ndef build():\n    return WIDTH\n"
    )
    (tmp_path / "trained.pt").write_text("weights")
    load_reference("mine.py:build", tmp_path)

    def hashes() -> dict[str, str]:
        return hash_user_files(["mine.py:build", "package.module:build"], ["trained.pt"], tmp_path)

    before = hashes()
    assert list(before) == ["mine.py", "parts/width_of_mine.py", "trained.pt"]
    for name in before:
        (tmp_path / name).write_text((tmp_path / name).read_text() + "\n")
        now = hashes()
        assert [name for name in before if now[name] != before[name]] == [name]
        before = now
    assert list(hash_user_files(["mine.py:build"], [], None)) == [], "a shipped recipe has no such files"
    with pytest.raises(UsageError, match="depends: there is no file"):
        hash_user_files([], ["absent.pt"], tmp_path)


@pytest.mark.parametrize(
    ("code", "reference", "message"),
    [
        (None, "net.py:build", "there is no file"),
        ("import no_such_package_here\n", "net.py:build", "cannot be imported.*line 1.*no_such_package_here"),
        ("def build(:\n", "net.py:build", r"cannot be imported \(line 1\): SyntaxError"),
        ("def biuld():\n    pass\n", "net.py:build", "has no 'build'; did you mean 'biuld'"),
        ("build = 3\n", "net.py:build", "is not a function or class but int"),
        ("", "no_such_package_here.models:build", "cannot be imported"),
    ],
)
def test_faulty_user_code_is_refused_in_one_line(
    tmp_path: Path, code: str | None, reference: str, message: str
) -> None:
    if code is not None:
        (tmp_path / "net.py").write_text(code)
    with pytest.raises(UsageError, match=message) as caught:
        load_reference(reference, tmp_path)
    assert "\n" not in str(caught.value)


def test_an_exception_of_user_code_names_its_line(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("def build(width):\n    return 1 // width\n")
    build = load_reference("net.py:build", tmp_path)
    with pytest.raises(UsageError, match=r"net.py:build failed \(net.py, line 2\): ZeroDivisionError"):
        call_user_code("net.py:build", build, width=0)


def test_a_file_named_like_a_module_is_pointed_at(tmp_path: Path) -> None:
    (tmp_path / "nets").mkdir()
    (tmp_path / "nets" / "wide.py").write_text("def build(): return 5\n")
    with pytest.raises(
        UsageError, match=r"nets\.wide:build cannot be imported.*beside .* nets/wide\.py:build"
    ):
        load_reference("nets.wide:build", tmp_path)


def test_arguments_that_are_not_taken_have_no_line_to_point_at(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("def build(): return 5\n")
    build = load_reference("net.py:build", tmp_path)
    with pytest.raises(UsageError, match=r"net\.py:build failed: TypeError: build\(\) got an unexpected"):
        call_user_code("net.py:build", build, width=0)


def test_the_line_is_the_users_own_also_where_a_library_raises(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("import json\ndef build():\n    return json.loads('no json')\n")
    build = load_reference("net.py:build", tmp_path)
    with pytest.raises(UsageError, match=r"net\.py:build failed \(net\.py, line 3\): JSONDecodeError"):
        call_user_code("net.py:build", build)


def test_keys_of_the_command_line_take_the_place_of_the_recipes(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL + "[growth]\nrounds = 7\nshare = 0.25\n")
    recipe, _ = load_recipe(path, {"growth": {"rounds": 2}, "control": {"rival": "none"}})
    assert (recipe.growth.rounds, recipe.growth.share, recipe.control.rival) == (2, 0.25, "none")
    with pytest.raises(UsageError, match=r"wrong at 'growth\.rounds'"):
        load_recipe(path, {"growth": {"rounds": -1}})


def test_a_family_names_its_sizes(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL + "[family]\nbudgets = [1e4, 20_000]\n[budget]\nparameters = 500\n")
    recipe, _ = load_recipe(path)
    assert rounds_of(recipe) == 2
    assert (growth_of(recipe).share, growth_of(recipe).balance) == (None, 1.0)
    assert [budget_of(recipe, number).macs for number in (0, 1)] == [10_000, 20_000]
    assert budget_of(recipe, 1).parameters == 500
    recipe, _ = load_recipe(write(tmp_path, MINIMAL + "[growth]\nrounds = 4\n"), {"family": {}})
    assert rounds_of(recipe) == 4
    assert budget_of(recipe, 3) == recipe.budget
    for wrong, message in (
        ("[family]\nbudgets = [2e4, 1e4]\n", "budgets ascend"),
        ("[family]\nbudgets = []\n", "wrong at 'family.budgets'"),
        ('[family]\n[growth]\nfinish = "retrain"\n', "a family grows on from what it has"),
        ("[family]\n[control]\nseed_control = true\n", "no control.seed_control"),
    ):
        with pytest.raises(UsageError, match=message):
            load_recipe(write(tmp_path, MINIMAL + wrong))
