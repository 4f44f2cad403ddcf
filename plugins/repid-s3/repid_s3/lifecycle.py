"""The lifecycle rules that free the storage of what has expired, and how they are merged into those of the bucket.

S3 has one document of rules for a bucket, which a write replaces as a whole, without a condition. So rules of others are
written back as they were, in the one form that all servers read alike; what was written is read again, since another worker
may have written at the same time; and a document with something that is not understood is not written at all.
"""

from __future__ import annotations

import json
import logging
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from typing import Any, Final
from xml.etree import ElementTree as ET

from attrs import field, frozen

from repid_s3.errors import code_of, explained
from repid_s3.settings import S3BucketBrokerSettings

logger = logging.getLogger(__name__)

TAG: Final = "repid-ttl"
_MOST: Final = 1000  # rules of a bucket
_ROUNDS: Final = 8
_CONDITIONS: Final = ("Prefix", "ObjectSizeGreaterThan", "ObjectSizeLessThan")
_NOTHING: Final = {"NoSuchLifecycleConfiguration", "404"}

Rule = Mapping[str, Any]


@frozen
class Document:
    """A bucket's rules.

    Attributes:
        rules: In normal form; see `normal`.
        beside: What else a write has to carry over.
        unknown: Elements of the reply that boto3 does not know, and would leave out.
    """

    rules: tuple[Rule, ...] = ()
    beside: Mapping[str, str] = field(factory=dict)
    unknown: tuple[str, ...] = ()


@frozen
class Plan:
    """What is to be done with a document.

    Attributes:
        rules: All rules, if it is written.
        missing: The ids of rules of ours that are not there, or differ.
        obstacle: Why it must not be written; empty if it may.
        early: Of rules of others that delete what is ours too early, what is wrong with them.
    """

    rules: tuple[Rule, ...]
    missing: tuple[str, ...]
    obstacle: str
    early: tuple[str, ...]


class ForeignRulesError(Exception):
    """Rules of others have changed with a write of ours."""


def normal(rule: Rule) -> dict[str, Any]:
    """The same rule in the form that all servers read alike.

    What it applies to comes in many forms: the old `Prefix` beside the filter, one condition bare or in an `And`, and, from
    some servers, a prefix beside an `And` with the tags alone, which written back as it is would lose the prefix.
    """
    made = {key: value for key, value in rule.items() if key not in {"Prefix", "Filter"}}
    filter_ = rule.get("Filter") or {}
    inner = filter_.get("And") or {}
    found: dict[str, Any] = {}
    for place in (rule, filter_, inner):
        for name in _CONDITIONS:
            if place.get(name) not in (None, ""):
                found[name] = place[name]
    tags = [*([filter_["Tag"]] if filter_.get("Tag") else []), *inner.get("Tags", ())]
    unique = sorted({(tag["Key"], tag["Value"]) for tag in tags})
    if len(found) + len(unique) > 1:
        both = {"Tags": [{"Key": key, "Value": value} for key, value in unique]} if unique else {}
        made["Filter"] = {"And": {**found, **both}}
    elif unique:
        made["Filter"] = {"Tag": {"Key": unique[0][0], "Value": unique[0][1]}}
    else:
        made["Filter"] = found or {"Prefix": ""}
    return made


def named(settings: S3BucketBrokerSettings) -> str:
    """What the ids of a prefix's rules begin with."""
    return f"repid-{sha256(settings.place.prefix.encode()).hexdigest()[:8]}"


def own(settings: S3BucketBrokerSettings) -> list[dict[str, Any]]:
    """The rules of a prefix, in normal form. Their ids are those of the prefix, so another one's are never touched."""
    prefix = settings.place.prefix

    def rule(what: str, filter_: Mapping[str, Any], **actions: Any) -> dict[str, Any]:
        return normal({"ID": f"{named(settings)}-{what}", "Status": "Enabled", "Filter": filter_, **actions})

    rules: list[dict[str, Any]] = []
    if settings.retention == "tags":
        for days in settings.ttl_days:
            both = {"Prefix": prefix, "Tags": [{"Key": TAG, "Value": f"d{days}"}]}
            rules.append(rule(f"d{days}", {"And": both}, Expiration={"Days": days}))
    elif settings.retention == "prefix":
        rules.append(rule("all", {"Prefix": prefix}, Expiration={"Days": settings.prefix_days}))
    if rules and settings.purge_noncurrent:
        noncurrent = {"NoncurrentVersionExpiration": {"NoncurrentDays": 1}}
        rules.append(rule("old-versions", {"Prefix": prefix}, **noncurrent))
        rules.append(rule("markers", {"Prefix": prefix}, Expiration={"ExpiredObjectDeleteMarker": True}))
    return rules


