"""Prepared answers. This is NOT a language model: it is for tests and benchmarks, where an answer must be instant,
the same every time, and easy to tell from every other.

An answer is `[<fingerprint>] <text>`: the fingerprint is 12 decimal digits, the first 64 bits of the SHA-256 of the
whole prompt's UTF-8 modulo 10^12, so a test can tell which prompt an answer belongs to; the text is a paragraph about
the first subject named in the prompt's first 4,096 characters, or else a sentence that quotes the prompt's first 40.

Tokens are counted with o200k_base. prompt_tokens = tokens of the prompt + 7: a chat of one message costs 3 tokens for
the message, 1 for its role and 3 that prime the answer (OpenAI's cookbook, "How to count tokens with tiktoken").
max_tokens cuts the answer, fingerprint included; finish_reason is "length" then. Temperature and top_p have no effect.
"""

import hashlib
import re
from collections.abc import Sequence

from gpt4_nano.engines.interface import Answer, Prompt, Refused
from gpt4_nano.engines.o200k import Vocabulary, count_tokens, load_vocabulary
from gpt4_nano.settings import Settings

CHAT_OVERHEAD_TOKENS = 3 + 1 + 3
FINGERPRINT_DIGITS = 12
SUBJECT_CHARS = 4096
QUOTE_CHARS = 40

PARAGRAPHS = {
    "kafka": "Apache Kafka keeps records in topics, split into partitions that are read in order. Consumers of a group "
    "share the partitions, and each remembers by an offset how far it has come, so that another can take over.",
    "triton": "Triton Inference Server loads models and answers requests for them over HTTP and gRPC. It gathers "
    "requests that arrive close together into one batch, which most models work through faster than one by one.",
    "ai": "Artificial intelligence is the field that makes machines do what seems to need a mind: understanding "
    "language, recognising images, planning. Most of it today is learnt from examples and not written down as rules.",
    "model": "A language model predicts which token is likely to come next, given those before it. Repeating that step "
    "writes a text; how the next token is picked decides whether the text is sober or surprising.",
    "batch": "A batch is a group of inputs worked through together. It uses the hardware better than single inputs do, "
    "at the price of waiting for the group to fill.",
    "token": "A token is a piece of text that a model reads as one unit, often a short word or a part of a longer one. "
    "Prompts and answers are measured in tokens.",
    "python": "Python is a programming language that is read easily and runs nearly everywhere. Much of what is called "
    "machine learning is written in it, on top of libraries in faster languages.",
    "weather": "The weather is the state of the air at a place and time: its temperature, wind, clouds and rain. "
    "Prepared answers know nothing about today's.",
    "hello": "Hello! Ask about Kafka, Triton, batches, tokens or Python, and a prepared paragraph is the answer.",
}
APOLOGY = " There is no prepared answer to"
_WORDS = {
    "artificial intelligence": "ai",
    "machine learning": "ai",
    "topic": "kafka",
    "topics": "kafka",
    "inference": "triton",
    "models": "model",
    "llm": "model",
    "batches": "batch",
    "batching": "batch",
    "tokens": "token",
    "hi": "hello",
} | {subject: subject for subject in PARAGRAPHS}
_SUBJECT = re.compile(rf"\b(?:{'|'.join(sorted(map(re.escape, _WORDS), key=len, reverse=True))})\b")


class Canned:
    """The engine; see above. About 10 µs for a prompt of 100 characters."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        # o200k_base makes one token of every three digits, so all fingerprints have as many.
        self._prefix_length = self._count(f"[{fingerprint('')}]")
        # In o200k_base no token holds the end of a word or bracket together with the space that follows it. So the
        # parts of an answer can be counted apart, those that never change only once.
        self._lengths = {subject: self._count(f" {paragraph}") for subject, paragraph in PARAGRAPHS.items()}
        self._apology_length = self._count(APOLOGY)

    def answer(self, prompts: Sequence[Prompt]) -> list[Answer | Refused]:
        return [self._answer(prompt) for prompt in prompts]

    def close(self) -> None:
        pass

    def _answer(self, prompt: Prompt) -> Answer:
        prompt_tokens = count_tokens(self._vocabulary, prompt.text) + CHAT_OVERHEAD_TOKENS
        prefix = f"[{fingerprint(prompt.text)}]"
        found = _SUBJECT.search(prompt.text[:SUBJECT_CHARS].lower())
        if found:
            subject = _WORDS[found[0]]
            text = f"{prefix} {PARAGRAPHS[subject]}"
            length = self._prefix_length + self._lengths[subject]
        else:
            quote = f' "{prompt.text[:QUOTE_CHARS]}".'
            text = prefix + APOLOGY + quote
            length = self._prefix_length + self._apology_length + self._count(quote)
        if length <= prompt.max_tokens:
            return Answer(text, prompt_tokens, length, "stop")
        return Answer(self._cut(text, prompt.max_tokens), prompt_tokens, prompt.max_tokens, "length")

    def _count(self, text: str) -> int:
        return len(self._vocabulary.encode_ordinary(text))

    def _cut(self, text: str, tokens: int) -> str:
        """The text of its first tokens. A character of which a part is missing is left out."""
        return self._vocabulary.decode(self._vocabulary.encode_ordinary(text)[:tokens]).rstrip("\ufffd")


def fingerprint(text: str) -> str:
    """The digits at the start of every answer to this prompt."""
    number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])
    return f"{number % 10**FINGERPRINT_DIGITS:0{FINGERPRINT_DIGITS}d}"


def open_engine(settings: Settings) -> Canned:
    """Raises EngineUnavailable."""
    return Canned(load_vocabulary())
