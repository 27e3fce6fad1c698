"""Texts without what opens something: keys, tokens and passwords. Standard library alone."""

import os
import re
from collections.abc import Mapping

HIDDEN = "***"
NAMES = re.compile(r"KEY|SECRET|TOKEN|PASSWORD|PASSWD|CREDENTIAL", re.I)
SHORTEST = 8  # letters of a value of the environment that counts as a secret
PATTERNS = (
    (re.compile(r"(\w://)[^/\s\"'<>@]+@"), rf"\1{HIDDEN}@"),  # user and password of an address
    (re.compile(r"(\w://[^\s\"'<>?]+)\?[^\s\"'<>]+"), rf"\1?{HIDDEN}"),  # a signed address
    (re.compile(r"\b(AKIA|ASIA)[0-9A-Z]{12,}"), HIDDEN),
    (re.compile(r"\b(hf_|ghp_|gho_|github_pat_|sk-)[A-Za-z0-9_-]{12,}"), HIDDEN),
    (re.compile(r"(?i)\b(bearer\s+)[A-Za-z0-9._~+/-]{8,}=*"), rf"\1{HIDDEN}"),
    (
        re.compile(
            r"(?i)\b([\w-]*(?:secret|token|password|passwd|access_key|api_key)[\w-]*\s*[=:]\s*)"
            r"(?!required\b|bytes\b|clip\b|tok\b)[A-Za-z0-9+/_~-]{16,}=*"
        ),
        rf"\1{HIDDEN}",
    ),
)


def redact(text: str, environment: Mapping[str, str] = os.environ) -> str:
    """A text in which addresses have no user, password or query, and what looks like a key or is a
    secret of this process's environment is hidden.
    """
    for name, value in environment.items():
        if len(value) >= SHORTEST and value in text and NAMES.search(name) and "/" != value[0]:
            text = text.replace(value, HIDDEN)
    for pattern, put in PATTERNS:
        text = pattern.sub(put, text)
    return text


def shown(text: str, letters: int = 10_000) -> str:
    """A text of a run as it may be shown: redacted, at most so many letters, without control
    characters, which a terminal would obey.
    """
    cut = redact(text[: 4 * letters])[:letters]
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in cut)