def planned(document: Document, settings: S3BucketBrokerSettings) -> Plan:
    """What is to be done, so that our rules are there, and those of others stay what they are."""
    ours = {rule["ID"]: rule for rule in own(settings)}
    there = {rule.get("ID"): rule for rule in document.rules}
    missing = tuple(id_ for id_, rule in ours.items() if id_ not in there or not _says(there[id_], rule))
    rules = (*(rule for rule in document.rules if rule.get("ID") not in ours), *ours.values())
    obstacle = ""
    if document.unknown:
        obstacle = f"the bucket's rules have what boto3 does not know ({', '.join(document.unknown)}): upgrade boto3"
    elif len(rules) > _MOST:
        obstacle = f"the bucket would have {len(rules):,} rules, and {_MOST:,} are allowed: remove some, or take another bucket"
    early = tuple(_early(document.rules, ours, settings))
    return Plan(rules, missing, obstacle, early)


def _says(there: Mapping[str, Any], rule: Mapping[str, Any]) -> bool:
    """Whether a rule does what ours does; servers may have added to it."""
    return there.get("Filter") == rule.get("Filter") and all(
        _says(there.get(name) or {}, value) if isinstance(value, Mapping) and name != "Filter" else there.get(name) == value
        for name, value in rule.items()
    )


def _early(rules: Sequence[Rule], ours: Mapping[str, Rule], settings: S3BucketBrokerSettings) -> Iterator[str]:
    """Rules of others that delete objects of ours before their time."""
    mine = settings.place.prefix
    longest = settings.prefix_days or max(settings.ttl_days)
    for rule in rules:
        expiration = rule.get("Expiration", {})
        days = expiration.get("Days")
        if rule.get("ID") in ours or rule.get("Status") != "Enabled" or (days is None and "Date" not in expiration):
            continue
        filter_ = rule["Filter"].get("And", rule["Filter"])
        prefix = filter_.get("Prefix", "")
        tagged = "Tag" in filter_ or "Tags" in filter_
        if tagged or not (mine.startswith(prefix) or prefix.startswith(mine)) or (days is not None and days >= longest):
            continue
        when = f"after {days} days" if days is not None else f"from {expiration['Date']} on"
        yield f"rule {rule.get('ID')!r} deletes all {f'under {prefix!r} ' if prefix else ''}{when}"


# -- with the server -----------------------------------------------------------------------------------------------------


def read(s3: Any, settings: S3BucketBrokerSettings) -> Document:
    """The bucket's rules. Raises what boto3 raises."""
    replies: list[bytes] = []

    def remember(response_dict: Mapping[str, Any], **_: Any) -> None:
        replies.append(response_dict.get("body") or b"")

    event, mark = "before-parse.s3.GetBucketLifecycleConfiguration", f"repid-{id(replies)}"
    s3.meta.events.register(event, remember, unique_id=mark)
    try:
        found = s3.get_bucket_lifecycle_configuration(**_bucket(settings))
    except Exception as error:
        if code_of(error) in _NOTHING:
            return Document()
        raise
    finally:
        s3.meta.events.unregister(event, unique_id=mark)
    beside = {name: found[name] for name in ("TransitionDefaultMinimumObjectSize",) if found.get(name)}
    rules = tuple(normal(rule) for rule in found.get("Rules", ()))
    return Document(rules, beside, tuple(_unknown(s3, replies[-1] if replies else b"")))


def write(s3: Any, rules: Sequence[Rule], beside: Mapping[str, str], settings: S3BucketBrokerSettings) -> None:
    """Replace the bucket's rules. Raises what boto3 raises."""
    if rules:
        s3.put_bucket_lifecycle_configuration(
            LifecycleConfiguration={"Rules": [dict(rule) for rule in rules]}, **beside, **_bucket(settings)
        )
    else:
        s3.delete_bucket_lifecycle(**_bucket(settings))


