"""The tokenizer against the `tokenizers` library, and without torch."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jinja2
import pytest

from frontend.processing import tokenizer as module
from frontend.processing.chat.conversation import Conversation
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


def test_its_own_end_token_is_the_folder_s(tokenizer: Tokenizer) -> None:
    assert tokenizer.eos_token_id == byte_level_backend().token_to_id("<|end|>")


def test_special_tokens_are_kept_or_left_out(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("fox<|end|>dog")
    assert tokenizer.decode(ids, keep_special_tokens=True) == "fox<|end|>dog"
    assert tokenizer.decode(ids, keep_special_tokens=False) == "foxdog"


def test_chat_template_is_rendered_to_ids(tokenizer: Tokenizer) -> None:
    assert tokenizer.has_chat_template
    messages = [{"role": "user", "content": "The dog"}]
    ids = tokenizer.render_chat(Conversation(turns=messages, template_kwargs={"shout": True}))
    text = tokenizer.decode(ids, keep_special_tokens=True)
    assert text == "<|user|>The dog<|end|>!<|assistant|>"
    assert ids[0] == tokenizer.encode("<|user|>")[0]


def test_template_arguments_of_the_library_are_not_the_caller_s(tokenizer: Tokenizer) -> None:
    turns = [{"role": "user", "content": "x"}]
    with pytest.raises(TypeError):
        tokenizer.render_chat(Conversation(turns=turns, template_kwargs={"tokenize": True}))


def test_template_that_refuses_raises_its_error(tokenizer: Tokenizer) -> None:
    with pytest.raises(jinja2.TemplateError, match="no tools here"):
        tokenizer.render_chat(Conversation(turns=[{"role": "tool", "content": "x"}]))


def test_decode_is_transformers_own(tokenizer: Tokenizer) -> None:
    ids = [*tokenizer.encode(TEXT + "<|end|>é"), tokenizer.encode("é")[0], 9999]
    for keep in (False, True):
        expected = tokenizer._wrapped.decode(
            ids, skip_special_tokens=not keep, clean_up_tokenization_spaces=False
        )
        assert tokenizer.decode(ids, keep_special_tokens=keep) == expected


def test_other_threads_go_on_while_a_long_text_is_encoded_or_decoded(tokenizer: Tokenizer) -> None:
    text = "a" * 200_000
    ids = tokenizer.encode(text)
    steps, done = [0], threading.Event()

    def count() -> None:
        while not done.is_set():
            steps[0] += 1
            time.sleep(0)  # lets go of the interpreter's lock

    counter = threading.Thread(target=count)
    counter.start()
    try:
        for work in (lambda: tokenizer.encode(text), lambda: tokenizer.decode(ids * 10)):
            before = steps[0]
            work()
            assert steps[0] > before + 100
    finally:
        done.set()
        counter.join()


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("{% for m in messages %}{{ m.content }}", "has an error in line 1: Unexpected end of"),
        ("{% for i in range(2000) %}{% for j in range(2000) %}{% endfor %}{% endfor %}",
         "is not done with one word after 0.1 s"),
        ("{{ messages + 1 }}", "cannot render one word: can only concatenate list"),
        ("{% include 'x' %}", "cannot render one word: no loader for this environment"),
    ],
)  # fmt: skip
def test_a_template_that_cannot_work_is_one_line_at_the_start(
    tokenizer_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    template: str,
    problem: str,
) -> None:
    monkeypatch.setattr(module, "TEMPLATE_SECONDS", 0.1)
    folder = shutil.copytree(tokenizer_folder, tmp_path / "model")
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(ValueError, match=f"the chat template in .* {problem}"):
        Tokenizer.load(folder)
    given = folder / "chat_template.jinja"
    with pytest.raises(ValueError, match=f"--chat-template {given} {problem}"):
        Tokenizer.load(tokenizer_folder, given)


def test_a_template_of_ones_own_goes_before_the_folders(
    tokenizer_folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "mine.jinja"
    path.write_text("{% for m in messages %}[{{ m.content }}]{% endfor %}")
    loaded = Tokenizer.load(tokenizer_folder, path)
    assert loaded is not None
    ids = loaded.render_chat(Conversation(turns=[{"role": "user", "content": "hi"}]))
    assert loaded.decode(ids, keep_special_tokens=True) == "[hi]"
    with pytest.raises(ValueError, match=r"--chat-template .*nowhere: No such file"):
        Tokenizer.load(tokenizer_folder, tmp_path / "nowhere")
    with pytest.raises(ValueError, match=f"--chat-template needs a tokenizer; {tmp_path} has none"):
        Tokenizer.load(tmp_path, path)


def test_threads_may_share_it(tokenizer: Tokenizer) -> None:
    texts = [f"{CORPUS[0]} {number}" * 20 for number in range(32)]
    with ThreadPoolExecutor(4) as threads:
        encoded = list(threads.map(tokenizer.encode, texts))
    assert encoded == [tokenizer.encode(text) for text in texts]


@pytest.mark.processes
def test_works_where_torch_is_not_installed(tokenizer_folder: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from frontend.processing.chat.conversation import Conversation\n"
        "from frontend.processing.tokenizer import Tokenizer\n"
        f"t = Tokenizer.load({str(tokenizer_folder)!r})\n"
        "turns = [{'role': 'user', 'content': 'fox 🙂'}]\n"
        "ids = t.render_chat(Conversation(turns=turns))\n"
        "d = t.decoder(('zzz',), False, True)\n"
        "print(''.join([d.push(i) for i in ids] + [d.flush()]))\n"
    )
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "<|user|>fox 🙂<|end|><|assistant|>"
