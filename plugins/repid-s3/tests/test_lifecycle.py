"""Rules are merged so that those of others keep their meaning, whoever else writes, and whatever the server makes of them."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from repid_s3 import S3BucketBroker, S3BucketBrokerSettings, lifecycle
from repid_s3.commands import s3
from servers import Stub, on_both_servers, refusal, reply, session

README = (Path(__file__).parents[1] / "README.md").read_text("utf-8")
SETTINGS = S3BucketBrokerSettings("s3://bucket/jobs/")
A, B = {"Key": "a", "Value": "1"}, {"Key": "b", "Value": "2"}


@pytest.mark.parametrize(
    ("given_", "wanted"),
    [
        pytest.param({"Filter": {"Prefix": "x/"}}, {"Prefix": "x/"}, id="a prefix"),
        pytest.param({"Prefix": "x/"}, {"Prefix": "x/"}, id="the old form"),
        pytest.param({"Prefix": ""}, {"Prefix": ""}, id="the old form, for all"),
        pytest.param({"Filter": {}}, {"Prefix": ""}, id="for all"),
        pytest.param({}, {"Prefix": ""}, id="no filter"),
        pytest.param({"Filter": {"Tag": A}}, {"Tag": A}, id="a tag"),
        pytest.param({"Filter": {"And": {"Prefix": "x/", "Tags": [B, A]}}}, {"And": {"Prefix": "x/", "Tags": [A, B]}}, id="all"),
        pytest.param(
            {"Filter": {"Prefix": "x/", "And": {"Tags": [A]}}}, {"And": {"Prefix": "x/", "Tags": [A]}}, id="Ceph: beside And"
        ),
        pytest.param({"Filter": {"Prefix": "x/", "Tag": A}}, {"And": {"Prefix": "x/", "Tags": [A]}}, id="Ceph: beside Tag"),
        pytest.param({"Filter": {"And": {"Tags": [A]}}}, {"Tag": A}, id="an And of one"),
        pytest.param({"Filter": {"And": {"Prefix": "x/"}}}, {"Prefix": "x/"}, id="an And of a prefix"),
        pytest.param({"Filter": {"ObjectSizeGreaterThan": 5}}, {"ObjectSizeGreaterThan": 5}, id="a size"),
        pytest.param(
            {"Filter": {"And": {"Prefix": "x/", "ObjectSizeGreaterThan": 0, "Tags": [A]}}},
            {"And": {"Prefix": "x/", "ObjectSizeGreaterThan": 0, "Tags": [A]}},
            id="a size of 0",
        ),
    ],
)
def test_normal_form(given_: dict[str, Any], wanted: dict[str, Any]) -> None:
    rest = {"ID": "r", "Status": "Enabled", "Expiration": {"Days": 1}}
    made = lifecycle.normal({**rest, **given_})
    assert made == {**rest, "Filter": wanted}
    assert lifecycle.normal(made) == made
    row = f"| `{json.dumps(given_)}` | `{json.dumps(wanted)}` |"
    assert row in README, f"put this into the README:\n{row}"


TAGS = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("12")), max_size=3, unique_by=lambda tag: tag[0])
MEANINGS = st.fixed_dictionaries(
    {"prefix": st.sampled_from(["", "x/", "jobs/", "jobs/x"]), "tags": TAGS, "size": st.none() | st.integers(0, 9)}
)
FORMS = st.sampled_from(["aws", "old", "beside", "bare"])


def written(meaning: dict[str, Any], form: str) -> dict[str, Any]:
    """A filter as one server or another would say it."""
    tags = [{"Key": key, "Value": value} for key, value in meaning["tags"]]
    prefix = {"Prefix": meaning["prefix"]} if meaning["prefix"] else {}
    size = {} if meaning["size"] is None else {"ObjectSizeGreaterThan": meaning["size"]}
    if form == "old" and not tags and not size:
        return {"Prefix": meaning["prefix"]}
    if form == "beside" and tags:
        return {"Filter": {**prefix, "And": {"Tags": tags, **size}}}
    if form == "bare" and len(tags) == 1:
        return {"Filter": {**prefix, **size, "Tag": tags[0]}}
    return {"Filter": {"And": {**prefix, "Tags": tags, **size}}}


def matches(rule: Mapping[str, Any], key: str, tags: Mapping[str, str], size: int) -> bool:
    """Whether a rule in normal form applies to an object, as S3's documentation has it."""
    filter_ = rule["Filter"]
    assert len(filter_) == 1
    inner = filter_.get("And", filter_)
    wanted = [inner["Tag"]] if "Tag" in inner else inner.get("Tags", [])
    return (
        key.startswith(inner.get("Prefix", ""))
        and all(tags.get(tag["Key"]) == tag["Value"] for tag in wanted)
        and size > inner.get("ObjectSizeGreaterThan", -1)
    )


