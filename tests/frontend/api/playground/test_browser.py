"""The page in a real browser, before a real HTTP server with a service that is played.

No test leaves an error in the console, breaks the page's policy, or asks another host for anything.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from frontend.api.playground.page import playground_routes
from frontend.service.service import Service
from switchyard.v1 import inference_pb2 as pb
from tests.frontend.api.playground.browser import EXECUTABLE, NAMES, Browser, Page
from tests.frontend.fakes import MODEL, FakeEngine, answer_text, backend, group
from tests.frontend.http_fakes import Http, ScriptedService, only_key, running_http, says
from tests.waiting import until

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.slow,
    pytest.mark.skipif(EXECUTABLE is None, reason=f"no browser: none of {', '.join(NAMES)}"),
]

READY = "document.querySelector('#state').dataset.state === 'ready'"
OVER = "document.querySelector('#stop').hidden && document.querySelector('.assistant .about')"
LAST = "[...document.querySelectorAll('.assistant')].at(-1)"
EVIL = "<img src=x onerror=alert(1)><script>alert(2)</script>"


class Experts:
    """Two layers of eight experts; each look finds the same tokens more."""

    def __init__(self) -> None:
        self.looks = 0

    async def get(self) -> pb.GetExpertLoadResponse:
        self.looks += 1
        answer = pb.GetExpertLoadResponse()
        for layer in (1, 3):
            tokens = [self.looks * layer * expert for expert in range(8)]
            answer.layers.add(layer=layer, tokens=tokens, imbalance=1.25)
        return answer


class Scripted(ScriptedService):
    """Says what is written down, and describes itself as a real one."""

    def __init__(self, *deltas: pb.Delta) -> None:
        super().__init__(deltas)
        self._real = Service(model=MODEL, version="1.2.3")
        self._real.open(backend(FakeEngine()))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


@contextlib.asynccontextmanager
async def opened(
    browser: Browser, service: Any = None, refused: bool = False, **options: Any
) -> AsyncIterator[tuple[Page, Http]]:
    """The page of a server, and afterwards a look at what it said and asked for.

    Args:
        refused: calls without a valid key are part of the test, and the console tells of them.
    """
    async with running_http(service, pages=playground_routes(), **options) as http:
        origin = f"http://127.0.0.1:{http.port}/"
        page = await browser.open(origin)
        yield page, http
        complaints = [each for each in page.complaints if not (refused and " 401 " in each)]
        assert not complaints
        assert f"{origin}playground/main.js" in page.urls
        assert [url for url in page.urls if not url.startswith(origin)] == []
        await page.send("Page.navigate", url="about:blank")  # before there is no server


async def set_to(page: Page, name: str, value: str) -> None:
    """Give a field of the settings a value."""
    field = f"document.querySelector('#settings-form').elements.{name}"
    change = "dispatchEvent(new Event('input', {bubbles: true}))"
    await page.run(f"({field}.value = {json.dumps(value)}, {field}.{change})")
    await page.run(f"{field}.dispatchEvent(new Event('change', {{bubbles: true}}))")


async def say(page: Page, text: str) -> None:
    await page.click("#prompt")
    await page.write(text)
    await page.press("Enter")


async def test_an_answer_shows_while_it_comes(browser: Browser) -> None:
    async with opened(browser) as (page, http):
        await page.until(READY)
        assert await page.run("document.querySelector('#model-name').textContent") == MODEL
        http.engine.go.clear()
        http.engine.hold_at = 3
        await set_to(page, "max_tokens", "9")
        await say(page, "abc")
        partial = json.dumps(answer_text("abc", 3))
        await page.until(f"{LAST}?.querySelector('.prose').textContent === {partial}")
        assert await page.run("document.querySelector('#turns').ariaBusy") == "true"
        http.engine.go.set()
        await page.until(OVER)
        whole = await page.run(f"{LAST}.querySelector('.prose').textContent")
        assert whole == answer_text("abc", 9)
        about = await page.run(f"{LAST}.querySelector('.about').textContent")
        assert about.startswith("length · 9 tokens · ")
        assert await page.run("document.querySelector('#turns').ariaBusy") == "false"


@pytest.mark.parametrize("way", ["button", "escape"])
async def test_stop_ends_the_request_and_the_conversation_goes_on(
    browser: Browser, way: str
) -> None:
    async with opened(browser) as (page, http):
        http.engine.go.clear()
        http.engine.hold_at = 2
        await say(page, "abc")
        await page.until(f"{LAST}?.querySelector('.prose').textContent.length === 2")
        await (page.click("#stop") if way == "button" else page.press("Escape"))
        await until(lambda: http.engine.aborted)
        await page.until(f"{LAST}.querySelector('.about').textContent.startsWith('stopped · ')")
        http.engine.go.set()
        await say(page, "x")
        await page.until("document.querySelectorAll('.assistant').length === 2")
        await page.until(OVER)
        assert await page.run("document.querySelectorAll('.error:not([hidden])').length") == 0
        prompt = bytes([*http.engine.requests.values()][-1].prompt_ids).decode()
        assert prompt == f"u:abca:{answer_text('abc', 2)}u:x"


async def test_a_key_is_asked_for_and_kept_in_the_tab_alone(browser: Browser) -> None:
    async with opened(browser, refused=True, authenticate=only_key) as (page, _):
        await page.until("document.querySelector('#key-dialog').open")
        assert await page.run("document.querySelector('#key').type") == "password"
        await page.click("#key")
        await page.write("wrong")
        await page.press("Enter")
        await page.until("document.querySelector('#key-error').textContent.includes('not know')")
        assert not await page.run(READY)
        await page.click("#key")
        await page.write("key")
        await page.press("Enter")
        await page.until(READY)
        assert not await page.run("document.querySelector('#key-dialog').open")
        assert await page.run("Object.values(sessionStorage)") == ["key"]
        assert await page.run("localStorage.length") == 0
        assert (await page.send("Network.getCookies"))["cookies"] == []
        await page.click("#forget-key")
        await page.until("document.querySelector('#key-dialog')?.open")
        assert await page.run("sessionStorage.length") == 0


async def test_load_and_experts_are_drawn(browser: Browser) -> None:
    service = Service(model=MODEL, version="1.2.3")
    facts = group(bytes_per_second=1e12)
    service.open(backend(FakeEngine(), experts=Experts(), info=facts))
    async with opened(browser, service) as (page, _):
        rows = "[...document.querySelectorAll('.meter p')].map((row) => row.innerText)"
        await page.until(f"{rows}.length && {rows}[0].includes('1 of 4')")
        told = " | ".join(" ".join(row.split()) for row in await page.run(rows))
        assert "KV cache 50 % of 256 tokens" in told
        assert "Hardware floor, decode 75 %" in told
        assert await page.run("document.querySelector('#speed').textContent") == "3.0"
        canvas = "document.querySelector('#expert-map')"
        await page.until(f"{canvas}.dataset.layers === '2'")
        assert await page.run(f"{canvas}.dataset.experts") == "8"
        colours = await page.run(
            f"""(canvas => {{
              const row = canvas.getContext('2d').getImageData(0, 5, canvas.width, 1).data;
              return [0, 1, 2, 3, 4, 5, 6, 7].map((column) => {{
                const at = 4 * Math.round((column + 0.4) * canvas.width / 8);
                return row.slice(at, at + 4).join();
              }});
            }})({canvas})"""
        )
        legend = await page.run(
            "[...document.querySelectorAll('.legend i')].map((field) =>"
            " [...getComputedStyle(field).backgroundColor.match(/\\d+/g), 255].join())"
        )
        assert len(set(legend)) == 7
        # 0, 0.29, 0.57, 0.86, 1.14, 1.43, 1.71 and 2 times the mean of the layer
        assert colours == [legend[level] for level in (0, 1, 2, 3, 3, 4, 5, 6)]
        await page.run(f"{canvas}.focus()")
        await page.press("ArrowDown")
        await page.press("ArrowLeft")
        cell = await page.run("document.querySelector('#expert-cell').textContent")
        assert cell == "Layer 3, expert 7: 21 tokens, 2.00 × the mean"


async def test_a_call_is_shown_and_its_result_sent_back(browser: Browser) -> None:
    call = '<tool_call>{"name": "get_weather", "arguments": {"city": "Oslo"}}</tool_call>'
    service = Scripted(says(call))
    async with opened(browser, service) as (page, _):
        await page.click("#example-tools")
        await say(page, "abc")
        await page.until(OVER)
        assert await page.run("document.querySelector('.call strong').textContent") == "get_weather"
        shown = await page.run("document.querySelector('.call pre').textContent")
        assert json.loads(shown) == {"city": "Oslo"}
        await page.click(".call textarea")
        await page.write("rain")
        await page.click(".calls > button")
        await until(lambda: len(service.requests) == 2)
        roles = [turn.role for turn in service.requests[1].messages]
        assert roles == [pb.ROLE_USER, pb.ROLE_ASSISTANT, pb.ROLE_TOOL]
        assert service.requests[1].messages[2].content == "rain"
        await page.until(OVER)


async def test_thoughts_are_folded(browser: Browser) -> None:
    async with opened(browser) as (page, _):
        deltas = [
            {"choices": [{"index": 0, "delta": delta}]}
            for delta in ({"reasoning_content": EVIL}, {"content": "42"})
        ]
        await page.run(
            f"""import('/playground/turn.js').then(({{ AnswerTurn }}) => {{
              const turn = new AnswerTurn({{}});
              document.querySelector('#turns').append(turn.element);
              {json.dumps(deltas)}.forEach((chunk) => turn.take(chunk));
              turn.end();
              window.said = turn.message();
            }})"""
        )
        assert await page.run(f"{LAST}.querySelector('details').open") is False
        assert await page.run(f"{LAST}.querySelector('details .said').textContent") == EVIL
        assert await page.run(f"{LAST}.querySelector('.prose').textContent") == "42"
        said = {"role": "assistant", "content": "42", "reasoning_content": EVIL}
        assert await page.run("window.said") == said


async def test_what_the_model_says_is_never_html(browser: Browser) -> None:
    text = f"# {EVIL}\n**{EVIL}**\n\n- {EVIL}\n\n```html\n{EVIL}\n```\n[a](javascript:alert(3))"
    async with opened(browser, Scripted(says(text))) as (page, _):
        await say(page, EVIL)
        await page.until(OVER)
        made = "document.querySelectorAll('#turns :is(img, script, a, iframe)').length"
        assert await page.run(made) == 0
        assert (await page.run("document.querySelector('#turns').textContent")).count(EVIL) == 5
        with pytest.raises(AssertionError, match="TrustedHTML"):
            await page.run("document.querySelector('#turns').innerHTML = '<b></b>'")
        page.complaints.clear()  # the one that this has just made


async def test_a_little_markdown_becomes_elements(browser: Browser) -> None:
    text = (
        "## Title\nOne *two* **three** `4 * 5 * 6`\n1. a\n2. b\n\n```py\nx = '**'\n```\n2 * 3 * 4"
    )
    async with opened(browser, Scripted(says(text))) as (page, _):
        await say(page, "abc")
        await page.until(OVER)
        made = "[...document.querySelectorAll('.prose *')]"
        assert await page.run(f"{made}.map((e) => e.localName + ':' + e.innerText)") == [
            "h4:Title", "p:One two three 4 * 5 * 6", "em:two", "strong:three", "code:4 * 5 * 6",
            "ol:a\nb", "li:a", "li:b", "pre:x = '**'", "code:x = '**'", "p:2 * 3 * 4",
        ]  # fmt: skip


async def test_tokens_have_colours_and_alternatives(browser: Browser) -> None:
    deltas = [
        says("a", pb.FINISH_REASON_UNSPECIFIED, logprobs=[-0.01]),
        pb.Delta(token_ids=[0xC3], logprobs=[-0.5]),
        says("é", pb.FINISH_REASON_UNSPECIFIED, logprobs=[-3.0]),
        says("b", logprobs=[-3.0]),
    ]
    deltas[2].ClearField("token_ids")
    deltas[2].token_ids.append(0xA9)
    for delta in deltas:
        delta.top_logprobs.add(token_ids=[ord("z")], logprobs=[-0.125])
    async with opened(browser, Scripted(*deltas)) as (page, _):
        await page.click("[name=logprobs]")
        await say(page, "abc")
        await page.until(OVER)
        spans = f"[...{LAST}.querySelectorAll('.tokens span')]"
        shown = await page.run(f"{spans}.map((e) => [e.textContent, e.className])")
        assert shown == [["a", "likely-0"], ["é", "likely-4"], ["b", "likely-4"]]
        box = f"{spans}[2].getBoundingClientRect()"
        await page.point(*await page.run(f"[{box}.x + 2, {box}.y + 5]"))
        card = "document.querySelector('#token-card')"
        rows = f"[...{card}.children].map((row) => row.innerText.split(/\\s+/).join(' '))"
        await page.until(f"!{card}.hidden")
        assert await page.run(rows) == ["b 5.0 %", "z 88.2 %"]
        await page.point(1, 1)
        await page.until(f"{card}.hidden")
        await page.run("document.querySelector('.tokens:not([hidden])').focus()")
        await page.press("ArrowRight")
        await page.press("ArrowRight")
        assert await page.run(rows) == ["part 1 of 2 60.7 %", "part 2 of 2 5.0 %"]


async def test_settings_are_sent_and_bad_ones_are_named(browser: Browser) -> None:
    service = Scripted(says("{}"))
    async with opened(browser, service) as (page, _):
        for name, value in (
            ("system", "Be brief."), ("temperature", "0.5"), ("stop", "a\nb"),
            ("format", "json_schema"), ("schema", "{"),
        ):  # fmt: skip
            await set_to(page, name, value)
        await say(page, "abc")
        await page.until("document.querySelector('#composer-error').innerText.includes('schema')")
        assert not service.requests
        await set_to(page, "schema", '{"type": "object"}')
        await page.press("Enter")
        await page.until(OVER)
        [chat] = service.requests
        assert [turn.content for turn in chat.messages] == ["Be brief.", "abc"]
        assert chat.request.sampling.temperature == 0.5
        assert list(chat.request.stop_conditions.stop) == ["a", "b"]
        assert json.loads(chat.request.constraint.json_schema) == {"type": "object"}


async def test_an_error_is_told(browser: Browser) -> None:
    async with opened(browser) as (page, http):
        await page.until(READY)
        http.engine.refuse = ZeroDivisionError("secret")
        await say(page, "abc")
        await page.until(f"{LAST}?.querySelector('.error')?.textContent.includes('internal')")
        page.complaints.clear()  # the console tells of the status


async def test_a_phones_width_is_enough(browser: Browser) -> None:
    async with opened(browser) as (page, _):
        await page.size(360, 700)
        await page.until("document.querySelector('#server').hidden")
        for button in ("settings", "server"):
            await page.click(f"[data-panel={button}]")
            await page.until(f"!document.querySelector('#{button}').hidden")
            assert await page.run("document.documentElement.scrollWidth") == 360
            box = f"document.querySelector('#{button}').getBoundingClientRect()"
            assert await page.run(f"{box}.width") == 360
        assert await page.run("document.querySelector('#settings').hidden")
