"""The tokenizer against the `tokenizers` library, and without torch."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jinja2
import pytest

from frontend.processing.tokenizer import Tokenizer
from tests.frontend.conftest import CORPUS, byte_level_backend

TEXT = "The fox 東京 🙂 mind<tool call>é!"


def test_folder_without_tokenizer_files_has_none(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert Tokenizer.load(tmp_path) is None


def test_broken_tokenizer_file_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match=r"tokenizer in .* cannot be read") as error:
        Tokenizer.load(tmp_path)
    assert "\n" not in str(error.value)


def test_encode_is_the_library_s_and_decode_its_inverse(tokenizer: Tokenizer) -> None:
    backend = byte_level_backend()
    for text in [*CORPUS, TEXT.replace("é!", ""), "", "<|end|>x"]:
        ids = tokenizer.encode(text)
        assert ids == backend.encode(text).ids
        assert tokenizer.decode(ids, keep_special_tokens=True) == text
    assert tokenizer.vocab_size == backend.get_vocab_size()


def test_special_tokens_are_kept_or_left_out(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("fox<|end|>dog")
    assert tokenizer.decode(ids, keep_special_tokens=True) == "fox<|end|>dog"
    assert tokenizer.decode(ids, keep_special_tokens=False) == "foxdog"


def test_chat_template_is_rendered_to_ids(tokenizer: Tokenizer) -> None:
    assert tokenizer.has_chat_template
    messages = [{"role": "user", "content": "The dog"}]
    ids = tokenizer.render_chat(messages, {"shout": True})
    text = tokenizer.decode(ids, keep_special_tokens=True)
    assert text == "<|user|>The dog<|end|>!<|assistant|>"
    assert ids[0] == tokenizer.encode("<|user|>")[0]


def test_template_arguments_of_the_library_are_not_the_caller_s(tokenizer: Tokenizer) -> None:
    with pytest.raises(TypeError):
        tokenizer.render_chat([{"role": "user", "content": "x"}], {"tokenize": True})


def test_template_that_refuses_raises_its_error(tokenizer: Tokenizer) -> None:
    with pytest.raises(jinja2.TemplateError, match="no tools here"):
        tokenizer.render_chat([{"role": "tool", "content": "x"}], {})


def test_threads_may_share_it(tokenizer: Tokenizer) -> None:
    texts = [f"{CORPUS[0]} {number}" * 20 for number in range(32)]
    with ThreadPoolExecutor(4) as threads:
        encoded = list(threads.map(tokenizer.encode, texts))
    assert encoded == [tokenizer.encode(text) for text in texts]


@pytest.mark.processes
def test_works_where_torch_is_not_installed(tokenizer_folder: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from frontend.processing.tokenizer import Tokenizer\n"
        f"t = Tokenizer.load({str(tokenizer_folder)!r})\n"
        "ids = t.render_chat([{'role': 'user', 'content': 'fox 🙂'}], {})\n"
        "d = t.decoder(('zzz',), False, True)\n"
        "print(''.join([d.push(i) for i in ids] + [d.flush()]))\n"
    )
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "<|user|>fox 🙂<|end|><|assistant|>"
