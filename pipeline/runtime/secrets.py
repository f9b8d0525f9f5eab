"""Take passwords and tokens out of every text that people see or that is stored.

Addresses of stores and downloads may carry them (`https://user:password@host`, `?token=...`), and the errors
of the libraries that use an address quote it.
"""

from __future__ import annotations

import os
import re
from urllib.parse import unquote

_SCHEME = r"[A-Za-z][A-Za-z0-9+.-]*://"
_USER_INFO = re.compile(rf"({_SCHEME})[^\s/@:'\"<>]*(?::[^\s'\"<>]*)?@")  # a password may hold / and @
_PARAMETER = re.compile(
    r"([?&;][^=&;#\s'\"]*(?:pass|pwd|token|secret|key|signature|credential|auth|sig)[^=&;#\s'\"]*=)[^&;#\s'\")]*",
    re.IGNORECASE,
)
_PASSWORD = re.compile(rf"{_SCHEME}[^\s:/@]*:(.+)@")
_ADDRESSES = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")
_SECRETS = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
_SHORTEST = 4
"""Letters of a secret that is looked for outside addresses: a shorter one would be found in any text."""


def hide_secrets(text: str) -> str:
    """Return the text without the user and password of its addresses, and without what stands for a secret.

    Parameters of an address that look like a secret keep their name; the passwords and tokens of the MLflow
    variables are replaced wherever they stand.
    """
    if "://" in text:
        text = _PARAMETER.sub(r"\1***", _USER_INFO.sub(r"\1", text))
    for secret in _known():
        text = text.replace(secret, "***")
    return text


def _known() -> set[str]:
    """Return the secrets that this process was given by its environment, as written and as decoded."""
    found = {os.environ.get(name, "") for name in _SECRETS}
    for name in _ADDRESSES:
        match = _PASSWORD.match(os.environ.get(name, ""))
        if match is not None:
            found |= {match[1], unquote(match[1])}
    return {secret for secret in found if len(secret) >= _SHORTEST}