def _bucket(settings: S3BucketBrokerSettings) -> dict[str, str]:
    owner = settings.expected_bucket_owner
    return {"Bucket": settings.place.bucket, **({} if owner is None else {"ExpectedBucketOwner": owner})}


def _unknown(s3: Any, reply: bytes) -> list[str]:
    """Elements that boto3's description of the reply does not have."""
    known: set[str] = set()

    def learn(shape: Any) -> None:
        if shape.type_name == "structure":
            for name, member in shape.members.items():
                known.add(member.serialization.get("name", name))
                learn(member)
        elif shape.type_name == "list":
            known.add(shape.member.serialization.get("name", "member"))
            learn(shape.member)

    learn(s3.meta.service_model.operation_model("GetBucketLifecycleConfiguration").output_shape)
    try:
        root = ET.fromstring(reply)  # noqa: S314 — of the server that was chosen, and which boto3 has parsed as well
    except ET.ParseError:
        return []
    names = {element.tag.rpartition("}")[2] for element in root.iter() if element is not root}
    return sorted(names - known)


def ensure(s3: Any, settings: S3BucketBrokerSettings) -> Plan:
    """Have our rules among those of the bucket; the last plan, whose `missing` is empty if they are there.

    Workers that do this at the same time may each undo what the other has written, so it is read again until it stays.

    Raises:
        ForeignRulesError: The server has changed rules of others in the course of a write.
    """
    expected: tuple[Rule, ...] | None = None
    for number in range(_ROUNDS):
        document = read(s3, settings)
        plan = planned(document, settings)
        if expected is not None:
            _compare(expected, document.rules, settings)
        if not plan.missing or plan.obstacle:
            return plan
        expected = tuple(rule for rule in plan.rules if not _is_ours(rule))
        write(s3, plan.rules, document.beside, settings)
        time.sleep(random.uniform(0.05, 0.25) * 2**number)  # noqa: S311 — so that workers do not go on in step
    return planned(read(s3, settings), settings)


def _is_ours(rule: Rule) -> bool:
    return str(rule.get("ID", "")).startswith("repid-")


def _compare(before: Sequence[Rule], after: Sequence[Rule], settings: S3BucketBrokerSettings) -> None:
    """Rules of others must be what they were; that somebody adds or removes some meanwhile is not our doing."""
    now = {rule.get("ID"): rule for rule in after}
    changed = [str(rule.get("ID")) for rule in before if rule.get("ID") in now and now[rule.get("ID")] != rule]
    if changed:
        raise ForeignRulesError(
            f"lifecycle rules {', '.join(changed)} of bucket {settings.place.bucket!r} are not what they were before repid-s3 "
            f'added its own: look at them, and set lifecycle="check"'
        )


def see_to(s3: Any, settings: S3BucketBrokerSettings) -> None:
    """At connect: have the rules there, or warn of what is missing; a bucket works without them, and grows."""
    checks = settings.lifecycle == "check"
    try:
        plan = planned(read(s3, settings), settings) if checks else ensure(s3, settings)
    except ForeignRulesError as error:
        logger.error("%s", error)  # noqa: TRY400 — it says all
        return
    except Exception as error:  # noqa: BLE001 — whatever it is, buckets can be stored
        operation = getattr(error, "operation_name", "GetBucketLifecycleConfiguration")
        logger.warning(
            "the storage of expired buckets may not be freed: %s. Or apply this by hand, beside the rules that are there, and "
            'set lifecycle="off": %s',
            explained(error, operation, settings), as_json(own(settings)),
        )  # fmt: skip
        return
    for said in plan.early:
        logger.warning("buckets may be gone before their time: %s; exempt %s from it", said, settings.place.prefix)
    if plan.obstacle:
        logger.warning("the storage of expired buckets is not freed: %s. Missing are: %s", plan.obstacle, as_json(own(settings)))
    elif plan.missing:
        logger.warning(
            "the storage of expired buckets is not freed, for the bucket lacks the rules %s: apply them with `repid s3 lifecycle "
            'apply`, or set lifecycle="ensure"',
            ", ".join(plan.missing),
        )


def as_json(rules: Sequence[Rule]) -> str:
    """Rules as the AWS command line takes them."""
    return json.dumps({"Rules": list(rules)}, default=str)
