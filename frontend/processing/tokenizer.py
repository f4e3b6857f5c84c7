"""The tokenizer of a model folder: text to ids, chat to ids, ids to text at once or token by token.

Wraps transformers' tokenizers, which need no torch. Knows nothing of requests. Encoding a long text
takes 100 ms and more: callers on an event loop run it in a thread. Other threads run meanwhile, for
a text is given to the library as a batch of one: that releases the interpreter's lock. All methods
may be called from several threads.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Collection
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import tokenizers

from frontend.errors import invalid_field
from frontend.processing.chat.conversation import Conversation
from frontend.processing.chat.renderer import ChatRenderer
from frontend.processing.stop_strings import StopDecoder
from frontend.processing.text_decoders import ByteDecoder, BytePieces, PiecesWith, WindowDecoder
from frontend.processing.thoughts.tags import AUTO, ThoughtForm, find_form
from frontend.processing.tokenizer_files import VOCABULARIES, check_files
from frontend.processing.tool_calls.format import ToolFormat
from frontend.processing.tool_calls.table import find_format
from frontend.requests.request import TextDecoder
from switchyard.model_files import read_bytes, shown

TEMPLATE_SECONDS = 5.0
"""Time that a chat template has for one word, at the start."""

# A batch of one text is worked on in the caller's own thread.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# What a bug of Rust's libraries becomes: it derives from BaseException.
_PANIC = "PanicException"
_MAX_DETAIL = 300  # characters of a library's error
_MAX_TEMPLATE_BYTES = 16 << 20


class Tokenizer:
    """Encodes and decodes for one model; ``load`` makes one.

    Attributes:
        thought_tags: between which the model's thoughts stand, or their envelope; None: they are
            not looked for.
        tool_format: of the model's calls.
    """

    def __init__(
        self, wrapped: Any, reasoning_parser: str = AUTO, tool_call_parser: str = AUTO
    ) -> None:
        self._wrapped = wrapped
        self._backend: tokenizers.Tokenizer | None = getattr(wrapped, "backend_tokenizer", None)
        self._chat = ChatRenderer(wrapped, self._backend, lambda text: self.encode(text, False))
        self._pieces: dict[bool, BytePieces] = {}
        added = wrapped.added_tokens_decoder.items()
        self._special_ids = {str(token): token_id for token_id, token in added if token.special}
        if self._backend is not None:
            self._backend.no_truncation()
            self._backend.no_padding()
            if isinstance(self._backend.decoder, tokenizers.decoders.ByteLevel):
                self._pieces = {keep: BytePieces(self._backend, keep) for keep in (False, True)}
        self.thought_tags = self._find_tags(reasoning_parser)
        self.tool_format: ToolFormat = find_format(
            tool_call_parser,
            self._template,
            self._special_ids,
            [str(token) for token in wrapped.added_tokens_decoder.values()],
        )

    @classmethod
    def load(
        cls,
        folder: str | Path,
        chat_template: Path | None = None,
        vocab_size: int | None = None,
        reasoning_parser: str = AUTO,
        tool_call_parser: str = AUTO,
    ) -> Tokenizer | None:
        """The tokenizer in a model folder, or None when it has no tokenizer files.

        Args:
            chat_template: a file whose template goes before the folder's.
            vocab_size: of the model, which must have the tokenizer's end token; None: not known.
            reasoning_parser: names the tags of the model's thoughts; see `find_form`.
            tool_call_parser: names the form of its calls; see `find_format`.

        Raises:
            ValueError: the files cannot be read, the template cannot work, the end token is not
                the model's, or the tags are none of its.
        """
        folder = Path(folder)
        check_files(folder)
        if not any((folder / name).exists() for name in VOCABULARIES):
            if chat_template is not None:
                raise ValueError(f"--chat-template needs a tokenizer; {folder} has none")
            return None
        wrapped = _read(folder)
        origin = f"the chat template in {folder}"
        if chat_template is not None:
            origin = f"--chat-template {chat_template}"
            wrapped.chat_template = _text_of(chat_template)
        loaded = cls(wrapped, reasoning_parser, tool_call_parser)
        end = loaded.eos_token_id
        if vocab_size is not None and end is not None and end >= vocab_size:
            raise ValueError(
                f"tokenizer in {folder} ends texts with token {end}, {shown(wrapped.eos_token)}, "
                f"and config.json's vocab_size is {vocab_size}; serve the model with its own "
                "tokenizer"
            )
        if loaded.has_chat_template:
            loaded._try_template(origin)
        return loaded

    def _try_template(self, origin: str) -> None:
        """Render a word, which shows a template that is none; one may refuse the word.

        Raises:
            ValueError: the template has a syntax error, fails, or does not end.
        """
        failures: list[Exception] = []

        def render() -> None:
            try:
                self._chat.prepare()
            except Exception as error:
                failures.append(error)

        trial = threading.Thread(target=render, daemon=True)
        trial.start()
        trial.join(TEMPLATE_SECONDS)
        problem = f"is not done with one word after {TEMPLATE_SECONDS:g} s"
        if failures and isinstance(failures[0], jinja2.TemplateSyntaxError):
            problem = f"has an error in line {failures[0].lineno}: {failures[0].message}"
        elif failures and not isinstance(failures[0], jinja2.TemplateError):
            problem = f"cannot render one word: {_detail(failures[0])}"
        elif not trial.is_alive():
            return
        raise ValueError(f"{origin} {problem}; mend it, or pass another with --chat-template")

    @property
    def vocab_size(self) -> int:
        """Ids the tokenizer knows, added tokens included."""
        return len(self._wrapped)

    @property
    def has_chat_template(self) -> bool:
        """Whether ``render_chat`` works."""
        return self._wrapped.chat_template is not None

    @property
    def _template(self) -> str:
        """Source of the chat template, or of all of them; empty without one."""
        template = self._wrapped.chat_template or ""
        return template if isinstance(template, str) else "\n".join(template.values())

    def _find_tags(self, parser: str) -> ThoughtForm | None:
        """The form of the model's thoughts, as `find_form` finds it."""
        added = {str(token): each for each, token in self._wrapped.added_tokens_decoder.items()}
        return find_form(
            parser,
            self._template,
            added,
            lambda text: self.encode(text, False),
            lambda ids: self.decode(ids, True),
        )

    @property
    def library_tokenizer(self) -> tokenizers.Tokenizer | None:
        """As the tokenizers library has it; None for one of another library."""
        return self._backend

    @property
    def eos_token_id(self) -> int | None:
        """Its own end token; None where it has none."""
        token_id = self._wrapped.eos_token_id
        return token_id if isinstance(token_id, int) else None

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Ids of a text; by default with the special tokens that the model's tokenizer adds."""
        if self._backend is not None:
            [encoding] = self._backend.encode_batch_fast(
                [text], add_special_tokens=add_special_tokens
            )
            ids: list[int] = encoding.ids
            return ids
        return list(self._wrapped.encode(text, add_special_tokens=add_special_tokens))

    def decode(self, ids: list[int], keep_special_tokens: bool = False) -> str:
        """Text of ids; incomplete characters become U+FFFD, unknown ids nothing."""
        if self._backend is not None:
            [text] = self._backend.decode_batch([ids], skip_special_tokens=not keep_special_tokens)
            return str(text)
        return str(
            self._wrapped.decode(
                ids,
                skip_special_tokens=not keep_special_tokens,
                clean_up_tokenization_spaces=False,
            )
        )

    def render_chat(self, conversation: Conversation) -> list[int]:
        """Ids of the chat template's text, which asks for the assistant's turn.

        Raises:
            Exception: see `ChatRenderer.ids`.
        """
        return self._chat.ids(conversation)

    def decoder(
        self,
        stops: tuple[str, ...],
        include_stop: bool,
        keep_special: bool,
        min_tokens: int = 0,
        kept: Collection[str] = (),
    ) -> TextDecoder:
        """A fresh incremental detokenizer for one sequence.

        Args:
            stops: strings that end the text; a special token that is left out ends it by its name.
            include_stop: the stop string stays in the text.
            keep_special: special tokens stay in the text.
            min_tokens: number of leading tokens whose text is not searched for stop strings.
            kept: special tokens that stay in the text all the same.
        """
        inner: TextDecoder
        hidden = {} if keep_special else self._special_ids
        kept_ids = {hidden[text]: text for text in kept if text in hidden}
        if self._pieces:
            pieces = self._pieces[keep_special]
            inner = ByteDecoder(PiecesWith(pieces, kept_ids) if kept_ids else pieces)
        elif kept_ids:
            left_out = {*hidden.values()} - kept_ids.keys()
            inner = WindowDecoder(
                lambda ids: self.decode([each for each in ids if each not in left_out], True)
            )
        else:
            inner = WindowDecoder(lambda ids: self.decode(ids, keep_special))
        if not stops:
            return inner
        return StopDecoder(
            inner,
            stops,
            include_stop=include_stop,
            min_tokens=min_tokens,
            tokens={hidden[stop]: stop for stop in stops if stop in hidden and stop not in kept},
        )


