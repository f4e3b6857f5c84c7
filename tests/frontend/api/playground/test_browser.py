"""The page in a real browser, before a real HTTP server with a service that is played.

No test leaves an error in the console, breaks the page's policy, or asks another host for anything.
"""

from __future__ import annotations

import json

import pytest

from frontend.service.service import Service
from switchyard.v1 import inference_pb2 as pb
from tests.frontend.api.playground.browser import Browser
from tests.frontend.api.playground.shown import (
    IN_BROWSER,
    LAST,
    OVER,
    READY,
    Scripted,
    opened,
    say,
    set_to,
)
from tests.frontend.fakes import MODEL, FakeEngine, answer_text, backend, group
from tests.frontend.http_fakes import only_key, says
from tests.waiting import until

pytestmark = IN_BROWSER


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


async def test_an_error_is_told_and_the_answer_tried_again(browser: Browser) -> None:
    async with opened(browser) as (page, http):
        await page.until(READY)
        http.engine.refuse = ZeroDivisionError("secret")
        await say(page, "abc")
        await page.until(f"{LAST}?.querySelector('.error')?.textContent.includes('internal')")
        page.complaints.clear()  # the console tells of the status
        http.engine.refuse = None
        await page.click(".assistant button:not(.calls button)")
        await page.until(f"{LAST}?.querySelector('.about').textContent.startsWith('length')")
        assert await page.run("document.querySelectorAll('.turn').length") == 2
        [request] = http.engine.requests.values()
        assert bytes(request.prompt_ids).decode() == "u:abc"


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
