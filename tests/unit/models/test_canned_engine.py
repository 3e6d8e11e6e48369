import pytest
from gpt4_nano.engines.canned import CHAT_OVERHEAD_TOKENS, PARAGRAPHS, Canned
from gpt4_nano.engines.interface import Answer, EngineUnavailable, Prompt
from gpt4_nano.engines.o200k import SEGMENT_CHARS, count_tokens, load_vocabulary
from hypothesis import given
from hypothesis import strategies as st

from tests.fingerprint import fingerprint
from tests.unit.models.letters import Letters

ENGINE = Canned(Letters())


def ask(text: str, max_tokens: int = 1000) -> Answer:
    (outcome,) = ENGINE.answer([Prompt(text, max_tokens)])
    assert isinstance(outcome, Answer)
    return outcome


def test_the_same_prompt_gets_the_same_answer_from_every_instance() -> None:
    assert ask("What is AI?") == ask("What is AI?")
    assert Canned(Letters()).answer([Prompt("What is AI?")]) == Canned(Letters()).answer(
        [Prompt("What is AI?")]
    )


@pytest.mark.parametrize(
    ("prompt", "subject"),
    [
        ("What is Kafka?", "kafka"),
        ("how many TOPICS are too many", "kafka"),
        ("Explain artificial intelligence", "ai"),
        ("What is AI?", "ai"),
        ("Hello, world!", "hello"),
        ("What is Kafka, and what is Python?", "kafka"),
    ],
)
def test_an_answer_is_about_the_first_subject_named_in_the_prompt(prompt: str, subject: str) -> None:
    assert ask(prompt).text == f"[{fingerprint(prompt)}] {PARAGRAPHS[subject]}"


@pytest.mark.parametrize("prompt", ["paint the chair", "this", "tokenise", "mohair"])
def test_a_subject_inside_another_word_does_not_count(prompt: str) -> None:
    assert f'There is no prepared answer to "{prompt}".' in ask(prompt).text


def test_an_unknown_subject_is_answered_with_a_piece_of_the_prompt() -> None:
    assert ask("x" * 500).text.endswith(f' There is no prepared answer to "{"x" * 40}".')


@given(st.text(min_size=1))
def test_every_answer_starts_with_the_fingerprint_of_the_whole_prompt(prompt: str) -> None:
    assert ask(prompt).text.startswith(f"[{fingerprint(prompt)}] ")


@given(st.text(min_size=1), st.integers(1, 300))
def test_counts_are_those_of_the_prompt_and_of_the_answer_that_is_given(prompt: str, max_tokens: int) -> None:
    answer = ask(prompt, max_tokens)
    assert answer.prompt_tokens == len(prompt) + CHAT_OVERHEAD_TOKENS
    assert answer.completion_tokens <= max_tokens
    assert answer.text == ask(prompt).text[:max_tokens].rstrip("\ufffd")
    complete = ask(prompt).completion_tokens <= max_tokens
    assert answer.finish_reason == ("stop" if complete else "length")
    if complete:
        assert len(answer.text) == answer.completion_tokens


def test_a_batch_is_answered_in_order() -> None:
    prompts = [Prompt(f"prompt {number}") for number in range(8)]
    assert [answer.text[1:13] for answer in ENGINE.answer(prompts) if isinstance(answer, Answer)] == [
        fingerprint(prompt.text) for prompt in prompts
    ]


@given(st.integers(0, 3 * SEGMENT_CHARS))
def test_long_prompts_are_counted_in_segments_without_losing_a_character(length: int) -> None:
    longest = 0

    class Watched(Letters):
        def encode_ordinary(self, text: str) -> list[int]:
            nonlocal longest
            longest = max(longest, len(text))
            return super().encode_ordinary(text)

    assert count_tokens(Watched(), "a" * length) == length
    assert longest <= SEGMENT_CHARS


def test_a_missing_tokenizer_or_vocabulary_is_explained_and_never_downloaded(tmp_path: str) -> None:
    with pytest.raises(EngineUnavailable, match=r"pip install tiktoken|TIKTOKEN_CACHE_DIR is '"):
        load_vocabulary({"TIKTOKEN_CACHE_DIR": str(tmp_path)})
