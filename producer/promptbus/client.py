"""PromptClient: publish prompts to Kafka and read their answers, from ordinary (blocking) code."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Literal, Self, overload

from promptbus.client_options import make_exchange
from promptbus.errors import PromptBusError, PromptError, ReplyTimeout
from promptbus.messages import JsonObject, Reply
from promptbus.pending import ReplyFuture
from promptbus.prompts import DEFAULT_TIMEOUT_S, Prompt, prepare
from promptbus.settings import KafkaSettings
from promptbus.silence import Silence


class PromptClient:
    """Asks prompts through Kafka. Thread-safe; one per process is enough.

        with PromptClient("localhost:9092") as client:
            print(client.ask("What is Kafka?").response)

    What is not given comes from the environment (`KAFKA_BOOTSTRAP`, `KAFKA_REQUEST_TOPIC`, `KAFKA_REPLY_TOPIC`,
    `KAFKA_SASL_…`, see `promptbus.settings.KafkaSettings`) and from `.env`.

    Made, it is connected: topics exist, and every partition of the reply topic is read from where it ended before
    anything was published. Partitions added later are noticed within `refresh_s` and read from their beginning.

    Give `reply_topic` only if it is not the workers' own: requests then ask for it by header, and the workers must
    allow it (`KAFKA_REPLY_TOPICS_ALLOWED`).

    After a fork, make a new client in the child; this one raises ForkedClient there.

    Request ids are random. If you give your own, one id can wait for one reply at a time, and a reply to an earlier
    request of the same id answers the later one, unless this client has seen that very reply before.
    """

    def __init__(
        self,
        bootstrap: str | None = None,
        *,
        settings: KafkaSettings | None = None,
        reply_topic: str | None = None,
        request_topic: str | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        linger_ms: float = 0.0,
        connect_timeout_s: float = 5.0,
        delivery_timeout_s: float = 30.0,
        refresh_s: float = 30.0,
        explain_timeouts: bool = True,
    ) -> None:
        """Connect. Raises KafkaUnavailable (after `connect_timeout_s`), TopicMissing or NotAllowed.

        `timeout_s`: how long a reply may take if a call says nothing else. `linger_ms`: how long the producer waits
        for more requests to send together. `delivery_timeout_s`: how long it tries to hand over a request.
        `explain_timeouts`: after a time-out of `ask`, spend up to a few seconds to find out why.
        """
        self._exchange = make_exchange(
            bootstrap,
            settings,
            request_topic=request_topic,
            reply_topic=reply_topic,
            linger_ms=linger_ms,
            connect_timeout_s=connect_timeout_s,
            delivery_timeout_s=delivery_timeout_s,
            refresh_s=refresh_s,
        )
        self._timeout_s = timeout_s
        self._asked_reply_topic = reply_topic
        self._silence: Silence | None = None
        if explain_timeouts:
            found = self._exchange.settings
            self._silence = Silence(found, self._exchange.request_topic, found.kafka_group_id)
        self._exchange.connect()

    def ask(
        self,
        prompt: Prompt,
        *,
        max_tokens: int | None = None,
        temperature: float | None = None,
        model: str | None = None,
        parameters: JsonObject | None = None,
        metadata: JsonObject | None = None,
        key: str | bytes | None = None,
        timeout_s: float | None = None,
        deadline_s: float | None = None,
        request_id: str | None = None,
        check: bool = True,
    ) -> Reply:
        """Publish one prompt and wait for its reply.

        `key` chooses the partition and comes back on the reply. `timeout_s` is how long *this side* waits;
        `deadline_s` tells the workers not to begin later than so many seconds from now (needs clocks that agree).

        Raises PromptError for an error reply (with `check=False` it is returned), ReplyTimeout, InvalidRequest,
        MessageTooLarge, DeliveryFailed, DuplicateRequestId, ClientClosed.
        """
        future = self.submit(
            prompt,
            max_tokens=max_tokens,
            temperature=temperature,
            model=model,
            parameters=parameters,
            metadata=metadata,
            key=key,
            timeout_s=timeout_s,
            deadline_s=deadline_s,
            request_id=request_id,
        )
        try:
            reply = future.result()
        except ReplyTimeout as late:
            raise self.explain(late) from None
        except BaseException:
            future.cancel()  # Ctrl-C: nobody waits any more
            raise
        if check and reply.status == "error":
            raise PromptError(reply)
        return reply

    def submit(
        self,
        prompt: Prompt,
        *,
        max_tokens: int | None = None,
        temperature: float | None = None,
        model: str | None = None,
        parameters: JsonObject | None = None,
        metadata: JsonObject | None = None,
        key: str | bytes | None = None,
        timeout_s: float | None = None,
        deadline_s: float | None = None,
        request_id: str | None = None,
    ) -> ReplyFuture:
        """Publish one prompt and return the future of its reply, a `concurrent.futures.Future`.

        It yields error replies as well (look at `reply.status`); its exceptions are those of `ask`, except PromptError.
        Its callbacks run on the client's own thread: keep them short. Cancelling it gives up waiting, no more.
        """
        self._exchange.check_usable()
        outgoing = prepare(
            prompt,
            max_tokens=max_tokens,
            temperature=temperature,
            model=model,
            parameters=parameters,
            metadata=metadata,
            request_id=request_id,
            deadline_s=deadline_s,
            reply_topic=self._asked_reply_topic,
        )
        return self._exchange.submit(
            outgoing.request_id,
            outgoing.value,
            headers=outgoing.headers,
            key=key.encode() if isinstance(key, str) else key,
            timeout_s=self._timeout_s if timeout_s is None else timeout_s,
        )

    @overload
    def map(
        self,
        prompts: Iterable[Prompt],
        *,
        in_flight: int = 100,
        max_tokens: int | None = None,
        temperature: float | None = None,
        model: str | None = None,
        parameters: JsonObject | None = None,
        timeout_s: float | None = None,
        return_exceptions: Literal[False] = False,
    ) -> Iterator[Reply]: ...

    @overload
    def map(
        self,
        prompts: Iterable[Prompt],
        *,
        in_flight: int = 100,
        max_tokens: int | None = None,
        temperature: float | None = None,
        model: str | None = None,
        parameters: JsonObject | None = None,
        timeout_s: float | None = None,
        return_exceptions: Literal[True],
    ) -> Iterator[Reply | Exception]: ...

    def map(
        self,
        prompts: Iterable[Prompt],
        *,
        in_flight: int = 100,
        max_tokens: int | None = None,
        temperature: float | None = None,
        model: str | None = None,
        parameters: JsonObject | None = None,
        timeout_s: float | None = None,
        return_exceptions: bool = False,
    ) -> Iterator[Reply | Exception]:
        """Replies to many prompts, in the order of the prompts; error replies too (look at `reply.status`).

        At most `in_flight` prompts are published and not yet handed out, so `prompts` may be endless. The first
        time-out or failure is raised and ends the iteration; with `return_exceptions=True` it stands in the place of
        its reply instead, and the iteration goes on.
        """
        if in_flight < 1:
            raise ValueError("in_flight must be at least 1")
        return self._map(
            iter(prompts), in_flight, max_tokens, temperature, model, parameters, timeout_s, return_exceptions
        )

    def _map(
        self,
        prompts: Iterator[Prompt],
        in_flight: int,
        max_tokens: int | None,
        temperature: float | None,
        model: str | None,
        parameters: JsonObject | None,
        timeout_s: float | None,
        return_exceptions: bool,
    ) -> Iterator[Reply | Exception]:
        window: deque[ReplyFuture | Exception] = deque()
        more = True
        try:
            while True:
                while more and len(window) < in_flight:
                    try:
                        prompt = next(prompts)
                    except StopIteration:
                        more = False
                        break
                    try:
                        window.append(
                            self.submit(
                                prompt,
                                max_tokens=max_tokens,
                                temperature=temperature,
                                model=model,
                                parameters=parameters,
                                timeout_s=timeout_s,
                            )
                        )
                    except (PromptBusError, ValueError) as refused:
                        # in its turn: replies to the prompts before it come first
                        window.append(refused)
                if not window:
                    return
                try:
                    reply = _outcome(window.popleft())
                except (PromptBusError, ValueError) as error:
                    if not return_exceptions:
                        raise
                    yield error
                else:
                    yield reply
        finally:
            for future in window:
                if isinstance(future, ReplyFuture):
                    future.cancel()

    def explain(self, late: ReplyTimeout) -> ReplyTimeout:
        """The same time-out, with its reason (`hint`, `consumers`) as far as Kafka knows; takes up to a few seconds.

        `ask` does this itself; futures of `submit` cannot.
        """
        return self._silence.explain(late) if self._silence is not None else late

    def close(self, timeout_s: float = 10.0) -> None:
        """Flush (at most `timeout_s`) and let go. Requests not yet answered fail with ClientClosed."""
        self._exchange.close(timeout_s)

    def __enter__(self) -> Self:
        self._exchange.check_usable()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # Ctrl-C shall not wait for a broker that is gone
        self.close(1.0 if kind is not None and not issubclass(kind, Exception) else 10.0)


def _outcome(future: ReplyFuture | Exception) -> Reply:
    if isinstance(future, Exception):
        raise future
    return future.result()
