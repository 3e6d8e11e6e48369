"""One bad prompt never hurts its neighbours in the batch."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from promptbus.messages import Reply, decode_reply
from stack.kafka import Kafka
from stack.triton import Triton
from tests.fingerprint import fingerprint
from tests.integration.mixed import body
from tests.integration.system import Sending, System, Workers, eventually, system

BATCH = 8
LINGER = {"BATCH_LINGER_MS": "1500"}
"""Long enough that requests sent together share a batch; a full one leaves at once."""


class Batches:
    """A system in which eight requests sent together are one batch."""

    def __init__(self, whole: System, workers: Workers) -> None:
        self.whole = whole
        self.workers = workers
        self._count = 0

    def answered(self, prompts: list[str], within_s: float = 60.0) -> list[Reply]:
        """Send them together, all to one partition; their replies in the same order."""
        self._count += 1
        ids = [f"{self._count}-{number}" for number in range(len(prompts))]
        full_batches = self.full_batches()
        self.whole.send(
            [
                Sending(body(prompt, request_id=request_id), partition=0)
                for request_id, prompt in zip(ids, prompts, strict=True)
            ]
        )
        replies = [decode_reply(self.whole.reply_to(i, within_s).value) for i in ids]
        eventually("they were one full batch", lambda: self.full_batches() > full_batches)
        return replies

    def full_batches(self) -> float:
        """Batches that left because they were full; requests that go alone count as well."""
        samples = self.workers.metrics()
        return (
            samples['promptbus_batch_size_bucket{le="8.0",model="gpt4_nano"}']
            - (samples['promptbus_batch_size_bucket{le="7.0",model="gpt4_nano"}'])
        )


@pytest.fixture(scope="module")
def batches(
    shared_kafka: Kafka, shared_triton: Triton, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Batches]:
    with system(shared_kafka, shared_triton, tmp_path_factory.mktemp("batches"), env=LINGER) as whole:
        yield Batches(whole, whole.start().ready())


def check_answer(prompt: str, reply: Reply) -> None:
    """It is an answer, and to this prompt."""
    assert reply.error is None, f"{prompt!r} got {reply.error}"
    assert (reply.response or "").startswith(f"[{fingerprint(prompt)}]")


CODES = {
    "[[fail]]": "model_error",
    "[[bad-utf8]]": "bad_model_output",
    "[[no-output]]": "bad_model_output",
    "[[wrong-rows]]": "bad_model_output",
}


@pytest.mark.parametrize("place", [0, 3, 7])
@pytest.mark.parametrize("word", CODES)
def test_a_poisoned_prompt_in_a_full_batch_fails_alone(batches: Batches, word: str, place: int) -> None:
    prompts = [f"neighbour {number} of {word.strip('[]')} at {place}" for number in range(BATCH)]
    prompts[place] = f"poison {word}"
    replies = batches.answered(prompts)
    for number, (prompt, reply) in enumerate(zip(prompts, replies, strict=True)):
        if number == place:
            assert reply.error is not None
            assert reply.error.code == CODES[word]
        else:
            check_answer(prompt, reply)


def test_four_poisons_of_different_kinds_leave_the_other_four_alone(batches: Batches) -> None:
    words = [*CODES, "and", "so", "on", "!"]
    prompts = [f"prompt {number} {word}" for number, word in enumerate(words)]
    for word, prompt, reply in zip(words, prompts, batches.answered(prompts), strict=True):
        if word in CODES:
            assert reply.error is not None
            assert reply.error.code == CODES[word]
        else:
            check_answer(prompt, reply)


def test_a_batch_of_nothing_but_poison_is_charged_in_the_end(batches: Batches) -> None:
    replies = batches.answered([f"[[fail]] {number}" for number in range(BATCH)], within_s=20)
    assert [reply.error.code for reply in replies if reply.error] == ["model_error"] * BATCH
    check_answer("afterwards", batches.answered(["afterwards"] + ["x"] * 7)[0])


def test_the_neighbours_of_a_slow_prompt_wait_with_it(batches: Batches) -> None:
    prompts = [f"neighbour {number}" for number in range(BATCH - 1)] + ["[[slow:1200]] but no poison"]
    for prompt, reply in zip(prompts, batches.answered(prompts), strict=True):
        check_answer(prompt, reply)
        assert reply.timings.inference_ms > 1000


@pytest.mark.parametrize("slow_ms", [1_500, 6_000])
def test_a_prompt_that_makes_every_call_time_out_takes_no_neighbour_with_it(
    slow_ms: int, shared_kafka: Kafka, shared_triton: Triton, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("slow")
    with system(shared_kafka, shared_triton, folder, env={**LINGER, "TRITON_TIMEOUT_S": "1"}) as whole:
        made = Batches(whole, whole.start().ready())
        prompts = [f"neighbour {number} of {slow_ms}" for number in range(BATCH)]
        prompts[3] = f"[[slow:{slow_ms}]]"
        replies = made.answered(prompts, within_s=90)
        error = replies[3].error
        assert error is not None
        assert (error.code, replies[3].attempts) == ("inference_timeout", 3)
        for number in {*range(BATCH)} - {3}:
            check_answer(prompts[number], replies[number])
        assert len(whole.dead_letters(1)) == 1
