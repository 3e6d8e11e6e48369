"""A vocabulary for tests in which every character is one token. The real one is tested inside Triton."""


class Letters:
    def encode_ordinary(self, text: str) -> list[int]:
        return [ord(character) for character in text]

    def decode(self, tokens: list[int]) -> str:
        return "".join(map(chr, tokens))
