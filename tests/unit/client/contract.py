"""What a client does, whatever broker is behind it: run against the mock cluster and against a real Kafka."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import wait

import pytest
from confluent_kafka import Message, Producer
from pydantic import SecretStr

from promptbus import (
    AsyncPromptClient,
    ClientClosed,
    DuplicateRequestId,
    InvalidReply,
    InvalidRequest,
    PromptClient,
    PromptError,
    Reply,
    ReplyTimeout,
    Request,
    SettingsRefused,
)
from promptbus.messages import reply_headers
from promptbus.messages.headers import DEADLINE, REPLY_TOPIC, REQUEST_ID
from promptbus.prompts import Prompt
from promptbus.settings import KafkaSettings
from promptbus.topic_reader import record_headers
from tests.unit.client.place import QUIET
from tests.unit.client.responder import Responder

WAIT_S = 20.0


class ClientContract:
    """Subclasses provide the fixture `place`: settings with two topics of the test's own."""

    @pytest.fixture
    def responder(self, place: KafkaSettings) -> Iterator[Responder]:
        with Responder(place) as responder:
            yield responder

    @pytest.fixture
    def client(self, place: KafkaSettings, responder: Responder) -> Iterator[PromptClient]:
        with PromptClient(settings=place, timeout_s=WAIT_S, explain_timeouts=False) as client:
            yield client

    @pytest.fixture
    async def async_client(
        self, place: KafkaSettings, responder: Responder
    ) -> AsyncIterator[AsyncPromptClient]:
        async with AsyncPromptClient(settings=place, timeout_s=WAIT_S, explain_timeouts=False) as client:
            yield client

    # ---- ask

    def test_ask_returns_the_whole_reply(self, client: PromptClient) -> None:
        reply = client.ask("What is 🧭?\x00", metadata={"order": 7}, model="other", request_id="r-1")
        assert reply.response == "re: What is 🧭?\x00"
        assert (reply.request_id, reply.model, reply.metadata) == ("r-1", "other", {"order": 7})
        assert reply.usage.total_tokens == 7

    def test_the_request_carries_what_the_caller_says(
        self, client: PromptClient, responder: Responder
    ) -> None:
        client.ask("x", max_tokens=5, temperature=1, parameters={"top_p": 0.9}, key="k", deadline_s=30)
        (seen,) = responder.seen
        assert seen.key() == b"k"
        headers = dict(record_headers(seen) or ())
        assert len(headers[REQUEST_ID] or b"") == 32
        assert abs(int(headers[DEADLINE] or b"0") - seen.timestamp()[1] - 30_000) < 5_000
        assert REPLY_TOPIC not in headers
        assert b'"max_tokens":5' in (seen.value() or b"")

    def test_an_error_reply_is_raised_or_returned(self, client: PromptClient) -> None:
        with pytest.raises(PromptError, match="could not answer") as raised:
            client.ask("fail")
        assert (raised.value.code, raised.value.retryable) == ("model_error", False)
        reply = client.ask("fail", check=False)
        assert reply.error is not None
        assert reply.error.code == "model_error"

    def test_a_request_that_is_wrong_is_not_sent(self, client: PromptClient, responder: Responder) -> None:
        for wrong in ({"temperature": 3.0}, {"max_tokens": 0}, {"request_id": "x" * 257}):
            with pytest.raises(InvalidRequest):
                client.ask("x", **wrong)
        with pytest.raises(InvalidRequest, match="colour"):
            client.ask({"prompt": "x", "colour": "red"})
        assert client.ask("good").ok
        assert len(responder.seen) == 1

    def test_a_reply_that_cannot_be_read_fails_its_request_alone(self, client: PromptClient) -> None:
        good, bad = client.submit("good"), client.submit("garbage")
        with pytest.raises(InvalidReply):
            bad.result(WAIT_S)
        assert good.result(WAIT_S).ok

    def test_a_timeout_names_the_request(self, client: PromptClient) -> None:
        with pytest.raises(ReplyTimeout, match=r"no reply to request r-9 within 0\.3 s") as raised:
            client.ask("silent", request_id="r-9", timeout_s=0.3)
        assert raised.value.acknowledged
        assert isinstance(raised.value, TimeoutError)

    def test_the_first_of_a_reply_id_is_kept(self, client: PromptClient) -> None:
        """Every reply comes twice; the repetition answers nobody, not even a later request of the same id."""
        for number in range(5):
            assert client.ask(f"twice {number}", request_id="same").response == f"re: twice {number}"

    def test_replies_to_others_are_not_parsed(
        self, client: PromptClient, place: KafkaSettings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        parsed: list[bytes | None] = []
        decode = client._exchange._decode

        def counting(value: bytes | None) -> Reply:
            parsed.append(value)
            return decode(value)

        monkeypatch.setattr(client._exchange, "_decode", counting)
        with PromptClient(settings=place, explain_timeouts=False) as other:
            assert sum(reply.ok for reply in other.map(["x"] * 50)) == 50
        stranger = Producer({"bootstrap.servers": place.kafka_bootstrap}, logger=QUIET)
        foreign: list[tuple[str, str | bytes | None]] = [
            *reply_headers(request_id="foreign", reply_id="f", status="ok")
        ]
        for headers in ([], foreign):
            stranger.produce(place.kafka_reply_topic, b"\xff no json", headers=headers)
        assert stranger.flush(WAIT_S) == 0
        assert client.ask("mine").response == "re: mine"
        assert len(parsed) == 1

    # ---- submit

    def test_submit_from_many_threads(self, client: PromptClient) -> None:
        answers: dict[str, str | None] = {}

        def work(name: int) -> None:
            for number in range(20):
                prompt = f"{name}/{number}"
                answers[prompt] = client.submit(prompt).result(WAIT_S).response

        threads = [threading.Thread(target=work, args=(name,)) for name in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert answers == {prompt: f"re: {prompt}" for prompt in answers}
        assert len(answers) == 100

    def test_a_cancelled_request_is_forgotten(self, client: PromptClient) -> None:
        future = client.submit("silent", request_id="r-1")
        assert future.cancel()
        assert len(client._exchange) == 0
        assert client.ask("again", request_id="r-1").ok

    def test_an_id_waits_for_one_reply_at_a_time(self, client: PromptClient) -> None:
        client.submit("silent", request_id="r-1")
        with pytest.raises(DuplicateRequestId, match="r-1"):
            client.submit("x", request_id="r-1")

    # ---- map

    def test_map_keeps_the_order_and_the_bound(self, client: PromptClient) -> None:
        pulled, handed_out, most = 0, 0, 0

        def prompts() -> Iterator[Prompt]:
            nonlocal pulled, most
            for number in range(1_000):
                pulled += 1
                most = max(most, pulled - handed_out)
                yield (f"p{number}", Request(prompt=f"p{number}"), {"prompt": f"p{number}"})[number % 3]

        for reply in client.map(prompts(), in_flight=50):
            assert reply.response == f"re: p{handed_out}"
            handed_out += 1
        assert handed_out == 1_000
        # the one just pulled is counted before it is sent, and one reply is in the caller's hand
        assert most in (50, 51)

    def test_map_raises_at_the_first_failure(self, client: PromptClient) -> None:
        replies = client.map(["a", "silent", "b"], timeout_s=0.5)
        assert next(replies).response == "re: a"
        with pytest.raises(ReplyTimeout):
            next(replies)
        assert len(client._exchange) == 0, "nothing waits any more"

    def test_map_goes_on_after_failures_if_told_to(self, client: PromptClient) -> None:
        given: list[Prompt] = ["a", "silent", {"prompt": ""}, "fail", "b"]
        outcomes = list(client.map(given, timeout_s=0.5, return_exceptions=True))
        assert [type(outcome).__name__ for outcome in outcomes] == [
            "Reply",
            "ReplyTimeout",
            "InvalidRequest",
            "Reply",
            "Reply",
        ]

    def test_map_takes_endless_prompts(self, client: PromptClient) -> None:
        def endless() -> Iterator[str]:
            while True:
                yield "again"

        replies = client.map(endless(), in_flight=10)
        assert [next(replies).response for _ in range(25)] == ["re: again"] * 25

    # ---- close

    def test_close_names_what_was_not_answered(self, place: KafkaSettings, responder: Responder) -> None:
        with PromptClient(settings=place) as client:
            future = client.submit("silent", request_id="r-1")
        with pytest.raises(ClientClosed, match="r-1"):
            future.result(0)
        client.close()
        with pytest.raises(ClientClosed, match="make a new one"):
            client.ask("x")

    def test_a_defect_in_the_thread_fails_what_waits_and_says_so(
        self, client: PromptClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(_timeout_s: float) -> list[Message]:
            raise ZeroDivisionError("a defect")

        future = client.submit("silent", request_id="r-1")
        monkeypatch.setattr(client._exchange._reader, "read", broken)
        with pytest.raises(ClientClosed, match=r"a defect.*r-1"):
            future.result(WAIT_S)
        with pytest.raises(ClientClosed, match="a defect"):
            client.ask("x")

    def test_settings_that_librdkafka_refuses_are_a_sentence(self, place: KafkaSettings) -> None:
        for side in ("kafka_consumer", "kafka_producer"):
            wrong = place.model_copy(update={side: {"no_such_setting": SecretStr("1")}})
            with pytest.raises(SettingsRefused, match=r"no\.such\.setting"):
                PromptClient(settings=wrong)

    def test_close_in_a_callback_does_not_wait_for_itself(
        self, place: KafkaSettings, responder: Responder
    ) -> None:
        client = PromptClient(settings=place)
        closed = threading.Event()

        def close(_future: object) -> None:
            client.close()
            closed.set()

        client.submit("x").add_done_callback(close)
        assert closed.wait(WAIT_S)

    def test_a_frozen_process_reads_before_it_gives_up(
        self, client: PromptClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A turn of the thread that took long may have slept between reading and looking at the clock."""
        reader = client._exchange._reader
        assert reader is not None
        read = reader.read
        entered, submitted = threading.Event(), threading.Event()

        def freeze_once(timeout_s: float) -> list[Message]:
            if entered.is_set():
                return read(timeout_s)
            entered.set()
            submitted.wait(WAIT_S)
            threading.Event().wait(1.2)
            return []

        monkeypatch.setattr(reader, "read", freeze_once)
        assert entered.wait(WAIT_S)
        future = client.submit("x", timeout_s=1.0)
        submitted.set()
        assert future.result(WAIT_S).ok

    # ---- asyncio

    async def test_async_ask_many_at_once(self, async_client: AsyncPromptClient) -> None:
        replies = await asyncio.gather(*(async_client.ask(f"p{number}") for number in range(200)))
        assert [reply.response for reply in replies] == [f"re: p{number}" for number in range(200)]

    async def test_async_errors_are_the_same(self, async_client: AsyncPromptClient) -> None:
        with pytest.raises(PromptError):
            await async_client.ask("fail")
        assert not (await async_client.ask("fail", check=False)).ok
        with pytest.raises(ReplyTimeout, match="r-9"):
            await async_client.ask("silent", request_id="r-9", timeout_s=0.3)
        with pytest.raises(InvalidReply):
            await async_client.ask("garbage")
        with pytest.raises(InvalidRequest):
            await async_client.ask("")

    async def test_async_map_keeps_the_order_and_the_bound(self, async_client: AsyncPromptClient) -> None:
        pulled, handed_out, most = 0, 0, 0

        async def prompts() -> AsyncIterator[str]:
            nonlocal pulled, most
            for number in range(500):
                pulled += 1
                most = max(most, pulled - handed_out)
                yield f"p{number}"

        async for reply in async_client.map(prompts(), in_flight=50):
            assert reply.response == f"re: p{handed_out}"
            handed_out += 1
        assert handed_out == 500
        assert most in (50, 51)

    async def test_async_map_goes_on_after_failures_if_told_to(self, async_client: AsyncPromptClient) -> None:
        outcomes = async_client.map(["a", "silent", "", "b"], timeout_s=0.5, return_exceptions=True)
        assert [type(outcome).__name__ async for outcome in outcomes] == [
            "Reply",
            "ReplyTimeout",
            "InvalidRequest",
            "Reply",
        ]

    async def test_async_cancelling_a_task_forgets_its_request(self, async_client: AsyncPromptClient) -> None:
        task = asyncio.create_task(async_client.ask("silent"))
        await async_client.ask("x")  # comes after it
        assert len(async_client._exchange) == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert len(async_client._exchange) == 0

    async def test_async_connects_with_the_first_request(
        self, place: KafkaSettings, responder: Responder
    ) -> None:
        client = AsyncPromptClient(settings=place, timeout_s=WAIT_S)
        replies = await asyncio.gather(*(client.ask(f"p{number}") for number in range(10)))
        assert all(reply.ok for reply in replies)
        future = await client.submit("silent", request_id="r-1")
        await client.close()
        with pytest.raises(ClientClosed, match="r-1"):
            await future
        with pytest.raises(ClientClosed):
            await client.ask("x")

    def test_a_request_with_its_own_reply_topic_says_so(
        self, place: KafkaSettings, responder: Responder
    ) -> None:
        with PromptClient(settings=place, reply_topic=place.kafka_reply_topic, timeout_s=WAIT_S) as client:
            assert client.ask("x").ok
        headers = dict(record_headers(responder.seen[0]) or ())
        assert headers[REPLY_TOPIC] == place.kafka_reply_topic.encode()

    def test_replies_are_read_while_others_are_awaited(self, client: PromptClient) -> None:
        futures = [client.submit("silent" if number % 2 else "x", timeout_s=1.0) for number in range(20)]
        done = wait(futures, WAIT_S).done
        assert len(done) == 20
        assert [future.exception() is None for future in futures] == [True, False] * 10
