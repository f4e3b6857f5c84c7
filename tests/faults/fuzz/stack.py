"""The whole frontend in this process, but for sockets: service, engine, worker group, a model rank.

Owns what the faces stand on, and the look whether anything is left behind. The rank speaks
worker.proto: it draws what sampling allows, quickly and always the same.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import deque
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

from frontend.engine.engine import Engine
from frontend.link.group_check import group_info
from frontend.link.rank_channel import GroupLost, RankChannel
from frontend.link.worker_group import WorkerGroup
from frontend.processing.tokenizer import Tokenizer
from frontend.scheduler.limits import SchedulerLimits
from frontend.scheduler.scheduler import Scheduler
from frontend.service.service import Service
from switchyard.worker.v1 import worker_pb2
from tests.faults.fuzz.messages import fill
from tests.faults.fuzz.values import Bytes
from tests.frontend.conftest import byte_level_backend, write_folder
from tests.frontend.fakes import EOS, MODEL, backend, describe

VOCAB_SIZE = 416
"""More than the tokenizer has, as models' are."""

# What templates of real models do with what callers send.
_TEMPLATE = """
{%- if documents %}{% for document in documents %}[{{ document.title }}]{% endfor %}{% endif -%}
{%- if tools %}{% for tool in tools %}{{ tool | tojson }}{{ tool.function.name + ':' }}
{%- for name, value in tool.function.parameters.properties.items() %}{{ name }}
{{- value.type | upper }}
{%- endfor %}{% endfor %}{% endif -%}
{%- for m in messages %}
{%- if m.role == 'tool' and loop.first %}{{ raise_exception('a tool speaks first') }}{% endif -%}
<|{{ m.role }}|>{{ m.content.strip() }}
{%- for call in m.tool_calls or [] %}<tool call>{{ call.function.name }}
{%- for key, value in call.function.arguments.items() %}{{ key }}={{ value | string | trim }}
{%- endfor %}{% endfor %}<|end|>{% endfor -%}
{%- if budget is defined %}{{ (budget * 2) | int }}{{ budget // 7 }}{% endif -%}
{%- if shout %}{{ shout | join(',') }}{{ shout[0] }}{% endif -%}
{%- if add_generation_prompt %}<|assistant|>
{%- if enable_thinking is false %}<think>{% endif %}{% endif -%}
"""

Alter = Callable[[worker_pb2.StepResult], bytes]


def model_folder(folder: Path) -> Path:
    """A folder with a small tokenizer and a template that uses all it is given."""
    write_folder(folder, byte_level_backend())
    (folder / "chat_template.jinja").write_text(_TEMPLATE)
    (folder / "config.json").write_text('{"model_type": "fake_moe"}')
    return folder


class Model:
    """Answers steps as a rank that keeps to worker.proto does."""

    def __init__(self) -> None:
        self._slots: dict[int, worker_pb2.NewSequence] = {}

    def answer(self, step: worker_pb2.StepRequest) -> worker_pb2.StepResult:
        """One token a draw, and the log-probabilities that are asked for."""
        for new in step.new_sequences:
            self._slots[new.slot] = new
        masks = {}
        if step.masked_draws:
            words = len(step.draw_masks) // len(step.masked_draws)
            parts = (step.draw_masks[words * n :] for n in range(len(step.masked_draws)))
            masks = dict(zip(step.masked_draws, parts, strict=True))
        result = worker_pb2.StepResult(step_id=step.step_id)
        for row, slot in enumerate(step.slots):
            new, index = self._slots[slot], row - step.num_decodes
            end = step.positions[row] + (1 if index < 0 else step.num_tokens[index])
            if index >= 0 and new.prompt_logprobs:
                for _ in range(step.positions[row], min(end, new.num_prompt_tokens - 1)):
                    _report(new, result.prompt_logprobs, result.prompt_top_token_ids,
                            result.prompt_top_logprobs)  # fmt: skip
            if index < 0 or step.draws[index]:
                result.token_ids.append(_draw(new, end, masks.get(len(result.token_ids))))
                if new.num_logprobs:
                    _report(new, result.logprobs, result.top_token_ids, result.top_logprobs)
        return result


def _report(new: worker_pb2.NewSequence, own: object, top_ids: object, top: object) -> None:
    own.append(-1.0)  # type: ignore[attr-defined]
    count = new.num_logprobs - 1
    top_ids.extend(range(count))  # type: ignore[attr-defined]
    top.extend([-0.5] * count)  # type: ignore[attr-defined]


def _draw(new: worker_pb2.NewSequence, position: int, mask: bytes | None) -> int:
    """The first token, from a place that depends on seed and position, that may be drawn."""
    start = (new.seed * 31 + position * 7 + new.sample_index) % VOCAB_SIZE
    start = start if start % 11 else EOS
    banned = set(new.banned_token_ids)
    if position < new.suppress_until:
        banned |= set(new.suppressed_token_ids)
    allowed = set(new.allowed_token_ids)
    for token in itertools.chain(range(start, VOCAB_SIZE), range(start)):
        if token in banned or (allowed and token not in allowed):
            continue
        if mask is None or mask[token >> 3] >> (token & 7) & 1:
            return token
    return -1


