"""The table file: what it expands to, and one sentence for every mistake."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dafw.errors import UserError
from dafw.tables.controls import control_arguments
from dafw.tables.grid import Table
from dafw.tables.overlay import merge, parse_settings
from dafw.tables.reading import find_table, load_table, table_files


def test_cells_are_ordered_by_seed_first_and_carry_a_whole_configuration(make_table: Callable[..., Table]) -> None:
    table = make_table()
    cells = table.cells()
    assert [cell.seed for cell in cells] == [0] * 6 + [1] * 6 + [2] * 6
    assert [(cell.row, cell.task) for cell in cells[:4]] == [
        ("source only", "mnist->mnistm"),
        ("source only", "optdigits->mnist"),
        ("DANN", "mnist->mnistm"),
        ("DANN", "optdigits->mnist"),
    ]
    assert cells[2].config == {
        "seed_everything": 0,
        "model": {"class_path": "DANN", "init_args": {"gamma": 5}},
        "data": {"class_path": "Digits", "init_args": {"batch_size": 8, "source": ["mnist"], "target": ["mnistm"]}},
        "trainer": {"max_epochs": 1},
        "run": {"project": "digits"},
    }


def test_a_task_may_have_settings_of_its_own(grid_file: Callable[..., Path]) -> None:
    own = {"mnist->mnistm": {"trainer": {"max_epochs": 7}, "model": {"init_args": {"gamma": 2}}}}
    table = load_table(grid_file(per_task=own)).with_settings(parse_settings(["model.gamma=3"]))
    found = {(cell.row, cell.task): cell.config for cell in table.cells()}
    assert found["DANN", "mnist->mnistm"]["trainer"] == {"max_epochs": 7}
    assert found["DANN", "optdigits->mnist"]["trainer"] == {"max_epochs": 1}
    assert found["DANN", "mnist->mnistm"]["model"]["init_args"]["gamma"] == 3  # --set wins


def test_a_control_row_is_the_method_with_its_adaptation_off_whatever_is_set(make_table: Callable[..., Table]) -> None:
    table = make_table().with_settings(parse_settings(["model.weight=0.7", "model.gamma=1"]))
    models = {cell.row: cell.config["model"] for cell in table.cells()}
    assert models["DANN"] == {"class_path": "DANN", "init_args": {"gamma": 1, "weight": 0.7}}
    assert models["DANN control"] == {"class_path": "DANN", "init_args": {"gamma": 1, "weight": 0.0}}


def test_shorthands_for_tasks(make_table: Callable[..., Table]) -> None:
    assert make_table(tasks={"pairs": ["a", "b", "c"]}).tasks == ("a->b", "a->c", "b->a", "b->c", "c->a", "c->b")
    assert make_table(tasks={"leave_one_out": ["a", "b", "c"]}).tasks == ("b,c->a", "a,c->b", "a,b->c")
    several = make_table(tasks=["a, b -> c"])
    assert several.tasks == ("a,b->c",)
    assert several.cells()[0].config["data"]["init_args"]["source"] == ["a", "b"]


def test_a_part_of_a_table(make_table: Callable[..., Table]) -> None:
    table = make_table()
    part = table.only(["DANN"], ["optdigits -> mnist"], [1])
    assert [cell.label for cell in part.cells()] == [
        "DANN optdigits->mnist seed 1",
        "DANN control optdigits->mnist seed 1",
    ]
    assert table.folder == table.only([], [], []).folder == "digits"
    assert part.folder.startswith("digits-")
    assert table.with_settings({"trainer": {"max_steps": 1}}).folder != part.folder
    for wrong, said in (
        ((["DAN"], [], []), "DANN"),
        (([], ["mnist->mnist"], []), "mnist->mnistm"),
        (([], [], [3]), "2"),
    ):
        with pytest.raises(UserError, match=said):
            table.only(*wrong)


def test_merging_replaces_the_arguments_of_another_class() -> None:
    base = {"network": {"class_path": "LeNet", "init_args": {"width": 3}}, "layers": [1, 2], "rate": 1}
    above = {"network": {"class_path": "ResNet", "init_args": {"depth": 18}}, "layers": [3]}
    merged = merge(base, above, {"network": {"init_args": {"depth": 50}}})
    assert merged == {"network": {"class_path": "ResNet", "init_args": {"depth": 50}}, "layers": [3], "rate": 1}
    assert base["network"] == {"class_path": "LeNet", "init_args": {"width": 3}}


def test_settings_are_yaml_under_dotted_keys() -> None:
    assert parse_settings(["trainer.max_steps=5", "data.batch_size=8", "model.init_args.network.name=null"]) == {
        "trainer": {"max_steps": 5},
        "data": {"init_args": {"batch_size": 8}},
        "model": {"init_args": {"network": {"name": None}}},
    }


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("trainer.max_steps", "key=value"),
        ("=3", "key=value"),
        ("trainer=3", "whole section"),
        ("trianer.max_steps=3", 'did you mean "trainer"'),
        ("trainer.x=[1", "not YAML"),
    ],
)
def test_a_wrong_setting(setting: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        parse_settings([setting])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tittle": "x"}, 'unknown key in digits.yaml "tittle": did you mean "title"'),
        ({"base": {"trianer": {}}}, 'base of digits.yaml "trianer": did you mean "trainer"'),
        ({"per_task": {"mnist->mnist": {}}}, 'did you mean "mnist->mnistm"'),
        (
            {"per_task": {"mnist->mnistm": {"modl": {}}}},
            'mnist->mnistm in per_task of digits.yaml "modl": did you mean "mo',
        ),
        ({"rows": [{"name": "a", "modle": {}}]}, 'row "a" of digits.yaml "modle": did you mean "model"'),
        ({"rows": [{"name": "a", "model": {"class_pat": "X"}}]}, 'did you mean "class_path"'),
        ({"rows": [{"name": "a", "model": {"init_args": {}}}]}, "class_path of its model"),
        ({"rows": [{"model": {"class_path": "X"}}]}, "row 1 of digits.yaml lacks a name"),
        ({"rows": [{"name": "a", "model": {"class_path": "X"}}] * 2}, 'two rows of digits.yaml are called "a"'),
        ({"rows": [{"name": "a", "model": {"class_path": "X"}, "control": 3}]}, "true, false or the name"),
        ({"rows": [{"name": "a", "model": {"class_path": "X"}, "control": "b"}]}, 'control of row "a"'),
        ({"rows": {"name": "a"}}, "list of rows"),
        ({"rows": ["DANN"]}, "not a mapping"),
        ({"rows": None}, 'lacks "rows"'),
        ({"tasks": []}, 'lacks "tasks"'),
        ({"tasks": ["mnist-mnistm"]}, 'the task "mnist-mnistm" is not of the form source->target'),
        ({"tasks": ["art", "photo->sketch"]}, "quote one of several sources"),
        ({"tasks": ["a->"]}, "not of the form"),
        ({"tasks": ["a,a->b"]}, "names a domain twice"),
        ({"tasks": ["a->b", "a -> b"]}, "names something twice"),
        ({"tasks": {"pears": ["a", "b"]}}, 'did you mean "pairs"'),
        ({"tasks": {"pairs": ["a"]}}, "at least two domains"),
        ({"seeds": "all"}, "whole numbers"),
        ({"seeds": [0, 0]}, "a seed twice"),
        ({"seeds": [True]}, "whole numbers"),
        ({"select": ["oracle"]}, "allow_oracle: true"),
        ({"allow_oracle": "sure"}, "true or false"),
        ({"name": "../x"}, "names a folder"),
        ({"note": 3}, "note in digits.yaml is a sentence, or a list of sentences"),
        ({"note": []}, "note in digits.yaml is a sentence, or a list of sentences"),
        ({"note": ["Yes.", " "]}, "note in digits.yaml is a sentence, or a list of sentences"),
        ({"note": {"a": "b"}}, "note in digits.yaml is a sentence, or a list of sentences"),
        ({"published": "digits.csv"}, 'no file "digits.csv"'),
        (
            {"base": {"data": {"init_args": {"source": "mnist"}}}},
            'sets the source of the data, which comes from "tasks"',
        ),
    ],
)
def test_a_wrong_file(grid_file: Callable[..., Path], changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as error:
        load_table(grid_file(**changes))
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_yaml(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("rows:\n- {name: [}\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"bad\.yaml is not YAML: look at line 2"):
        load_table(path)
    path.write_text("", encoding="utf-8")
    with pytest.raises(UserError, match="not a mapping"):
        load_table(path)


def test_tables_are_found_by_path_and_by_name(tmp_path: Path) -> None:
    checkout, wheel = tmp_path / "checkout", tmp_path / "wheel"
    for folder, name in ((checkout, "digits"), (wheel, "digits"), (wheel, "office31")):
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.yaml").touch()
    assert find_table("digits", (checkout, wheel)) == checkout / "digits.yaml"
    assert find_table(str(wheel / "office31.yaml"), ()) == wheel / "office31.yaml"
    assert sorted(table_files((checkout, wheel))) == ["digits", "office31"]
    with pytest.raises(UserError, match='unknown table "digit": did you mean "digits"'):
        find_table("digit", (checkout, wheel))
    with pytest.raises(UserError, match="no table file"):
        find_table("nowhere/digits.yaml", (checkout,))


METHODS = {
    "adaptation/one.py": """
        class One(Base):
            control: ClassVar[dict[str, Any]] = {"weight": 0.0}
        class Child(module.One):
            pass
        class Grandchild(Child):
            control = {"trade": {"a": 0}}
        class Without(Base):
            control: ClassVar[dict[str, Any]]
        class Computed(Base):
            control = make()
        """,
    "adaptation/two.py": "class Twice(Base):\n    control = {'weight': 0.0}\n",
    "test_time/three.py": "class Twice(Base):\n    control = {'rate': 0.0}\n",
    "base.py": "class Base:\n    control: ClassVar[dict[str, Any]] = {}\n",
}


@pytest.fixture
def methods(tmp_path: Path) -> Path:
    folder = tmp_path / "dafw" / "methods"
    for name, text in METHODS.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = text.splitlines()
        path.write_text("\n".join(line.removeprefix(" " * 8) for line in lines), encoding="utf-8")
    return folder


def test_controls_are_read_from_the_source(methods: Path) -> None:
    assert control_arguments("One", methods) == {"weight": 0.0}
    assert control_arguments("dafw.methods.adaptation.one.Child", methods) == {"weight": 0.0}
    assert control_arguments("Grandchild", methods) == {"trade": {"a": 0}}
    assert control_arguments("dafw.methods.test_time.three.Twice", methods) == {"rate": 0.0}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Without", "declares no control"),
        ("Computed", "not written out as a literal"),
        ("Twice", "2 classes called"),
        ("Childe", 'unknown method "Childe": did you mean "Child"'),
        ("no_such_package.Method", "cannot import"),
        ("json.Method", "cannot import"),
    ],
)
def test_a_missing_control(methods: Path, name: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        control_arguments(name, methods)


def test_the_control_of_a_class_of_the_user(methods: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_methods.py").write_text("class Mine:\n    control = {'weight': 0.0}\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    assert control_arguments("my_methods.Mine", methods) == {"weight": 0.0}


def test_the_methods_of_this_package_that_declare_a_control_are_found() -> None:
    assert control_arguments("DANN") == {"weight": 0.0}
    assert control_arguments("dafw.methods.adaptation.dann.DANN") == {"weight": 0.0}
