"""System turns behind the first, for templates that refuse them or leave them out.

Agents add to their instructions in the course of a conversation. Moved to its beginning these would
change the prompt's prefix, which is cached; so they stay where they are, as the user's, in a tag by
which models know them.
"""

from __future__ import annotations

import dataclasses

from frontend.processing.chat.conversation import Conversation, Turn


def with_reminders(conversation: Conversation) -> Conversation:
    """The same with one system turn at most, which is the first.

    Those that begin the conversation are joined; those behind it are part of a user's turn.
    """
    gathered: list[tuple[Turn, list[str]]] = []  # each turn with its contents
    is_begun = holds_reminder = False  # a turn that is no system's came; the last turn has one
    for turn in conversation.turns:
        role, content = turn["role"], turn["content"]
        is_later = role == "system" and is_begun
        if is_later:
            role, content = "user", _reminder(content)
        joins = holds_reminder or turn["role"] == "system"
        if gathered and joins and gathered[-1][0]["role"] == role:
            gathered[-1][1].append(content)
        else:
            gathered.append(({**turn, "role": role}, [content]))
            holds_reminder = False
        holds_reminder = holds_reminder or is_later
        is_begun = is_begun or role != "system"
    turns = [{**turn, "content": "\n".join(contents)} for turn, contents in gathered]
    return dataclasses.replace(conversation, turns=turns)


def _reminder(text: str) -> str:
    return f"<system-reminder>\n{text}\n</system-reminder>"
