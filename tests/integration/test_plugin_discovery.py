"""Real distributions: wheels, built here and installed by pip, looked at from interpreters of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from textwrap import dedent
from typing import Any
from zipfile import ZipFile

import pytest

FACTORY = "builtins:object"


def plugin(*names: str, **fields: Any) -> str:
    """The source of a module that offers message brokers."""
    extra = "".join(f", {field}={value!r}" for field, value in fields.items())
    backends = ", ".join(f"Backend({name!r}, {FACTORY!r}{extra})" for name in names)
    return f"@hookimpl\ndef repid_register_message_brokers():\n    return [{backends}]\n"


# distribution: (version, entry points, modules)
DISTRIBUTIONS: dict[str, tuple[str, dict[str, str], dict[str, str]]] = {
    "repid-kv": ("1.2", {"kv": "x_kv", "keyval": "x_kv"}, {"x_kv": plugin("kv", "keyval", url_schemes=("kv", "kvs"))}),
    "repid-rabbitmq": ("1.0", {"rabbitmq": "x_rabbitmq"}, {"x_rabbitmq": "import x_missing_client"}),
    "repid-spelt": ("1.0", {"spelt": "x_spelt"}, {"x_spelt": plugin("spelt").replace("brokers", "brooker")}),
    "repid-argument": ("1.0", {"argument": "x_argument"}, {"x_argument": plugin("argument").replace("()", "(config)")}),
    "repid-raises": ("1.0", {"raises": "x_raises"}, {"x_raises": "@hookimpl\ndef repid_register_converters():\n    1 / 0"}),
    "repid-string": ("1.0", {"string": "x_string"}, {"x_string": "@hookimpl\ndef repid_register_serializers():\n    return 'a'"}),
    "repid-future": ("1.0", {"future": "x_future"}, {"x_future": plugin("future", api=2)}),
    "repid-empty": ("1.0", {"empty": "x_empty"}, {"x_empty": plugin()}),
    "repid-first": ("1.0", {"twin": "x_first"}, {"x_first": plugin("twin", summary="first")}),
    "Repid.Second": ("2.0", {"twin": "x_second"}, {"x_second": plugin("twin", summary="second")}),
    "repid-lazy": ("1.0", {"lazy": "x_lazy"}, {"x_lazy": plugin("lazy").replace(FACTORY, "x_missing_client:Broker")}),
}


def build_wheel(folder: Path, distribution: str) -> Path:
    version, entry_points, modules = DISTRIBUTIONS[distribution]
    stem = f"{distribution.replace('-', '_').replace('.', '_').lower()}-{version}"
    info = f"{stem}.dist-info"
    files = {f"{module}.py": f"from repid_core.hookspecs import Backend, hookimpl\n{code}" for module, code in modules.items()}
    files[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n"
    files[f"{info}/WHEEL"] = "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    files[f"{info}/entry_points.txt"] = "\n".join(["[repid]", *(f"{name} = {to}" for name, to in entry_points.items()), ""])
    files[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"])
    wheel = folder / f"{stem}-py3-none-any.whl"
    with ZipFile(wheel, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return wheel


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    wheels, target = tmp_path_factory.mktemp("wheels"), tmp_path_factory.mktemp("site")
    paths = [str(build_wheel(wheels, distribution)) for distribution in DISTRIBUTIONS]
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index", "--no-deps"]
    subprocess.run([*pip, "--target", str(target), *paths], check=True, timeout=120, stdin=subprocess.DEVNULL)
    return target


def run(site: Path | None, code: str, **environment: str) -> Any:
    """What `code` prints as JSON, in an interpreter that has the distributions; `failure(call)` gives an error's text."""
    prelude = """
        import json, os, sys
        from importlib import metadata

        def seen(found=metadata.entry_points, **choice):  # plugins that happen to be installed beside core are out of sight
            places = tuple(filter(None, [os.environ.get("PYTHONPATH")]))
            return [e for e in found(**choice) if e.dist.name == "repid-core" or str(e.dist.locate_file("")).startswith(places)]

        metadata.entry_points = seen
        from repid_core.plugins import Kind, plugins

        def failure(call, *arguments):
            try:
                call(*arguments)
            except Exception as error:
                return f"{type(error).__name__}: {error}"

        def imported():
            return sorted(name for name in sys.modules if name.startswith(("x_", "repid_core.cattrs")))
    """
    inherited = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "REPID_DISABLE_PLUGINS")}
    path = {} if site is None else {"PYTHONPATH": str(site)}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", dedent(prelude) + dedent(code)],
        env=inherited | path | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_cores_own_backends_come_through_entry_points_and_nothing_else_is_imported(site: Path) -> None:
    code = """
        from repid_core.abc import BucketBroker, Converter, MessageBroker, Serializer
        before = imported()
        built = plugins().build
        print(json.dumps([
            before,
            isinstance(built(Kind.SERIALIZER, "json"), Serializer),
            imported(),
            issubclass(built(Kind.CONVERTER, "cattrs"), Converter),
            isinstance(built(Kind.MESSAGE_BROKER, "memory"), MessageBroker),
            isinstance(built(Kind.BUCKET_BROKER, "memory"), BucketBroker),
            [name for name in imported() if name.startswith("x_")],
        ]))
    """
    assert run(site, code) == [[], True, [], True, True, True, []]


