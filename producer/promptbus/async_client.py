"""AsyncPromptClient: `promptbus.client` for asyncio. The same names, arguments, meanings and errors."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from types import TracebackType
from typing import Literal, Self, overload

from promptbus.client_options import make_exchange
from promptbus.errors import DeliveryFailed, PromptBusError, PromptError, ReplyTimeout
from promptbus.messages import JsonObject, Reply
from promptbus.pending import ReplyFuture
from promptbus.prompts import DEFAULT_TIMEOUT_S, Outgoing, Prompt, prepare
from promptbus.request_writer import QueueFull
from promptbus.settings import KafkaSettings
from promptbus.silence import Silence

ROOM_POLL_S = 0.01
ROOM_TIMEOUT_S = 60.0


class AsyncPromptClient:
    """Asks prompts through Kafka from coroutines. Everything of `PromptClient` holds.

        async with AsyncPromptClient("localhost:9092") as client:
            print((await client.ask("What is Kafka?")).response)

    It connects on entering `async with`, in `connect()`, or with the first request: a constructor cannot await.
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
        """As `PromptClient`, but without connecting."""
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
        self._connected = False
        self._silence: Silence | None = None
        if explain_timeouts:
            found = self._exchange.settings
            self._silence = Silence(found, self._exchange.request_topic, found.kafka_group_id)

    async def connect(self) -> None:
        """Connect, if that was not done yet. Raises KafkaUnavailable, TopicMissing, NotAllowed."""
        if not self._connected:
            await asyncio.to_thread(self._exchange.connect)
            self._connected = True

    async def ask(
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
        """Publish one prompt and wait for its reply: see `PromptClient.ask`."""
        future = await self.submit(
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
            reply = await future
        except ReplyTimeout as late:
            raise await self.explain(late) from None
        if check and reply.status == "error":
            raise PromptError(reply)
        return reply

    async def submit(
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
    ) -> asyncio.Future[Reply]:
        """Publish one prompt and return the future of its reply on this loop: see `PromptClient.submit`."""
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
        await self.connect()
        return asyncio.wrap_future(
            await self._publish(
                outgoing,
                key.encode() if isinstance(key, str) else key,
                self._timeout_s if timeout_s is None else timeout_s,
            )
        )

    @overload
    def map(
        self,
        prompts: Iterable[Prompt] | AsyncIterable[Prompt],
        *,
        in_flight: int = 100,
        max_tokens: int | None = None,
        temperature: float | None = None,
        model: str | None = None,
        parameters: JsonObject | None = None,
        timeout_s: float | None = None,
        return_exceptions: Literal[False] = False,
    ) -> AsyncIterator[Reply]: ...

    @overload
    def map(
        self,
        prompts: Iterable[Prompt] | AsyncIterable[Prompt],
        *,
        in_flight: int = 100,
        max_tokens: int | None = None,
        temperature: float | None = None,
        model: str | None = None,
        parameters: JsonObject | None = None,
        timeout_s: float | None = None,
        return_exceptions: Literal[True],
    ) -> AsyncIterator[Reply | Exception]: ...

    def map(
        self,
        prompts: Iterable[Prompt] | AsyncIterable[Prompt],
        *,
        in_flight: int = 100,
        max_tokens: int | None = None,
        temperature: float | None = None,
        model: str | None = None,
        parameters: JsonObject | None = None,
        timeout_s: float | None = None,
        return_exceptions: bool = False,
    ) -> AsyncIterator[Reply | Exception]:
        """Replies to many prompts, in the order of the prompts: see `PromptClient.map`. Use with `async for`."""
        if in_flight < 1:
            raise ValueError("in_flight must be at least 1")
        return self._map(
            _aiter(prompts),
            in_flight,
            max_tokens,
            temperature,
            model,
            parameters,
            timeout_s,
            return_exceptions,
        )

    async def _map(
        self,
        prompts: AsyncIterator[Prompt],
        in_flight: int,
        max_tokens: int | None,
        temperature: float | None,
        model: str | None,
        parameters: JsonObject | None,
        timeout_s: float | None,
        return_exceptions: bool,
    ) -> AsyncIterator[Reply | Exception]:
        window: deque[asyncio.Future[Reply] | Exception] = deque()
        more = True
        try:
            while True:
                while more and len(window) < in_flight:
                    try:
                        prompt = await anext(prompts)
                    except StopAsyncIteration:
                        more = False
                        break
                    try:
                        window.append(
                            await self.submit(
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
                    reply = await _outcome(window.popleft())
                except (PromptBusError, ValueError) as error:
                    if not return_exceptions:
                        raise
                    yield error
                else:
                    yield reply
        finally:
            for future in window:
                if not isinstance(future, Exception):
                    future.cancel()

    async def explain(self, late: ReplyTimeout) -> ReplyTimeout:
        """The same time-out, with its reason (`hint`, `consumers`) as far as Kafka knows; takes up to a few seconds.

        `ask` does this itself; futures of `submit` cannot.
        """
        return await asyncio.to_thread(self._silence.explain, late) if self._silence is not None else late

    async def close(self, timeout_s: float = 10.0) -> None:
        """Flush (at most `timeout_s`) and let go. Requests not yet answered fail with ClientClosed."""
        await asyncio.to_thread(self._exchange.close, timeout_s)

    async def __aenter__(self) -> Self:
        self._exchange.check_usable()
        await self.connect()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # cancelled or interrupted: no waiting for a broker that is gone
        await self.close(1.0 if kind is not None and not issubclass(kind, Exception) else 10.0)

    async def _publish(self, outgoing: Outgoing, key: bytes | None, timeout_s: float) -> ReplyFuture:
        def publish() -> ReplyFuture:
            return self._exchange.submit(
                outgoing.request_id,
                outgoing.value,
                headers=outgoing.headers,
                key=key,
                timeout_s=timeout_s,
                wait_for_room=False,
            )

        loop = asyncio.get_running_loop()
        until = loop.time() + ROOM_TIMEOUT_S
        while True:
            try:
                if self._exchange.is_large(outgoing.value):
                    return await asyncio.to_thread(publish)
                return publish()
            except QueueFull:
                if loop.time() > until:
                    raise DeliveryFailed(
                        f"Kafka took no request from this process for {ROOM_TIMEOUT_S:g} s"
                    ) from None
                await asyncio.sleep(ROOM_POLL_S)


async def _outcome(future: asyncio.Future[Reply] | Exception) -> Reply:
    if isinstance(future, Exception):
        raise future
    return await future


async def _aiter(prompts: Iterable[Prompt] | AsyncIterable[Prompt]) -> AsyncIterator[Prompt]:
    if isinstance(prompts, AsyncIterable):
        async for prompt in prompts:
            yield prompt
    else:
        for prompt in prompts:
            yield prompt
