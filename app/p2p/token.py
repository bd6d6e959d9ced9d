"""Make, parse and check a token; derive a network's public tag and its secrets from it."""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
from dataclasses import dataclass, field
from enum import Enum

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from app.errors import WorkerError, usage_error

MAX_TOKEN_CHARS = 4096
"""A LocalAI token has about 600; with room for a list of trusted peers."""
MAX_FILE_CHARS = 65536
"""What a token file may hold, comments included. Read no more than this and one."""
MAX_TOKENS = 2
"""The old one and the new one, while a token is being changed."""
MAX_NETWORK_ID_BYTES = 256

_PREFIX = "worker1_"
_SECRET_BYTES = 32
# 24 bits: one mistyped token in 16 million passes, and is then refused by its
# peers. With them the body is 35 bytes, 56 base32 characters without padding.
_CHECK_BYTES = 3
_LENGTH = len(_PREFIX) + (_SECRET_BYTES + _CHECK_BYTES) * 8 // 5
# Lower case only: one token has one spelling.
_OURS = re.compile(rf"{_PREFIX}([a-z2-7]{{{_LENGTH - len(_PREFIX)}}})")
# Ours with a slip in it, be it in the prefix. No password looks like this.
_LIKE_OURS = re.compile(r"worker\d.*|\w{4,10}_[A-Za-z0-9]{48,64}")

# LocalAI's token is base64 of the YAML that edgevpn's YAMLConnectionConfig
# writes: `otp:` first, below it `dht:` and `crypto:`, in each a `key:` of 43
# letters and digits (LocalAI core/p2p) or 32 (edgevpn before) and then its
# `length:`, which shows that the key was not cut.
_LOCALAI_START = base64.b64encode(b"otp:\n")[:6].decode()
_LOCALAI_OTP = re.compile(rb"^otp:[ \t]*\r?$", re.MULTILINE)
_LOCALAI_KEY = re.compile(rb"^[ \t]+key:[ \t]*[\"']?([!-~]+?)[\"']?[ \t]*\r?\n[ \t]+length:[ \t]*\d", re.MULTILINE)
_LOCALAI_KEYS = 2
_LOCALAI_KEY_CHARS = 32
# 32 random base32 characters have fewer than 12 different ones once in 10^7 keys.
_LOCALAI_KEY_DIFFERENT = 12

_MAKE_ONE = "make one with `worker token` and give the same one to every machine"
_COPY_AGAIN = "copy it again, all of it"


class Kind(Enum):
    """Who made the token."""

    OURS = "worker"
    LOCALAI = "LocalAI"


@dataclass(frozen=True)
class Token:
    """A checked token."""

    kind: Kind
    secret: bytes = field(repr=False)
    """32 random bytes of ours; a LocalAI token's keys, joined by line feeds."""

    @property
    def fingerprint(self) -> str:
        """8 hexadecimal digits that tell tokens apart in a log and give nothing away."""
        return _derive(self.secret, b"fingerprint", b"", 4).hex()


@dataclass(frozen=True)
class Network:
    """What the members of one network share: a token and a network id, already derived."""

    tag: str
    """32 hexadecimal digits, public: announced by mDNS and sent as the TLS server name."""
    ca_seed: bytes = field(repr=False)
    """The 32 bytes of the network's Ed25519 CA key."""
    announcement_key: bytes = field(repr=False)
    """The 32 bytes of the key with which members prove what they announce."""


def generate() -> str:
    """A new token of 256 random bits, `[a-z0-9_]` only: a double click selects it, no shell minds it."""
    secret = secrets.token_bytes(_SECRET_BYTES)
    return _PREFIX + base64.b32encode(secret + _checksum(secret)).decode().lower()


def parse(text: str) -> Token:
    """The token in `text`; white space around and inside it is ignored, for wrapped pastes.

    Raises a usage error, which never repeats the token, for one that is empty,
    huge, binary, mistyped, weak, or of a later version.
    """
    if len(text) > MAX_TOKEN_CHARS:
        raise usage_error(f"the token is too long: more than {MAX_TOKEN_CHARS} characters", "was a wrong file given?")
    text = "".join(text.split())
    if not text:
        raise usage_error("the token is empty", _MAKE_ONE)
    if not (text.isascii() and text.isprintable()):
        raise usage_error("the token holds characters that no token has", "was a wrong or a binary file given?")
    if _LIKE_OURS.fullmatch(text):
        return Token(Kind.OURS, _read_ours(text))
    yaml = _read_base64(text)
    if text.startswith(_LOCALAI_START) or (yaml is not None and _LOCALAI_OTP.search(yaml)):
        return Token(Kind.LOCALAI, _read_localai(yaml))
    raise usage_error("the token is weak: it was made neither by `worker token` nor by LocalAI", _MAKE_ONE)


