"""What a test published, held against what came back: lost, unanswered and wrong answers must all be none."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import uuid4

from confluent_kafka import Consumer, ConsumerGroupState, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient

from promptbus_worker.commit_metadata import decode
from tests.fingerprint import fingerprint
from tests.integration.system import Replies, System, Workers, eventually


class Account:
    """Every request of one test: publish through it, then `settle` it."""

    def __init__(self, system: System) -> None:
        self._system = system
        self._prompts: dict[str, str] = {}
        self._refused: set[str] = set()
        self._publishing = threading.Lock()  # `load` publishes beside the test

    def __len__(self) -> int:
        return len(self._prompts) + len(self._refused)

    def publish(self, count: int, words: str = "", *, refused_every: int = 0) -> None:
        """So many requests, evenly over the partitions, `words` in each prompt.

        Each `refused_every`-th is one that admission refuses.
        """
        with self._publishing:
            self._publish(count, words, refused_every)

    def _publish(self, count: int, words: str, refused_every: int) -> None:
        values = defaultdict[int, list[dict[str, object]]](list)
        for _ in range(count):
            number = len(self) + 1
            request_id, partition = f"r{number}", number % self._system.partitions
            if refused_every and number % refused_every == 0:
                self._refused.add(request_id)
                values[partition].append({"request_id": request_id, "prompt": "tell me", "max_tokens": 0})
            else:
                prompt = self._prompts[request_id] = f"{words} tell me about {request_id} {uuid4().hex}"
                values[partition].append({"request_id": request_id, "prompt": prompt})
        for partition, requests in values.items():
            self._system.publish(requests, partition=partition)

    def settle(self, within_s: float = 120.0) -> Replies:
        """Wait for all replies and for the committed offsets to reach the end, then hold one against the other.

        A request may have been answered more than once, with the same reply id each time; `repeated` names them.
        """
        self._system.collect(len(self), within_s)
        eventually("all offsets are committed", lambda: all_committed(self._system), 30)
        replies = self._system.collected()
        self.check(replies)
        assert set(replies.by_id) == {*self._prompts, *self._refused}
        return replies

    def check(self, replies: Replies) -> None:
        """Each reply so far is a right one, and repeats the first of its request if it is not the first."""
        wrong = []
        for request_id, several in replies.by_id.items():
            for reply in several:
                if request_id in self._refused:
                    right = reply.error is not None and reply.error.code == "invalid_request"
                else:
                    answer = f"[{fingerprint(self._prompts[request_id])}]"
                    right = reply.response is not None and reply.response.startswith(answer)
                if not right:
                    wrong.append(reply)
        assert not wrong, [(reply.request_id, reply.response or reply.error) for reply in wrong[:3]]
        assert len(replies.repeated) <= len(self)  # and raises if a request has two different replies

    @contextmanager
    def load(self, per_s: int, words: str = "", every_s: float = 0.1) -> Iterator[None]:
        """Publish in the background for as long as the block lasts."""
        end, failures = threading.Event(), list[BaseException]()

        def publish() -> None:
            try:
                while not end.wait(every_s):
                    self.publish(int(per_s * every_s), words)
            except BaseException as error:
                failures.append(error)

        thread = threading.Thread(target=publish)
        thread.start()
        try:
            yield
        finally:
            end.set()
            thread.join()
        assert failures == []


def in_hand(*workers: Workers) -> float:
    """Requests that these hold and have not answered."""
    samples = [each.metrics() for each in workers]
    return sum(
        m.get("promptbus_in_flight_requests", 0) + m.get("promptbus_waiting_requests", 0) for m in samples
    )


def holding(count: int, *workers: Workers) -> None:
    """Wait until these hold so many requests."""
    eventually(f"{count} requests in flight or waiting", lambda: in_hand(*workers) >= count, 60)


def parts(system: System) -> list[int]:
    """How many partitions each member of the group has; empty while it rebalances."""
    admin = AdminClient({"bootstrap.servers": system.kafka.bootstrap, "log_level": 0})
    try:
        group = admin.describe_consumer_groups([system.group], request_timeout=5)[system.group].result(10)
    except KafkaException:  # its coordinator is not known yet
        return []
    if group.state != ConsumerGroupState.STABLE:
        return []
    return sorted(len(member.assignment.topic_partitions) for member in group.members)


def shared(system: System, members: int) -> None:
    """Wait until the group's rebalances are over and so many processes have equal parts."""
    equal = [system.partitions // members] * members
    eventually(f"{members} members with equal parts", lambda: parts(system) == equal, 60)


def answered(system: System, count: int, within_s: float = 60.0) -> None:
    """Wait until so many requests are answered."""
    system.collect(count, within_s)


def uncommitted(system: System) -> int:
    """Records of the request topic of which the group's commits do not say that they are settled."""
    with offsets_reader(system) as consumer:
        partitions = [TopicPartition(system.requests, number) for number in range(system.partitions)]
        left = 0
        for partition in consumer.committed(partitions, 20):
            low, high = consumer.get_watermark_offsets(partition, 20)
            settled = decode(partition.offset, partition.metadata)
            left += high - max(low, partition.offset) - sum(end - first for first, end in settled)
        return left


def all_committed(system: System) -> bool:
    """Whether every record of the request topic is settled, and committed as such; False while no broker can say."""
    try:
        return uncommitted(system) == 0
    except KafkaException:  # one is on its way back
        return False


def dead_letters(system: System) -> int:
    """How many there are."""
    with offsets_reader(system) as consumer:
        return int(consumer.get_watermark_offsets(TopicPartition(system.dead, 0), 20)[1])


@contextmanager
def offsets_reader(system: System) -> Iterator[Consumer]:
    """To ask for offsets; it does not join the group."""
    config = {"bootstrap.servers": system.kafka.bootstrap, "group.id": system.group, "log_level": 0}
    consumer = Consumer(config)
    try:
        yield consumer
    finally:
        consumer.close()
