"""A model folder's tokenizer as a zip file, for routers that have no copy of the folder.

Knows nothing of transports.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from pathlib import Path

from frontend.processing.tokenizer_files import CHAT_TEMPLATE, FILES

# No weights; a template may be a file of its own.
_FILES = sorted((*FILES, "config.json", "generation_config.json"))
_EPOCH = (1980, 1, 1, 0, 0, 0)


def tokenizer_archive(folder: Path, chat_template: Path | None = None) -> tuple[bytes, str]:
    """The zip file and its SHA-256; the same bytes whenever the files are the same.

    Args:
        chat_template: a file whose template goes before the folder's.

    Raises:
        OSError: a file cannot be read.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in _FILES:
            path = folder / name
            if name == CHAT_TEMPLATE and chat_template is not None:
                path = chat_template
            if path.is_file():
                # A fixed time, so that replicas of one model give one fingerprint.
                entry = zipfile.ZipInfo(name, _EPOCH)
                archive.writestr(entry, path.read_bytes(), zipfile.ZIP_DEFLATED)
    data = buffer.getvalue()
    return data, hashlib.sha256(data).hexdigest()