def parse_file(text: str) -> tuple[Token, ...]:
    """The one or two tokens of a token file, one a line; blank lines and `#` comments are ignored.

    Raises a usage error that names the line.
    """
    if len(text) > MAX_FILE_CHARS:
        raise usage_error("the token file is too long", "was a wrong file given?")
    tokens: list[Token] = []
    for number, line in enumerate(text.removeprefix("\ufeff").splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if len(tokens) == MAX_TOKENS:
            raise usage_error("the token file holds more than two tokens", "one a line: the new one and the old one")
        try:
            tokens.append(parse(line))
        except WorkerError as error:
            raise WorkerError(f"token file, line {number}: {error.message}", error.hint, error.code) from None
    if not tokens:
        raise usage_error("the token file holds no token", _MAKE_ONE)
    return tuple(dict.fromkeys(tokens))


def network(token: Token, network_id: str = "") -> Network:
    """The network of `token` that is called `network_id`; another id is another network.

    Raises a usage error for an id that is not UTF-8 or longer than 256 bytes.
    """
    try:
        name = network_id.encode()
    except UnicodeEncodeError:
        raise usage_error("the network id is not valid UTF-8", "use plain letters and digits") from None
    if len(name) > MAX_NETWORK_ID_BYTES:
        raise usage_error(f"the network id is longer than {MAX_NETWORK_ID_BYTES} bytes", "use a short name")
    return Network(
        tag=_derive(token.secret, b"tag", name, 16).hex(),
        ca_seed=_derive(token.secret, b"ca", name, 32),
        announcement_key=_derive(token.secret, b"announcement", name, 32),
    )


def _derive(secret: bytes, label: bytes, network_id: bytes, length: int) -> bytes:
    """HKDF-SHA256 (RFC 5869). No label holds the zero byte, so no two infos are alike."""
    info = b"worker 1 " + label + b"\0" + network_id
    return HKDF(SHA256(), length, salt=None, info=info).derive(secret)


def _checksum(secret: bytes) -> bytes:
    return hashlib.sha256(_PREFIX.encode() + secret).digest()[:_CHECK_BYTES]


def _read_ours(text: str) -> bytes:
    version = re.match(r"worker(\d+)_", text)
    if version and version[0] != _PREFIX:
        hint = f"{_COPY_AGAIN}; if it is right, use the newer `worker` that made it"
        raise usage_error(f"the token is of version {version[1]}, this build knows version 1", hint)
    if len(text) != _LENGTH:
        raise usage_error(f"the token is mistyped: {len(text)} characters in place of {_LENGTH}", _COPY_AGAIN)
    match = _OURS.fullmatch(text)
    body = base64.b32decode(match[1].upper()) if match else b""
    secret, check = body[:_SECRET_BYTES], body[_SECRET_BYTES:]
    if check != _checksum(secret):
        raise usage_error("the token is mistyped: its checksum does not fit", _COPY_AGAIN)
    return secret


def _read_base64(text: str) -> bytes | None:
    """The bytes of `text`, whose `=` at the end may be lost: a double click does not select them."""
    digits = text.rstrip("=")
    try:
        return base64.b64decode(digits + "=" * (-len(digits) % 4), validate=True)
    except ValueError:
        return None


def _read_localai(yaml: bytes | None) -> bytes:
    """The otp keys in `yaml`. No YAML library: a token is whole or damaged, never written another way."""
    keys: list[bytes] = [] if yaml is None else _LOCALAI_KEY.findall(yaml)
    if len(keys) < _LOCALAI_KEYS:
        raise usage_error("the LocalAI token is damaged: it does not hold its two otp keys", _COPY_AGAIN)
    if any(len(key) < _LOCALAI_KEY_CHARS or len(set(key)) < _LOCALAI_KEY_DIFFERENT for key in keys):
        raise usage_error("the LocalAI token is weak: its keys are short or not random", _MAKE_ONE)
    return b"\n".join(keys)