def test_core_alone_reports_its_own_plugins() -> None:
    code = """
        print(json.dumps([
            [list(info.names), [str(kind) for kind in info.backends], info.problem]
            for info in plugins().report() if info.distribution == "repid-core"
        ]))
    """
    assert sorted(run(None, code)) == [
        [["cattrs"], ["converter"], None],
        [["json"], ["serializer"], None],
        [["memory"], ["message broker", "bucket broker"], None],
    ]


def test_choosing_one_name_imports_that_plugin_alone(site: Path) -> None:
    code = """
        names = [plugins().backend(Kind.MESSAGE_BROKER, name).name for name in ("kv", "keyval")]
        print(json.dumps([names, plugins().for_scheme(Kind.MESSAGE_BROKER, "kv").name, imported()]))
    """
    assert run(site, code) == [["kv", "keyval"], "kv", ["x_kv"]]


def test_a_scheme_that_is_no_name_looks_through_all(site: Path) -> None:
    code = """
        print(json.dumps([plugins().for_scheme(Kind.MESSAGE_BROKER, "kvs").name, "x_first" in imported()]))
    """
    assert run(site, code) == ["kv", True]


AVAILABLE = "available: keyval, kv, lazy, memory, twin"
FAILED = "1.0 is installed but failed to load: "
ERRORS = {
    "rabbitmq": (
        f"PluginLoadError: no message broker 'rabbitmq': repid-rabbitmq {FAILED}"
        f"ModuleNotFoundError: No module named 'x_missing_client'; {AVAILABLE}"
    ),
    "spelt": (
        f"PluginLoadError: no message broker 'spelt': repid-spelt {FAILED}there is no hook 'repid_register_message_brooker', "
        f"did you mean 'repid_register_message_brokers'?; {AVAILABLE}"
    ),
    "argument": (
        f"PluginLoadError: no message broker 'argument': repid-argument {FAILED}PluginValidationError: Plugin 'x_argument' for "
        "hook 'repid_register_message_brokers' hookimpl definition: repid_register_message_brokers(config) "
        f"Argument(s) {{'config'}} are declared in the hookimpl but can not be found in the hookspec; {AVAILABLE}"
    ),
    "raises": (
        f"PluginLoadError: no message broker 'raises': repid-raises {FAILED}repid_register_converters failed: "
        f"ZeroDivisionError: division by zero; {AVAILABLE}"
    ),
    "string": (
        f"PluginLoadError: no message broker 'string': repid-string {FAILED}repid_register_serializers gives 'a', "
        f"which is no Backend; {AVAILABLE}"
    ),
    "future": (
        f"PluginLoadError: no message broker 'future': repid-future {FAILED}its message broker 'future' is for plugin "
        f"interface 2, newer than repid-core's 1: upgrade repid-core; {AVAILABLE}"
    ),
    "empty": (
        "UnknownBackendError: no message broker 'empty': repid-empty 1.0 has an entry point 'empty', but no hook gives it; "
        f"{AVAILABLE}"
    ),
    "twin": (
        "PluginLoadError: repid-first 1.0 and repid-second 2.0 both offer message broker 'twin': "
        "choose it as 'repid-first:twin' or 'repid-second:twin', or uninstall one"
    ),
    "json": f"UnknownBackendError: no message broker 'json': 'json' of repid-core {{core}} is a serializer; {AVAILABLE}",
    "redis": f"UnknownBackendError: no message broker 'redis': pip install repid-redis; {AVAILABLE}",
    "memroy": f"UnknownBackendError: no message broker 'memroy': did you mean 'memory'?; {AVAILABLE}",
    "carrier-pigeon": (
        "UnknownBackendError: no message broker 'carrier-pigeon': install the plugin that offers it; "
        f"by convention it is called repid-carrier-pigeon; {AVAILABLE}"
    ),
}


