"""What the canned engine's answers begin with, worked out apart from it."""

from hashlib import sha256


def fingerprint(prompt: str | bytes) -> str:
    """Twelve decimal digits that tell which prompt an answer belongs to."""
    text = prompt.encode() if isinstance(prompt, str) else prompt
    return f"{int(sha256(text).hexdigest()[:16], 16) % 10**12:012d}"
