"""The package of a new plugin, as text: what is in it, and what is refused."""

from __future__ import annotations

import ast
import json
import tomllib
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from repid_core.cli import main, scaffold
from repid_core.cli.scaffold import KINDS, LICENSES, Names, ScaffoldError, render, write

HOOKS = {kind: f"repid_register_{kind.replace('-', '_')}s" for kind in KINDS}


def repid(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["plugin", *arguments])


def every_choice() -> list[tuple[str, ...]]:
    return [kinds for count in range(1, len(KINDS) + 1) for kinds in combinations(KINDS, count)]


@pytest.mark.parametrize("kinds", every_choice(), ids=",".join)
def test_each_choice_of_kinds_has_its_modules_its_tests_and_its_hooks(kinds: tuple[str, ...]) -> None:
    files = render("repid-my-store", kinds)
    for kind in KINDS:
        stem = kind.replace("-", "_")
        assert (f"repid_my_store/{stem}.py" in files) == (f"tests/test_{stem}.py" in files) == (kind in kinds)
        assert (f"def {HOOKS[kind]}(" in files["repid_my_store/__init__.py"]) == (kind in kinds)
    assert ("repid_my_store/server.py" in files) == ("message-broker" in kinds)
    assert ("repid_my_store/fitting.py" in files) == ("converter" in kinds)
    assert {"LICENSE", "README.md", "CHANGELOG.md", ".gitignore", ".github/workflows/ci.yml", "repid_my_store/py.typed"} <= {
        *files
    }
    for name, text in files.items():
        assert not any(
            mark in text.lower() for mark in ("acme", "%%", "<license>", "<author>", "<core>", "<year>", "<holder>")
        ), name
        if name.endswith(".py"):
            ast.parse(text)
    project = tomllib.loads(files["pyproject.toml"])["project"]
    assert project["entry-points"]["repid"] == {"my-store": "repid_my_store"}


def test_a_name_may_hold_the_word_that_the_templates_have() -> None:
    files = render("repid-acme-two", ["serializer"])
    assert "class AcmeTwoSerializer(Serializer)" in files["repid_acme_two/serializer.py"]
    assert Names.of("repid-acme-two") == Names("repid-acme-two", "repid_acme_two", "acme-two", "AcmeTwo")


@pytest.mark.parametrize("license_", LICENSES)
def test_the_licence_is_the_chosen_one_with_its_holder(license_: str) -> None:
    files = render("repid-acme", ["middleware"], license_, 'Ana "A." Ünal')
    project = tomllib.loads(files["pyproject.toml"])["project"]
    assert (project["license"], project["authors"]) == (license_, [{"name": 'Ana "A." Ünal'}])
    assert ('Ana "A." Ünal' in files["LICENSE"]) == (license_ in {"MIT", "ISC", "BSD-3-Clause"})
    assert {"MIT", "Apache-2.0", "BSD-3-Clause"} <= set(LICENSES)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("Repid_Acme", "'Repid_Acme' is no name for a plugin: use up to 40 lower-case letters and digits, joined by '-', "),
        ("Repid_Acme", "such as 'repid-acme'"),
        ("repid-", "no name for a plugin"),
        ("repid-2nd", "with a letter at the start and behind 'repid-'"),
        ("../outside", "no name for a plugin"),
        ("a" * 41, "up to 40"),
        ("", "no name for a plugin"),
        ("repid-core", "'repid-core' is taken: there is a module 'repid_core' in this environment; choose another name"),
        ("json", "'json' is taken"),
        ("import", "'import' is taken"),
    ],
)
def test_names_that_are_refused(name: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(ScaffoldError) as caught:
        render(name, ["serializer"])
    assert says in str(caught.value)
    result = repid("new", name, "--kind", "serializer", "--directory", str(tmp_path))
    assert result.exit_code == 2
    assert says in result.output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--kind", "serializer,queue"], f"'queue' is no kind: choose of {', '.join(KINDS)}"),
        (["--kind", ","], f"no kind is given: choose of {', '.join(KINDS)}"),
        (["--kind", "serializer", "--license", "GPL"], f"'GPL' is no licence: choose of {', '.join(LICENSES)}"),
        (["--kind", "serializer", "--directory", "{}/nowhere"], "is no folder: make it first"),
    ],
)
def test_choices_that_are_refused(arguments: list[str], says: str, tmp_path: Path) -> None:
    place = [] if "--directory" in arguments else ["--directory", "{}"]
    result = repid("new", "repid-acme", *(argument.format(tmp_path) for argument in [*arguments, *place]))
    assert result.exit_code == 2
    assert says in result.output
    assert list(tmp_path.iterdir()) == []


def test_without_a_kind_it_says_which_there_are() -> None:
    result = repid("new", "repid-acme")
    assert result.exit_code == 2
    assert "--kind" in result.output
    assert all(kind in " ".join(repid("new", "--help").output.split()) for kind in KINDS)


@pytest.mark.parametrize("there", ["folder", "file", "link"])
def test_what_is_there_is_left_alone(there: str, tmp_path: Path) -> None:
    target = tmp_path / "repid-acme"
    if there == "folder":
        target.mkdir()
    elif there == "file":
        target.write_text("mine")
    else:
        target.symlink_to(tmp_path / "nowhere")
    result = repid("new", "repid-acme", "--kind", "serializer", "--directory", str(tmp_path))
    assert result.exit_code == 2
    assert f"{target} is there already: choose another name, or another place with --directory" in result.output
    assert list(tmp_path.iterdir()) == [target]
    assert there != "folder" or list(target.iterdir()) == []


def test_nothing_is_left_of_a_package_that_cannot_be_written_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []
    write_text = Path.write_text

    def full(self: Path, *arguments: Any, **more: Any) -> int:
        written.append(self)
        if len(written) == 3:
            raise OSError(28, "No space left on device")
        return write_text(self, *arguments, **more)

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(ScaffoldError, match=r"cannot be written: .*No space left"):
        write(render("repid-acme", ["serializer"]), tmp_path / "repid-acme")
    assert len(written) == 3
    assert list(tmp_path.iterdir()) == []


def test_kinds_may_stand_in_one_option_or_in_several(tmp_path: Path) -> None:
    kinds = ["--kind", "serializer, converter", "--kind", "converter"]
    result = repid("new", "repid-acme", *kinds, "--directory", str(tmp_path))
    assert result.exit_code == 0, result.output
    assert sorted(path.stem for path in (tmp_path / "repid-acme" / "tests").iterdir()) == [
        "test_converter",
        "test_plugin",
        "test_serializer",
    ]
    assert result.output.endswith(
        f"Next:\n  pip install -e '{tmp_path}/repid-acme[test]'\n"
        f"  repid plugin test repid-acme\n  pytest {tmp_path}/repid-acme\n",
    )


def test_the_licence_texts_are_those_of_their_names() -> None:
    folder = Path(scaffold.__file__).parent / "templates" / "licenses"
    heads = {
        "Apache-2.0": "Apache License",
        "BSD-3-Clause": "BSD 3-Clause",
        "ISC": "ISC",
        "MIT": "MIT",
        "MPL-2.0": "Mozilla Public",
    }
    assert {name: heads[name] in (folder / f"{name}.tmpl").read_text("utf-8")[:200] for name in LICENSES} == dict.fromkeys(
        LICENSES, True
    )
    assert json.dumps(sorted(heads)) == json.dumps(list(LICENSES))