def test_every_failure_is_named_and_breaks_nothing_else(site: Path) -> None:
    code = f"""
        from importlib.metadata import version
        failures = {{name: failure(plugins().backend, Kind.MESSAGE_BROKER, name) for name in {list(ERRORS)}}}
        print(json.dumps([failures, version("repid-core"), plugins().backend(Kind.MESSAGE_BROKER, "memory").name]))
    """
    failures, core, sound = run(site, code)
    assert failures == {name: text.format(core=core) if name == "json" else text for name, text in ERRORS.items()}
    assert sound == "memory"


def test_a_distribution_can_be_named_before_its_plugin(site: Path) -> None:
    code = """
        names = ["repid-first:twin", "repid-second:twin", "Repid.Second:twin"]
        print(json.dumps([plugins().backend(Kind.MESSAGE_BROKER, name).summary for name in names]))
    """
    assert run(site, code) == ["first", "second", "second"]


def test_a_client_library_is_imported_only_to_build_its_backend(site: Path) -> None:
    code = """
        print(json.dumps([
            plugins().backend(Kind.MESSAGE_BROKER, "lazy").name, failure(plugins().build, Kind.MESSAGE_BROKER, "lazy")
        ]))
    """
    name, failure = run(site, code)
    assert name == "lazy"
    assert failure == (
        "PluginLoadError: message broker 'lazy' cannot be used: importing 'x_missing_client:Broker' failed: "
        "ModuleNotFoundError: No module named 'x_missing_client'"
    )


def test_the_environment_leaves_plugins_out(site: Path) -> None:
    code = """
        print(json.dumps([
            plugins().backend(Kind.MESSAGE_BROKER, "twin").summary,
            failure(plugins().backend, Kind.MESSAGE_BROKER, "kv"),
            imported(),
        ]))
    """
    summary, failure, imported = run(site, code, REPID_DISABLE_PLUGINS="kv,keyval, repid-first:twin")
    assert summary == "second"
    assert failure == (
        "UnknownBackendError: no message broker 'kv': repid-kv 1.2 is left out by REPID_DISABLE_PLUGINS; "
        "available: lazy, memory, twin"
    )
    assert not {"x_kv", "x_first"} & set(imported)


def test_the_report_names_every_distribution_and_its_problem(site: Path) -> None:
    code = """
        print(json.dumps({
            f"{info.distribution} {info.version}": [list(info.names), info.problem] for info in plugins().report()
        }))
    """
    report = run(site, code)
    assert report["repid-kv 1.2"] == [["keyval", "kv"], None]
    assert report["repid-second 2.0"] == [["twin"], None]
    broken = {
        name.partition(" ")[0] for name, (_, problem) in report.items() if problem and problem.startswith("installed but failed")
    }
    assert broken == {"repid-rabbitmq", "repid-spelt", "repid-argument", "repid-raises", "repid-string", "repid-future"}