def _read(folder: Path) -> Any:
    """transformers' tokenizer of a folder."""
    # Here, not above: it takes seconds, which a folder without a tokenizer need not wait for.
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
    except BaseException as error:  # the libraries raise of all kinds, `Exception` itself too
        if not isinstance(error, Exception) and type(error).__name__ != _PANIC:
            raise
        raise ValueError(f"tokenizer in {folder} cannot be read: {_detail(error)}") from error


def _detail(error: BaseException) -> str:
    """A library's error as a line has room for it."""
    return str(error).strip().partition("\n")[0][:_MAX_DETAIL] or type(error).__name__


def _text_of(template: Path) -> str:
    try:
        return read_bytes(template, _MAX_TEMPLATE_BYTES).decode()
    except UnicodeDecodeError:
        raise ValueError(f"--chat-template {template}: it is no UTF-8 text") from None
    except ValueError as error:
        raise ValueError(f"--chat-template {error}") from None


def check_token_ids(ids: Any, vocab_size: int, field: str) -> None:
    """Refuses token ids (a packed repeated field) that are not below the vocabulary's size."""
    if not ids:
        return
    array = np.array(ids, dtype=np.uint32)
    index = int(array.argmax())
    if array[index] >= vocab_size:
        raise invalid_field(
            f"{field}[{index}]",
            f"is {array[index]}, must be below the vocabulary's size {vocab_size}",
        )
