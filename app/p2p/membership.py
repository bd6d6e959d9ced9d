"""Which networks this process belongs to: the token from where the user put it."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Mapping
from pathlib import Path

from app.errors import usage_error
from app.options import TOKEN_VARIABLES, NetworkOptions
from app.p2p.identity import Authority, authority
from app.p2p.token import MAX_FILE_CHARS, Token, network, parse, parse_file

log = logging.getLogger(__name__)


def join(options: NetworkOptions, environ: Mapping[str, str]) -> tuple[Authority, ...]:
    """Read the token and derive its network, one for each token of a file; log where it came from.

    A flag and a file together are a mistake, because nobody can tell which one was
    meant; a file beats the environment. Raises a usage error.
    """
    tokens, source = _find(options, environ)
    log.info("token from %s, fingerprint %s", source, " and ".join(token.fingerprint for token in tokens))
    return tuple(authority(network(token, options.network_id)) for token in tokens)


def _find(options: NetworkOptions, environ: Mapping[str, str]) -> tuple[tuple[Token, ...], str]:
    variable = next((name for name in TOKEN_VARIABLES if environ.get(name)), None)
    from_flag = options.token is not None and (variable is None or options.token != environ[variable])
    if options.token_file is not None:
        if from_flag:
            raise usage_error("both --token and --token-file are given", "give one of them")
        return _read_file(Path(options.token_file)), f"the file {options.token_file}"
    if options.token is None:
        raise usage_error(
            "there is no token",
            "make one with `worker token`, then give it with --token-file FILE or in the variable LOCALAI_TOKEN",
        )
    if from_flag:
        log.warning("--token is seen by everybody on this machine (ps); use --token-file or LOCALAI_TOKEN")
        return (parse(options.token),), "--token"
    return (parse(options.token),), f"the variable {variable}"


def _read_file(path: Path) -> tuple[Token, ...]:
    try:
        with path.open(encoding="utf-8") as file:
            if os.fstat(file.fileno()).st_mode & (stat.S_IRGRP | stat.S_IROTH):
                log.warning("%s can be read by other users: chmod 600 %s", path, path)
            if os.fstat(file.fileno()).st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                raise usage_error(f"{path} can be written by other users: the token may be theirs", f"chmod 600 {path}")
            text = file.read(MAX_FILE_CHARS + 1)
    except UnicodeDecodeError:
        raise usage_error(f"the token file {path} holds characters that no token has", "is it a binary file?") from None
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise usage_error(f"cannot read the token file {path}: {reason}", "check --token-file") from None
    return parse_file(text)
