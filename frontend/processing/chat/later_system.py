"""System turns behind the first, for templates that refuse them or leave them out.

Agents add to their instructions in the course of a conversation. Moved to its beginning these would
change the prompt's prefix, which is cached; so they stay where they are, as the user's, in a tag by
which models know them.
"""

from __future__ import annotations

import dataclasses

from frontend.processing.chat.conversation import Conversation, Turn


def has_later_system(conversation: Conversation) -> bool:
    """Whether a system turn stands behind another turn."""
    return any(turn["role"] == "system" for turn in conversation.turns[1:])


def with_reminders(conversation: Conversation) -> Conversation:
    """The same with one system turn at most, which is the first.

    Those that begin the conversation are joined; those behind it are part of a user's turn.
    """
    turns: list[Turn] = []
    holds_reminder = False  # the last turn does
    for turn in conversation.turns:
        is_later = turn["role"] == "system" and any(each["role"] != "system" for each in turns)
        new: Turn = turn
        if is_later:
            new = {"role": "user", "content": _reminder(turn["content"])}
        joins = turn["role"] == "system" or holds_reminder
        if turns and joins and turns[-1]["role"] == new["role"]:
            turns[-1] = {**turns[-1], "content": f"{turns[-1]['content']}\n{new['content']}"}
        else:
            turns.append(new)
            holds_reminder = False
        holds_reminder = holds_reminder or is_later
    return dataclasses.replace(conversation, turns=turns)


def _reminder(text: str) -> str:
    return f"<system-reminder>\n{text}\n</system-reminder>"
