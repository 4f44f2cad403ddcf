"""What is pydantic's own: aliases, constraints, strict models, filtered results, and errors that keep secrets."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import pytest
from pydantic import AliasPath, BaseModel, ConfigDict, Field, SecretStr

from repid_core import (
    Connection,
    ConversionError,
    Depends,
    InMemoryBucketBroker,
    InMemoryMessageBroker,
    Job,
    MessageDependency,
    Repid,
    Router,
    Worker,
)
from repid_pydantic import PydanticConverter


class Profile(BaseModel):
    name: str = Field(alias="fullName")


class User(Profile):
    password: str = Field(min_length=8)


class Strict(BaseModel):
    model_config = ConfigDict(strict=True)
    when: datetime


class Cat(BaseModel):
    kind: Literal["cat"] = "cat"


class Dog(BaseModel):
    kind: Literal["dog"] = "dog"


def aliased(
    n: Annotated[int, Field(alias="count", le=9)], tag: str = Field(default="none", validation_alias=AliasPath("a", 0))
) -> None: ...
def registers(user: User) -> Profile: ...  # type: ignore[empty-body]
def strict(value: Strict) -> None: ...
def pet(animal: Annotated[Cat | Dog, Field(discriminator="kind")]) -> None: ...
def chunks(data: bytes, more: list[bytes]) -> None: ...
async def greeting() -> str:
    return "Hello"


def secret(key: SecretStr) -> None: ...


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({"count": 5}, (5, "none")),
        ({"n": "5", "a": ["x"]}, (5, "x")),
        ([5, "y"], (5, "y")),
    ],
)
def test_aliases_names_and_defaults(given: Any, wanted: tuple[Any, ...]) -> None:
    assert PydanticConverter(aliased).convert_inputs(given) == (wanted, {})


def test_names_of_the_model_itself_are_unknown() -> None:
    with pytest.raises(ConversionError, match="unknown argument 'p0'"):
        PydanticConverter(aliased).convert_inputs({"p0": 1})


@pytest.mark.parametrize(
    ("actor", "given", "path"),
    [
        (registers, {"user": {"fullName": "A", "password": "hush"}}, "user.password"),
        (aliased, {"count": "hush"}, "n"),
        (pet, {"animal": {"kind": "hush"}}, "animal"),
    ],
)
def test_errors_name_the_path_and_keep_the_value(actor: Callable[..., Any], given: Any, path: str) -> None:
    with pytest.raises(ConversionError) as caught:
        PydanticConverter(actor).convert_inputs(given)
    assert [problem.partition(":")[0] for problem in caught.value.problems] == [path]
    assert "hush" not in "".join(traceback.format_exception(caught.value))


def test_strict_models_take_what_json_has() -> None:
    value, converter = Strict(when=datetime(2024, 2, 29, tzinfo=UTC)), PydanticConverter(strict)
    data = converter.dump_inputs((value,), {})
    assert data == {"value": {"when": "2024-02-29T00:00:00Z"}}
    assert converter.convert_inputs(data) == ((value,), {})


def test_bytes_of_both_alphabets_and_native_ones() -> None:
    converter = PydanticConverter(chunks)
    assert converter.convert_inputs({"data": "+/8=", "more": ["-_8="]}) == ((b"\xfb\xff", [b"\xfb\xff"]), {})
    assert converter.convert_inputs({"data": b"\xfb", "more": []}) == ((b"\xfb", []), {})


def test_secrets_do_not_travel_as_asterisks() -> None:
    with pytest.raises(ConversionError, match="key: cannot be passed on"):
        PydanticConverter(secret).dump_inputs((SecretStr("x"),), {})


@pytest.mark.parametrize(
    "result",
    [User.model_validate({"fullName": "A", "password": "long enough"}), {"fullName": "A", "password": "hush"}],
    ids=["subclass", "mapping"],
)
def test_results_are_filtered(result: Any) -> None:
    converter = PydanticConverter(registers)
    assert converter.convert_outputs(result) == {"fullName": "A"}
    assert converter.load_outputs({"fullName": "A"}) == Profile(fullName="A")


async def test_a_worker_injects_beside_it() -> None:
    router = Router()

    @router.actor
    async def greet(message: MessageDependency, user: User, words: Annotated[str, Depends(greeting)] = "") -> Profile:
        return Profile(fullName=f"{words} {user.name} {message.key.topic}")

    async with Repid(
        Connection(InMemoryMessageBroker(), None, InMemoryBucketBroker(), converter="pydantic"),
    ).magic(auto_disconnect=True):
        job: Job[Any] = Job("greet", args={"user": {"fullName": "A", "password": "long enough"}})
        await job.enqueue()
        await Worker([router], messages_limit=1, handle_signals=()).run()
        bucket = await job.result
    assert bucket is not None
    assert bucket.data == {"fullName": "Hello A greet"}


def test_what_job_of_writes_goes_by_names_and_is_read() -> None:
    user = User.model_validate({"fullName": "A", "password": "long enough"})
    converter = PydanticConverter(registers)
    data = converter.dump_inputs((user,), {})
    assert data == {"user": {"name": "A", "password": "long enough"}}
    assert converter.convert_inputs(data) == ((user,), {})


def test_suggestions_are_few_however_many_arguments_are_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stranger's message must not keep the event loop busy for seconds."""

    async def act(name: str) -> None: ...

    asked: list[str] = []

    def suggest(word: str, *_: object) -> list[str]:
        asked.append(word)
        return []

    monkeypatch.setattr("repid_pydantic.converter.get_close_matches", suggest)
    given = {"name": "Alex", "k" * 1_000_000: 1, **{f"k{number}": 1 for number in range(10_000)}}
    with pytest.raises(ConversionError) as raised:
        PydanticConverter(act).convert_inputs(given)
    assert raised.value.problems[-1] == "and 9901 more"
    assert sum(map(bool, asked)) == 100
    assert max(map(len, asked)) == 128
