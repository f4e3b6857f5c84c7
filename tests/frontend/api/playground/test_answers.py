"""What a model says, in a real browser: thoughts, Markdown, tokens, and that none of it is HTML."""

from __future__ import annotations

import pytest

from switchyard.v1 import inference_pb2 as pb
from tests.frontend.api.playground.browser import Browser
from tests.frontend.api.playground.shown import IN_BROWSER, LAST, OVER, Scripted, opened, say
from tests.frontend.http_fakes import says

pytestmark = IN_BROWSER

EVIL = "<img src=x onerror=alert(1)><script>alert(2)</script>"


async def test_thoughts_are_folded(browser: Browser) -> None:
    deltas = [
        pb.Delta(reasoning=EVIL, token_ids=EVIL.encode(), logprobs=[-1.0] * len(EVIL)),
        says("42", logprobs=[0.0, 0.0]),
    ]
    service = Scripted(*deltas)
    async with opened(browser, service) as (page, _):
        for colours in (False, True):
            if colours:
                await page.click("[name=logprobs]")
            await say(page, "abc")
            await page.until(f"{LAST}?.querySelector('.about').textContent.startsWith('stop')")
            thoughts = f"{LAST}.querySelector('details')"
            assert await page.run(f"{thoughts}.open") is False
            text = "[...{}.children].filter((e) => !e.hidden).map((e) => e.textContent)"
            assert await page.run(text.format(thoughts)) == ["Thoughts", EVIL]
            answer = f"{LAST}.querySelector('.{'tokens:not(details *)' if colours else 'prose'}')"
            assert await page.run(f"{answer}.textContent") == "42"
            await page.run(f"{LAST}.remove()")
    [_, asked] = service.requests
    assert [turn.content for turn in asked.messages] == ["abc", "42", "abc"]
    assert asked.messages[1].reasoning == EVIL


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