OBJECTS = [
    (key, tags, size)
    for key in ("x/1", "y", "jobs/1", "jobs/x1")
    for tags in ({}, {"a": "1"}, {"a": "1", "b": "2"}, {"c": "2", "b": "1", "a": "2"})
    for size in (0, 1, 5, 100)
]


@examples(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a slow machine finds nothing
@given(st.lists(st.tuples(MEANINGS, FORMS), max_size=6))
def test_rules_of_others_keep_their_meaning(rules: list[tuple[dict[str, Any], str]]) -> None:
    document = lifecycle.Document(
        tuple(
            lifecycle.normal({"ID": f"r{n}", "Status": "Enabled", "Expiration": {"Days": n + 1}, **written(meaning, form)})
            for n, (meaning, form) in enumerate(rules)
        )
    )
    plan = lifecycle.planned(document, SETTINGS)
    after = {rule["ID"]: rule for rule in plan.rules}
    for n, (meaning, _) in enumerate(rules):
        rule = after[f"r{n}"]
        assert rule["Expiration"] == {"Days": n + 1}
        for key, tags, size in OBJECTS:
            meant = (
                key.startswith(meaning["prefix"])
                and dict(meaning["tags"]).items() <= tags.items()
                and (meaning["size"] is None or size > meaning["size"])
            )
            assert matches(rule, key, tags, size) == meant
    assert not lifecycle.planned(lifecycle.Document(plan.rules), SETTINGS).missing


def test_our_rules() -> None:
    rules = lifecycle.own(SETTINGS)
    assert len(rules) == 12
    assert {rule["Expiration"]["Days"] for rule in rules if "Days" in rule.get("Expiration", {})} == set(SETTINGS.ttl_days)
    for rule in rules:
        assert not matches(rule, "other/1", {"repid-ttl": "d1"}, 1)
    [week] = [rule for rule in rules if rule["ID"].endswith("-d7")]
    assert matches(week, "jobs/1", {"repid-ttl": "d7"}, 1)
    assert not matches(week, "jobs/1", {"repid-ttl": "d1"}, 1)
    other = lifecycle.own(S3BucketBrokerSettings("s3://bucket/jobs/more/"))
    assert not {rule["ID"] for rule in rules} & {rule["ID"] for rule in other}


@pytest.mark.parametrize(
    ("rule", "early"),
    [
        ({"Prefix": "jobs/"}, True),
        ({"Prefix": "jo"}, True),
        ({"Prefix": "jobs/a"}, True),
        ({"Prefix": ""}, True),
        ({"Prefix": "other/"}, False),
        ({"Filter": {"Tag": A}}, False),
        ({"Prefix": "jobs/", "Status": "Disabled"}, False),
        ({"Prefix": "jobs/", "Expiration": {"Days": 365}}, False),
        ({"Prefix": "jobs/", "Expiration": {"Date": datetime(2030, 1, 1, tzinfo=UTC)}}, True),
        ({"Prefix": "jobs/", "Expiration": {"ExpiredObjectDeleteMarker": True}}, False),
    ],
)
def test_rules_that_delete_ours_too_early(rule: dict[str, Any], early: bool) -> None:
    whole = lifecycle.normal({"ID": "theirs", "Status": "Enabled", "Expiration": {"Days": 3}, **rule})
    assert bool(lifecycle.planned(lifecycle.Document((whole,)), SETTINGS).early) == early


def test_what_is_not_understood_is_not_written() -> None:
    assert "upgrade boto3" in lifecycle.planned(lifecycle.Document(unknown=("Shiny",)), SETTINGS).obstacle
    many = tuple(lifecycle.normal({"ID": f"r{n}", "Status": "Enabled", "Prefix": f"{n}/"}) for n in range(989))
    assert "1,001 rules" in lifecycle.planned(lifecycle.Document(many), SETTINGS).obstacle
    assert not lifecycle.planned(lifecycle.Document(many[1:]), SETTINGS).obstacle


# -- with a server -------------------------------------------------------------------------------------------------------

THEIRS = {
    "ID": "theirs",
    "Status": "Enabled",
    "Filter": {"And": {"Prefix": "op/", "Tags": [A, B]}},
    "Expiration": {"Days": 5},
}


def rules_of(client: Any, place: str) -> dict[str, Any]:
    found = client.get_bucket_lifecycle_configuration(Bucket=place.split("/")[2])["Rules"]
    return {rule["ID"]: lifecycle.normal(rule) for rule in found}


def put(client: Any, place: str, *rules: dict[str, Any]) -> None:
    client.put_bucket_lifecycle_configuration(Bucket=place.split("/")[2], LifecycleConfiguration={"Rules": list(rules)})


async def connected(place: str, **settings: Any) -> None:
    broker = S3BucketBroker(place, session=session(), **settings)
    await broker.connect()
    await broker.disconnect()


@on_both_servers
async def test_connecting_adds_our_rules(client: Any, place: str) -> None:
    put(client, place, THEIRS)
    await connected(place)
    await connected(place.replace("/jobs/", "/jobs/more/"), retention="prefix", prefix_days=9)
    found = rules_of(client, place)
    assert len(found) == 1 + 12 + 3
    assert found["theirs"] == THEIRS


@on_both_servers
async def test_rules_that_were_changed_are_put_right(client: Any, place: str) -> None:
    await connected(place)
    found = rules_of(client, place)
    id_ = next(id_ for id_ in found if id_.endswith("-d7"))
    put(client, place, THEIRS, *({**rule, "Status": "Disabled"} if rule["ID"] == id_ else rule for rule in found.values()))
    await connected(place)
    assert rules_of(client, place) == {**found, "theirs": THEIRS}


@on_both_servers
async def test_checking_says_what_is_missing(client: Any, place: str, caplog: pytest.LogCaptureFixture) -> None:
    put(client, place, {**THEIRS, "Filter": {"Prefix": ""}})
    await connected(place, lifecycle="check")
    assert "lacks the rules repid-" in caplog.text
    assert "rule 'theirs' deletes all after 5 days; exempt jobs/" in caplog.text
    assert set(rules_of(client, place)) == {"theirs"}
    caplog.clear()
    await connected(place, lifecycle="off")
    assert not caplog.records


@on_both_servers
async def test_many_at_once(client: Any, place: str) -> None:
    """Each has a prefix of its own, and writes over what the others have written: all rules are there in the end."""
    put(client, place, THEIRS)
    places = [place.replace("/jobs/", f"/app{n}/") for n in range(4)]
    await asyncio.gather(*(connected(each, ttl_days=(1, 7)) for each in places * 3))
    found = rules_of(client, place)
    assert found["theirs"] == THEIRS
    assert len(found) == 1 + 4 * 4


@on_both_servers
async def test_what_another_has_written_over_is_written_again(client: Any, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write, rivals = lifecycle.write, [THEIRS]

    def lost(*arguments: Any) -> None:
        write(*arguments)
        if rivals:  # somebody who had read the rules before puts his own in their place
            put(client, place, rivals.pop())

    monkeypatch.setattr(lifecycle, "write", lost)
    await connected(place)
    found = rules_of(client, place)
    assert len(found) == 1 + 12
    assert found["theirs"] == THEIRS


@pytest.mark.parametrize("denied", ["GET", "PUT"])
async def test_denied(
    denied: str, stub: Stub, broker_on: Callable[..., S3BucketBroker], caplog: pytest.LogCaptureFixture
) -> None:
    """One warning, with what to apply, and it works on."""
    nothing = refusal(404, "NoSuchLifecycleConfiguration")
    stub.answers = [reply(200), *([] if denied == "GET" else [nothing]), refusal(403, "AccessDenied"), reply(200)]
    broker = broker_on(lifecycle="ensure")
    with caplog.at_level(logging.WARNING):
        await broker.connect()
    [record] = caplog.records
    said = record.getMessage()
    right = "GetLifecycleConfiguration" if denied == "GET" else "PutLifecycleConfiguration"
    assert f"grant s3:{right} on the bucket" in said
    assert json.loads(said[said.index('{"Rules"') :])["Rules"] == lifecycle.own(broker.settings)
    await broker.store_bucket("a", b"1", None)
    await broker.disconnect()


async def test_unknown_elements(stub: Stub, broker_on: Callable[..., S3BucketBroker], caplog: pytest.LogCaptureFixture) -> None:
    rule = "<Rule><ID>x</ID><Status>Enabled</Status><Filter><Prefix>x/</Prefix></Filter><Shiny>1</Shiny></Rule>"
    stub.answers = [reply(200), reply(200, f"<LifecycleConfiguration>{rule}</LifecycleConfiguration>")]
    broker = broker_on(lifecycle="ensure")
    await broker.connect()
    assert "what boto3 does not know (Shiny): upgrade boto3" in caplog.text
    assert [request.line.split()[0] for request in stub.requests] == ["HEAD", "GET"]
    await broker.disconnect()


async def test_a_server_that_changes_rules_of_others(
    stub: Stub, broker_on: Callable[..., S3BucketBroker], caplog: pytest.LogCaptureFixture
) -> None:
    def document(prefix: str) -> bytes:
        rule = f"<Rule><ID>x</ID><Status>Enabled</Status><Filter><Prefix>{prefix}</Prefix></Filter></Rule>"
        return reply(200, f"<LifecycleConfiguration>{rule}</LifecycleConfiguration>")

    stub.answers = [reply(200), document("op/"), reply(200), document("")]
    broker = broker_on(lifecycle="ensure")
    await broker.connect()
    assert "lifecycle rules x of bucket 'bucket' are not what they were" in caplog.text
    assert len(stub.requests) == 4
    await broker.disconnect()


# -- the command ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, place: str) -> Callable[..., Any]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "an-access-key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")

    def run(command: str, *options: str, **more: Any) -> Any:
        return CliRunner().invoke(s3, ["lifecycle", command, place, *options], **more)

    return run


@on_both_servers
def test_the_command(run: Callable[..., Any], client: Any, place: str) -> None:
    put(client, place, THEIRS)
    shown = run("show")
    assert shown.exit_code == 1
    assert "missing, or different: repid-" in shown.output
    asked = run("apply", input="n\n")
    assert '+    "ID": "repid-' in asked.output
    assert '-    "ID": "theirs"' not in asked.output
    assert set(rules_of(client, place)) == {"theirs"}
    assert run("apply", "--yes").output.endswith("Written.\n")
    assert run("apply").output == "All rules are there.\n"
    assert run("show").exit_code == 0
    removed = run("remove", "--yes")
    assert '-    "ID": "repid-' in removed.output
    assert rules_of(client, place) == {"theirs": THEIRS}
    assert run("remove").output == "None of ours is there.\n"


def test_the_command_says_what_is_wrong(run: Callable[..., Any]) -> None:
    assert "goes with a number of days" in run("show", "--retention", "prefix").output
    assert "ttl_days" in run("show", "--ttl-days", "2,1").output
    missing = CliRunner().invoke(s3, ["lifecycle", "show", "s3://nowhere/?endpoint_url=http://127.0.0.1:1"])
    assert missing.exit_code == 1
    assert "nothing listens there" in missing.output


@on_both_servers
def test_removing_the_last_rules(run: Callable[..., Any], client: Any, place: str) -> None:
    assert run("apply", "--yes", "--ttl-days", "1").exit_code == 0
    assert run("remove", "--yes").exit_code == 0
    with pytest.raises(client.exceptions.ClientError, match="NoSuchLifecycleConfiguration"):
        rules_of(client, place)


def test_no_thread_is_left() -> None:
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("repid s3")]