class LoopRank(RankChannel):
    """A rank without a channel: what is written is answered at once.

    Args:
        alter: makes the bytes of an answer; None: as they are.
    """

    def __init__(self, alter: Alter | None = None) -> None:
        self.number, self.address = 0, "loop"
        self.results = asyncio.Queue()
        self._model, self._alter = Model(), alter
        self._answers: asyncio.Queue[bytes] = asyncio.Queue()

    async def say_goodbye(self, *, end_rank: bool) -> None:
        """There is no stream to end."""

    async def close(self) -> None:
        """There is no channel to close."""

    async def write(self, message: bytes) -> None:
        result = self._model.answer(worker_pb2.ExecuteRequest.FromString(message).step)
        if self._alter is None:
            self._answers.put_nowait(worker_pb2.ExecuteResponse(result=result).SerializeToString())
        else:
            self._answers.put_nowait(self._alter(result))

    async def _read(self) -> worker_pb2.ExecuteResponse:
        data = await self._answers.get()
        try:
            return worker_pb2.ExecuteResponse.FromString(data)
        except Exception as error:
            raise GroupLost(f"{self} sent what is no ExecuteResponse") from error


def altered(right: worker_pb2.ExecuteResponse, data: Bytes) -> bytes:
    """An answer with something wrong, or nothing."""
    result = right.result
    match data.below(6):
        case 0:
            return data.rest()
        case 1:
            text = bytearray(right.SerializeToString())
            for _ in range(1 + data.below(3)):
                text[data.below(65536) % len(text)] = data.byte()
            return bytes(text)
        case 2:
            fill(result, data)
        case 3:
            result.token_ids.extend([data.integer(-(2**31), 2**31 - 1)] * data.below(3))
        case 4:
            if result.token_ids:
                place = data.below(len(result.token_ids))
                wrong = data.pick((VOCAB_SIZE, 2**31 - 1, -2, -(2**31)))
                result.token_ids[place] = wrong
        case _:
            name = data.pick([field.name for field in result.DESCRIPTOR.fields])
            column = getattr(result, name)
            if isinstance(column, int | float):
                result.ClearField(name)
            else:
                del column[data.below(4) :]
    # It says that logits were not finite, which ends a request as INTERNAL, and rightly.
    del result.token_ids[len(result.token_ids) if -1 not in result.token_ids else 0 :]
    return right.SerializeToString()


def loop_group(alter: Alter | None = None) -> WorkerGroup:
    """A group of one rank in this process."""
    return WorkerGroup([LoopRank(alter)], INFO, AsyncExitStack())


INFO = describe(
    vocab_size=VOCAB_SIZE, max_model_len=21, max_batch_size=4, max_num_batched_tokens=24,
    block_size=4, num_blocks=28,
)  # fmt: skip
LIMITS = SchedulerLimits(
    max_batch_size=INFO.max_batch_size,
    max_num_batched_tokens=INFO.max_num_batched_tokens,
    max_model_len=INFO.max_model_len,
    block_size=INFO.block_size,
    num_blocks=INFO.num_blocks,
    max_queued_requests=12,
    max_queued_tokens=1 << 20,
)


class Stack:
    """A service that takes requests; ``start`` makes one inside a running loop."""

    def __init__(self, tokenizer: Tokenizer | None) -> None:
        self.group = loop_group()
        self.scheduler = Scheduler(LIMITS)
        self.engine = Engine(self.scheduler, self.group)
        self.service = Service(model=MODEL, version="1")
        self.service.open(
            backend(self.engine, tokenizer=tokenizer, info=group_info(INFO), max_queued_requests=12)
        )
        self.running = asyncio.create_task(self.engine.run())

    async def go_on(self, alter: Alter | None = None) -> None:
        """Run on another group, as after a loss."""
        self.running.cancel()
        await asyncio.gather(self.running, return_exceptions=True)
        await self.group.close()
        self.group = loop_group(alter)
        self.engine.resume_on(self.group, LIMITS)
        self.running = asyncio.create_task(self.engine.run())

    async def quiet(self) -> str:
        """What is left behind when nobody asks for anything; empty when nothing is."""
        for _ in range(64):
            await asyncio.sleep(0)
            left = self._left()
            if not left:
                return ""
        await asyncio.sleep(0.05)
        return self._left()

    def _left(self) -> str:
        load = self.engine.load()
        found = {
            "live requests": len(self.service._live),
            "open sequences": len(self.scheduler._open),
            "running": load.running_requests,
            "queued": load.queued_requests,
            "queued prompt tokens": load.queued_prompt_tokens,
            "KV in use": load.kv_cache_usage,
            "steps in flight": len(self.engine._in_flight),
        }
        if self.running.done():
            found["engine that ended"] = repr(self.running.exception())
        return ", ".join(f"{what}: {value}" for what, value in found.items() if value)

    async def close(self) -> None:
        """End the engine."""
        self.running.cancel()
        await asyncio.gather(self.running, return_exceptions=True)
        await self.group.close()


class Overheard(logging.Handler):
    """Keeps what is logged as a failure, and what a loop was left with."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.errors: deque[BaseException | str] = deque(maxlen=8)

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        self.errors.append(error if error is not None else record.getMessage())

    def from_loop(self, loop: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
        """A loop's exception handler."""
        error = context.get("exception")
        message = str(context["message"])
        self.errors.append(error if isinstance(error, BaseException) else message)
