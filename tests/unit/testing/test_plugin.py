"""The pytest plugin, as an application's tests meet it: with pytest-asyncio in both modes, and with anyio's plugin."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytest_plugins = ["pytester"]

CONFTEST = """
import pytest
from app import router

@pytest.fixture
def repid_options():
    return {"routers": [router]}
"""
APP = """
from repid_core import Job, Router

router = Router()

@router.actor
async def greet(name: str) -> str:
    return f"Hello {name}"

@router.actor
async def broken() -> None:
    raise LookupError("inside of the actor")

async def sign_up(name):
    await Job.of(greet)(name=name).enqueue()
"""
MARKS = {"strict": "asyncio", "auto": "repid", "anyio": "anyio"}  # in the auto mode no mark is needed


@pytest.fixture(params=["strict", "auto", "anyio"])
def runner(request: pytest.FixtureRequest, pytester: pytest.Pytester) -> str:
    """What runs async tests."""
    name: str = request.param
    settings = "asyncio_mode = auto" if name == "auto" else "asyncio_mode = strict"
    without = " -p no:asyncio" if name == "anyio" else ""
    lines = ["[pytest]", f"addopts = -p no:hypothesispytest -p no:xdist{without}", "filterwarnings = error"]
    if name != "anyio":
        lines += [settings, "asyncio_default_fixture_loop_scope = function"]
    pytester.makeini("\n".join(lines))
    pytester.makepyfile(app=APP)
    pytester.makeconftest(CONFTEST)
    if name == "anyio":
        pytester.makeconftest(f"{CONFTEST}\n@pytest.fixture\ndef anyio_backend():\n    return 'asyncio'\n")
    return name


def run(pytester: pytest.Pytester, runner: str, body: str) -> pytest.RunResult:
    head = f"import asyncio, pytest\nfrom repid_core import Job\nfrom app import *\npytestmark = pytest.mark.{MARKS[runner]}\n"
    pytester.makepyfile(test_app=head + body)
    return pytester.runpytest_inprocess("-q")


def test_the_fixture_is_an_application_in_memory(pytester: pytest.Pytester, runner: str) -> None:
    result = run(
        pytester,
        runner,
        """
async def test_one(repid):
    await sign_up("Alex")
    repid.assert_enqueued(greet, args={"name": "Alex"})
    await repid.run_until_idle()
    assert repid.events.kinds() == ["enqueued", "started", "succeeded"]

async def test_each_has_its_own(repid):
    assert not repid.events and not repid.enqueued()

@pytest.mark.repid(eager=True)
async def test_the_marker_is_enough():
    job = Job.of(greet)(name="Sam")
    await job.enqueue()
    assert await job.wait() == "Hello Sam"

@pytest.mark.repid(eager=True, raise_errors=False)
class TestMarked:
    @pytest.mark.repid(eager=False)
    async def test_the_closest_marker_counts(self, repid):
        await Job("broken").enqueue()
        assert repid.events.kinds() == ["enqueued"]
        await repid.run_until_idle()
        assert repid.events.kinds()[-1] == "dead"

@pytest.mark.parametrize("name", ["a", "b"])
@pytest.mark.repid
async def test_with_parameters(name):
    await sign_up(name)
""",
    )
    result.assert_outcomes(passed=6)


def test_async_fixtures_of_the_application_find_it_too(pytester: pytest.Pytester, runner: str) -> None:
    fixture = "pytest_asyncio.fixture" if runner == "strict" else "pytest.fixture"
    result = run(
        pytester,
        runner,
        f"""
{"import pytest_asyncio" if runner == "strict" else ""}

@{fixture}
async def signed_up(repid):
    await sign_up("Kim")
    yield
    await repid.run_until_idle()
    assert repid.events.kinds()[-1] == "succeeded"

async def test_one(repid, signed_up):
    repid.assert_enqueued(greet, args=["Kim"])
""",
    )
    result.assert_outcomes(passed=1)


def test_failures_show_the_actors_lines_and_the_tests(pytester: pytest.Pytester, runner: str) -> None:
    result = run(
        pytester,
        runner,
        """
async def test_actor(repid):
    await Job("broken").enqueue()
    await repid.run_until_idle()

async def test_assert(repid):
    await sign_up("Alexa")
    repid.assert_enqueued(greet, args={"name": "Alex"})
