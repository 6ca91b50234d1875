"""Passwords and tokens of URLs do not reach what others read."""

import pytest

from shards.redact import has_secret, without_secrets


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("https://me:pa55@host:80/x", "https://…@host:80/x"),
        ("reads `s3://hf_token@bucket/a`, then", "reads `s3://…@bucket/a`, then"),
        ("http://h/x?X-Amz-Signature=ab12&part=3", "http://h/x?X-Amz-Signature=…&part=3"),
        ("http://h/x?part=3&sig=ab%2B", "http://h/x?part=3&sig=…"),
        ("http://h/x?API_KEY=1 http://u:p@h", "http://h/x?API_KEY=… http://…@h"),
    ],
)
def test_secrets_are_taken_out(text, clean):
    assert has_secret(text) and without_secrets(text) == clean
    assert without_secrets(clean) == clean


@pytest.mark.parametrize(
    "text", ["http://host/a@b", "a@b.org", "s3://bucket/key=3/x", "shards/train", "x?y=1&z=2"]
)
def test_everything_else_stays(text):
    assert not has_secret(text)
