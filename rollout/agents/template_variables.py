"""What an agent's settings mean to a chat template that prompts are rendered with here."""

from __future__ import annotations

from rollout.agents.model_settings import ModelSettings
from rollout.errors import UserError, nearest
from rollout.template import ChatTemplate
from rollout.trajectory import Json


def template_variables(settings: ModelSettings, template: ChatTemplate, key: str) -> dict[str, Json]:
    """The variables of the template that the settings of section `key` give values to.

    How much to reason is `reasoning_effort` in some templates and `enable_thinking` in others: whichever of them is
    read gets it. Raises UserError for a variable that the template does not read, so for an effort that it has no name
    for.
    """
    known = template.variables
    read = {name: value for name, value in settings.template.items() if name in known}
    wrong = sorted(settings.template.keys() - read.keys() - settings.implied)
    if not wrong and settings.implied and not settings.implied & read.keys():
        wrong = ["reasoning_effort"]
    if wrong:
        close = nearest(wrong[0], known) if known else "; it has none"
        raise UserError(f"{key}: the model's chat template has no variable '{wrong[0]}'{close}")
    return read