""",
    )
    result.assert_outcomes(failed=2)
    assert "repid_core/testing" not in str(result.stdout).partition("Captured log")[0], "pytest shows no line of the kit's"
    result.stdout.fnmatch_lines(
        [
            ">   *await repid.run_until_idle()",
            '>   *raise LookupError("inside of the actor")',
            "E   *LookupError: inside of the actor",
            "E   *in attempt 1 of job 'broken' from queue 'default'",
            '>   *repid.assert_enqueued(greet, args={"name": "Alex"})',
            "E   *AssertionError: no job was enqueued: 'greet' with",
            "E   *args?'name'?: 'Alexa', wanted 'Alex'",
            "test_app.py:*: AssertionError",
        ]
    )


def test_leaks_are_errors_of_tests_that_passed(pytester: pytest.Pytester, runner: str) -> None:
    result = run(
        pytester,
        runner,
        """
async def forgotten():
    await asyncio.Event().wait()

async def test_leaves_a_task(repid):
    repid.task = asyncio.create_task(forgotten())

async def test_fails_anyway(repid):
    repid.task = asyncio.create_task(forgotten())
    raise ValueError("the test's own")

@pytest.mark.repid(check_leaks=False)
async def test_may_leave_it(repid):
    repid.task = asyncio.create_task(forgotten())
""",
    )
    result.assert_outcomes(passed=2, failed=1, errors=1)
    result.stdout.fnmatch_lines(["*ERROR at teardown of test_leaves_a_task*", "*the test left behind:", "*which still runs: *"])


def test_misuse_is_named(pytester: pytest.Pytester, runner: str) -> None:
    result = run(
        pytester,
        runner,
        """
@pytest.mark.repid(eagre=True)
async def test_option(): ...

@pytest.mark.repid([router])
async def test_position(): ...
""",
    )
    result.assert_outcomes(errors=2)
    result.stdout.fnmatch_lines(["*eagre*", "*name the arguments, such as routers*"])


def test_without_anything_that_runs_async_tests(pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\nasyncio_mode = strict\nasyncio_default_fixture_loop_scope = function")
    pytester.makepyfile("""
        async def test_async(repid): ...

        def test_sync(repid): ...
    """)
    result = pytester.runpytest_inprocess("-q", "-p", "no:hypothesispytest")
    result.assert_outcomes(errors=2)
    result.stdout.fnmatch_lines(["*nothing runs this async test: mark it*", "*make the test an `async def`*"])


def test_a_loop_that_tests_share(pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\nasyncio_mode = strict\nasyncio_default_fixture_loop_scope = function")
    pytester.makepyfile("""
        import pytest
        from repid_core import Job

        pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.repid]

        async def test_one(repid):
            await Job("one").enqueue()

        async def test_two(repid):
            await Job("one").enqueue()
            assert len(repid.enqueued()) == 1
    """)
    pytester.runpytest_inprocess("-q", "-p", "no:hypothesispytest").assert_outcomes(passed=2)


def test_trio_is_refused(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("""
        import pytest

        @pytest.fixture
        def anyio_backend():
            return "trio"

        @pytest.mark.anyio
        async def test_one(repid): ...
    """)
    result = pytester.runpytest_inprocess("-q", "-p", "no:asyncio", "-p", "no:hypothesispytest")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*repid runs on asyncio, and not on trio*"])


def test_it_costs_nothing_where_it_is_not_used(pytester: pytest.Pytester) -> None:
    """It imports nothing, makes no fixture, and starts no loop."""
    pytester.makeini("[pytest]\nfilterwarnings = error")
    pytester.makepyfile("""
        import asyncio
        import sys

        import pytest

        def test_one(request):
            loaded = {name for name in sys.modules if name.startswith("repid_core.testing.")}
            assert loaded == {
                "repid_core.testing.plugin", "repid_core.testing.conformance", "repid_core.testing.conformance.plugin"
            }
            assert not [name for name in request.fixturenames if "repid" in name]
            with pytest.raises(RuntimeError):
                asyncio.get_running_loop()
    """)
    pytester.runpytest_subprocess("-q", "-p", "no:asyncio", "-p", "no:hypothesispytest").assert_outcomes(passed=1)


def test_the_package_imports_its_names_when_they_are_used() -> None:
    code = (
        "import sys, repid_core.testing as t\n"
        "assert 'repid_core.testing.harness' not in sys.modules and 'unittest.mock' not in sys.modules\n"
        "assert all(getattr(t, name).__name__ == name for name in t.__all__)\n"
        "assert 'pytest' not in sys.modules and 'unittest.mock' not in sys.modules\n"
        "try: t.Nothing\n"
        "except AttributeError as error: assert 'Nothing' in str(error)\n"
        "else: raise SystemExit(1)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)
