"""Whether an endpoint is there and lets us in, asked once before a job starts.

Without it a wrong address or key would fail every episode of the job, each after all its attempts.
"""

from __future__ import annotations

import httpx

from rollout.config import OpenAIConfig, secret
from rollout.errors import UserError, describe
from rollout.openai_policy import OpenAIPolicy

SECONDS = 10.0
"""How long the endpoint may take to answer: it is asked for a list, not for a completion."""


def check_endpoint(config: OpenAIConfig) -> None:
    """Raises UserError when nothing answers at base_url, or what answers refuses the key or wants one."""
    OpenAIPolicy(config)  # it looks at the URL and the key
    key = secret(config.api_key_env)
    base = config.base_url.rstrip("/")
    try:
        answer = httpx.get(f"{base}/models", headers={"Authorization": f"Bearer {key}"} if key else {}, timeout=SECONDS)
    except httpx.TimeoutException:
        raise UserError(f"model.base_url: {base}: no answer within {SECONDS:g} s") from None
    except (httpx.HTTPError, OSError) as error:
        raise UserError(f"model.base_url: {base}: nothing answers there: {describe(error)}") from None
    if answer.status_code in (401, 403):  # any other refusal may be of the list alone
        what = f"refuses the key in {config.api_key_env}" if key else "wants a key: name its variable"
        raise UserError(f"model.api_key_env: {base} {what} ({answer.status_code})")
