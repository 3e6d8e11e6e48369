"""Each rule of what a request may be, and the promise that any record at all gets a reply under some id."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from promptbus.messages import ErrorCode, Headers, reply_id
from promptbus_worker.admission import Admission, Limits
from promptbus_worker.ledger import Ownership
from promptbus_worker.model import ModelSpec, TensorSpec
from promptbus_worker.record import Pending, Record, Rejection

NOW, WALL_MS = 1000.0, 1_700_000_000_000.0
DATATYPES = ["BYTES", "BOOL", "FP16", "FP32", "FP64", "INT8", "INT16", "INT32", "INT64"]
DATATYPES += ["UINT8", "UINT16", "UINT32", "UINT64"]
TOKENS = {
    "max_tokens": TensorSpec("max_tokens", "INT32", optional=True),
    "temperature": TensorSpec("temperature", "FP32", optional=True),
}
PROMPT = {"prompt": TensorSpec("prompt", "BYTES", optional=False)}


def spec(name: str, inputs: Mapping[str, TensorSpec]) -> ModelSpec:
    return ModelSpec(name, "1", inputs, {}, max_batch_size=8, instances=1)


SPECS = {
    "full": spec(
        "full",
        {
            **PROMPT,
            **TOKENS,
            **{f"p_{d.lower()}": TensorSpec(f"p_{d.lower()}", d, optional=True) for d in DATATYPES},
            "needed": TensorSpec("needed", "INT32", optional=False),
        },
    ),
    "bare": spec("bare", PROMPT),
}
LIMITS = Limits(
    max_bytes=400,
    max_prompt_chars=20,
    default_max_tokens=150,
    default_temperature=0.7,
    ignore_unknown_fields=False,
    reply_topic="results",
    reply_topics_allowed=frozenset({"other"}),
)


def admit(
    value: bytes | Mapping[str, object] | None,
    headers: Headers | None = None,
    *,
    limits: Limits = LIMITS,
    problem: str | None = None,
) -> Pending | Rejection:
    body = json.dumps(value, ensure_ascii=False).encode() if isinstance(value, Mapping) else value
    owner = Ownership("requests", 3, 1)
    record = Record(owner, 7, 5, b"k", body, headers, 0, NOW, problem)
    return Admission(limits, SPECS, "full").admit(record, now=NOW, wall_ms=WALL_MS)


def admitted(value: Mapping[str, object], headers: Headers | None = None, limits: Limits = LIMITS) -> Pending:
    outcome = admit(value, headers, limits=limits)
    assert isinstance(outcome, Pending), outcome
    return outcome


def refused(
    value: bytes | Mapping[str, object] | None, headers: Headers | None = None, limits: Limits = LIMITS
) -> Rejection:
    outcome = admit(value, headers, limits=limits)
    assert isinstance(outcome, Rejection)
    return outcome


# -- ids


@pytest.mark.parametrize(
    ("value", "headers", "expected"),
    [
        ({"prompt": "x", "request_id": "body"}, [("request-id", b"header")], "body"),
        ({"prompt": "x"}, [("request-id", b"header")], "header"),
        ({"prompt": "x", "request_id": None}, [("request-id", b"first"), ("request-id", b"last")], "last"),
        ({"prompt": "x"}, [("request-id", None)], "requests-3-7"),
        ({"prompt": "x"}, None, "requests-3-7"),
        ({"prompt": "x", "request_id": "é" * 128}, None, "é" * 128),
    ],
)
def test_the_id_is_the_bodys_else_the_headers_else_derived(
    value: Mapping[str, object], headers: Headers | None, expected: str
) -> None:
    assert admitted(value, headers).request_id == expected


@pytest.mark.parametrize(
    ("value", "headers", "expected"),
    [
        ({"request_id": "body"}, [("request-id", b"header")], "body"),
        ({"request_id": "é" * 128 + "x", "prompt": "x"}, [("request-id", b"header")], "header"),
        ({"request_id": "", "prompt": "x"}, None, "requests-3-7"),
        ({"request_id": 5, "prompt": "x"}, None, "requests-3-7"),
        ({"prompt": "x"}, [("request-id", b"\xff")], "requests-3-7"),
        ({"prompt": "x"}, [("request-id", b"y" * 257)], "requests-3-7"),
        (b"no request", [("request-id", b"header")], "header"),
        (b"x" * 401, [("request-id", b"header")], "header"),
        (None, None, "requests-3-7"),
    ],
)
def test_a_rejection_goes_out_under_the_best_id_that_could_be_read(
    value: bytes | Mapping[str, object] | None, headers: Headers | None, expected: str
) -> None:
    assert refused(value, headers).pending.request_id == expected


def test_the_reply_id_depends_on_the_record_alone() -> None:
    expected = reply_id("requests", 3, 7, 5)
    assert admitted({"prompt": "x", "request_id": "a"}).reply_id == expected
    assert refused(b"garbage").pending.reply_id == expected


# -- what is no request


@pytest.mark.parametrize(
    "value", [None, b"", b"\xff", b"[1]", b'"x"', b"null", b'{"prompt": NaN}', b"\xef\xbb\xbf{}", b'{"a":1']
)
def test_what_is_no_json_object_is_dead_lettered(value: bytes | None) -> None:
    rejection = refused(value)
    assert rejection.code is ErrorCode.INVALID_REQUEST
    assert rejection.dead_letter
    assert rejection.message


def test_an_object_with_a_mistake_is_answered_only_and_keeps_its_metadata() -> None:
    rejection = refused({"prompt": "", "metadata": {"a": [1]}})
    assert rejection.code is ErrorCode.INVALID_REQUEST
    assert not rejection.dead_letter
    assert rejection.pending.metadata == {"a": [1]}


def test_unknown_fields_are_refused_by_name_or_ignored() -> None:
    value = {"prompt": "x", "promt": "y"}
    rejection = refused(value)
    assert rejection.code is ErrorCode.INVALID_REQUEST
    assert "promt" in rejection.message
    assert admitted(value, limits=replace(LIMITS, ignore_unknown_fields=True)).inputs["prompt"] == b"x"


# -- limits


def test_a_request_may_be_as_large_as_the_limit_and_no_larger() -> None:
    frame = len(json.dumps({"prompt": "x", "metadata": {"m": ""}}))
    exact = {"prompt": "x", "metadata": {"m": "y" * (400 - frame)}}
    assert len(json.dumps(exact)) == 400
    admitted(exact)
    rejection = refused({"prompt": "x", "metadata": {"m": "y" * (401 - frame)}})
    assert rejection.code is ErrorCode.TOO_LARGE
    assert not rejection.dead_letter
    assert "401" in rejection.message
    assert "400" in rejection.message


def test_a_prompt_is_counted_in_characters() -> None:
    assert admitted({"prompt": "🦊" * 20}).inputs["prompt"] == ("🦊" * 20).encode()
    rejection = refused({"prompt": "🦊" * 21})
    assert rejection.code is ErrorCode.TOO_LARGE
    assert "21" in rejection.message


# -- headers


@pytest.mark.parametrize("topic", [b"results", b"other"])
def test_a_reply_goes_to_the_default_topic_or_an_allowed_one(topic: bytes) -> None:
    assert admitted({"prompt": "x"}, [("reply-topic", topic)]).reply_topic == topic.decode()


@pytest.mark.parametrize("topic", [b"requests", b"Other", b"other ", b"", b"\xff", b"oth.*"])
def test_any_other_reply_topic_is_refused_on_the_default_one(topic: bytes) -> None:
    rejection = refused({"prompt": "x"}, [("reply-topic", topic)])
    assert rejection.code is ErrorCode.INVALID_REQUEST
    assert rejection.pending.reply_topic == "results"
    assert "reply-topic" in rejection.message


@pytest.mark.parametrize("value", [b"garbage", b"x" * 401, b"{}", b'{"prompt": "x", "model": "none"}'])
def test_whatever_is_wrong_is_said_where_the_sender_reads(value: bytes) -> None:
    assert refused(value, [("reply-topic", b"other")]).pending.reply_topic == "other"


@pytest.mark.parametrize("deadline", [b"soon", b"-1", b"1.5", b"", b" 1", "\u0661".encode(), b"1" * 20])
def test_a_malformed_deadline_is_refused(deadline: bytes) -> None:
    rejection = refused({"prompt": "x"}, [("deadline", deadline)])
    assert rejection.code is ErrorCode.INVALID_REQUEST
    assert "deadline" in rejection.message


@pytest.mark.parametrize(("ahead_ms", "expires_at"), [(1, NOW + 0.001), (60_000, NOW + 60)])
def test_a_deadline_becomes_monotonic_time(ahead_ms: int, expires_at: float) -> None:
    request = admitted({"prompt": "x"}, [("deadline", str(int(WALL_MS) + ahead_ms).encode())])
    assert request.expires_at == pytest.approx(expires_at)


@pytest.mark.parametrize("deadline", [b"0", str(int(WALL_MS) - 1).encode(), str(int(WALL_MS)).encode()])
def test_a_deadline_that_has_passed_is_expired(deadline: bytes) -> None:
    rejection = refused({"prompt": "x"}, [("deadline", deadline)])
    assert rejection.code is ErrorCode.EXPIRED
    assert not rejection.dead_letter


def test_without_a_deadline_a_request_never_expires() -> None:
    assert admitted({"prompt": "x"}).expires_at is None


def test_what_was_wrong_with_the_headers_of_the_record_is_told() -> None:
    outcome = admit({"prompt": "x", "request_id": "a"}, problem="the headers cannot be read")
    assert isinstance(outcome, Rejection)
    assert (outcome.code, outcome.message) == (ErrorCode.INVALID_REQUEST, "the headers cannot be read")
    assert outcome.pending.request_id == "a"


def test_correlation_and_trace_are_carried_also_on_a_rejection() -> None:
    traceparent = b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01"
    headers: Headers = [
        ("correlation-id", b"\x00\xff"),
        ("traceparent", traceparent),
        ("tracestate", b"a=b"),
    ]
    for pending in (admitted({"prompt": "x"}, headers), refused(b"garbage", headers).pending):
        assert (pending.correlation_id, pending.traceparent, pending.tracestate) == (
            b"\x00\xff",
            traceparent,
            b"a=b",
        )
    malformed = admitted({"prompt": "x"}, [("traceparent", b"00-zz"), ("tracestate", b"a=b")])
    assert (malformed.traceparent, malformed.tracestate) == (None, None)


# -- models and their inputs


def test_the_first_model_is_the_default_and_gets_the_defaults() -> None:
    request = admitted({"prompt": "héllo"})
    assert request.model == "full"
    assert request.inputs == {"prompt": "héllo".encode(), "max_tokens": 150, "temperature": 0.7}
    assert request.signature == ()
    assert request.size >= len("héllo".encode())


def test_given_numbers_replace_the_defaults_and_share_the_signature() -> None:
    request = admitted({"prompt": "x", "max_tokens": 1, "temperature": 0})
    assert request.inputs == {"prompt": b"x", "max_tokens": 1, "temperature": 0.0}
    assert isinstance(request.inputs["temperature"], float)
    assert request.signature == admitted({"prompt": "x"}).signature


def test_a_model_without_those_inputs_gets_none_and_refuses_given_ones() -> None:
    assert admitted({"prompt": "x", "model": "bare"}).inputs == {"prompt": b"x"}
    for field, value in (("max_tokens", 5), ("temperature", 0.5)):
        rejection = refused({"prompt": "x", "model": "bare", field: value})
        assert rejection.code is ErrorCode.INVALID_REQUEST
        assert field in rejection.message
        assert "bare" in rejection.message


def test_a_model_that_is_not_served_is_not_found() -> None:
    rejection = refused({"prompt": "x", "model": "gpt9", "metadata": {"a": 1}})
    assert rejection.code is ErrorCode.MODEL_NOT_FOUND
    assert "full, bare" in rejection.message
    assert rejection.pending.model is None
    assert rejection.pending.metadata == {"a": 1}


LARGEST = {"INT8": 127, "INT16": 2**15 - 1, "INT32": 2**31 - 1, "INT64": 2**63 - 1}
LARGEST |= {"UINT8": 255, "UINT16": 2**16 - 1, "UINT32": 2**32 - 1, "UINT64": 2**64 - 1}


@pytest.mark.parametrize(
    ("datatype", "value", "expected"),
    [
        ("BYTES", "né\x00", "né\x00".encode()),
        ("BYTES", "", b""),
        ("BOOL", True, True),
        ("BOOL", False, False),
        *[(datatype, value, float(value)) for datatype in ("FP16", "FP32", "FP64") for value in (0.5, 3, -2)],
        *[(datatype, largest, largest) for datatype, largest in LARGEST.items()],
        *[
            (datatype, 0 if datatype[0] == "U" else -largest - 1, 0 if datatype[0] == "U" else -largest - 1)
            for datatype, largest in LARGEST.items()
        ],
    ],
)
def test_a_parameter_becomes_what_its_tensor_holds(datatype: str, value: object, expected: object) -> None:
    name = f"p_{datatype.lower()}"
    request = admitted({"prompt": "x", "parameters": {name: value}})
    assert request.inputs[name] == expected
    assert type(request.inputs[name]) is type(expected)
    assert request.signature == (name,)


@pytest.mark.parametrize(
    ("datatype", "value"),
    [
        *[("BYTES", value) for value in (1, 1.5, True, ["a"], {"a": 1})],
        *[("BOOL", value) for value in (0, 1, "true")],
        *[(datatype, value) for datatype in ("FP16", "FP32", "FP64") for value in ("1", True, [1])],
        *[(datatype, value) for datatype in LARGEST for value in ("1", True, 1.0, 1.5)],
        *[(datatype, largest + 1) for datatype, largest in LARGEST.items()],
        *[
            (datatype, -1 if datatype[0] == "U" else -largest - 2)
            for datatype, largest in LARGEST.items()
            if datatype != "INT64"  # beyond 64 bits JSON's integers are read as floats
        ],
    ],
)
def test_a_parameter_that_its_tensor_does_not_hold_is_refused(datatype: str, value: object) -> None:
    name = f"p_{datatype.lower()}"
    rejection = refused({"prompt": "x", "parameters": {name: value}})
    assert rejection.code is ErrorCode.INVALID_REQUEST
    assert f"parameters.{name} must be" in rejection.message


@pytest.mark.parametrize("name", ["nonsense", "needed", "prompt", "max_tokens", "temperature", "", "n" * 300])
def test_only_optional_inputs_without_a_field_of_their_own_are_parameters(name: str) -> None:
    rejection = refused({"prompt": "x", "parameters": {name: 1}})
    assert rejection.code is ErrorCode.INVALID_REQUEST
    assert name[:64] in rejection.message
    assert len(rejection.message) < 400


def test_the_order_of_parameters_does_not_split_a_batch() -> None:
    one = admitted({"prompt": "x", "parameters": {"p_bool": True, "p_int8": 1}})
    other = admitted({"prompt": "x", "parameters": {"p_int8": 2, "p_bool": False}})
    assert one.signature == other.signature
    assert one.inputs.keys() == other.inputs.keys()


def test_a_string_parameter_counts_towards_the_size() -> None:
    plain = admitted({"prompt": "x"}).size
    assert admitted({"prompt": "x", "parameters": {"p_bytes": "é" * 50}}).size >= plain + 100


# -- anything at all

NAMES = ["request-id", "deadline", "reply-topic", "correlation-id", "traceparent", "tracestate", "else"]
HEADERS = st.none() | st.lists(
    st.tuples(st.sampled_from(NAMES), st.none() | st.binary(max_size=300)), max_size=6
)
JSONS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
FIELDS = ["prompt", "request_id", "max_tokens", "temperature", "model", "parameters", "metadata", "more"]
VALUES = st.one_of(
    st.none(),
    st.binary(max_size=60),
    JSONS.map(lambda value: json.dumps(value).encode()),
    st.dictionaries(
        st.sampled_from(FIELDS), JSONS | st.sampled_from(["x", "full", "bare", 1]), max_size=6
    ).map(lambda value: json.dumps(value).encode()),
)


@settings(max_examples=200, deadline=None)
@given(VALUES, HEADERS, st.booleans())
def test_any_bytes_and_any_headers_are_admitted_or_rejected_under_a_usable_id(
    value: bytes | None, headers: Headers | None, ignore: bool
) -> None:
    outcome = admit(value, headers, limits=replace(LIMITS, ignore_unknown_fields=ignore))
    pending = outcome.pending if isinstance(outcome, Rejection) else outcome
    assert 1 <= len(pending.request_id.encode()) <= 256
    assert pending.reply_topic in {"results", "other"}
    if isinstance(outcome, Rejection):
        assert outcome.message
        assert outcome.code in {
            ErrorCode.INVALID_REQUEST,
            ErrorCode.TOO_LARGE,
            ErrorCode.MODEL_NOT_FOUND,
            ErrorCode.EXPIRED,
        }
    else:
        assert pending.model in SPECS
        assert pending.inputs["prompt"]


def test_a_null_parameter_is_absent() -> None:
    with_null = admitted({"prompt": "x", "parameters": {"top_p": None}})
    without = admitted({"prompt": "x"})
    assert (with_null.inputs, with_null.signature) == (without.inputs, without.signature)
