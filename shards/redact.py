"""Secrets inside URLs: taken out of everything that is logged, recorded or published."""

import re

# user:password@ (of a user alone too: tokens stand there), and what signed links carry.
_USER = re.compile(r"(\b[a-zA-Z][\w+.-]*://)[^\s/@`'\"]*@")
_QUERY = re.compile(
    r"([?&][^=&\s]*(?:sig|token|key|secret|passw|credential|auth)[^=&\s]*=)[^&\s`'\"]+", re.I
)


def without_secrets(text: str) -> str:
    """`s3://me:pw@host/x?token=abc` -> `s3://…@host/x?token=…`, wherever it stands in a text."""
    return _QUERY.sub(r"\1…", _USER.sub(r"\1…@", text))


def has_secret(text: str) -> bool:
    """Whether `without_secrets` would change it."""
    return without_secrets(text) != text
